"""Targets as padded tensors with masks: what a student's training step takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import LengthError, UsageError
from .frames import check_ratio
from .resample import resample
from .target import NOTHING, Target, Tempered
from .vocabmap import VocabMap


@dataclass(frozen=True)
class StreamBatch:
    """One stream of a batch, B utterances padded to the longest.

    Attributes:
        classes: V.
        logp: (B, T, K) or (B, T, U+1, K) float32 log-probabilities; K = V where ``ids`` is None. -1e4 in
            padding and for entries a row does not have.
        ids: int64, as ``logp``: class of each entry; None when all V classes are there in order.
        tail: (B, T) or (B, T, U+1) float32 log of the mass of all other classes; -1e4 where there is none.
            Beside ``ids`` None it is the mass of teacher tokens that the student's table has no class for.
        mask: bool, as ``tail``: True where there is a teacher's row.
        temperature: that probabilities were taken at.
    """

    classes: int
    logp: torch.Tensor
    ids: torch.Tensor | None
    tail: torch.Tensor
    mask: torch.Tensor
    temperature: float = 1.0

    def dense(self) -> torch.Tensor:
        """(B, T[, U+1], V) log-probabilities; see :meth:`logitstore.target.Tempered.dense`.

        A tail's mass is spread equally over classes not kept; where all of them were, the row is normalised
        without it.
        """
        has_tail = self.tail > NOTHING / 2
        if self.ids is None:
            return _without_tail(self.logp, has_tail)
        kept = self.logp > NOTHING
        left = self.classes - kept.sum(-1)
        rest = self.tail - left.clamp(min=1).log()
        out = rest[..., None].expand(*rest.shape, self.classes).contiguous()
        first = torch.where(kept[..., :1], self.logp[..., :1], rest[..., None])  # a row may keep nothing
        logp = torch.cat([first, self.logp[..., 1:]], -1)
        out = out.scatter_reduce(-1, self.ids, logp, "amax", include_self=False)
        return _without_tail(out, has_tail & (left == 0))

    def map(self, f: Any) -> Self:
        """The same with ``f`` applied to every tensor."""
        return replace(self, **_mapped(self, f))


@dataclass(frozen=True)
class TargetBatch:
    """Targets of B utterances.

    Attributes:
        utt_ids: B utterance ids.
        temperature: that probabilities were taken at.
        lengths: (B,) int64 frames, after resampling.
        mask: (B, T) bool, True on valid frames.
        labels: (B, U) int64 token ids, 0 in padding.
        label_lengths: (B,) int64.
        label_mask: (B, U) bool, True on labels.
        streams: by stream name.
    """

    utt_ids: tuple[str, ...]
    temperature: float
    lengths: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    label_lengths: torch.Tensor
    label_mask: torch.Tensor
    streams: dict[str, StreamBatch]

    def __len__(self) -> int:
        return len(self.utt_ids)

    def __getitem__(self, stream: str) -> StreamBatch:
        return self.streams[stream]

    def to(self, device: Any, non_blocking: bool = False) -> Self:
        """Every tensor on a device."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Every tensor in page-locked memory; DataLoader(pin_memory=True) calls it."""
        return self.map(lambda t: t.pin_memory())

    def map(self, f: Any) -> Self:
        """The same with ``f`` applied to every tensor."""
        return replace(self, **_mapped(self, f), streams={n: s.map(f) for n, s in self.streams.items()})


