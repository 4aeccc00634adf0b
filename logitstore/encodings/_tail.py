"""The tail of pruned rows: mass of the classes left out, stored at five temperatures and served at any.

For every row the logarithm of (left-out mass / kept mass) is stored at temperatures 1, 4/3, 2, 4 and 8: as
five 16-bit integers (SPEC E6), or as two and three bends of one byte each (SPEC E9). The tail is summed over the
left-out classes themselves, never as one minus the kept mass, and stored relative to the kept mass: both masses
stay exact, whichever of the two is tiny.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .rows import NOTHING, TEMPERATURES, Float, Tempered, check_temperature, logsumexp

if TYPE_CHECKING:
    import torch

POINTS = len(TEMPERATURES)
ODDS_STEP, ODDS_OFFSET = 1 / 1024, -20.0  # int16 reaches from -52 to +12 nats, within 0.0005
LOGP_FLOOR = -65504.0  # the least float16
AT = "temperatures 1, 4/3, 2, 4, 8"
ABOUT_ODDS = f"log(left-out mass / kept mass) at {AT}: value / 1024 - 20 nats"
BENT = [1, 3, 4]  # of the stored temperatures: 4/3, 4 and 8
BEND_STEP = 1 / 128  # nats: int8 reaches a nat to either side, within 0.004
ABOUT_ENDS = "log(left-out mass / kept mass) at temperatures 1 and 2: value / 1024 - 20 nats"
ABOUT_BENDS = "bend of the log of the left-out mass at temperatures 4/3, 4, 8: nats · 128 (SPEC E9)"


def encode_odds(odds: torch.Tensor) -> torch.Tensor:
    """Return (N, 5) float log odds as int16."""
    return ((odds - ODDS_OFFSET) / ODDS_STEP).round_().clamp_(-32768, 32767).short()


def decode_odds(stored: NDArray[Any]) -> Float:
    """Return (N, 5) float32 log odds of the stored int16."""
    return (stored * np.float32(ODDS_STEP) + np.float32(ODDS_OFFSET)).astype(np.float32)


def encode_bends(odds: torch.Tensor, kept: torch.Tensor, left: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return (N, 2) int16 odds at 1 and 2, (N, 3) int8 bends at 4/3, 4 and 8, and (N,) bool, True where these fit.

    A bend is how far the log of the left-out mass lies from the curve a + b/τ + c ln(1 + 4/τ) through its
    stored values at 1 and 2 and the one at 1/τ = 0. On trained heads it is below 0.4 nats.

    Args:
        odds: (N, 5) log odds of the tail at the stored temperatures.
        kept: (N, 5) log of the kept mass at these, on any scale.
        left: (N,) number of classes left out.
    """
    ends = encode_odds(odds[:, [0, 2]])
    known = kept.new_empty(len(kept), 3)
    known[:, :2] = ends * ODDS_STEP + ODDS_OFFSET + kept[:, [0, 2]]
    known[:, 2] = left.clamp(min=1).log()
    code = (odds[:, BENT] + kept[:, BENT] - known @ kept.new_tensor(_bend_weights()).T) / BEND_STEP
    code = code.round().masked_fill(left[:, None] == 0, 0.0)
    return ends, code.clamp(-128, 127).char(), (code.clamp(-128, 127) == code).all(1)


def decode_bends(ends: Float, bends: NDArray[Any], kept: NDArray[Any], left: NDArray[Any]) -> Float:
    """Return (N, 5) float32 log odds from those at 1 and 2 and the bends.

    Args:
        ends: (N, 2) log odds at 1 and 2.
        bends: (N, 3) int8.
        kept: (N, 5) log of the kept mass at the stored temperatures, on any scale.
        left: (N,) number of classes left out.
    """
    known = [ends[:, 0] + kept[:, 0], ends[:, 1] + kept[:, 2], np.log(np.maximum(left, 1))]
    odds = np.empty((len(ends), POINTS), np.float32)
    odds[:, [0, 2]] = ends
    odds[:, BENT] = np.stack(known, 1) @ _bend_weights().T + bends * BEND_STEP - kept[:, BENT]
    return odds


def _bend_weights() -> NDArray[np.float64]:
    """Return (3, 3) weights of the values at 1, 2 and 1/τ = 0 in the curve's values at 4/3, 4 and 8."""

    def terms(temperatures: Sequence[float]) -> NDArray[np.float64]:
        beta = 1 / np.array(temperatures)
        return np.stack([np.ones_like(beta), beta, np.log1p(4 * beta)])

    through, wanted = terms((1.0, 2.0, np.inf)), terms([TEMPERATURES[i] for i in BENT])
    return np.asarray(np.linalg.solve(through, wanted).T)


def power_sums(e: torch.Tensor) -> torch.Tensor:
    """Return (N, 5) Σ exp(x/τ) at τ = 1, 4/3, 2, 4, 8.

    No exponential is taken: squares of squares give 4, 2 and 1, and x · 3/4 = x/4 + x/2 gives 4/3.

    Args:
        e: (N, K) exp(x/8); overwritten.
    """
    sums = e.new_empty(len(e), POINTS)
    sums[:, 4] = e.sum(-1)
    sums[:, 3] = e.square_().sum(-1)
    quarter = e.clone()
    sums[:, 2] = e.square_().sum(-1)
    sums[:, 1] = quarter.mul_(e).sum(-1)
    sums[:, 0] = e.square_().sum(-1)
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
        odds: (N, 5) float32 log odds of the tail.
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
    if temperature in TEMPERATURES:
        tail = kept + odds[:, TEMPERATURES.index(temperature)]
    else:
        points = [logsumexp(logp / t) + odds[:, i] for i, t in enumerate(TEMPERATURES)]
        points.append(np.log(np.maximum(left, 1)))
        tail = np.stack(points, -1) @ tail_weights(temperature)
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


def tail_weights(temperature: float) -> NDArray[np.float64]:
    """Return the weights of the five stored points, and of the one at 1/τ = 0, in the value of their polynomial.

    The polynomial is one in ln(1 + 4/τ), in which the curve is nearly straight (SPEC E7); in 1/τ it misses the
    mass by a tenth below temperature 2.
    """
    *at, x = np.log1p(4 / np.array([*TEMPERATURES, np.inf, temperature]))
    weights = np.ones(len(at))  # Lagrange's
    for i, here in enumerate(at):
        for j, other in enumerate(at):
            if i != j:
                weights[i] *= (x - other) / (here - other)
    return weights
