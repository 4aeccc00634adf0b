"""From a clip and a student's frames to teacher frames: which piece each frame hears, and where in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from ..errors import LengthError
from ..schema.clock import FrameClock, check_audio
from .clip import Clipped, Piece, seconds_of
from .frames import Method, Ramp, check_ratio, check_stack
from .target import Target

Ratio = tuple[int, int] | FrameClock
NOWHERE = Fraction(0)


@dataclass(frozen=True)
class Stretch:
    """Student frames that hear one piece, one behind the other.

    Attributes:
        piece: that is heard; None where the student is told nothing.
        ramp: where its frames look in the piece's utterance; of silence only ``ramp.count`` means anything.
    """

    piece: Piece | None
    ramp: Ramp


def frames_of(heard: Target | Clipped) -> int:
    """Frames at the teacher's rate: T of an utterance as it is; of a clip, at least 1, those that its seconds
    hold: whose centres lie in them, where these are known, else a frame per shift, rounded.
    """
    if isinstance(heard, Target):
        return heard.T
    first = next(iter(heard.targets.values()))
    clock = first.clock or FrameClock(heard.seconds[first.id] / first.T)
    begin = clock.shift / 2 if clock.offset is None else clock.offset
    return max(1, math.ceil((heard.heard - begin) / clock.shift))


def stretches(
    heard: Clipped, student: int, method: Method, ratio: Ratio | None, teachers: bool = False
) -> Iterator[Stretch]:
    """Where each of S student frames looks, piece by piece; stacks of n give S · n frames of the teacher's.

    The frames share what is heard evenly, unless ``ratio`` tells their exact times, or that they are at the
    ``teachers`` own. Of a lagging student the first frames hear nothing. Raises ``LengthError``.
    """
    size = max(method.size, 1)
    count, lag = student * size, min(method.shift, student) * size
    said = count
    if method.size:
        said = frames_of(heard)
        check_stack(said, student, size)
        ratio, teachers = None, True
    clock = next(iter(heard.targets.values())).clock
    own = _own_clock(clock, ratio, teachers)
    step = heard.heard / said if own is None else own.shift
    begin, centre = step / 2, Fraction(1, 2)
    if own and clock and own.offset is not None and clock.offset is not None:
        begin, centre = own.offset, clock.offset / clock.shift
    if lag:
        yield _nothing(None, lag)
    end = min(count, lag + said) if method.size else count
    at, first = Fraction(0), lag
    for number, piece in enumerate(heard.pieces):
        last = number == len(heard.pieces) - 1
        behind = end if last else lag + math.ceil((at + piece.heard - begin) / step)
        behind = min(max(behind, first), end)
        if behind > first:
            inside = (begin + step * (first - lag) - at) * piece.speed + piece.start
            ramp = Ramp(NOWHERE, NOWHERE, behind - first)
            if piece.id:
                target = heard.targets[piece.id]
                shift = clock.shift if own and clock else heard.seconds[piece.id] / target.T
                ramp = Ramp(inside / shift - centre, step * piece.speed / shift, behind - first)
            yield Stretch(piece, ramp)
        at, first = at + piece.heard, behind
    if count > end:
        yield _nothing(None, count - end)


def _nothing(piece: Piece | None, count: int) -> Stretch:
    return Stretch(piece, Ramp(NOWHERE, NOWHERE, count))


def _own_clock(teacher: FrameClock | None, ratio: Ratio | None, teachers: bool) -> FrameClock | None:
    """When the student's frames are; None where they share what is heard."""
    if teacher is None or (ratio is None and not teachers):
        return None
    if isinstance(ratio, tuple):
        return FrameClock(teacher.shift * ratio[1] / ratio[0])
    return ratio or teacher


def check_frames(heard: Target | Clipped, student: int, ratio: Ratio, tolerance: int) -> None:
    """Raise ``LengthError`` unless S frames, T frames and the audio fit together.

    S may miss T at the ratio, or the stored seconds at the student's own frame shift, by ``tolerance``
    student frames, and T the stored seconds by what subsampling and padding cost.
    """
    targets = [heard] if isinstance(heard, Target) else list(heard.targets.values())
    for target in targets:
        if target.clock is not None and target.meta.get("seconds"):
            check_audio(target.T, seconds_of(target), target.clock, target.id)
    if isinstance(ratio, tuple):
        return check_ratio(frames_of(heard), student, ratio, tolerance, heard.id)
    seconds = seconds_of(heard) if isinstance(heard, Target) else heard.heard
    expected = ratio.frames(seconds)
    if abs(student - expected) > tolerance:
        raise LengthError(
            f"{float(seconds):.3f} s of audio are {float(expected):.1f} frames of {float(ratio.shift):g} s, "
            f"but {student} were asked for (tolerance {tolerance})",
            where=heard.id,
            why="Stretching over such a gap would move every label.",
            do="Check the speed, that both heard the same audio, and the frame shift; or widen the tolerance "
            "knowingly.",
        )