def _without_tail(logp: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """(..., V) log-probabilities, those rows normalised again."""
    return torch.where(which[..., None], logp.log_softmax(-1), logp)


def _mapped(record: Any, f: Any) -> dict[str, Any]:
    values = {x.name: getattr(record, x.name) for x in fields(record)}
    return {name: f(value) for name, value in values.items() if isinstance(value, torch.Tensor)}


def collate_targets(
    targets: Sequence[Target],
    *,
    frames: Sequence[int] | torch.Tensor | None = None,
    method: str = "linear",
    temperature: float = 1.0,
    ratio: tuple[int, int] | None = None,
    tolerance: int = 2,
    streams: Sequence[str] | None = None,
    vocab: VocabMap | None = None,
) -> TargetBatch:
    """Pad targets into a batch, each resampled by its own valid length.

    Args:
        targets: B of them.
        frames: (B,) valid frames of the student; None keeps the teacher's.
        method: ``linear`` mixes probabilities, ``nearest`` takes frames.
        temperature: ≥ 1.
        ratio: student frames per teacher frame as p, q; lengths that do not fit it are refused.
        tolerance: student frames by which they may miss it.
        streams: only these.
        vocab: maps rows, after resampling and at the temperature, and labels to a student's token table;
            not needed for targets of a store that was opened with it.

    Raises:
        TokenError: a label that the student's table lacks.
        LengthError: frames that do not fit the utterance.
        UsageError: an empty batch, or options that do not exist.
    """
    if not targets:
        raise UsageError("a batch of no utterances")
    if vocab is not None:
        targets = [vocab.target(t) for t in targets]
    lengths = [t.T for t in targets] if frames is None else [int(f) for f in frames]
    if len(lengths) != len(targets):
        raise LengthError(f"{len(lengths)} frame counts for {len(targets)} utterances")
    if ratio is not None:
        for target, length in zip(targets, lengths, strict=True):
            check_ratio(target.T, length, ratio, tolerance, target.id)
    label_lengths = [t.U for t in targets]
    size = (len(targets), max(lengths), max(label_lengths))
    labels = torch.zeros(size[0], size[2], dtype=torch.int64)
    for b, target in enumerate(targets):
        labels[b, : target.U] = torch.from_numpy(target.labels.astype(np.int64))
    names = list(targets[0].streams) if streams is None else list(streams)
    kept = {}
    for name in names:
        rows = []
        for target, length in zip(targets, lengths, strict=True):
            stream, shape = target[name], target.shapes[name]
            try:
                rows.append(resample(stream, shape, length, method=method, temperature=temperature))
            except LengthError as e:
                raise LengthError(e.what, where=target.id, why=e.why, do=e.do) from None
        lattice = len(targets[0].shapes[name]) == 3
        kept[name] = _pad(rows, lengths, [u + 1 for u in label_lengths] if lattice else None)
    return TargetBatch(
        utt_ids=tuple(t.id for t in targets),
        temperature=float(temperature),
        lengths=torch.tensor(lengths),
        mask=_mask(lengths, size[1]),
        labels=labels,
        label_lengths=torch.tensor(label_lengths),
        label_mask=_mask(label_lengths, size[2]),
        streams=kept,
    )


def _mask(lengths: Sequence[int], width: int) -> torch.Tensor:
    return torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]


def _pad(rows: Sequence[Tempered], lengths: Sequence[int], nodes: Sequence[int] | None) -> StreamBatch:
    """(T·nodes, K) rows of each utterance into (B, T[, nodes], K)."""
    if any(r.ids is not None for r in rows):
        rows = [r if r.ids is not None else _listed(r) for r in rows]
    k = max(r.logp.shape[1] for r in rows)
    grid = (len(rows), max(lengths)) + ((max(nodes),) if nodes else ())
    logp = np.full((*grid, k), NOTHING, np.float32)
    tail = np.full(grid, NOTHING, np.float32)
    mask = np.zeros(grid, bool)
    ids: NDArray[np.int64] | None = None if rows[0].ids is None else np.zeros((*grid, k), np.int64)
    for b, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        shape = (length, nodes[b]) if nodes else (length,)
        at: Any = (b, *(slice(n) for n in shape))
        width = row.logp.shape[1]
        logp[(*at, slice(width))] = row.logp.reshape(*shape, width)
        tail[at] = row.tail.reshape(shape)
        mask[at] = True
        if ids is not None and row.ids is not None:
            ids[at] = row.ids[:, :1].reshape(*shape, 1)
            ids[(*at, slice(width))] = row.ids.reshape(*shape, width)
    return StreamBatch(
        classes=rows[0].classes,
        logp=torch.from_numpy(logp),
        ids=None if ids is None else torch.from_numpy(ids),
        tail=torch.from_numpy(tail),
        mask=torch.from_numpy(mask),
        temperature=float(rows[0].temperature),
    )


def _listed(row: Tempered) -> Tempered:
    """Rows that hold every class, with the classes spelt out as pruned rows have them."""
    ids = np.broadcast_to(np.arange(row.classes, dtype=np.int32), row.logp.shape)
    return replace(row, ids=ids)
