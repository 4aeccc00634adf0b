"""Inputs of the program's model, and the order in which they hold the utterances of a loader's batch.

Programs sort a batch by length inside their loop, or fetch the next batch before the model runs on this one. Then
ids taken from the batch belong to other rows than they seem to. Values prove which rows they are:

1. Until one batch has been recognised, the first modules that the program calls keep a reference to their tensor
   arguments (``ModelInputs``). The first tensor whose rows are rows of the loader's batch shows which module is
   given the batch; from then on only this module is hooked.
2. ``row_order`` compares sampled values of each row of that tensor with each row of the loader's batch.
3. Where the program computes features first, no row can be recognised, and only lengths can be compared:
   ``lengths_in_batch`` returns those that the batch shows.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..batch_ids import walk
from .batches import YieldedBatch
from .lengths import input_lengths
from .program import INTEGERS, not_compiled

KEPT_MODULES = 16  # that are called first, whose arguments are kept until the batch is recognised
TRIED_BATCHES = 4  # without a recognised row, after which no module is hooked any more
SAMPLES = 64  # positions along time that are compared
CHANNELS = 4  # features of each position that are compared
MIN_VALUES = 16  # of a row that is compared
LENGTH_NAMES = re.compile(r"len|frames|samples|dur", re.I)


class ModelInputs:
    """Tensor arguments of the model's modules in their last call."""

    def __init__(self) -> None:
        self._given: dict[nn.Module, list[torch.Tensor]] = {}  # in the order of the first calls
        self._handles: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
        self._recognised = False
        self._failed = 0

    def attach(self, root: nn.Module) -> None:
        """Hook a model and all its modules."""
        for module in root.modules():
            if module not in self._handles and not isinstance(module, torch.jit.ScriptModule):
                hook = not_compiled(self._before_call)
                self._handles[module] = module.register_forward_pre_hook(hook, with_kwargs=True)

    def detach(self, *, but: nn.Module | None = None) -> None:
        """Remove all hooks, except for one module's."""
        for module in [m for m in self._handles if m is not but]:
            self._handles.pop(module).remove()
        self._given = {m: tensors for m, tensors in self._given.items() if m is but}

    def forget(self) -> None:
        """Drop the arguments: the batch is over."""
        self._given.clear()

    def _before_call(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or (module not in self._given and len(self._given) >= KEPT_MODULES):
            return
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        if found := [x.detach() for x in tensors if x.is_floating_point() and x.dim() > 1]:
            self._given[module] = found

    def order_of(self, batch: YieldedBatch) -> tuple[int, ...] | None:
        """Return for each row of the model's input its position in a batch; None where it is not recognised."""
        for module, tensors in self._given.items():
            for tensor in tensors:
                order = row_order(tensor, batch)
                if order is not None:
                    if not self._recognised:
                        self._recognised = True
                        self.detach(but=module)
                    return order
        return None

    def not_recognised(self) -> None:
        """Note that a batch was not recognised; after some of them, remove the hooks."""
        if not self._recognised:
            self._failed += 1
            if self._failed >= TRIED_BATCHES:
                self.detach()


@torch.no_grad()
def row_order(given: torch.Tensor, batch: YieldedBatch) -> tuple[int, ...] | None:
    """Return the position in a batch of each row of a tensor (B, …), by sampled values.

    None where a row is not one of the batch's, or could be several of them.
    """
    for rows in _stacked_rows(batch, given.shape[0]):
        for tensor in (given, given.transpose(1, 2)) if given.dim() == 3 else (given,):
            samples = _samples(tensor, rows)
            if samples is not None and (order := _matched(*samples)) is not None:
                return order
    return None


def _stacked_rows(batch: YieldedBatch, count: int) -> Iterator[torch.Tensor | list[torch.Tensor]]:
    """Yield the batch's tensors (B, …), and its lists of B tensors."""
    for value in batch.objects.values():
        if isinstance(value, torch.Tensor):
            if value.is_floating_point() and value.dim() > 1 and len(value) == count:
                yield _without_ones(value.detach(), 1)
        elif (
            isinstance(value, list | tuple)
            and len(value) == count
            and all(isinstance(x, torch.Tensor) and x.is_floating_point() and x.dim() for x in value)
        ):
            yield [_without_ones(x.detach(), 0) for x in value]


def _samples(
    given: torch.Tensor, rows: torch.Tensor | list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return (B, K) values of a tensor and of rows at the same positions; None where their shapes differ."""
    given = _without_ones(given, 1)
    if given.dim() < 2 or any(x.dim() < 1 or x.shape[1:] != given.shape[2:] for x in rows):
        return None
    shortest = min(given.shape[1], *(len(x) for x in rows))
    if not shortest:
        return None
    at = torch.linspace(0, shortest - 1, min(SAMPLES, shortest)).long()
    ours = _at(given, at)
    theirs = _at(rows, at) if isinstance(rows, torch.Tensor) else torch.cat([_at(x[None], at) for x in rows])
    theirs = theirs.to(given.dtype)
    return (ours, theirs) if ours.shape == theirs.shape and ours.shape[1] >= MIN_VALUES else None


def _at(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Return (B, K) values of (B, T, …) at some positions along time, on the CPU."""
    x = x.index_select(1, at.to(x.device)).flatten(2) if x.dim() > 2 else x.index_select(1, at.to(x.device))
    if x.dim() > 2:
        x = x[:, :, :: max(1, x.shape[2] // CHANNELS)]
    return x.flatten(1).cpu()


def _without_ones(x: torch.Tensor, first: int) -> torch.Tensor:
    """Return a tensor without axes of size 1, behind the first ones."""
    return x.reshape(*x.shape[:first], *(n for n in x.shape[first:] if n != 1))


def _matched(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[int, ...] | None:
    """Return the position of each of our rows among theirs; None where it is not exactly one."""
    constant = (theirs == theirs[:, :1]).all(1)
    if bool(constant.any()):  # silence would match silence
        return None
    if bool((ours == theirs).all()):
        return tuple(range(len(ours)))
    same = (ours[:, None] == theirs[None]).all(2)
    if not bool((same.sum(1) == 1).all()):
        return None
    order = tuple(same.int().argmax(1).tolist())
    return order if len(set(order)) == len(order) else None


def lengths_in_batch(batch: YieldedBatch, count: int, max_frames: int) -> list[list[int]]:
    """Return the input lengths that a batch shows: zero-padded tensors, and integers that are named so.

    Args:
        batch: batch of a loader.
        count: B.
        max_frames: T of the model's output; inputs are at least as long.
    """
    found = []
    for name, _, value in walk(batch.batch, "batch"):
        if not isinstance(value, torch.Tensor):
            continue
        is_lengths = value.dim() == 1 and value.dtype in INTEGERS and LENGTH_NAMES.search(name)
        is_padded = value.dim() in (2, 3) and value.is_floating_point()
        if is_lengths or is_padded:
            lengths = input_lengths(value, count, max_frames)
            if lengths is not None and max(lengths) > 0:
                found.append(lengths)
    return found
