"""Search for the ids, texts and valid lengths of the batch whose logits a module computes.

Each is looked up by an expression: the user's, or one that is found in the first batch and then kept, so that
all batches are read in the same way.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ..errors import LengthError, UsageError
from .batch_ids import find_by_index, find_ids, find_texts, walk
from .expression import Expression
from .inject.batches import YieldedBatch, YieldedBatches, parts
from .inject.finder import ModuleFinder
from .inject.inputs import LENGTH_NAMES, ModelInputs, lengths_in_batch
from .inject.lengths import (
    FoundLengths,
    candidates,
    choose,
    possible_lengths,
    possible_lengths_in_variables,
    proportional,
    variables,
)
from .inject.program import INTEGERS, run_compiled_models_eagerly, variable
from .job import CaptureOptions

BATCH_NAMES = {"batch", "index", "dataset"}  # names in expressions whose values come from the loader
MOST_ROWS = 16  # before or after the frames of an utterance
KEPT_TENSORS = 512  # of the modules' inputs and outputs of a batch, until it is known where the lengths are

# module, "modules" or "inputs", rest of the expression, tensor that may hold lengths
_KeptTensor = tuple[weakref.ref[nn.Module], str, str, torch.Tensor]


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
        self._accumulate, self._assumed = options.accumulate, options.order == "assumed"
        self._batch_size = 0  # utterances of the loader's batch
        self.order: tuple[int, ...] | None = None
        self._homes: dict[str, tuple[str, str]] = {}
        self._of_thread = threading.local()
        self._hook: Any = None
        if self.lengths_expression is None:
            register = nn.modules.module.register_module_forward_hook
            self._hook = register(self._keep_tensors, with_kwargs=True)

    @property
    def _tensors(self) -> list[_KeptTensor]:
        """Tensors that may hold lengths, of the modules that ran in this thread."""
        found: list[_KeptTensor] = self._of_thread.__dict__.setdefault("tensors", [])
        return found

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
                where, lambda batch, others: self._model_inputs.order_of(batch, others) is not None
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
        order = None
        if self.batch is not None:
            order = self._model_inputs.order_of(self.batch, self.batches.others)
        if self.ids_expression is not None:
            value = self.ids_expression.value(lambda name: self.lookup(name, logits))
            ids = [str(i) for i in ([value] if isinstance(value, str | int) else list(value))]
            return self._in_model_order(ids, order, where)
        assert self.batch is not None
        found = find_ids(self.batch.batch, count) or find_by_index(
            self.batch.index, self.batch.dataset, count
        )
        if not found and order is not None and len(order) == count:  # the model runs on a part of the batch
            found = [f for f in find_ids(self.batch.batch) if len(f.values) > max(order)]
        if not found:
            raise UsageError(
                f"no ids of {logits.shape[0]} utterances in the batch ({_outline(self.batch.batch)})",
                where=where,
                do="Let the dataset return them, or say where they are: --ids EXPR (it may look at `batch`, "
                "at `index`, what the sampler asked `dataset` for, and at variables); or the axes: --layout.",
            )
        self.ids_expression = Expression(found[0].expression, "ids")  # the same place in every batch
        self._note("ids", found[0].expression)
        return self._in_model_order(list(found[0].values), order, where)

    def _in_model_order(self, ids: list[str], order: tuple[int, ...] | None, where: str) -> list[str]:
        """Return the ids of a batch in the order of the model's input, where its rows are recognised.

        Args:
            ids: utterance ids.
            order: position in the batch of each row of the model's input; None where they are not recognised.
            where: location for messages.

        Raises ``UsageError`` where the ids are a variable of the program in the loader's order, or the pieces of a
        batch are in another order, and the model's input is not.
        """
        self._batch_size = len(ids)
        self.order = order if order is not None and max(order) < len(ids) else None
        if self.order is None:
            return ids
        in_order = list(self.order) == list(range(self.order[0], self.order[0] + len(self.order)))
        if self._accumulate == "b":  # the ids of the whole batch, whose utterances come in pieces
            if not in_order:
                raise UsageError(
                    "the pieces of a batch are in another order than its ids",
                    where=where,
                    why="Each row would be stored under another utterance's id.",
                    do="Capture a run of the program that runs the model on whole batches.",
                )
            return ids
        if self.ids_from_loader:
            if len(self.order) != len(ids):
                self._note("rows", "the model runs on a part of the loader's batch; the ids follow its rows")
            elif not in_order:
                self._note(
                    "order", "the model's input is the loader's batch in another order; the ids follow it"
                )
            return [ids[i] for i in self.order]
        assert self.batch is not None
        if self.reordered and any(list(f.values) == ids for f in find_ids(self.batch.batch, len(ids))):
            raise UsageError(
                "the ids are in the loader's order, but the model's input is the batch in another order",
                where=where,
                why="Each row would be stored under another utterance's id.",
                do="Give the ids in the order of the model's input, or let them be found in the batch.",
            )
        return ids

    @property
    def reordered(self) -> bool:
        """True where the model's input is not the loader's whole batch in its order."""
        if self.order is None or self._accumulate == "b":
            return False
        return list(self.order) != list(range(self._batch_size))

    def starts_at(self, position: int) -> bool:
        """Return whether a piece of a batch can begin at this utterance of it."""
        return self.order is None or len(self.order) == self._batch_size or self.order[0] == position

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
        """Check that the rows belong to the ids, where the rows of the model's input are not recognised.

        Then the program computes features itself, and valid lengths must prove the order: those of the batch, which
        the model's must follow, all of them different. A batch of one utterance needs no proof of its order.

        Args:
            ids: utterance ids.
            lengths: valid frames of each.
            max_frames: T.
            where: location for messages.

        Raises:
            LengthError: the lengths are those of the batch in another order.
            UsageError: the loader fetches ahead, and the lengths fit another batch as well or better; or nothing
                proves the order.
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
                do="Keep the ids of the batch in a variable beside its features, and name it: --ids EXPR. Or let the "
                "loader give one batch at a time.",
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

        if not any(_proves_order(lengths, found, max_frames) for found in self._independent(own)):
            self.require_proof(ids, where)

    def _independent(self, own: list[list[int]]) -> list[list[int]]:
        """Return the lengths of the batch; none where the model's lengths are read from the batch too."""
        expression = self.lengths_expression
        return [] if expression is not None and expression.names & BATCH_NAMES else own

    def require_proof(self, ids: Sequence[str], where: str) -> None:
        """Raise ``UsageError`` where nothing proves the order of the rows of a batch."""
        if self.order is not None or self.batch is None or not self.ids_from_loader:
            return
        if len(ids) == 1 or self._assumed:
            return
        raise UsageError(
            f"nothing proves that the model's {len(ids)} rows are in the order of the batch's ids",
            where=f"{where}, {ids[0]}",
            why="The program computes features itself, so no row of the batch is found in the model's input, and the "
            "valid lengths are too alike to tell the rows apart. A program that sorts its batches would have each "
            "row stored under another utterance's id.",
            do="Name a variable of the program that holds the ids beside the features: --ids EXPR. Or decode with "
            "batches of one. Or, where you know that the program keeps the loader's order: --order assumed.",
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

    def rows_beside_frames(self, lengths: Sequence[int], max_frames: int) -> int:
        """Return how many rows each utterance has more than frames in the loader's batch; 0 where that is not known."""
        if self.batch is None:
            return 0
        for name, _, value in walk(self.batch.batch, "batch"):
            if (
                not isinstance(value, torch.Tensor)
                or len(value.shape) not in (1, 3)
                or len(value) != len(lengths)
            ):
                continue
            if value.dim() == 3:
                more = {max_frames - value.shape[1]}
            elif value.dtype in INTEGERS and LENGTH_NAMES.search(name) and self.order is not None:
                more = {n - int(value[i]) for n, i in zip(lengths, self.order, strict=True)}
            else:
                continue
            if len(more) == 1 and 0 < (found := more.pop()) <= MOST_ROWS:
                return found
        return 0

    def texts(self, count: int) -> tuple[str, ...] | None:
        """Return the reference texts of a batch of ``count`` utterances, or None where it has none."""
        if self.batch is None:
            return None
        if self.order is None or self._accumulate == "b":
            found = find_texts(self.batch.batch, count)
            return None if found is None else found.values
        found = find_texts(self.batch.batch, self._batch_size)
        return None if found is None else tuple(found.values[i] for i in self.order)

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


def _proves_order(lengths: Sequence[int], of_batch: Sequence[int], max_frames: int) -> bool:
    """Return whether lengths in frames can belong to the utterances of a batch in no other order than its own.

    The number of frames grows with the length of the input. Lengths that differ by a frame or less may be exchanged.
    """
    pairs = sorted(zip(of_batch, lengths, strict=True))
    rises = all(b - a > 1 for (_, a), (_, b) in pairwise(pairs))
    return rises and proportional(lengths, of_batch, max_frames)


def _outline(batch: Any) -> str:
    """Return the keys and types of a batch, for messages."""
    if isinstance(batch, dict):
        return ", ".join(f"{k}: {type(v).__name__}" for k, v in list(batch.items())[:12])
    if isinstance(batch, list | tuple):
        return ", ".join(type(v).__name__ for v in batch[:12])
    return type(batch).__name__
