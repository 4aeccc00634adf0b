"""Targets as padded tensors with masks: what a student's training step takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from .clip import Clipped
from .errors import LengthError, UsageError
from .frames import FrameClock, Method
from .resample import Resampled, factored_rows, resample_stream
from .splice import only_target, resample_clip
from .target import NOTHING, Factored, FactoredLattice, Target, Tempered, check_temperature
from .timeline import check_frames, frames_of, stretches
from .vocabmap import VocabMap

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


@dataclass(frozen=True)
class StreamBatch:
    """One stream of a batch, B utterances padded to the longest.

    Attributes:
        classes: V.
        logp: (B, T, K), (B, T, n, K) of stacked frames, (B, T, U+1, K) or (B, T, S, K) of a lattice, or
            (B, N, K) of a path; float32 log-probabilities; K = V where ``ids`` is None. -1e4 in padding and
            for entries a row does not have.
        ids: int64, as ``logp``: class of each entry; None when all V classes are there in order.
        tail: as ``logp`` without K, float32 log of the mass of all other classes; -1e4 where there is none.
            Beside ``ids`` None it is the mass of teacher tokens that the student's table has no class for.
        mask: bool, as ``tail``: True where there is a teacher's row.
        temperature: that probabilities were taken at.
        positions: int64, as ``tail``: label position of each node, where a lattice keeps some of them;
            (B, T, S) of a banded one, as the ranges of k2's pruned loss. None where all U + 1 are there.
        frames: (B, N) int64 frame of each node of a path; None for others.
        occupancy: float32, as ``tail``: probability that an alignment passes each node; None if not stored.
    """

    classes: int
    logp: torch.Tensor
    ids: torch.Tensor | None
    tail: torch.Tensor
    mask: torch.Tensor
    temperature: float = 1.0
    positions: torch.Tensor | None = None
    frames: torch.Tensor | None = None
    occupancy: torch.Tensor | None = None

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
class FactoredBatch:
    """One stream of a batch as its head sees it, for the device that the student is on.

    Nothing V wide is copied there: ``dense()`` and ``top()`` are one product with the weight, there. It reads
    as a :class:`StreamBatch` that holds every class does, ``logp``, ``ids``, ``tail`` and all.

    Attributes:
        h: (B, T, D) float32, 0 in padding.
        weight: (V, D) float32.
        bias: (V,) float32.
        mask: bool, as ``h`` without D: True where there is a teacher's row.
        temperature: that probabilities are served at.
        dec: (B, U+1, D) float32 of a lattice, whose nodes are activation(h[t] + dec[u]).
        activation: ``tanh`` or ``relu``, with ``dec``.
    """

    h: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    mask: torch.Tensor
    temperature: float
    dec: torch.Tensor | None = None
    activation: str = ""

    ids = None

    @property
    def classes(self) -> int:
        """V."""
        return len(self.bias)

    def logits(self) -> torch.Tensor:
        """(B, T[, U+1], V) the teacher's logits, 0 in padding; float32."""
        h = self.h
        if self.dec is not None:
            h = ACTIVATIONS[self.activation](h[:, :, None] + self.dec[:, None])
        rows = torch.addmm(self.bias, h.flatten(0, -2), self.weight.T)
        return rows.view(*self.mask.shape, -1) * self.mask[..., None]

    def dense(self) -> torch.Tensor:
        """(B, T[, U+1], V) log-probabilities at the temperature; even in padding."""
        return (self.logits() / self.temperature).log_softmax(-1)

    @property
    def logp(self) -> torch.Tensor:
        """As :attr:`StreamBatch.logp`: made anew each time."""
        return self.dense().masked_fill(~self.mask[..., None], NOTHING)

    @property
    def tail(self) -> torch.Tensor:
        """As :attr:`StreamBatch.tail`: nothing is left out."""
        return torch.full_like(self.mask, NOTHING, dtype=torch.float32)

    def top(self, k: int) -> StreamBatch:
        """The K best classes of every row, best first, and the exact mass of all others."""
        if not 1 <= k <= self.classes:
            raise UsageError(f"the best {k} of {self.classes} classes")
        logp = self.dense()
        best, ids = logp.topk(k, dim=-1)
        rest = logp.scatter(-1, ids, NOTHING).logsumexp(-1) if k < self.classes else self.tail
        return StreamBatch(
            classes=self.classes,
            logp=best.masked_fill(~self.mask[..., None], NOTHING),
            ids=ids,
            tail=rest.masked_fill(~self.mask, NOTHING),
            mask=self.mask,
            temperature=self.temperature,
        )

    def map(self, f: Any) -> Self:
        """The same with ``f`` applied to every tensor."""
        return replace(self, **_mapped(self, f))


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
        streams: by stream name.
    """

    utt_ids: tuple[str, ...]
    temperature: float
    lengths: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor | None
    label_lengths: torch.Tensor | None
    label_mask: torch.Tensor | None
    streams: dict[str, StreamBatch | FactoredBatch]

    def __len__(self) -> int:
        return len(self.utt_ids)

    def __getitem__(self, stream: str) -> StreamBatch | FactoredBatch:
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
        method: ``linear``, ``nearest``, ...: :class:`logitstore.frames.Method`.
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

    def resampled(target: Target | Clipped, name: str, length: int) -> Resampled:
        try:
            if isinstance(target, Target):
                return resample_stream(target, name, length, how, temperature)
            where = list(stretches(target, length, how, ratio, teachers=frames is None))
            return resample_clip(target, name, where, how, temperature)
        except LengthError as e:
            raise LengthError(e.what, where=e.where or target.id, why=e.why, do=e.do) from None

    pairs = list(zip(heard, lengths, strict=True))
    some = heard[0] if isinstance(heard[0], Target) else next(iter(heard[0].targets.values()))
    kept: dict[str, StreamBatch | FactoredBatch] = {}
    for name in list(some.streams) if streams is None else list(streams):
        found = [factored_rows(t, name, n, how) if isinstance(t, Target) else None for t, n in pairs]
        heads = [h for h in found if h is not None]
        if len(heads) == len(found):
            check_temperature(temperature)
            kept[name] = _pad_heads(heads, lengths, temperature)
        else:
            kept[name] = _pad([resampled(t, name, n) for t, n in pairs])
    labels = [_labels(t) for t in heard]
    known = [x for x in labels if x is not None]
    counts = [len(x) for x in known] if len(known) == len(labels) else None
    return TargetBatch(
        utt_ids=tuple(t.id for t in heard),
        temperature=float(temperature),
        lengths=torch.tensor(lengths),
        mask=_mask(lengths, max(lengths)),
        labels=None if counts is None else _pad_labels(known),
        label_lengths=None if counts is None else torch.tensor(counts),
        label_mask=None if counts is None else _mask(counts, max(counts)),
        streams=kept,
    )


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


def _pad_labels(labels: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    padded = torch.zeros(len(labels), max(map(len, labels)), dtype=torch.int64)
    for b, row in enumerate(labels):
        padded[b, : len(row)] = torch.from_numpy(row)
    return padded


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


def _pad_heads(
    rows: Sequence[Factored | FactoredLattice], lengths: Sequence[int], temperature: float
) -> FactoredBatch:
    """Rows of each utterance, or both sides of its lattice, padded."""
    first, mask = rows[0], _mask(lengths, max(lengths))
    dec, activation = None, ""
    if isinstance(first, FactoredLattice):
        sides = [r.dec for r in rows if isinstance(r, FactoredLattice)]
        dec, activation = _stacked(sides), first.activation
        mask = mask[:, :, None] & _mask([len(s) for s in sides], dec.shape[1])[:, None]
    return FactoredBatch(
        h=_stacked([r.enc if isinstance(r, FactoredLattice) else r.h for r in rows]),
        weight=torch.from_numpy(np.array(first.weight)),
        bias=torch.from_numpy(np.array(first.bias)),
        mask=mask,
        temperature=float(temperature),
        dec=dec,
        activation=activation,
    )


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
