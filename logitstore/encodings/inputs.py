"""Rows as a head sees them, and the head: every class at every temperature comes back with one product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.target import NOTHING, Float, Tempered, check_temperature, logsumexp


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
