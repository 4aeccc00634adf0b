"""The tail of pruned rows: mass of the classes left out, stored at a few temperatures and served at any.

For every row the logarithm of (left-out mass / kept mass) is stored as a 16-bit integer at temperatures 1, 2,
4, 8 and, since SPEC E20, 4/3. The tail is summed over the left-out classes themselves, never as one minus the
kept mass, and stored relative to the kept mass: both masses stay exact, whichever of the two is tiny.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .rows import NOTHING, TEMPERATURES, Float, Tempered, check_temperature, logsumexp

if TYPE_CHECKING:
    import torch

BETWEEN = 4 / 3  # the fifth stored temperature: the log-tail bends most between 1 and 2
POINTS = len((*TEMPERATURES, BETWEEN))
ODDS_STEP, ODDS_OFFSET = 1 / 1024, -20.0  # int16 reaches from -52 to +12 nats, within 0.0005
LOGP_FLOOR = -65504.0  # the least float16
ABOUT = "log(left-out mass / kept mass) at temperatures 1, 2, 4, 8{}: value / 1024 - 20 nats"


def describe(points: int) -> str:
    """Return the description of the ``tail`` column with 4 or 5 temperatures."""
    return ABOUT.format(", 4/3" if points == POINTS else "")


def encode_odds(odds: torch.Tensor) -> torch.Tensor:
    """Return (N, P) float log odds as int16."""
    return ((odds - ODDS_OFFSET) / ODDS_STEP).round_().clamp_(-32768, 32767).short()


def decode_odds(stored: NDArray[Any]) -> Float:
    """Return (N, P) float32 log odds of the stored int16."""
    return (stored * np.float32(ODDS_STEP) + np.float32(ODDS_OFFSET)).astype(np.float32)


def power_sums(e: torch.Tensor, points: int = len(TEMPERATURES)) -> torch.Tensor:
    """Return (N, 4 or 5) Σ exp(x/τ) at τ = 1, 2, 4, 8, 4/3.

    No exponential is taken: squares of squares give 4, 2 and 1, and x · 3/4 = x/4 + x/2 gives 4/3.

    Args:
        e: (N, K) exp(x/8); overwritten.
        points: 4, or 5 with 4/3.
    """
    sums = e.new_empty(len(e), points)
    quarter = e
    for column in reversed(range(len(TEMPERATURES))):
        sums[:, column] = e.sum(-1)
        if points == POINTS and TEMPERATURES[column] == 4:
            quarter = e.clone()
        if points == POINTS and TEMPERATURES[column] == 2:
            sums[:, -1] = quarter.mul_(e).sum(-1)
        if column:
            e.square_()
    return sums


def pruned(
    classes: int,
    ids: NDArray[Any],
    stored: NDArray[Any],
    odds: Float,
    temperature: float,
    real: NDArray[np.bool_] | None = None,
) -> Tempered:
    """Return pruned rows at a temperature.

    The tail at another temperature than the stored ones lies on the polynomial through the stored points and
    the one at 1/τ = 0, the logarithm of the number of left-out classes.

    Args:
        classes: V.
        ids: (N, K) class of each entry.
        stored: (N, K) log-probabilities at temperature 1.
        odds: (N, 4 or 5) float32 log odds of the tail.
        temperature: 1 or more; ``UsageError`` below.
        real: (N, K) bool, False where a row has no such entry; None where every row has K.
    """
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
    """Return the temperatures of 4 or 5 stored tails."""
    return (*TEMPERATURES, BETWEEN)[:points]


def tail_weights(temperature: float, known: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the weights of the stored points, and of the one at 1/τ = 0, in the value of their polynomial.

    Through four stored points the polynomial is one in 1/τ (SPEC E7). Through five it is one in ln(1 + 4/τ),
    in which the curve is nearly straight; in 1/τ it misses the mass by a tenth below temperature 2 (SPEC
    E20).
    """
    beta = np.array([1 / t for t in (*known, np.inf, temperature)])
    *at, x = beta if len(known) == 4 else np.log1p(4 * beta)
    weights = np.ones(len(at))  # Lagrange's
    for i, here in enumerate(at):
        for j, other in enumerate(at):
            if i != j:
                weights[i] *= (x - other) / (here - other)
    return weights
