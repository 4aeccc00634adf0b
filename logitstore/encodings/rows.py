"""What a student is told: decoded rows that serve every temperature, in numpy.

Rows are N frames (CTC) or N lattice nodes (RNN-T, in (T, U+1) order) over V classes. Log-probabilities are
natural logarithms at temperature 1; ``at(temperature)`` gives the same rows as a student uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

Float = NDArray[np.float32]


NOTHING = (
    -1e4
)  # log of no mass: finite, so p·log p is 0 and not NaN; its exponential is 0 in every float type


TEMPERATURES = (1.0, 2.0, 4.0, 8.0)


BETWEEN = 4 / 3  # where the log-tail is stored besides: it bends most between temperatures 1 and 2


@dataclass(frozen=True)
class Tempered:
    """N rows at one temperature.

    Attributes:
        classes: V.
        temperature: that the probabilities were taken at.
        logp: (N, K) float32 log-probabilities; K = V where ``ids`` is None.
        ids: (N, K) int32 class of each, or None when every class is there in order. A row with fewer entries
            repeats its first class with a log-probability of -1e4.
        tail: (N,) float32 log of the mass of all other classes together; -1e4 where there is none. Beside
            ``ids`` None it is the mass of teacher tokens that the student's table has no class for.
    """

    classes: int
    temperature: float
    logp: Float
    ids: NDArray[np.int32] | None
    tail: Float

    def has_tail(self) -> NDArray[np.bool_]:
        """(N,) whether any mass lies in the tail; rounding leaves it near -1e4 where there is none."""
        return self.tail > NOTHING / 2

    def dense(self) -> Float:
        """(N, V) float32, each row summing to one.

        The tail's mass is spread equally over the classes that were not kept. Where all of them were, it
        belongs to none (tokens that a student's table lacks), and the row is normalised without it.
        """
        if self.ids is None:
            return _without_tail(self.logp, self.has_tail())
        kept = self.logp > NOTHING
        left = self.classes - kept.sum(axis=1)
        rest = self.tail - np.log(np.maximum(left, 1))
        out = np.broadcast_to(rest[:, None], (len(rest), self.classes)).astype(np.float32)
        best_last = slice(None, None, -1)  # of equal ids, the last one written stays
        logp = np.where(kept, self.logp, rest[:, None])
        np.put_along_axis(out, self.ids[:, best_last].astype(np.int64), logp[:, best_last], axis=1)
        return _without_tail(out, self.has_tail() & (left == 0))


class Rows(Protocol):
    """N decoded rows of one stream, whatever the encoding."""

    @property
    def classes(self) -> int:
        """V."""

    def __len__(self) -> int:
        """N."""

    def at(self, temperature: float = 1.0) -> Tempered:
        """The rows at a temperature ≥ 1."""

    def take(self, index: NDArray[np.int64]) -> Rows:
        """Some of the rows, in this order."""


def _without_tail(logp: Float, which: NDArray[np.bool_]) -> Float:
    """(N, V) log-probabilities, those rows normalised again."""
    if not which.any():
        return logp
    return np.where(which[:, None], logp - logsumexp(logp)[:, None], logp).astype(np.float32)


def logsumexp(x: NDArray[Any], axis: int = -1) -> NDArray[Any]:
    """log Σ exp along an axis; rows of -inf give -inf."""
    top = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    safe = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(x - safe).sum(axis=axis)) + np.squeeze(safe, axis))


def check_temperature(temperature: float) -> None:
    """Raises ``UsageError`` below 1: what a pruned row left out is not known there."""
    if not (np.isfinite(temperature) and temperature >= 1):
        raise UsageError(f"a temperature of {temperature}", do="Temperatures are 1 or more.")


@dataclass(frozen=True)
class Dense:
    """Every class of every row.

    Attributes:
        logp: (N, V) log-probabilities at temperature 1.
        logz: (N,) float32 log-normaliser: ``logp + logz`` are the teacher's raw logits.
    """

    logp: NDArray[Any]
    logz: Float

    @property
    def classes(self) -> int:
        return int(self.logp.shape[1])

    def __len__(self) -> int:
        return len(self.logp)

    def take(self, index: NDArray[np.int64]) -> Dense:
        return Dense(self.logp[index], self.logz[index])

    def at(self, temperature: float = 1.0) -> Tempered:
        check_temperature(temperature)
        logp = self.logp.astype(np.float32) / np.float32(temperature)
        logp = (logp - logsumexp(logp)[:, None]).astype(np.float32)
        return Tempered(self.classes, temperature, logp, None, np.full(len(logp), NOTHING, np.float32))

    def logits(self) -> Float:
        """(N, V) float32 raw logits."""
        return (self.logp.astype(np.float32) + self.logz[:, None]).astype(np.float32)


@dataclass(frozen=True)
class Sparse:
    """The K best classes of every row, and what the others weigh.

    Attributes:
        classes: V.
        ids: (N, K) classes, best first, ties by lower id.
        logp: (N, K) log-probabilities at temperature 1.
        odds: (N, 4) or (N, 5) float32 log of (left-out mass / kept mass) at temperatures 1, 2, 4, 8, 4/3.
        logz: (N,) float32 log-normaliser at temperature 1.
    """

    classes: int
    ids: NDArray[Any]
    logp: NDArray[Any]
    odds: Float
    logz: Float

    def __len__(self) -> int:
        return len(self.logp)

    def take(self, index: NDArray[np.int64]) -> Sparse:
        return Sparse(self.classes, self.ids[index], self.logp[index], self.odds[index], self.logz[index])

    def at(self, temperature: float = 1.0) -> Tempered:
        """The log-tail at any temperature lies on the polynomial through what is known of a smooth curve.

        The curve is log Σ exp(logp/τ) over the left-out classes; four or five points are stored, and at
        1/τ = 0 it is the logarithm of how many there are.
        """
        return pruned(self.classes, self.ids, self.logp, self.odds, temperature)


@dataclass(frozen=True)
class Ragged:
    """The best classes of every row, as many as it needs, and what the others weigh.

    Attributes:
        classes: V.
        start: (N+1,) int64 where each row's entries begin; the last is where they end.
        ids: (M,) classes, row after row, best first, ties by lower id; no row is empty.
        logp: (M,) log-probabilities at temperature 1.
        odds: (N, 4) float32 log of (left-out mass / kept mass) at temperatures 1, 2, 4, 8.
    """

    classes: int
    start: NDArray[np.int64]
    ids: NDArray[Any]
    logp: NDArray[Any]
    odds: Float

    def __len__(self) -> int:
        return len(self.odds)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(N,) entries of each row."""
        return np.diff(self.start)

    def take(self, index: NDArray[np.int64]) -> Ragged:
        counts = self.counts[index]
        start = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        where = np.arange(start[-1]) - np.repeat(start[:-1] - self.start[:-1][index], counts)
        return Ragged(self.classes, start, self.ids[where], self.logp[where], self.odds[index])

    def at(self, temperature: float = 1.0) -> Tempered:
        """As :meth:`Sparse.at`; K is that of the widest row."""
        counts = self.counts
        place = np.arange(int(counts.max(initial=1)))
        real = place < counts[:, None]
        where = self.start[:-1, None] + np.where(real, place, 0)  # what is not there repeats the first
        return pruned(self.classes, self.ids[where], self.logp[where], self.odds, temperature, real)


@dataclass(frozen=True, eq=False)
class Vectors:
    """Rows that are no distributions: what a layer gave. No temperature applies.

    Attributes:
        h: (N, D) numbers.
    """

    h: NDArray[Any]

    @property
    def width(self) -> int:
        """D."""
        return int(self.h.shape[1])

    def __len__(self) -> int:
        return len(self.h)

    def take(self, index: NDArray[np.int64]) -> Vectors:
        return Vectors(self.h[index])

    def values(self) -> Float:
        """(N, D) float32."""
        return self.h.astype(np.float32)


def pruned(
    classes: int,
    ids: NDArray[Any],
    stored: NDArray[Any],
    odds: Float,
    temperature: float,
    real: NDArray[np.bool_] | None = None,
) -> Tempered:
    """Rows of kept entries at a temperature; ``real`` is False where a row has no such entry."""
    check_temperature(temperature)
    logp: NDArray[np.float64] = stored.astype(np.float64)
    left = np.full(len(logp), classes - logp.shape[1])
    if real is not None:
        logp = np.where(real, logp, -np.inf)
        left = classes - real.sum(axis=1)
    kept = logsumexp(logp / temperature)
    tail: NDArray[Any]
    known = stored_at(odds.shape[1])
    if temperature in known:
        tail = kept + odds[:, known.index(temperature)]
    else:
        points = [logsumexp(logp / t) + odds[:, i] for i, t in enumerate(known)]
        points.append(np.log(np.maximum(left, 1)))
        tail = np.stack(points, -1) @ tail_weights(temperature, known)
    tail = np.where(left == 0, NOTHING, tail)
    total = np.logaddexp(kept, tail)
    out = (logp / temperature - total[:, None]).astype(np.float32)
    return Tempered(
        classes,
        temperature,
        out if real is None else np.where(real, out, np.float32(NOTHING)),
        ids.astype(np.int32),
        np.maximum(tail - total, NOTHING).astype(np.float32),
    )


def stored_at(points: int) -> tuple[float, ...]:
    """The temperatures of so many stored tails."""
    return (*TEMPERATURES, BETWEEN)[:points]


def tail_weights(temperature: float, known: tuple[float, ...]) -> NDArray[np.float64]:
    """Weights of the known points, and of that at 1/τ = 0, for the value of their polynomial.

    Through four stored points it is one in 1/τ (SPEC E7). Through five it is one in ln(1 + 4/τ), in which the
    curve is nearly straight: the other misses the mass by a tenth at temperatures below 2 (SPEC E20).
    """
    beta = np.array([1 / t for t in (*known, np.inf, temperature)])
    *at, x = beta if len(known) == 4 else np.log1p(4 * beta)
    found = np.ones(len(at))
    for i, here in enumerate(at):
        for j, other in enumerate(at):
            if i != j:
                found[i] *= (x - other) / (here - other)
    return found


@dataclass(frozen=True, eq=False)
class Factored:
    """Rows as a linear head sees them, and the head: every class, at every temperature.

    Attributes:
        h: (N, D) numbers.
        weight: (V, D) float32.
        bias: (V,) float32.
    """

    h: NDArray[Any]
    weight: Float
    bias: Float

    @property
    def classes(self) -> int:
        return len(self.bias)

    def __len__(self) -> int:
        return len(self.h)

    def take(self, index: NDArray[np.int64]) -> Factored:
        return Factored(self.h[index], self.weight, self.bias)

    def logits(self) -> Float:
        """(N, V) float32 logits."""
        return np.asarray(self.h.astype(np.float32) @ self.weight.T + self.bias, np.float32)

    def at(self, temperature: float = 1.0) -> Tempered:
        return every_class(self.logits(), temperature)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0.0)}


