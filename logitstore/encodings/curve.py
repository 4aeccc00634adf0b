"""The logarithm of a pruned row's tail between the temperatures where it is stored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def weights(temperature: float, known: tuple[float, ...]) -> NDArray[np.float64]:
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
