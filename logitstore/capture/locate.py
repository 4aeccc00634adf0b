"""Search for the ids, texts and valid lengths of the batch whose logits a module computes.

Each is looked up by an expression: the user's, or one that is found in the first batch and then kept, so that
all batches are read in the same way.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import LengthError, UsageError
from .batch_ids import find_by_index, find_ids, find_texts
from .expression import Expression
from .inject.batches import YieldedBatch, YieldedBatches, parts
from .inject.finder import ModuleFinder
from .inject.inputs import ModelInputs, lengths_in_batch
from .inject.lengths import (
    FoundLengths,
    candidates,
    choose,
    possible_lengths,
    possible_lengths_in_variables,
    proportional,
    variables,
)
from .inject.program import run_compiled_models_eagerly, variable
from .job import CaptureOptions

BATCH_NAMES = {"batch", "index", "dataset"}  # names in expressions whose values come from the loader
KEPT_TENSORS = 512  # of the modules' inputs and outputs of a batch, until it is known where the lengths are


class BatchLocator:
    """Answers about the batch whose logits a module computes.

    Args:
        options: settings of the capture; ``ids`` and ``lengths`` may be empty.
        batches: batches that the program's loaders yielded.
        finder: finder of modules, whose outputs and inputs expressions may look at.
        inputs: inputs of the model, which prove the order of the batch's utterances.
        note: function that tells the user a finding, by name and text.

    Attributes:
        ids_expression: expression for the ids; None until it is known.
        lengths_expression: expression for the valid lengths; None until it is known.
        batch: batch of a loader that the running module was given; None where no loader yielded it.
        order: position in that batch of each row of the model's input; None where the rows are not recognised.
        compiled: whether the program compiles models. Variables of compiled functions do not exist.
    """

    def __init__(
        self,
        options: CaptureOptions,
        batches: YieldedBatches,
        finder: ModuleFinder,
        inputs: ModelInputs,
        note: Callable[[str, str], None],
    ) -> None:
        self.ids_expression = Expression(options.ids, "--ids") if options.ids else None
        self.lengths_expression = Expression(options.lengths, "--lengths") if options.lengths else None
        self.batches, self._finder, self._model_inputs, self._note = batches, finder, inputs, note
        self.batch: YieldedBatch | None = None
        self.compiled = False
        self.order: tuple[int, ...] | None = None
        self._homes: dict[str, tuple[str, str]] = {}
        # module, "modules" or "inputs", rest of the expression, tensor that may hold lengths
        self._tensors: list[tuple[weakref.ref[nn.Module], str, str, torch.Tensor]] = []
        self._hook: Any = None
        if self.lengths_expression is None:
            register = nn.modules.module.register_module_forward_hook
            self._hook = register(self._keep_tensors, with_kwargs=True)

    def loader_yields(self) -> None:
        """Drop what was kept of the batch before, unless loaders fetch ahead of the model."""
        if not self.batches.ahead:
            self.forget()

    def forget(self) -> None:
        """Drop what was kept of a batch."""
        self._finder.forget()
        self._model_inputs.forget()
        self._tensors.clear()

    def stop(self) -> None:
        """Remove the hook on all modules."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._tensors.clear()

    def _keep_tensors(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Keep the tensors in a module's inputs and outputs that may hold the lengths."""
        if torch.compiler.is_compiling():
            return
        for where, value in (("modules", output), ("inputs", args), ("inputs", kwargs)):
            for rest, tensor in possible_lengths(value, ""):
                self._tensors.append((weakref.ref(module), where, rest, tensor))
        del self._tensors[:-KEPT_TENSORS]

    @property
    def ids_from_loader(self) -> bool:
        """True where the ids come from what a loader yielded, not from the program's variables alone."""
        return self.ids_expression is None or bool(self.ids_expression.names & BATCH_NAMES)

    def batch_key(self, ids: Sequence[str]) -> Hashable:
        """Return a key that tells the batch of these ids from all others."""
        return self.batch.number if self.ids_from_loader and self.batch is not None else tuple(ids)

    def ids(self, logits: torch.Tensor, where: str, count: int | None) -> list[str]:
        """Return the utterance ids of a batch.

        Args:
            logits: (B, …) output of the running module.
            where: location for messages.
            count: B; None where the output has only some of the batch's utterances, or is packed.

        Raises ``UsageError`` where no ids are found, or where the batch is not certain.
        """
        try:
            self.batch = self.batches.claim(
                where, lambda batch: self._model_inputs.order_of(batch) is not None
            )
        except UsageError:
            if self.ids_from_loader:
                raise
            self.batch = None
        if self.ids_from_loader and self.batch is None:
            raise UsageError(
                "no DataLoader of this process has yielded a batch, so the utterances of these logits are "
                "not known",
                where=where,
                do="Say where the ids are: --ids EXPR, e.g. a variable of your program at that moment.",
            )
        if self.ids_expression is not None:
            value = self.ids_expression.value(lambda name: self.lookup(name, logits))
            ids = [str(i) for i in ([value] if isinstance(value, str | int) else list(value))]
            return self._in_model_order(ids, where)
        assert self.batch is not None
        found = find_ids(self.batch.batch, count)
        found += find_by_index(self.batch.index, self.batch.dataset, count)
        if not found:
            raise UsageError(
                f"no ids of {logits.shape[0]} utterances in the batch ({_outline(self.batch.batch)})",
                where=where,
                do="Let the dataset return them, or say where they are: --ids EXPR (it may look at `batch`, "
                "at `index`, what the sampler asked `dataset` for, and at variables); or the axes: --layout.",
            )
        self.ids_expression = Expression(found[0].expression, "ids")  # the same place in every batch
        self._note("ids", found[0].expression)
        return self._in_model_order(list(found[0].values), where)

    def _in_model_order(self, ids: list[str], where: str) -> list[str]:
        """Return the ids of a batch in the order of the model's input, where its rows are recognised.

        Raises ``UsageError`` where ids that are a variable of the program are in the loader's order and the
        model's input is not.
        """
        self.order = self._model_inputs.order_of(self.batch) if self.batch is not None else None
        if self.order is None or len(self.order) != len(ids):
            self.order = None
            return ids
        if not self.reordered:
            return ids
        if self.ids_from_loader:
            self._note("order", "the model's input is the loader's batch in another order; the ids follow it")
            return [ids[i] for i in self.order]
        assert self.batch is not None
        if any(list(found.values) == ids for found in find_ids(self.batch.batch, len(ids))):
            raise UsageError(
                "the ids are in the loader's order, but the model's input is the batch in another order",
                where=where,
                why="Each row would be stored under another utterance's id.",
                do="Give the ids in the order of the model's input, or let them be found in the batch.",
            )
        return ids

    @property
    def reordered(self) -> bool:
        """True where the rows of the model's input are the loader's batch in another order."""
        return self.order is not None and list(self.order) != sorted(self.order)

    def require_model_order(self, expression: Expression, option: str) -> None:
        """Raise ``UsageError`` for an expression that gives values in the loader's order, where rows are reordered."""
        if self.reordered and expression.names & BATCH_NAMES:
            raise UsageError(
                f"{expression.text!r} is in the loader's order, but the model's input is in another one",
                where=option,
                why="Values of one utterance would be used for another.",
                do="Give a variable of the program that is in the order of the model's input.",
            )

    def check_batch(self, ids: Sequence[str], lengths: Sequence[int], max_frames: int, where: str) -> None:
        """Check that valid lengths do not contradict the batch that the ids are taken from.

        Only where the rows of the model's input are not recognised, since the program computes features itself.
        One utterance, and batches of equal lengths, prove nothing.

        Args:
            ids: utterance ids.
            lengths: valid frames of each.
            max_frames: T.
            where: location for messages.

        Raises:
            LengthError: the lengths are those of the batch in another order.
            UsageError: the loader fetches ahead, and the lengths fit another batch as well or better.
        """
        if self.order is not None or self.batch is None or not self.ids_from_loader or not max_frames:
            return
        self._model_inputs.not_recognised()
        count = len(ids)
        own = lengths_in_batch(self.batch, count, max_frames)
        fits = any(proportional(lengths, found, max_frames) for found in own)
        if self.batches.others and not self._only_fit(lengths, fits, max_frames):
            raise UsageError(
                "a loader fetches ahead, and which of its batches the model ran on is not certain",
                where=f"{where}, {ids[0]}",
                why="The program computes features itself, and the lengths of these logits fit several batches, or "
                "none. Rows would be stored under the ids of another batch.",
                do="Keep the ids of the batch in a variable beside its features, and name it: --ids EXPR.",
            )
        in_order = sorted(lengths)
        if own and not fits and any(proportional(in_order, sorted(found), max_frames) for found in own):
            raise LengthError(
                f"the valid lengths {list(lengths[:8])} are those of the loader's batch in another order",
                where=f"{where}, {ids[0]}",
                why="The program sorts the batch and computes features itself, so the rows cannot be recognised. "
                "They would be stored under other utterances' ids.",
                do="Name a variable that holds the ids in the order of the model's input: --ids EXPR.",
            )

    def _only_fit(self, lengths: Sequence[int], fits: bool, max_frames: int) -> bool:
        """Return whether lengths fit the claimed batch and no other that waits."""
        if not fits or len(lengths) == 1:
            return False
        return not any(
            proportional(lengths, found, max_frames)
            for other in self.batches.others
            for found in lengths_in_batch(other, len(lengths), max_frames)
        )

    def texts(self, count: int) -> tuple[str, ...] | None:
        """Return the reference texts of a batch of ``count`` utterances, or None where it has none."""
        found = find_texts(self.batch.batch, count) if self.batch is not None else None
        if found is None:
            return None
        return tuple(found.values[i] for i in self.order) if self.order is not None else found.values

    def lengths(self, logits: torch.Tensor, root: nn.Module) -> list[int]:
        """Return the valid frames of each utterance of a batch.

        Args:
            logits: tensor whose first axes are (B, T).
            root: the program's model.

        Raises ``LengthError`` where none or several are found, ``UsageError`` for a wrong expression.
        """
        if self.lengths_expression is None:
            found = self._find_lengths(logits, root)
            self.lengths_expression = Expression(found.expression, "lengths")
            self._note("lengths", found.expression)
            return list(found.values)
        self.require_model_order(self.lengths_expression, "--lengths")
        value = self.lengths_expression.value(lambda name: self.lookup(name, logits))
        if isinstance(value, torch.Tensor):
            value = value.reshape(-1).tolist()
        return [round(v) for v in (value if isinstance(value, list | tuple) else [value])]

    def _find_lengths(self, logits: torch.Tensor, root: nn.Module) -> FoundLengths:
        """Find the lengths in the first batch; a variable is preferred, because people can read it."""
        b, t = logits.shape[:2]
        names = {m: n for n, m in root.named_modules()}
        tensors = (
            (f'{where}["{names[module]}"]{rest}', tensor)
            for ref, where, rest, tensor in reversed(self._tensors)
            if (module := ref()) in names
        )
        of_modules = candidates(tensors, b, t)
        of_variables = candidates(possible_lengths_in_variables(), b, t)
        found = of_modules + of_variables if self.compiled else of_variables + of_modules
        chosen = choose(found, b, t, type(root).__name__, self._inputs())
        self.stop()
        run_compiled_models_eagerly(False)
        for path in Expression(chosen.expression, "lengths").modules:
            self._finder.keep(root, path)
        return chosen

    def _inputs(self) -> Iterator[torch.Tensor]:
        """Yield tensors that may be the model's input: those of the batch, and of variables."""
        held = list(parts(self.batch.batch, 3)) if self.batch is not None else []
        for value in (*held, *(v for _, v in variables())):
            if isinstance(value, torch.Tensor):
                yield value

    def lookup(self, name: str, logits: torch.Tensor) -> Any:
        """Return the value of a name in an expression; raise ``KeyError`` where it has none."""
        if name == "modules":
            return self._finder.outputs
        if name == "inputs":
            return self._finder.inputs
        if name == "output":
            return logits
        if name in ("B", "T"):
            return logits.shape["BT".index(name)]
        if name in BATCH_NAMES and self.batch is not None and getattr(self.batch, name) is not None:
            return getattr(self.batch, name)
        return variable(name, self._homes)


def _outline(batch: Any) -> str:
    """Return the keys and types of a batch, for messages."""
    if isinstance(batch, dict):
        return ", ".join(f"{k}: {type(v).__name__}" for k, v in list(batch.items())[:12])
    if isinstance(batch, list | tuple):
        return ", ".join(type(v).__name__ for v in batch[:12])
    return type(batch).__name__
