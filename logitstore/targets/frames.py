"""Which teacher frame a student frame looks at: integer ratios, never seconds in floating point.

Frame ``i`` of S covers the share [i/S, (i+1)/S) of the utterance; its centre falls at
``(2i + 1)·T / 2S - 1/2`` in units of the other side's frames. Everything is computed in integers from the
utterance's **own** valid lengths: resampling a padded batch would shift every shorter utterance. Where a
student hears an utterance cut, stretched or joined to others, a :class:`Ramp` says where its frames look.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LengthError, UsageError

METHODS = ("linear", "linear-logit", "nearest", "max-nonblank", "stack:n")


@dataclass(frozen=True)
class Ramp:
    """Where student frames look: frame i at teacher frame ``begin + step · i``, exactly.

    Attributes:
        begin: 0 is the centre of the teacher's first frame, 1 that of its second.
        step: teacher frames from one student frame to the next.
        count: S.
    """

    begin: Fraction
    step: Fraction
    count: int

    @classmethod
    def whole(cls, teacher: int, student: int) -> Ramp:
        """S frames that share T evenly; raises ``LengthError``."""
        _check(teacher, student)
        over = max(student, 1)
        return cls(Fraction(teacher - student, 2 * over), Fraction(teacher, over), student)

    def nearest(self, teacher: int) -> NDArray[np.int64]:
        """(S,) the teacher frame, of T, that each takes; a tie goes to the earlier one."""
        return np.clip(self._ceil(self.begin - Fraction(1, 2), self.count), 0, max(teacher - 1, 0))

    def linear(self, teacher: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """(S,) two teacher frames and (S,) the weight in [0, 1) of the second."""
        numerator, over = self._numerators(self.begin, self.count)
        low = numerator // over
        weight = ((numerator - low * over) / over).astype(np.float32)
        last = max(teacher - 1, 0)
        weight[(low < 0) | (low >= last)] = 0.0
        low = np.clip(low, 0, last).astype(np.int64)
        return low, np.minimum(low + (weight > 0), last), weight

    def edges(self, teacher: int) -> NDArray[np.int64]:
        """(S+1,) the first teacher frame, of T, whose centre falls into each student frame or a later one."""
        return np.clip(self._ceil(self.begin - self.step / 2, self.count + 1), 0, teacher)

    def _ceil(self, begin: Fraction, count: int) -> NDArray[np.int64]:
        numerator, over = self._numerators(begin, count)
        return np.asarray(-(-numerator // over), np.int64)

    def _numerators(self, begin: Fraction, count: int) -> tuple[NDArray[Any], int]:
        """(count,) whole numbers that are positions when divided by the second."""
        over = math.lcm(begin.denominator, self.step.denominator)
        first, each = int(begin * over), int(self.step * over)
        small = abs(first) + abs(each) * count + over < 1 << 62
        return first + each * np.arange(count).astype(np.int64 if small else object), over


def nearest(teacher: int, student: int) -> NDArray[np.int64]:
    """(S,) the teacher frame, of T, that each of S student frames takes; a tie goes to the earlier one."""
    return Ramp.whole(teacher, student).nearest(teacher)


def linear(teacher: int, student: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """(S,) two teacher frames and (S,) the weight in [0, 1) of the second, for each of S student frames."""
    return Ramp.whole(teacher, student).linear(teacher)


@dataclass(frozen=True)
class Method:
    """How teacher frames become student frames; ``str()`` of it is how the user writes it.

    Attributes:
        name: ``linear`` mixes probabilities of the two nearest frames, ``linear-logit`` their logits;
            ``nearest`` takes frames; ``max-nonblank``, of the frames that fall into a student's, the one
            with least blank, so that no spike is lost; ``stack`` gives each student frame ``size`` frames.
        size: of ``stack``; 0 for the others.
        shift: student frames by which a streaming student may lag: it says at i + shift what others say at i.
    """

    name: str = "linear"
    size: int = 0
    shift: int = 0

    def __str__(self) -> str:
        return f"{self.name}{f':{self.size}' * bool(self.size)}{f'+shift={self.shift}' * bool(self.shift)}"

    @classmethod
    def parse(cls, text: str) -> Method:
        """``linear``, ``stack:4``, ``nearest+shift=2``, ...; raises ``UsageError``."""
        found = re.fullmatch(r"([a-z-]+)(?::([1-9][0-9]{0,3}))?(?:\+shift=([0-9]{1,4}))?", text)
        known = found and f"{found[1]}{':n' if found[2] else ''}" in METHODS
        if not found or not known:
            raise UsageError(
                f"no resampling method {text!r}",
                do=f"Known: {', '.join(METHODS)}; each with +shift=n, e.g. nearest+shift=2.",
            )
        return cls(found[1], int(found[2] or 0), int(found[3] or 0))


@dataclass(frozen=True)
class Plan:
    """The teacher frames of every student frame: ``(1 - weight)·low + weight·high``.

    Attributes:
        low: (S,) or (S, n) int64.
        high: the same.
        weight: the same, float32, in [0, 1].
        valid: the same, bool; False where the teacher says nothing.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: NDArray[np.float32]
    valid: NDArray[np.bool_]


