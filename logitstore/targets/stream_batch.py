"""One stream of a batch as padded tensors: rows of classes, inputs of a head, or numbers of a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch

from ..encodings.rows import NOTHING
from ..errors import UsageError

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


@dataclass(frozen=True)
class StreamBatch:
    """One stream of a batch, B utterances padded to the longest.

    Attributes:
        classes: V.
        logp: float32 log-probabilities (nats): (B, T, K) of frames, (B, T, n, K) of stacked frames, (B, T,
            U+1, K) or (B, T, S, K) of a lattice, (B, N, K) of a path, (B, U, K) of an attention decoder; K =
            V where ``ids`` is None. -1e4 in padding and for entries that a row does not have.
        ids: int64 class of each entry, as ``logp``; None where all V classes are present in order.
        tail: float32 log of the total mass of all other classes, as ``logp`` without K; -1e4 where there is
            none. Where ``ids`` is None, the mass of teacher tokens that the student's table lacks.
        mask: bool, as ``tail``; True where there is a target.
        temperature: temperature of the probabilities.
        positions: int64 label position of each node, as ``tail``, where a lattice keeps some of its nodes:
            (B, T, S) of a banded one, as the ranges of k2's pruned loss. None where all U + 1 are present.
        frames: (B, N) int64 frame of each node of a path; None for other streams.
        occupancy: float32 probability that an alignment passes each node, as ``tail``; None if not stored.
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
        """Return (B, T[, U+1], V) float32 log-probabilities.

        The tail's mass is spread equally over the classes that were not kept; where every class was kept, the
        row is normalised without it (:meth:`logitstore.encodings.rows.Tempered.dense`).
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

    def map(self, f: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Return the stream with ``f`` applied to every tensor."""
        return replace(self, **map_tensors(self, f))


