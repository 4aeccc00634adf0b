"""What belongs to the logits of a batch: ids and lengths, as the user said or as found in the first batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from .batch_ids import find_by_index, find_ids, find_texts
from .expression import Expression
from .inject.batches import Batches, Noted, parts
from .inject.finder import Finder
from .inject.lengths import Lengths, candidates, choose, in_variables, signs, variables
from .inject.program import eagerly, variable

OF_BATCH = {"batch", "index", "dataset"}  # names of an expression that a loader gives their values


class Asking:
    """Answers about the batch at work.

    Args:
        job: see ``logitstore.capture.run``; its ``ids`` and ``lengths`` may be empty.
        batches: that loaders yield.
        finder: of modules, whose outputs expressions may look at.
        tell: told what was found out.
    """

    def __init__(
        self, job: dict[str, Any], batches: Batches, finder: Finder, tell: Callable[..., None]
    ) -> None:
        self.ids_at = Expression(job["ids"], "--ids") if job["ids"] else None
        self.lengths_at = Expression(job["lengths"], "--lengths") if job["lengths"] else None
        self.batches, self._finder, self._tell = batches, finder, tell
        self.noted: Noted | None = None
        self.compiled = False  # whether the program compiles: variables inside of that are no more
        self._homes: dict[str, tuple[str, str]] = {}
        # until it is known where the lengths are: what every module was given and returned in this batch
        self._signs: list[tuple[weakref.ref[nn.Module], str, str, torch.Tensor]] = []
        self._watcher: Any = None
        if self.lengths_at is None:
            watch = nn.modules.module.register_module_forward_hook
            self._watcher = watch(self._watch, with_kwargs=True)

    def begin(self) -> None:
        """A loader yields a batch: what was said of the one before is over, unless it fetches ahead."""
        if not self.batches.ahead:
            self.forget()

    def forget(self) -> None:
        """A batch is over."""
        self._finder.forget()
        self._signs.clear()

    def stop(self) -> None:
        """Watch no longer."""
        if self._watcher is not None:
            self._watcher.remove()
            self._watcher = None
        self._signs.clear()

    def _watch(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        said = (("modules", output), ("inputs", args), ("inputs", kwargs))
        for where, value in said:
            for rest, tensor in signs(value, ""):
                self._signs.append((weakref.ref(module), where, rest, tensor))
        del self._signs[:-512]

    @property
    def by_batch(self) -> bool:
        """Whether the ids are of what a loader yielded, not of variables alone."""
        return self.ids_at is None or bool(self.ids_at.names & OF_BATCH)

    def batch(self, ids: Sequence[str]) -> Any:
        """What tells the batch at work from the others."""
        return self.noted.number if self.by_batch and self.noted is not None else tuple(ids)

    def ids(self, logits: torch.Tensor, where: str, count: int | None) -> list[str]:
        """Ids of the utterances of (B, …) logits; raises ``UsageError`` where nobody knows.

        ``count`` is B; None where the logits are of some of them, or packed.
        """
        try:
            self.noted = self.batches.claim(where)
        except UsageError:
            if self.by_batch:
                raise
            self.noted = None
        if self.by_batch and self.noted is None:
            raise UsageError(
                "no DataLoader of this process has yielded a batch: nothing says whose logits these are",
                where=where,
                do="Say where the ids are: --ids EXPR, e.g. a variable of your program at that moment.",
            )
        if self.ids_at is not None:
            value = self.ids_at.value(lambda name: self.lookup(name, logits))
            return [str(i) for i in ([value] if isinstance(value, str | int) else list(value))]
        assert self.noted is not None
        found = find_ids(self.noted.batch, count)
        found += find_by_index(self.noted.index, self.noted.dataset, count)
        if not found:
            raise UsageError(
                f"no ids of {logits.shape[0]} utterances in the batch ({_outline(self.noted.batch)})",
                where=where,
                do="Let the dataset return them, or say where they are: --ids EXPR (it may look at `batch`, "
                "at `index`, what the sampler asked `dataset` for, and at variables); or the axes: --layout.",
            )
        self.ids_at = Expression(found[0].expression, "ids")  # the same place in every batch
        self._tell(ids=found[0].expression)
        return list(found[0].values)

    def texts(self, count: int) -> tuple[str, ...] | None:
        """Reference texts of the batch, where it holds any."""
        found = find_texts(self.noted.batch, count) if self.noted is not None else None
        return found.values if found else None

    def lengths(self, logits: torch.Tensor, root: nn.Module) -> list[int]:
        """Valid frames of every utterance; raises ``LengthError`` or ``UsageError``."""
        if self.lengths_at is None:
            found = self._settle(logits, root)
            self.lengths_at = Expression(found.expression, "lengths")
            self._tell(lengths=found.expression)
            return list(found.values)
        value = self.lengths_at.value(lambda name: self.lookup(name, logits))
        if isinstance(value, torch.Tensor):
            value = value.reshape(-1).tolist()
        return [round(v) for v in (value if isinstance(value, list | tuple) else [value])]

    def _settle(self, logits: torch.Tensor, root: nn.Module) -> Lengths:
        """Where the lengths are, from the first batch: a variable by preference, for people can read it."""
        b, t = logits.shape[:2]
        names = {m: n for n, m in root.named_modules()}
        told = [(names[m], where, rest, v) for ref, where, rest, v in self._signs if (m := ref()) in names]
        found = candidates(((f'{where}["{n}"]{rest}', v) for n, where, rest, v in reversed(told)), b, t)
        mine = candidates(in_variables(), b, t)
        found = found + mine if self.compiled else mine + found
        chosen = choose(found, b, t, type(root).__name__, self._given())
        self.stop()
        eagerly(False)
        for path in Expression(chosen.expression, "lengths").modules:
            self._finder.listen(root, path)
        return chosen

    def _given(self) -> Iterator[torch.Tensor]:
        """What the model was given, as far as one can see: tensors of the batch, and of variables."""
        held = list(parts(self.noted.batch, 3)) if self.noted is not None else []
        for value in (*held, *(v for _, v in variables())):
            if isinstance(value, torch.Tensor):
                yield value

    def lookup(self, name: str, logits: torch.Tensor) -> Any:
        """The value of a name in an expression."""
        if name in ("modules", "inputs"):
            return self._finder.outputs if name == "modules" else self._finder.inputs
        known = {"output": logits, "B": logits.shape[0], "T": logits.shape[1]}
        if name in known:
            return known[name]
        if name in OF_BATCH and self.noted is not None and getattr(self.noted, name) is not None:
            return getattr(self.noted, name)
        return variable(name, self._homes)


def _outline(batch: Any) -> str:
    if isinstance(batch, dict):
        return ", ".join(f"{k}: {type(v).__name__}" for k, v in list(batch.items())[:12])
    if isinstance(batch, list | tuple):
        return ", ".join(type(v).__name__ for v in batch[:12])
    return type(batch).__name__