def plan(
    teacher: int, student: int | Ramp, method: Method, nonblank: NDArray[np.floating] | None = None
) -> Plan:
    """Which of T teacher frames each student frame looks at: S of them share T, or a ramp says where.

    ``nonblank`` (T,) is the mass of all classes but the blank, for ``max-nonblank``. A ramp lags already.
    Raises ``LengthError``.
    """
    weight: NDArray[np.float32]
    count, lag = (student.count, 0) if isinstance(student, Ramp) else (student, method.shift)
    if method.name == "stack" and not isinstance(student, Ramp):
        check_stack(teacher, student, method.size)
        low = np.arange(student * method.size).reshape(student, method.size)
        valid = low < teacher
        low = np.minimum(low, max(teacher - 1, 0))
        high = low
        weight = np.zeros(low.shape, np.float32)
    else:
        ramp = student if isinstance(student, Ramp) else Ramp.whole(teacher, student)
        if method.name.startswith("linear"):
            low, high, weight = ramp.linear(teacher)
        else:
            low = ramp.nearest(teacher)
            if method.name == "max-nonblank":
                assert nonblank is not None
                low = spikes(nonblank, low, ramp)
            high, weight = low, np.zeros(count, np.float32)
        valid = np.ones(count, bool)
    n = min(lag, count)
    if n:
        low, high, weight, valid = (
            np.concatenate([np.repeat(x[:1], n, axis=0), x[: count - n]]) for x in (low, high, weight, valid)
        )
        valid[:n] = False
    return Plan(low, high, weight, valid)


def spikes(nonblank: NDArray[np.floating], near: NDArray[np.int64], student: int | Ramp) -> NDArray[np.int64]:
    """(S,) the frame of most non-blank mass of those whose centres fall into each student frame.

    Every teacher frame falls into one at most. Where none does, ``near`` is taken. Of equal masses the first.
    """
    ramp = student if isinstance(student, Ramp) else Ramp.whole(len(nonblank), student)
    edges, best = ramp.edges(len(nonblank)), near.copy()
    for i in np.flatnonzero(edges[1:] > edges[:-1]):
        best[i] = edges[i] + int(np.argmax(nonblank[edges[i] : edges[i + 1]]))
    return best


def check_stack(teacher: int, student: int, size: int) -> None:
    """Raise ``LengthError`` unless S stacks of ``size`` frames are what T frames need."""
    if student != -(-teacher // size):
        raise LengthError(
            f"{student} student frames for {teacher} teacher frames in stacks of {size}",
            why="A stack of another size would move every label.",
            do=f"The student has {-(-teacher // size)} frames of this utterance.",
        )


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
