"""Targets as padded tensors with masks: what a student's training step takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ..encodings.rows import NOTHING, Factored, FactoredLattice, Tempered, Vectors, check_temperature
from ..errors import LengthError, UsageError
from ..schema.clock import FrameClock
from .clip import Clipped
from .clip_resample import (
    Stretch,
    check_frames,
    clip_vectors,
    frames_of,
    only_target,
    resample_clip,
    stretches,
)
from .frames import Method
from .keywords import checked_keywords
from .resample import Headed, Resampled, follows_frames, headed, resample_stream, resample_vectors
from .stream_batch import FactoredBatch, StreamBatch, VectorBatch, mapped
from .target import Target
from .vocab_map import VocabMap

__all__ = ["FactoredBatch", "StreamBatch", "TargetBatch", "VectorBatch", "collate_targets"]


@dataclass(frozen=True)
class TargetBatch:
    """Targets of B utterances.

    Attributes:
        utt_ids: B utterance ids, or names of clips.
        temperature: that probabilities were taken at.
        lengths: (B,) int64 frames, after resampling.
        mask: (B, T) bool, True on valid frames.
        labels: (B, U) int64 token ids, 0 in padding; those of utterances that are joined, one behind the
            other. None, as the next two, where an utterance is cut: which of them are heard is not known.
        label_lengths: (B,) int64.
        label_mask: (B, U) bool, True on labels.
        streams: by stream name: a :class:`VectorBatch` of a ``hidden`` stream, rows of classes of others.
        driven: by stream that was driven with labels, (B, U) int64, 0 in padding: an attention decoder's own,
            which end with its end token; their mask is that of its rows.
    """

    utt_ids: tuple[str, ...]
    temperature: float
    lengths: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor | None
    label_lengths: torch.Tensor | None
    label_mask: torch.Tensor | None
    streams: dict[str, Any]
    driven: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.utt_ids)

    def __getitem__(self, stream: str) -> Any:
        return self.streams[stream]

    def to(self, device: Any, non_blocking: bool = False) -> Self:
        """Every tensor on a device."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Every tensor in page-locked memory; DataLoader(pin_memory=True) calls it."""
        return self.map(lambda t: t.pin_memory())

    def map(self, f: Any) -> Self:
        """The same with ``f`` applied to every tensor."""
        return replace(
            self,
            **mapped(self, f),
            streams={n: s.map(f) for n, s in self.streams.items()},
            driven={n: f(ids) for n, ids in self.driven.items()},
        )