@dataclass(frozen=True, eq=False)
class FactoredLattice:
    """The nodes of a lattice as its joiner makes them: head(activation(enc[t] + dec[u])).

    Attributes:
        enc: (T, J) float32.
        dec: (U+1, J) float32.
        activation: ``tanh`` or ``relu``.
        weight: (V, J) float32.
        bias: (V,) float32.
        nodes: (N,) int64 t · (U+1) + u of the rows; None for all of them.
    """

    enc: Float
    dec: Float
    activation: str
    weight: Float
    bias: Float
    nodes: NDArray[np.int64] | None = None

    @property
    def classes(self) -> int:
        return len(self.bias)

    def __len__(self) -> int:
        return len(self.enc) * len(self.dec) if self.nodes is None else len(self.nodes)

    def take(self, index: NDArray[np.int64]) -> FactoredLattice:
        nodes = index if self.nodes is None else self.nodes[index]
        return FactoredLattice(self.enc, self.dec, self.activation, self.weight, self.bias, nodes)

    def logits(self) -> Float:
        """(N, V) float32 logits."""
        nodes = np.arange(len(self)) if self.nodes is None else self.nodes
        t, u = np.divmod(nodes, len(self.dec))
        joined = ACTIVATIONS[self.activation](self.enc[t] + self.dec[u])
        return np.asarray(joined @ self.weight.T + self.bias, np.float32)

    def at(self, temperature: float = 1.0) -> Tempered:
        return every_class(self.logits(), temperature)


def every_class(logits: Float, temperature: float) -> Tempered:
    """(N, V) logits as rows at a temperature."""
    check_temperature(temperature)
    logp = logits / np.float32(temperature)
    logp = (logp - logsumexp(logp)[:, None]).astype(np.float32)
    return Tempered(logp.shape[1], temperature, logp, None, np.full(len(logp), NOTHING, np.float32))
