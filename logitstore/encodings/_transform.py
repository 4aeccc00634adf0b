"""Transform coding of the inputs of a linear head: the axes and the step that keep a budget in nats.

Rows h are transformed so that a unit of error along any axis costs the same divergence, then rotated to the
principal axes of a sample, and rounded to whole numbers. By reverse water-filling (Kolmogorov 1956) one step
for all axes is best; axes that vary less than the step cost next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._rice import choose

if TYPE_CHECKING:
    import torch

TEMPERATURES = (1.0, 2.0, 4.0)  # the sample's mean divergence keeps the budget at each of these
FLAT = 0.02  # weight of equal shares for all classes, for those that are improbable in the sample
MEASURED_ROWS = 8192  # most rows of the sample that divergences are measured on
AIM = 0.85  # share of the budget to aim at: the rows of a corpus differ from a sample's
HALVINGS = 14  # of the interval that the step is searched in


def fit(
    weight: torch.Tensor, bias: torch.Tensor, sample: torch.Tensor, budget: float
) -> dict[str, NDArray[Any]]:
    """Return the constants of a head that a sample determines.

    Args:
        weight: (V, D) float64.
        bias: (V,) float64.
        sample: (N, D) float64 rows.
        budget: nats per row that may be lost on average.

    Returns:
        ``mean`` (D,), ``axes`` (D, r): codes are round((h - mean) @ axes); ``weight`` (V, r), ``bias`` (V,):
        logits are codes @ weight.T + bias; ``rice`` (r,).
    """
    mean = sample.mean(0)
    centred = sample - mean
    some = sample[:: -(-len(sample) // MEASURED_ROWS)]
    root = _root(_curvature(weight, bias, some))
    spread, turn = _eigen(root @ (centred.T @ centred) @ root)
    turn = turn[:, spread > 1e-10 * spread[0]]
    axes, back = root @ turn, turn.T @ root.inverse()
    own = some @ weight.T + bias
    parts, logits, base = (some - mean) @ axes, back @ weight.T, weight @ mean + bias
    low, high = 1e-4, 1e2
    for _ in range(HALVINGS):
        step = (low * high) ** 0.5
        lost = _lost(own, ((parts / step).round() * step) @ logits + base)
        low, high = (step, high) if lost <= AIM * budget else (low, step)
    codes = (centred @ (axes / low)).round()
    used = codes.abs().amax(0) > 0
    used[0] = True
    axes, back, codes = axes[:, used] / low, back[used] * low, codes[:, used]
    return {
        "mean": _numpy(mean),
        "axes": _numpy(axes),
        "weight": _numpy(weight @ back.T),
        "bias": _numpy(weight @ mean + bias),
        "rice": choose(codes.cpu().numpy().astype(np.int64)),
    }


def _curvature(weight: torch.Tensor, bias: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """Return the (D, D) mean Fisher information of h: a small error e of h costs eᵀ F e / 2 nats."""
    even = weight - weight.mean(0)
    total = FLAT * (even.T @ even) / len(weight)
    for temperature in TEMPERATURES:
        p = ((sample @ weight.T + bias) / temperature).softmax(-1)
        pw = p @ weight
        spread = (weight.T * p.mean(0)) @ weight - pw.T @ pw / len(p)
        total = total + spread / temperature**2 / len(TEMPERATURES)
    return total


def _root(square: torch.Tensor) -> torch.Tensor:
    """Return the symmetric root of a positive matrix, with eigenvalues of at least 1e-9 of the largest."""
    values, vectors = _eigen(square)
    return (vectors * values.clamp(min=1e-9 * float(values[0])).sqrt()) @ vectors.T


def _eigen(square: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvalues, largest first, and their vectors, each with its largest entry positive."""
    import torch

    values, vectors = torch.linalg.eigh((square + square.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * largest.sign()


def _lost(own: torch.Tensor, served: torch.Tensor) -> float:
    """Return the mean divergence of two sets of logits in nats, at the temperature where it is largest."""
    worst = 0.0
    for temperature in TEMPERATURES:
        p, q = ((x / temperature).float().log_softmax(-1) for x in (own, served))
        worst = max(worst, float((p.exp() * (p - q)).sum(-1).mean()))
    return worst


def _numpy(x: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(x.cpu().numpy().astype(np.float32))
