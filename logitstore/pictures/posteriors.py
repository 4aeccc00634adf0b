"""Choice of what a posteriorgram shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAST = 0.04  # probability that a class must reach to be shown


def classes_in_play(probability: NDArray[np.floating], blank: int, most: int) -> list[int]:
    """Return the classes that are worth a row of a picture, by the frame at which each is most probable.

    Args:
        probability: (T, V) probabilities.
        blank: class that is left out.
        most: number of classes at most.
    """
    if not len(probability):
        return []
    peak = probability.max(axis=0)
    peak[blank] = 0
    chosen = np.argsort(-peak, kind="stable")[:most]
    chosen = chosen[peak[chosen] >= LEAST]
    return [int(c) for c in chosen[np.argsort(probability[:, chosen].argmax(axis=0), kind="stable")]]
