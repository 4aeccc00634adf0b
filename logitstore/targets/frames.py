"""Resampling methods: the teacher frames that each student frame takes or mixes.

All positions are exact rational numbers of frames, never seconds in floating point. Student frame i of S
covers the share [i/S, (i+1)/S) of the utterance; its centre is at teacher frame (2i + 1) · T / 2S - 1/2. T
and S are the utterance's **own** valid lengths: resampling a padded batch would shift every shorter
utterance. For a clip that is cropped, sped up or joined, a :class:`Ramp` holds the positions.

To add a method, write one function and register it in :data:`METHODS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import LengthError, UsageError

WIDEST_RATIO = 8  # of student to teacher frames, or the other way round
MAX_DRIFT = 2  # student frames by which keep-tokens may move a teacher frame


@dataclass(frozen=True)
class Ramp:
    """Positions of student frames: frame i is at teacher frame ``begin + step · i``, exactly.

    Attributes:
        begin: teacher frame at the centre of the first student frame; 0 is the centre of the teacher's first.
        step: teacher frames from one student frame to the next.
        count: number of student frames, S.
    """

    begin: Fraction
    step: Fraction
    count: int

    @classmethod
    def whole(cls, teacher: int, student: int) -> Ramp:
        """Return the positions of S student frames that share T teacher frames evenly.

        Raises ``LengthError`` where one side is empty alone, or a length is negative.
        """
        _check_lengths(teacher, student)
        count = max(student, 1)
        return cls(Fraction(teacher - student, 2 * count), Fraction(teacher, count), student)

    def nearest(self, teacher: int) -> NDArray[np.int64]:
        """Return the (S,) nearest of T teacher frames; of two equally near ones the earlier."""
        return np.clip(self._ceil(self.begin - Fraction(1, 2), self.count), 0, max(teacher - 1, 0))

    def linear(self, teacher: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Return the (S,) frames of T before and after each position, and the (S,) weight of the second.

        Weights are float32 in [0, 1). Positions outside of the utterance take its first or last frame.
        """
        numerator, denominator = self._numerators(self.begin, self.count)
        low = numerator // denominator
        weight = ((numerator - low * denominator) / denominator).astype(np.float32)
        last = max(teacher - 1, 0)
        weight[(low < 0) | (low >= last)] = 0.0
        low = np.clip(low, 0, last).astype(np.int64)
        return low, np.minimum(low + (weight > 0), last), weight

    def edges(self, teacher: int) -> NDArray[np.int64]:
        """Return (S+1,) indices: frames edges[i] to edges[i+1] have their centres within student frame i."""
        return np.clip(self._ceil(self.begin - self.step / 2, self.count + 1), 0, teacher)

    def _ceil(self, begin: Fraction, count: int) -> NDArray[np.int64]:
        """Return (count,) positions from ``begin`` on, rounded up."""
        numerator, denominator = self._numerators(begin, count)
        return np.asarray(-(-numerator // denominator), np.int64)

    def _numerators(self, begin: Fraction, count: int) -> tuple[NDArray[Any], int]:
        """Return (count,) numerators of the positions from ``begin`` on, and their common denominator."""
        denominator = math.lcm(begin.denominator, self.step.denominator)
        first, each = int(begin * denominator), int(self.step * denominator)
        fits_int64 = abs(first) + abs(each) * count + denominator < 1 << 62
        return first + each * np.arange(count).astype(np.int64 if fits_int64 else object), denominator


@dataclass(frozen=True)
class FramePlan:
    """The teacher frames of every student frame: (1 - weight) · low + weight · high.

    Attributes:
        low: (S,) int64 teacher frames; (S, n) of stacks.
        high: teacher frames, as ``low``.
        weight: float32 share of ``high`` in [0, 1], as ``low``.
        valid: bool, as ``low``; False where the student frame has no target.
        groups: (S, k) int64 teacher frames to compose in place of mixing, in order, -1 for none; else None.
        tokens: tokens of the teacher's greedy decode, where the method counts them; else 0.
        lost: tokens among these that the chosen frames no longer hold.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: NDArray[np.float32]
    valid: NDArray[np.bool_]
    groups: NDArray[np.int64] | None = None
    tokens: int = 0
    lost: int = 0

    @classmethod
    def of_frames(cls, chosen: NDArray[np.int64]) -> FramePlan:
        """Return the plan that takes teacher frames as they are."""
        return cls(chosen, chosen, np.zeros(chosen.shape, np.float32), np.ones(chosen.shape, bool))

    def lagging(self, frames: int) -> FramePlan:
        """Return the plan of a student that lags: frame i + ``frames`` has the target of frame i.

        The first ``frames`` student frames have no target.
        """
        count = len(self.low)
        lag = min(frames, count)
        if not lag:
            return self

        def moved(x: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([np.repeat(x[:1], lag, axis=0), x[: count - lag]])

        valid = moved(self.valid)
        valid[:lag] = False
        groups = None if self.groups is None else moved(self.groups)
        return replace(
            self,
            low=moved(self.low),
            high=moved(self.high),
            weight=moved(self.weight),
            valid=valid,
            groups=groups,
        )


class FrameEvidence(Protocol):
    """The teacher's distributions of one stream, for methods that choose frames by what they hold."""

    @property
    def blank(self) -> int:
        """Id of the blank among the teacher's classes."""

    def nonblank(self) -> NDArray[np.floating]:
        """Return the (T,) probability of all classes but the blank."""

    def best(self) -> NDArray[np.int64]:
        """Return the (T,) most probable class of the teacher."""


Choose = Callable[[Ramp, int, FrameEvidence | None], FramePlan]


@dataclass(frozen=True)
class MethodRule:
    """The definition of one resampling method.

    Attributes:
        choose: function of (positions of student frames, T, evidence) that returns a plan.
        sized: True where the method is written with a number, ``stack:3``.
        mixes_logits: True where logits are mixed and not probabilities; only for rows of classes.
        needs_evidence: True where ``choose`` reads the evidence; only for frames of classes.
        lattices: True where the method can resample a lattice, which needs one rule for all label positions.
        composes: True where the plan has groups; only for rows of classes with a blank.
    """

    choose: Choose
    sized: bool = False
    mixes_logits: bool = False
    needs_evidence: bool = False
    lattices: bool = True
    composes: bool = False

    @property
    def numbers(self) -> bool:
        """Tell whether the method can resample the numbers of a layer."""
        return not (self.mixes_logits or self.needs_evidence or self.composes)


def _choose_linear(ramp: Ramp, teacher: int, evidence: FrameEvidence | None) -> FramePlan:
    low, high, weight = ramp.linear(teacher)
    return FramePlan(low, high, weight, np.ones(ramp.count, bool))


def _choose_nearest(ramp: Ramp, teacher: int, evidence: FrameEvidence | None) -> FramePlan:
    return FramePlan.of_frames(ramp.nearest(teacher))


def _choose_max_nonblank(ramp: Ramp, teacher: int, evidence: FrameEvidence | None) -> FramePlan:
    assert evidence is not None
    return FramePlan.of_frames(spikes(evidence.nonblank(), ramp.nearest(teacher), ramp))


def _choose_keep_tokens(ramp: Ramp, teacher: int, evidence: FrameEvidence | None) -> FramePlan:
    assert evidence is not None
    best = evidence.best()
    chosen = keep_tokens(best, evidence.blank, ramp)
    tokens, kept = (count_tokens(x, evidence.blank) for x in (best, best[chosen]))
    return replace(FramePlan.of_frames(chosen), tokens=tokens, lost=tokens - kept)


def _group_frames(ramp: Ramp, teacher: int, evidence: FrameEvidence | None) -> FramePlan:
    near = ramp.nearest(teacher)
    return replace(FramePlan.of_frames(near), groups=frame_groups(ramp, teacher, near))


METHODS: dict[str, MethodRule] = {
    # a monotone choice of frames that keeps every token of the best path
    "keep-tokens": MethodRule(_choose_keep_tokens, needs_evidence=True, lattices=False),
    # all frames within a student frame, composed: the first label that any of them emits, else the blank
    "compose": MethodRule(_group_frames, composes=True),
    # the probabilities of the two nearest frames, mixed
    "linear": MethodRule(_choose_linear),
    # the logits of the two nearest frames, mixed
    "linear-logit": MethodRule(_choose_linear, mixes_logits=True),
    # the nearest frame
    "nearest": MethodRule(_choose_nearest),
    # of the frames within a student frame the one with the least blank, so that CTC spikes are kept
    "max-nonblank": MethodRule(_choose_max_nonblank, needs_evidence=True, lattices=False),
    # n teacher frames per student frame, one after the other; in a clip each of them is the nearest frame
    "stack": MethodRule(_choose_nearest, sized=True, lattices=False),
}


# At half the teacher's rate, linear mixing turns one token in six of the demo teacher's CTC targets into another
# decode, keep-tokens one in sixty. Composed lattices keep more of the references' log-probability than linear or
# nearest ones at every rate. Both: benchmarks/resample.py.
DEFAULTS = {"ctc": "keep-tokens", "rnnt": "compose"}


def written(name: str) -> str:
    """Return how users write a method: its name, with ``:n`` where it takes a number."""
    return f"{name}:n" if METHODS[name].sized else name


@dataclass(frozen=True)
class Method:
    """A resampling method as a user asks for it; ``str()`` gives it as written.

    Attributes:
        name: one of :data:`METHODS`.
        size: teacher frames per student frame of ``stack``; 0 for the others.
        shift: student frames by which a streaming student lags: its frame i + shift has the target of frame
            i.
    """

    name: str = "linear"
    size: int = 0
    shift: int = 0

    def __str__(self) -> str:
        size = f":{self.size}" if self.size else ""
        shift = f"+shift={self.shift}" if self.shift else ""
        return f"{self.name}{size}{shift}"

    @classmethod
    def of(cls, stream: str, text: str | None) -> Method:
        """Return the method of a stream as written; its default for None, and for ``+shift=n`` alone.

        The default of ``ctc`` is ``keep-tokens``, of ``rnnt`` ``compose``, of other streams ``linear``. Raises
        ``UsageError``.
        """
        text = text or ""
        return cls.parse(DEFAULTS.get(stream, "linear") + text if text.startswith("+") or not text else text)

    @classmethod
    def parse(cls, text: str) -> Method:
        """Return the method written ``linear``, ``stack:4``, ``nearest+shift=2``; raises ``UsageError``."""
        match = re.fullmatch(r"([a-z-]+)(?::([1-9][0-9]{0,3}))?(?:\+shift=([0-9]{1,4}))?", text)
        if match is None or match[1] not in METHODS or METHODS[match[1]].sized != bool(match[2]):
            raise UsageError(
                f"no resampling method {text!r}",
                do=f"Known: {', '.join(map(written, METHODS))}; each with +shift=n, e.g. nearest+shift=2.",
            )
        return cls(match[1], int(match[2] or 0), int(match[3] or 0))

    @property
    def rule(self) -> MethodRule:
        """Definition of the method."""
        return METHODS[self.name]

    @property
    def single(self) -> Method:
        """The method for single frames: without stacks and without lag."""
        return Method("nearest" if self.size else self.name)


def plan(
    teacher: int, student: int | Ramp, method: Method, evidence: FrameEvidence | None = None
) -> FramePlan:
    """Return the teacher frames that each student frame takes or mixes.

    Args:
        teacher: valid frames of the teacher, T.
        student: valid frames of the student, S, which share the utterance evenly; or their positions in it,
            to which neither stacks nor lag apply any more.
        method: resampling method.
        evidence: the teacher's distributions, where the method needs them.

    Raises:
        LengthError: S or T empty alone, or stacks that do not fit T.
    """
    if isinstance(student, Ramp):
        return method.rule.choose(student, teacher, evidence)
    if method.size:
        chosen = _stacks(teacher, student, method.size)
    else:
        chosen = method.rule.choose(Ramp.whole(teacher, student), teacher, evidence)
    return chosen.lagging(method.shift)


def _stacks(teacher: int, student: int, size: int) -> FramePlan:
    """Return S stacks of ``size`` frames each; the last one may not be full."""
    check_stack(teacher, student, size)
    frame = np.arange(student * size).reshape(student, size)
    chosen = FramePlan.of_frames(np.minimum(frame, max(teacher - 1, 0)))
    return FramePlan(chosen.low, chosen.high, chosen.weight, frame < teacher)


def nearest(teacher: int, student: int) -> NDArray[np.int64]:
    """Return the (S,) nearest of T teacher frames; of two equally near ones the earlier."""
    return Ramp.whole(teacher, student).nearest(teacher)


def linear(teacher: int, student: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the two (S,) nearest of T teacher frames, and the (S,) weight in [0, 1) of the second."""
    return Ramp.whole(teacher, student).linear(teacher)


def spikes(nonblank: NDArray[np.floating], near: NDArray[np.int64], student: int | Ramp) -> NDArray[np.int64]:
    """Return for each student frame the teacher frame with the most non-blank mass within it.

    Every teacher frame is within one student frame at most. Of equal masses the first is taken.

    Args:
        nonblank: (T,) probability of all classes but the blank.
        near: (S,) frames for student frames that no teacher frame's centre is within.
        student: number of student frames, S, or their positions.
    """
    ramp = student if isinstance(student, Ramp) else Ramp.whole(len(nonblank), student)
    edges, best = ramp.edges(len(nonblank)), near.copy()
    for i in np.flatnonzero(edges[1:] > edges[:-1]):
        best[i] = edges[i] + int(np.argmax(nonblank[edges[i] : edges[i + 1]]))
    return best


def keep_tokens(
    best: NDArray[np.integer], blank: int, ramp: Ramp, drift: int = MAX_DRIFT
) -> NDArray[np.int64]:
    """Choose teacher frames, in order, whose greedy CTC decode is that of all frames.

    At least one frame is kept of every token of the best path, and of every blank between two equal tokens, as
    long as the tokens fit into the student's frames; then as many as possible are kept. Among such choices the
    sum of squared distances from the student frames' own times is smallest. Found by dynamic programming over
    the (2 · drift · step + 1) nearest frames of each student frame.

    Args:
        best: (T,) most probable class of each teacher frame.
        blank: id of the blank.
        ramp: positions of the S student frames.
        drift: student frames by which a chosen frame may be away from its student frame's time.

    Returns:
        (S,) int64 teacher frames, never falling.
    """
    teacher = len(best)
    near = ramp.nearest(teacher)
    if not ramp.count or not teacher or np.array_equal(near, np.arange(teacher)):
        return near
    first, last = _needed_runs(best, blank, ramp)
    frames = np.arange(teacher)
    begun = np.searchsorted(first, frames, "right")  # runs that begin at a frame or before it
    over = np.searchsorted(last, frames, "left")  # runs that end before a frame
    step = max(float(ramp.step), 1e-9)
    reach = max(1, math.ceil(drift * step))
    offsets = np.arange(-reach, reach + 1)
    candidates = np.clip(near[:, None] + offsets, 0, teacher - 1)  # (S, W)
    own_time = float(ramp.begin) + step * np.arange(ramp.count)
    distance = ((candidates - own_time[:, None]) / step) ** 2
    lost_run = float(distance.sum()) + 1.0  # dearer than any drift

    cost = distance[0] + lost_run * over[candidates[0]]
    came_from = np.zeros(candidates.shape, np.int64)
    for i in range(1, ramp.count):
        before, now = candidates[i - 1], candidates[i]
        skipped = np.maximum(over[now][None, :] - begun[before][:, None], 0)
        moves = np.where(now[None, :] >= before[:, None], cost[:, None] + lost_run * skipped, np.inf)
        came_from[i] = moves.argmin(0)
        cost = moves[came_from[i], np.arange(len(offsets))] + distance[i]
    chosen = np.empty(ramp.count, np.int64)
    at = int((cost + lost_run * (len(first) - begun[candidates[-1]])).argmin())
    for i in range(ramp.count - 1, -1, -1):
        chosen[i] = candidates[i, at]
        at = came_from[i, at]
    return chosen


def _needed_runs(
    best: NDArray[np.integer], blank: int, ramp: Ramp
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return first and last frames of the runs that a greedy CTC decode needs, within the student's frames."""
    first = np.flatnonzero(np.concatenate([[True], best[1:] != best[:-1]]))
    last = np.concatenate([first[1:], [len(best)]]) - 1
    token = best[first]
    needed = token != blank
    needed[1:-1] |= (token[1:-1] == blank) & (token[:-2] == token[2:])
    edges = ramp.edges(len(best))
    needed &= (last >= edges[0]) & (first < edges[-1])
    return first[needed], last[needed]


def count_tokens(best: NDArray[np.integer], blank: int) -> int:
    """Return the number of tokens in the greedy CTC decode of (T,) classes."""
    begins = np.ones(len(best), bool)
    begins[1:] = best[1:] != best[:-1]
    return int((begins & (best != blank)).sum())


def frame_groups(ramp: Ramp, teacher: int, near: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (S, k) teacher frames whose centres are within each student frame, in order; -1 for none.

    Frames before the first student frame belong to it, those after the last to that. A student frame with no
    teacher frame's centre within it has the nearest one, ``near`` (S,).
    """
    edges = ramp.edges(teacher)
    if len(edges) > 1:
        edges[0], edges[-1] = 0, teacher
    counts = np.diff(edges)
    offsets = np.arange(max(int(counts.max(initial=1)), 1))
    groups = np.where(offsets < counts[:, None], edges[:-1, None] + offsets, -1)
    groups[:, 0] = np.where(counts == 0, near, groups[:, 0])
    return groups


def check_stack(teacher: int, student: int, size: int) -> None:
    """Raise ``LengthError`` unless T teacher frames make S stacks of ``size`` frames."""
    needed = -(-teacher // size)
    if student != needed:
        raise LengthError(
            f"{student} student frames for {teacher} teacher frames in stacks of {size}",
            why="A stack of another size would move every label.",
            do=f"The student has {needed} frames of this utterance.",
        )


def check_ratio(teacher: int, student: int, ratio: tuple[int, int], tolerance: int, where: str) -> None:
    """Raise ``LengthError`` unless S is about T · p / q.

    Args:
        teacher: T.
        student: S.
        ratio: p student frames for q teacher frames.
        tolerance: student frames by which S may differ.
        where: utterance id, for the error.
    """
    p, q = ratio
    expected = -(-teacher * p // q)
    if abs(expected - student) > tolerance:
        raise LengthError(
            f"{teacher} teacher frames at a ratio of {p}:{q} are {expected} student frames, "
            f"but {student} were asked for (tolerance {tolerance})",
            where=where,
            why="Stretching over such a gap would move every label.",
            do="Check that teacher and student have the same audio, or widen the tolerance knowingly.",
        )


def check_common_ratio(
    ids: Sequence[str], teacher: Sequence[int], student: Sequence[int], tolerance: int
) -> None:
    """Raise ``LengthError`` unless one ratio, from 1:8 to 8:1, leads from all T to all S.

    Args:
        ids: utterance ids, for the error.
        teacher: T of each utterance.
        student: S of each utterance.
        tolerance: student frames by which each S may differ from T times the ratio.
    """
    known = [(i, t, s) for i, t, s in zip(ids, teacher, student, strict=True) if t and s]
    if not known:
        return
    lowest = max(known, key=lambda x: Fraction(x[2] - tolerance, x[1]))  # of the least ratio that fits it
    highest = min(known, key=lambda x: Fraction(x[2] + tolerance, x[1]))
    at_least, at_most = (
        Fraction(lowest[2] - tolerance, lowest[1]),
        Fraction(highest[2] + tolerance, highest[1]),
    )
    if at_least > at_most:
        raise LengthError(
            f"{lowest[2]} student frames for {lowest[1]} teacher frames, but {highest[2]} for {highest[1]} "
            f"of {highest[0]!r}",
            where=lowest[0],
            why="Frames of one student have one ratio to the teacher's; padded lengths look like this.",
            do="Give each utterance's own valid length, or stretch=True where the ratios do differ.",
        )
    if at_least > WIDEST_RATIO or at_most < 1 / WIDEST_RATIO:
        raise LengthError(
            f"{lowest[2]} student frames for {lowest[1]} teacher frames",
            where=lowest[0],
            why=f"No student has more than {WIDEST_RATIO} times as many frames as its teacher, or as few; "
            "lengths in samples or feature frames look like this.",
            do="Give the student's lengths after subsampling, or stretch=True where this is meant.",
        )


def _check_lengths(teacher: int, student: int) -> None:
    """Raise ``LengthError`` where one side is empty alone, or a length is negative."""
    if teacher < 0 or student < 0 or (teacher == 0) != (student == 0):
        raise LengthError(
            f"{student} student frames from {teacher} teacher frames",
            why="Neither side can be empty alone, and no length is negative.",
            do="Give the student's own valid lengths, one per utterance.",
        )