@dataclass(frozen=True)
class FactoredBatch:
    """One stream of a batch before its linear head, for the device of the student.

    Nothing V wide is copied to the device: ``dense()`` and ``top()`` multiply with the weight there. The
    batch has the attributes of a :class:`StreamBatch` that holds every class: ``logp``, ``ids``, ``tail``,
    ...

    Attributes:
        h: (B, T, D) float32 inputs of the head, 0 in padding.
        weight: (V, D) float32; sorted as the student's table where that holds the same tokens.
        bias: (V,) float32.
        mask: bool, (B, T) or of a lattice (B, T, U+1); True where there is a target.
        temperature: temperature of the probabilities.
        dec: (B, U+1, D) float32 label sides of a lattice with nodes activation(h[t] + dec[u]); else
            None.
        activation: ``tanh`` or ``relu``, with ``dec``.
        to: (V,) int64 student class of each class of the head, -1 for the tail; applied after the product.
            None where the tables differ by their order at most.
        student: number of the student's classes, with ``to``.
        later: (B, T, D) inputs of the frames that ``linear`` resampling mixes with those of ``h``; else None.
        share: (B, T) float32 share of the later frames' probabilities, with ``later``.
    """

    h: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    mask: torch.Tensor
    temperature: float
    dec: torch.Tensor | None = None
    activation: str = ""
    to: torch.Tensor | None = None
    student: int = 0
    later: torch.Tensor | None = None
    share: torch.Tensor | None = None

    ids = None

    @property
    def classes(self) -> int:
        """V; of the student's table where rows are mapped."""
        return len(self.bias) if self.to is None else self.student

    def _head(self, h: torch.Tensor) -> torch.Tensor:
        """Return (B, T[, U+1], V) log-probabilities of the head's classes, in float32 even under autocast."""
        with torch.autocast(h.device.type, enabled=False):
            if self.dec is not None:
                h = ACTIVATIONS[self.activation](h[:, :, None] + self.dec[:, None])
            rows = torch.addmm(self.bias, h.flatten(0, -2), self.weight.T)
        logits = rows.view(*self.mask.shape, -1) * self.mask[..., None]  # 0 in padding: finite there too
        return (logits / self.temperature).log_softmax(-1)

    def _masses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B, T[, U+1], V) log-masses of classes and (B, T[, U+1]) of the tail; finite in padding."""
        logp = self._head(self.h)
        if self.later is not None and self.share is not None:
            share = self.share.view(*self.share.shape, *(1,) * (logp.dim() - 2))
            logp = torch.logaddexp(logp + (-share).log1p(), self._head(self.later) + share.log())
        if self.to is None:
            return logp, torch.full_like(self.mask, NOTHING, dtype=torch.float32)
        return _regrouped(logp, self.to, self.student)

    def dense(self) -> torch.Tensor:
        """Return what :meth:`StreamBatch.dense` returns; equal shares of all classes in padding."""
        logp, tail = self._masses()
        return logp if self.to is None else _without_tail(logp, tail > NOTHING / 2)

    @property
    def logp(self) -> torch.Tensor:
        """:attr:`StreamBatch.logp`, computed at every access."""
        return self._masses()[0].masked_fill(~self.mask[..., None], NOTHING)

    @property
    def tail(self) -> torch.Tensor:
        """:attr:`StreamBatch.tail`: mass of the tokens that the student's table lacks."""
        if self.to is None:
            return torch.full_like(self.mask, NOTHING, dtype=torch.float32)
        return self._masses()[1].masked_fill(~self.mask, NOTHING)

    def top(self, k: int) -> StreamBatch:
        """Return the K best classes of every row, best first, and the exact mass of all others.

        Raises ``UsageError`` unless 1 ≤ K ≤ V.
        """
        if not 1 <= k <= self.classes:
            raise UsageError(f"the best {k} of {self.classes} classes", do=f"Give 1 to {self.classes}.")
        logp, tail = self._masses()
        best, ids = logp.topk(k, dim=-1)
        ids = torch.where(best > NOTHING, ids, ids[..., :1])  # classes that no teacher token maps to
        rest = tail
        if k < self.classes:
            rest = torch.logaddexp(logp.scatter(-1, ids, NOTHING).logsumexp(-1), tail).clamp(min=NOTHING)
        return StreamBatch(
            classes=self.classes,
            logp=best.masked_fill(~self.mask[..., None], NOTHING),
            ids=ids,
            tail=rest.masked_fill(~self.mask, NOTHING),
            mask=self.mask,
            temperature=self.temperature,
        )

    def map(self, f: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Return the stream with ``f`` applied to every tensor."""
        return replace(self, **map_tensors(self, f))


@dataclass(frozen=True)
class VectorBatch:
    """Numbers of a layer, B utterances padded to the longest.

    Attributes:
        h: (B, T, D) float32, or (B, T, n, D) of stacked frames; 0 in padding.
        mask: bool, as ``h`` without D; True where there is a target.
    """

    h: torch.Tensor
    mask: torch.Tensor

    def map(self, f: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Return the stream with ``f`` applied to every tensor."""
        return replace(self, **map_tensors(self, f))


def _regrouped(logp: torch.Tensor, to: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (..., V) log-masses added up by group, and the (...) log-mass of the tail.

    Does on the device what :func:`logitstore.targets.vocab_map.regroup_dense` does in numpy.

    Args:
        logp: (..., V) log-masses.
        to: (V,) group of each class; -1 for the tail.
        classes: number of groups; -1e4 is returned for a group without any class.
    """
    index = torch.where(to < 0, classes, to)
    groups = logp.new_full((*logp.shape[:-1], classes + 1), NOTHING)
    peak = groups.scatter_reduce(-1, index.expand_as(logp), logp, "amax")
    parts = (logp - peak.index_select(-1, index)).exp()
    sums = torch.zeros_like(groups).index_add(-1, index, parts)
    sums = torch.where(sums > 0, sums.log() + peak, groups)
    return sums[..., :-1], sums[..., -1]


def _without_tail(logp: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Return (..., V) log-probabilities, normalised again in the rows that ``which`` (...) names."""
    return torch.where(which[..., None], logp.log_softmax(-1), logp)


def map_tensors(record: Any, f: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """Return the tensors of a dataclass by field name, with ``f`` applied to each."""
    values = {x.name: getattr(record, x.name) for x in fields(record)}
    return {name: f(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
