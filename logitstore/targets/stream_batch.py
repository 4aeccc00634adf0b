"""One stream of a batch as padded tensors: rows of classes, as a head sees them, or what a layer gave."""

from __future__ import annotations

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
        logp: (B, T, K), (B, T, n, K) of stacked frames, (B, T, U+1, K) or (B, T, S, K) of a lattice,
            (B, N, K) of a path, or (B, U, K) of an attention decoder; float32 log-probabilities; K = V
            where ``ids`` is None. -1e4 in padding and for entries a row does not have.
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
        """(B, T[, U+1], V) log-probabilities; see :meth:`logitstore.encodings.rows.Tempered.dense`.

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
        return replace(self, **mapped(self, f))


@dataclass(frozen=True)
class FactoredBatch:
    """One stream of a batch as its head sees it, for the device that the student is on.

    Nothing V wide is copied there: ``dense()`` and ``top()`` are one product with the weight, there. It reads
    as a :class:`StreamBatch` that holds every class does, ``logp``, ``ids``, ``tail`` and all.

    Attributes:
        h: (B, T, D) float32, 0 in padding.
        weight: (V, D) float32, V of the student's table where it has the same tokens.
        bias: (V,) float32.
        mask: bool, as ``h`` without D: True where there is a teacher's row.
        temperature: that probabilities are served at.
        dec: (B, U+1, D) float32 of a lattice, whose nodes are activation(h[t] + dec[u]).
        activation: ``tanh`` or ``relu``, with ``dec``.
        to: (V,) int64 student class of each of the head's, -1 for the tail, where the tables differ by more
            than their order: applied after the product.
        student: classes of the student's table, with ``to``.
        later: as ``h``, of the frames that ``linear`` resampling mixes those of ``h`` with; None where it
            mixes none.
        share: (B, T) float32 of their probabilities in the mixture, with ``later``.
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
        """V, of the student's table where rows are mapped to one."""
        return len(self.bias) if self.to is None else self.student

    def _head(self, h: torch.Tensor) -> torch.Tensor:
        """(B, T[, U+1], V) log-probabilities of the head's classes; float32, under autocast too."""
        with torch.autocast(h.device.type, enabled=False):
            if self.dec is not None:
                h = ACTIVATIONS[self.activation](h[:, :, None] + self.dec[:, None])
            rows = torch.addmm(self.bias, h.flatten(0, -2), self.weight.T)
        logits = rows.view(*self.mask.shape, -1) * self.mask[..., None]  # even in padding
        return (logits / self.temperature).log_softmax(-1)

    def _masses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T[, U+1], V) log-masses of the classes and (B, T[, U+1]) of the tail, even in padding."""
        logp = self._head(self.h)
        if self.later is not None and self.share is not None:
            share = self.share.view(*self.share.shape, *(1,) * (logp.dim() - 2))
            logp = torch.logaddexp(logp + (-share).log1p(), self._head(self.later) + share.log())
        if self.to is None:
            return logp, torch.full_like(self.mask, NOTHING, dtype=torch.float32)
        return _regrouped(logp, self.to, self.student)

    def dense(self) -> torch.Tensor:
        """As :meth:`StreamBatch.dense`; even in padding."""
        logp, tail = self._masses()
        return logp if self.to is None else _without_tail(logp, tail > NOTHING / 2)

    @property
    def logp(self) -> torch.Tensor:
        """As :attr:`StreamBatch.logp`: made anew each time."""
        return self._masses()[0].masked_fill(~self.mask[..., None], NOTHING)

    @property
    def tail(self) -> torch.Tensor:
        """As :attr:`StreamBatch.tail`: mass of tokens that the student's table lacks."""
        if self.to is None:
            return torch.full_like(self.mask, NOTHING, dtype=torch.float32)
        return self._masses()[1].masked_fill(~self.mask, NOTHING)

    def top(self, k: int) -> StreamBatch:
        """The K best classes of every row, best first, and the exact mass of all others."""
        if not 1 <= k <= self.classes:
            raise UsageError(f"the best {k} of {self.classes} classes")
        logp, tail = self._masses()
        best, ids = logp.topk(k, dim=-1)
        ids = torch.where(best > NOTHING, ids, ids[..., :1])  # classes that nothing of the teacher becomes
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

    def map(self, f: Any) -> Self:
        """The same with ``f`` applied to every tensor."""
        return replace(self, **mapped(self, f))


@dataclass(frozen=True)
class VectorBatch:
    """What a layer gave, of B utterances padded to the longest.

    Attributes:
        h: (B, T, D) float32, or (B, T, n, D) of stacked frames; 0 in padding.
        mask: bool, as ``h`` without D: True where the teacher says anything.
    """

    h: torch.Tensor
    mask: torch.Tensor

    def map(self, f: Any) -> Self:
        """The same with ``f`` applied to every tensor."""
        return replace(self, **mapped(self, f))


def _regrouped(logp: torch.Tensor, to: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., V) log-masses added up over ``classes`` groups, as :func:`logitstore.targets.vocab_map.regroup_dense` does,
    and (...) the tail's; -1e4 of a group that nothing becomes."""
    index = torch.where(to < 0, classes, to)
    groups = logp.new_full((*logp.shape[:-1], classes + 1), NOTHING)
    peak = groups.scatter_reduce(-1, index.expand_as(logp), logp, "amax")
    parts = (logp - peak.index_select(-1, index)).exp()
    sums = torch.zeros_like(groups).index_add(-1, index, parts)
    sums = torch.where(sums > 0, sums.log() + peak, groups)
    return sums[..., :-1], sums[..., -1]


def _without_tail(logp: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """(..., V) log-probabilities, those rows normalised again."""
    return torch.where(which[..., None], logp.log_softmax(-1), logp)


def mapped(record: Any, f: Any) -> dict[str, Any]:
    """The tensors of a record with ``f`` applied to each, by name."""
    values = {x.name: getattr(record, x.name) for x in fields(record)}
    return {name: f(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
