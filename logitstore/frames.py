"""Which teacher frame a student frame looks at: integer ratios, never seconds in floating point.

Frame ``i`` of S covers the share [i/S, (i+1)/S) of the utterance; its centre falls at
``(2i + 1)·T / 2S - 1/2`` in units of the other side's frames. Everything is computed in integers from the
utterance's **own** valid lengths: resampling a padded batch would shift every shorter utterance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import LengthError, UsageError

METHODS = ("linear", "nearest")


def nearest(teacher: int, student: int) -> NDArray[np.int64]:
    """(S,) the teacher frame, of T, that each of S student frames takes; a tie goes to the earlier one."""
    _check(teacher, student)
    i = np.arange(student, dtype=np.int64)
    return np.clip(((2 * i + 1) * teacher - 1) // (2 * student), 0, max(teacher - 1, 0))


def linear(teacher: int, student: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """(S,) two teacher frames and (S,) the weight in [0, 1) of the second, for each of S student frames."""
    _check(teacher, student)
    i = np.arange(student, dtype=np.int64)
    numerator = (2 * i + 1) * teacher - student  # of 2 * student: the centre's position
    low, rest = np.divmod(numerator, 2 * student) if student else (i, i)
    weight = (rest / max(2 * student, 1)).astype(np.float32)
    last = max(teacher - 1, 0)
    weight[(low < 0) | (low >= last)] = 0.0
    low = np.clip(low, 0, last)
    return low, np.minimum(low + (weight > 0), last), weight


def check_method(method: str) -> None:
    """Raises ``UsageError`` for an unknown resampling method."""
    if method not in METHODS:
        raise UsageError(f"no resampling method {method!r}", do=f"Known: {', '.join(METHODS)}.")


def check_ratio(teacher: int, student: int, ratio: tuple[int, int], tolerance: int, where: str) -> None:
    """Raise ``LengthError`` unless ``student`` ≈ ``teacher`` · p / q within ``tolerance`` student frames."""
    p, q = ratio
    expected = -(-teacher * p // q)
    if abs(expected - student) > tolerance:
        raise LengthError(
            f"{teacher} teacher frames at a ratio of {p}:{q} are {expected} student frames, "
            f"but {student} were asked for (tolerance {tolerance})",
            where=where,
            why="Stretching over such a gap would move every label.",
            do="Check that both saw the same audio, or widen the tolerance knowingly.",
        )


def _check(teacher: int, student: int) -> None:
    if teacher < 0 or student < 0 or (teacher == 0) != (student == 0):
        raise LengthError(
            f"{student} student frames from {teacher} teacher frames",
            why="Neither side can be empty alone, and no length is negative.",
        )
