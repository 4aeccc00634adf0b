"""How far what a store serves is from what the teacher said."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...encodings.rows import logsumexp


def relative_errors(own: NDArray[Any], served: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) |served - own|² / |own|² of every row of (N, D) numbers; 0 of a row of zeros that is served."""
    exact = own.astype(np.float64)
    missed = np.square(served - exact).sum(1)
    return np.asarray(missed / np.maximum(np.square(exact).sum(1), 1e-30))


def divergences(own: NDArray[Any], served: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """(N,) nats: KL(teacher ‖ stored) of every row.

    Args:
        own: (N, V) logits of the teacher.
        served: (N, V) log-probabilities at the temperature.
        temperature: of the softmax over ``own``.
    """
    exact, given = own.astype(np.float64) / temperature, served.astype(np.float64)
    exact -= logsumexp(exact)[:, None]
    given -= logsumexp(given)[:, None]  # float32 sums to one within 1e-7, which would drown the smallest
    return np.asarray((np.exp(exact) * (exact - given)).sum(1))
