"""Pictures in a terminal of 256 colours, two frames in each character."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .colour import terminal_palette
from .png import quantised

LEVELS = 16
RESET = "\x1b[0m"
_LEFT_HALF = "▌"


def pooled(values: NDArray[Any], columns: int) -> NDArray[Any]:
    """Return (rows, frames) numbers in at most ``columns`` columns, the largest of the frames that each covers."""
    frames = values.shape[1]
    if frames <= columns:
        return values
    edges = np.arange(columns) * frames // columns
    return np.asarray(np.maximum.reduceat(values, edges, axis=1))


def halves(values: NDArray[Any], ramp: str) -> list[str]:
    """Return a line for each row of (rows, frames) numbers from 0 to 1, two frames in each character.

    Args:
        values: the numbers; an odd last frame fills its character alone.
        ramp: name of a colour ramp.
    """
    colours = np.array(terminal_palette(ramp, LEVELS))[quantised(values, LEVELS)]
    if colours.shape[1] % 2:
        colours = np.concatenate([colours, colours[:, -1:]], axis=1)
    lines = []
    for row in colours:
        parts, last = [], (-1, -1)
        for left, right in zip(row[::2].tolist(), row[1::2].tolist(), strict=True):
            if (left, right) != last:
                parts.append(f"\x1b[38;5;{left};48;5;{right}m")
                last = left, right
            parts.append(_LEFT_HALF)
        lines.append("".join([*parts, RESET]))
    return lines
