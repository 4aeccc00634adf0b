"""Inputs of the program's model, and the order in which they hold the utterances of a loader's batch.

Programs sort a batch by length inside their loop, or fetch the next batch before the model runs on this one. Then
ids taken from the batch belong to other rows than they seem to. Values prove which rows they are:

1. Until one batch has been recognised, the first modules that the program calls keep a reference to their tensor
   arguments (``ModelInputs``). The first tensor whose rows are rows of the loader's batch shows which module is
   given the batch; from then on only this module is hooked.
2. ``row_order`` compares sampled values of each row of that tensor with each row of the loader's batch.
3. Where the program computes features first, the values differ. ``envelope_order`` compares how the level of each row
   goes up and down over its valid length, which features keep.
4. Where neither proves the order, only lengths can be compared: ``lengths_in_batch`` returns those of the batch.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..batch_ids import walk
from .batches import YieldedBatch
from .lengths import input_lengths
from .program import INTEGERS, modules_without_fast_path, not_compiled

KEPT_MODULES = 16  # that are called first, whose arguments are kept until the batch is recognised
TRIED_BATCHES = 4  # without a recognised row, after which no module is hooked any more
SAMPLES = 64  # positions along time that are compared
CHANNELS = 4  # features of each position that are compared
MIN_VALUES = 16  # of a row that is compared
BINS = 48  # of a row's envelope
MIN_BINS = 12
FINE = 8  # smaller parts of each bin of a waveform
ALIKE = 0.6  # smallest rank correlation of the envelopes of a row and of features computed of it
MARGIN = 0.1  # by which every other row must be less alike
MAX_COMPARED = 256  # utterances whose envelopes are compared
LENGTH_NAMES = re.compile(r"len|frames|samples|dur", re.I)


class ModelInputs:
    """Tensor arguments of the model's modules in their last call, for each thread that runs the model."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._handles: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
        self._recognised = False
        self._failed = 0

    def __deepcopy__(self, memo: Any) -> ModelInputs:
        return self  # a copied module has the same hooks

    @property
    def _given(self) -> weakref.WeakKeyDictionary[nn.Module, list[torch.Tensor]]:
        """Arguments in this thread by module, in the order of the first calls; modules are not kept alive."""
        given: weakref.WeakKeyDictionary[nn.Module, list[torch.Tensor]]
        given = self._of_thread.__dict__.setdefault("given", weakref.WeakKeyDictionary())
        return given

    def attach(self, root: nn.Module) -> None:
        """Hook a model and all its modules, but those that compute by another path once they have hooks."""
        for module in modules_without_fast_path(root):
            self.attach_to(module)

    def attach_to(self, module: nn.Module) -> None:
        """Hook one module."""
        if module not in self._handles and not isinstance(module, torch.jit.ScriptModule):
            hook = not_compiled(self._before_call)
            self._handles[module] = module.register_forward_pre_hook(hook, with_kwargs=True)

    def detach(self, *, but: nn.Module | None = None) -> None:
        """Remove all hooks, except for one module's."""
        for module in [m for m in self._handles if m is not but]:
            self._handles.pop(module).remove()

    def forget(self) -> None:
        """Drop the arguments: the batch is over."""
        self._given.clear()

    def _before_call(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or (module not in self._given and len(self._given) >= KEPT_MODULES):
            return
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        if found := [x.detach() for x in tensors if x.is_floating_point() and x.dim() > 1]:
            self._given[module] = found

    def order_of(self, batch: YieldedBatch, others: Sequence[YieldedBatch] = ()) -> tuple[int, ...] | None:
        """Return for each row of the model's input its position in a batch; None where it is not recognised.

        Args:
            batch: batch of a loader.
            others: batches that the model may have been given instead.
        """
        for find in (row_order, partial(envelope_order, others=others)):
            for module, tensors in list(self._given.items()):
                for tensor in tensors:
                    order = find(tensor, batch)
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
    """Return the position in a batch of each row of a tensor (N, …), by sampled values.

    None where a row is not one of the batch's, or could be several of them. The tensor may lack rows of the batch.
    """
    for rows in _stacked_rows(batch, given.shape[0]):
        for tensor in (given, given.transpose(1, 2)) if given.dim() == 3 else (given,):
            samples = _samples(tensor, rows)
            if samples is not None and (order := _matched(*samples)) is not None:
                return order
    return None


@torch.no_grad()
def envelope_order(
    given: torch.Tensor, batch: YieldedBatch, others: Sequence[YieldedBatch] = ()
) -> tuple[int, ...] | None:
    """Return the position in a batch of each row of features (N, T, F), (N, F, T) or (N, T), by their envelopes.

    The envelope of a row is its level in equal parts of its valid length. Features that a program computes of a
    waveform, or of other features, rise and fall with it. None where some row is like none of the batch, or nearly as
    like another one, of the batch or of the other batches. One row alone is not told from those of other batches:
    words of one corpus are too alike.
    """
    if given.dim() not in (2, 3) or not 0 < len(given) <= MAX_COMPARED or (others and len(given) == 1):
        return None
    for rows in _stacked_rows(batch, given.shape[0]):
        stacked = rows if isinstance(rows, torch.Tensor) else _padded(rows)
        if stacked is None or stacked.dim() not in (2, 3) or len(stacked) > MAX_COMPARED:
            continue
        count = len(stacked)
        stacked, sizes = _with_rows_of(others, stacked)
        for tensor in (given, given.transpose(1, 2)) if given.dim() == 3 else (given,):
            order = _assigned(_likeness(tensor, stacked, sizes), (2 if others else 1) * MARGIN)
            if order is not None and max(order) < count:
                return order
    return None


def _with_rows_of(others: Sequence[YieldedBatch], stacked: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Return the rows of a batch followed by those of the other batches that have the same axes, and each's number."""
    rows, sizes = list(stacked), [len(stacked)]
    for other in others:
        for found in _stacked_rows(other, 1):
            if found[0].shape[1:] == rows[0].shape[1:] and found[0].dim() == rows[0].dim():
                rows += list(found)
                sizes.append(len(found))
                break
    if len(sizes) == 1:
        return stacked, sizes
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), sizes


def _padded(rows: list[torch.Tensor]) -> torch.Tensor | None:
    if any(x.shape[1:] != rows[0].shape[1:] for x in rows):
        return None
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _likeness(given: torch.Tensor, rows: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return (N, B) rank correlations of envelopes; -1 where the valid lengths contradict each other.

    Args:
        given: (N, T, …) features.
        rows: (B, T0, …) rows that they may be computed of.
        sizes: number of the rows of each batch. The longest of a batch is compared as if it were our longest.
    """
    ours, our_lengths = _level(given)
    theirs, their_lengths = _level(rows)
    t = ours.shape[1]
    padded = our_lengths < t  # else the padding may hold features of silence, and the length is not known
    shares = torch.cat([lengths / lengths.max() for lengths in torch.split(their_lengths, list(sizes))])
    expected = (shares * our_lengths.max()).round().long()
    bins = min(BINS, int(expected.min()))
    if bins < MIN_BINS:
        return torch.full((len(ours), len(theirs)), -1.0)
    their_ranks = _ranks(_binned(theirs, their_lengths, bins))
    columns = []
    for i in range(len(theirs)):
        lengths = torch.where(padded, our_lengths, expected[i])
        off = (lengths - expected[i]).abs() > 2 + 0.03 * t
        ranks = _ranks(_binned(ours, lengths.clamp(min=bins), bins))
        columns.append(torch.where(off, -1.0, ranks @ their_ranks[i]))
    return torch.stack(columns, 1)


def _level(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, T) levels, on the CPU, and (B,) lengths without the constant end."""
    x = x.detach().flatten(2) if x.dim() > 2 else x.detach()[:, :, None]
    varies = (x[:, :-1] != x[:, 1:]).any(2).cpu()
    positions = torch.arange(1, x.shape[1])
    lengths = torch.where(varies, positions, 0).amax(1) if x.shape[1] > 1 else torch.zeros(len(x)).long()
    level = x.float().mean(2) if x.shape[2] > 1 else x[:, :, 0].float().abs()
    return level.cpu(), lengths.clamp(min=1)


def _binned(level: torch.Tensor, lengths: torch.Tensor, bins: int) -> torch.Tensor:
    """Return (B, bins) means of a level in equal parts of each row's length.

    Of waveforms, which have many samples a part, the logarithm is averaged, as features of speech have it.
    """
    if int(lengths.min()) >= bins * FINE * FINE:
        fine = _means(level, lengths, bins * FINE)
        floor = 1e-4 * fine.amax(1, keepdim=True) + 1e-9
        return (fine + floor).log().reshape(len(level), bins, FINE).mean(2)
    return _means(level, lengths, bins)


def _means(level: torch.Tensor, lengths: torch.Tensor, bins: int) -> torch.Tensor:
    sums = torch.nn.functional.pad(level.double().cumsum(1), (1, 0))
    edges = (torch.linspace(0, 1, bins + 1)[None] * lengths[:, None]).round().long()
    return torch.as_tensor(sums.gather(1, edges).diff(dim=1) / edges.diff(dim=1).clamp(min=1))


def _ranks(x: torch.Tensor) -> torch.Tensor:
    """Return centred ranks of the values of each row, of norm 1; their product is a rank correlation."""
    ranks = x.argsort(1).argsort(1).double()
    ranks = ranks - ranks.mean(1, keepdim=True)
    return torch.as_tensor(ranks / ranks.norm(dim=1, keepdim=True).clamp(min=1e-9))


def _assigned(likeness: torch.Tensor, margin: float = MARGIN) -> tuple[int, ...] | None:
    """Return the most alike row of each of ours; None where it is not alike enough or not alone by a margin."""
    if not bool(likeness.isfinite().all()):
        return None
    best = likeness.max(1)
    for other in (likeness, likeness.T):
        top = other.topk(min(2, other.shape[1]), 1).values
        chosen = top[:, 0] >= ALIKE
        if top.shape[1] > 1:
            alone = top[:, 0] - top[:, 1] >= margin
            if not bool((alone | ~chosen).all()):
                return None
        if other is likeness and not bool(chosen.all()):
            return None
    order = tuple(best.indices.tolist())
    return order if len(set(order)) == len(order) else None


def _stacked_rows(batch: YieldedBatch, count: int) -> Iterator[torch.Tensor | list[torch.Tensor]]:
    """Yield the batch's tensors, and lists of tensors, that hold ``count`` rows or more."""
    for value in batch.objects.values():
        if isinstance(value, torch.Tensor):
            if value.is_floating_point() and value.dim() > 1 and len(value) >= count:
                yield _without_ones(value.detach(), 1)
        elif (
            isinstance(value, list | tuple)
            and len(value) >= count
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
    return (ours, theirs) if ours.shape[1] == theirs.shape[1] >= MIN_VALUES else None


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
    if bool((theirs == theirs[:, :1]).all()):  # silence would match silence
        return None
    if ours.shape == theirs.shape and bool((ours == theirs).all()):
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