@checked_keywords()
def collate_targets(
    targets: Sequence[Target | Clipped],
    *,
    frames: Sequence[int] | torch.Tensor | None = None,
    method: str = "linear",
    temperature: float = 1.0,
    ratio: tuple[int, int] | FrameClock | None = None,
    tolerance: int = 2,
    streams: Sequence[str] | None = None,
    vocab: VocabMap | None = None,
) -> TargetBatch:
    """Pad targets into a batch, each resampled by its own valid length.

    Args:
        targets: B of them, or clips of them: cut, at another speed, with silence around, joined.
        frames: (B,) valid frames of the student; None keeps the teacher's.
        method: ``linear``, ``nearest``, ...: :class:`logitstore.targets.frames.Method`.
        temperature: ≥ 1.
        ratio: student frames per teacher frame as p, q, or the student's own ``FrameClock``; lengths that do
            not fit it are refused. It also tells where exactly the frames of a clip are.
        tolerance: student frames by which they may miss it.
        streams: only these.
        vocab: maps rows, after resampling and at the temperature, and labels to a student's token table;
            not needed for targets of a store that was opened with it.

    Raises:
        TokenError: a label that the student's table lacks.
        LengthError: frames that do not fit the utterance.
        UsageError: an empty batch, options that do not exist, or a stream that cannot follow a clip.
    """
    if not targets:
        raise UsageError("a batch of no utterances")
    if vocab is not None:
        targets = [_mapped_to(vocab, t) for t in targets]
    heard = [only_target(t) or t for t in targets]
    how = Method.parse(method)
    lengths = [-(-frames_of(t) // max(how.size, 1)) for t in heard]
    if frames is not None:
        lengths = [int(f) for f in frames]
    if len(lengths) != len(heard):
        raise LengthError(f"{len(lengths)} frame counts for {len(heard)} utterances")
    if ratio is not None:
        for target, length in zip(heard, lengths, strict=True):
            check_frames(target, length, ratio, tolerance)

    some = heard[0] if isinstance(heard[0], Target) else next(iter(heard[0].targets.values()))
    names = list(some.streams) if streams is None else list(streams)
    stretched = partial(_stretched, how=how, ratio=ratio, teachers=frames is None)
    pairs = list(zip(heard, lengths, strict=True))
    kept = {name: _stream(name, pairs, how, temperature, stretched) for name in names}
    labels = [_labels(t) for t in heard]
    known = [x for x in labels if x is not None]
    counts = [len(x) for x in known] if len(known) == len(labels) else None
    return TargetBatch(
        utt_ids=tuple(t.id for t in heard),
        temperature=float(temperature),
        lengths=torch.tensor(lengths),
        mask=_mask(lengths, max(lengths)),
        labels=None if counts is None else _padded(known),
        label_lengths=None if counts is None else torch.tensor(counts),
        label_mask=None if counts is None else _mask(counts, max(counts)),
        streams=kept,
        driven=_driven(heard, names),
    )


def _stretched(
    heard: Clipped, length: int, *, how: Method, ratio: tuple[int, int] | FrameClock | None, teachers: bool
) -> list[Stretch]:
    """Where each frame of a clip looks."""
    return list(stretches(heard, length, how, ratio, teachers=teachers))


def _stream(
    name: str,
    pairs: Sequence[tuple[Target | Clipped, int]],
    how: Method,
    temperature: float,
    stretched: Callable[[Clipped, int], list[Stretch]],
) -> StreamBatch | FactoredBatch | VectorBatch:
    """One stream of all that is heard at the student's frames, padded."""
    first = pairs[0][0]
    one = first if isinstance(first, Target) else next(iter(first.targets.values()))
    numbers = isinstance(one.streams.get(name), Vectors)

    def resampled(heard: Target | Clipped, n: int) -> Any:
        try:
            if numbers:
                if isinstance(heard, Target):
                    return resample_vectors(heard, name, n, how)
                return clip_vectors(heard, name, stretched(heard, n), how)
            if isinstance(heard, Target):
                return resample_stream(heard, name, n, how, temperature)
            return resample_clip(heard, name, stretched(heard, n), how, temperature)
        except LengthError as e:
            raise LengthError(e.what, where=e.where or heard.id, why=e.why, do=e.do) from None

    if numbers:
        return _pad_vectors([resampled(t, n) for t, n in pairs])
    found = [headed(t, name, n, how) if isinstance(t, Target) else None for t, n in pairs]
    heads = [h for h in found if h is not None and found[0] is not None and h.shares(found[0])]
    if len(heads) == len(found):
        check_temperature(temperature)
        counts = [n if follows_frames(name) else len(h.rows) for h, (_, n) in zip(heads, pairs, strict=True)]
        return _pad_heads(heads, counts, temperature)
    return _pad([resampled(t, n) for t, n in pairs])


def _driven(heard: Sequence[Target | Clipped], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Labels of the streams that are driven with some; not of clips, whose lattices follow from theirs."""
    found: dict[str, torch.Tensor] = {}
    for name in names:
        own = [t.driven.get(name) if isinstance(t, Target) else _whole(t, name) for t in heard]
        known = [x for x in own if x is not None]
        if len(known) == len(own):
            found[name] = _padded(known)
    return found


def _whole(heard: Clipped, name: str) -> NDArray[Any] | None:
    """Labels of a clip of one whole utterance; None of others."""
    said = [p for p in heard.pieces if p.id]
    if len(said) != 1 or not heard.whole(said[0]):
        return None
    return heard.targets[said[0].id].driven.get(name)


def _padded(ids: Sequence[NDArray[Any]]) -> torch.Tensor:
    """(B, U) int64, 0 in padding."""
    out = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.int64)
    for row, own in zip(out, ids, strict=True):
        row[: len(own)] = torch.from_numpy(own.astype(np.int64))
    return out


def _pad_vectors(sampled: Sequence[tuple[NDArray[np.float32], NDArray[np.bool_]]]) -> VectorBatch:
    """(S, D) or (S, n, D) of each utterance into (B, T, ..., D)."""
    shape = (len(sampled), max(len(h) for h, _ in sampled), *sampled[0][0].shape[1:])
    h, mask = np.zeros(shape, np.float32), np.zeros(shape[:-1], bool)
    for b, (rows, valid) in enumerate(sampled):
        h[b, : len(rows)] = np.where(valid[..., None], rows, np.float32(0))
        mask[b, : len(rows)] = valid
    return VectorBatch(torch.from_numpy(h), torch.from_numpy(mask))


def _mapped_to(vocab: VocabMap, heard: Target | Clipped) -> Target | Clipped:
    if isinstance(heard, Target):
        return vocab.target(heard)
    return replace(heard, targets={i: vocab.target(t) for i, t in heard.targets.items()})


def _labels(heard: Target | Clipped) -> NDArray[np.int64] | None:
    """Label ids of what is heard; None where some of them may be cut off."""
    if isinstance(heard, Target):
        return heard.labels.astype(np.int64)
    said = [p for p in heard.pieces if p.id]
    if any(heard.targets[p.id].U and not heard.whole(p) for p in said):
        return None
    return np.concatenate([heard.targets[p.id].labels.astype(np.int64) for p in said])


def _mask(lengths: Sequence[int], width: int) -> torch.Tensor:
    return torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]


def _pad(sampled: Sequence[Resampled]) -> StreamBatch:
    """(N, K) rows of each utterance into (B, *axes, K), axes of the largest."""
    rows = [r.rows for r in sampled]
    if any(r.ids is not None for r in rows):
        rows = [r if r.ids is not None else _listed(r) for r in rows]
    k = max(r.logp.shape[1] for r in rows)
    grid = (len(rows), *(max(sizes) for sizes in zip(*(s.axes for s in sampled), strict=True)))
    logp = np.full((*grid, k), NOTHING, np.float32)
    tail = np.full(grid, NOTHING, np.float32)
    mask = np.zeros(grid, bool)
    ids: NDArray[np.int64] | None = None if rows[0].ids is None else np.zeros((*grid, k), np.int64)
    about = {
        name: np.zeros(grid, dtype)
        for name, dtype in (("position", np.int64), ("frame", np.int64), ("occupancy", np.float32))
        if getattr(sampled[0], name) is not None
    }
    for b, (row, one) in enumerate(zip(rows, sampled, strict=True)):
        at: Any = (b, *(slice(n) for n in one.axes))
        valid, width = one.valid.reshape(one.axes), row.logp.shape[1]
        logp[(*at, slice(width))] = np.where(
            valid[..., None], row.logp.reshape(*one.axes, width), np.float32(NOTHING)
        )
        tail[at] = np.where(valid, row.tail.reshape(one.axes), np.float32(NOTHING))
        mask[at] = valid
        if ids is not None and row.ids is not None:
            ids[at] = row.ids[:, :1].reshape(*one.axes, 1)
            ids[(*at, slice(width))] = row.ids.reshape(*one.axes, width)
        for name, array in about.items():
            array[at] = getattr(one, name).reshape(one.axes)
    tensors = {name: torch.from_numpy(array) for name, array in about.items()}
    return StreamBatch(
        classes=rows[0].classes,
        logp=torch.from_numpy(logp),
        ids=None if ids is None else torch.from_numpy(ids),
        tail=torch.from_numpy(tail),
        mask=torch.from_numpy(mask),
        temperature=float(rows[0].temperature),
        positions=tensors.get("position"),
        frames=tensors.get("frame"),
        occupancy=tensors.get("occupancy"),
    )


def _pad_heads(heads: Sequence[Headed], lengths: Sequence[int], temperature: float) -> FactoredBatch:
    """Rows of each utterance, or both sides of its lattice, padded."""
    rows, there, mask = [h.rows for h in heads], heads[0].map, _mask(lengths, max(lengths))
    first = rows[0]
    order = None if there is None else there.order
    weight, bias = (np.array(x) if order is None else x[order] for x in (first.weight, first.bias))
    mapped_to = None if there is None or order is not None else torch.from_numpy(there.to.copy())
    dec, activation, later, share = None, "", None, None
    if isinstance(first, FactoredLattice):
        sides = [r.dec for r in rows if isinstance(r, FactoredLattice)]
        dec, activation = _stacked(sides), first.activation
        mask = mask[:, :, None] & _mask([len(s) for s in sides], dec.shape[1])[:, None]
    if any(h.later is not None for h in heads):
        later = _stacked([_frames(h.rows if h.later is None else h.later) for h in heads])
        share = torch.zeros(later.shape[:2])
        for own, h in zip(share, heads, strict=True):
            if h.share is not None:
                own[: len(h.share)] = torch.from_numpy(h.share)
    return FactoredBatch(
        h=_stacked([_frames(r) for r in rows]),
        weight=torch.from_numpy(weight),
        bias=torch.from_numpy(bias),
        mask=mask,
        temperature=float(temperature),
        dec=dec,
        activation=activation,
        to=mapped_to,
        student=0 if there is None else len(there.student),
        later=later,
        share=share,
    )


def _frames(rows: Factored | FactoredLattice) -> NDArray[Any]:
    """(T, D) of each frame."""
    return rows.enc if isinstance(rows, FactoredLattice) else rows.h


def _stacked(rows: Sequence[NDArray[Any]]) -> torch.Tensor:
    """(B, n, D) float32 of (n, D) each, 0 in padding."""
    out = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[1]), np.float32)
    for b, row in enumerate(rows):
        out[b, : len(row)] = row
    return torch.from_numpy(out)


def _listed(row: Tempered) -> Tempered:
    """Rows that hold every class, with the classes spelt out as pruned rows have them."""
    ids = np.broadcast_to(np.arange(row.classes, dtype=np.int32), row.logp.shape)
    return replace(row, ids=ids)
