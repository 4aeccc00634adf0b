"""Streams of a clip at a student's frames: each piece resampled from its own utterance, then put together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import NOTHING, Float, concatenate
from ..errors import LengthError, UsageError
from ..schema.clock import FrameClock, check_audio
from .clip import Clipped, Piece, seconds_of
from .frames import Method, Ramp, check_ratio, check_stack
from .resample import Resampled, follows_frames, is_lattice, resample_stream, resample_vectors
from .target import Target

Ratio = tuple[int, int] | FrameClock  # p student frames for q of the teacher's, or the student's own clock


@dataclass(frozen=True)
class Stretch:
    """Consecutive student frames within one piece of a clip.

    Attributes:
        piece: piece of the clip; None for frames before a lagging student's first target, or after the last.
        ramp: positions of the frames in the piece's utterance; of silence only ``ramp.count`` has a meaning.
    """

    piece: Piece | None
    ramp: Ramp

    @property
    def utterance(self) -> str:
        """Id of the utterance; empty where there is none."""
        return self.piece.id if self.piece is not None else ""

    @classmethod
    def without_target(cls, piece: Piece | None, count: int) -> Stretch:
        """Return ``count`` frames of silence, or outside of the clip."""
        return cls(piece, Ramp(Fraction(0), Fraction(0), count))


def frames_of(source: Target | Clipped) -> int:
    """Return the number of frames at the teacher's rate.

    For an utterance that is T. For a clip it counts the teacher's frames with their centres within its
    seconds; where the centres are not known, one frame per shift. A clip has at least one.
    """
    if isinstance(source, Target):
        return source.T
    first = source.first
    clock = first.clock or FrameClock(source.seconds[first.id] / first.T)
    begin = clock.shift / 2 if clock.offset is None else clock.offset
    return max(1, math.ceil((source.length - begin) / clock.shift))


def stretches(
    clip: Clipped, student: int, method: Method, ratio: Ratio | None, *, at_teacher_rate: bool = False
) -> Iterator[Stretch]:
    """Yield the positions of S student frames in the utterances of a clip, piece by piece.

    The frames share the clip evenly, unless their exact times are known. A stack of n yields n frames of the
    teacher per student frame. The first frames of a student that lags have no target.

    Args:
        clip: a clip with its targets.
        student: number of student frames, S.
        method: resampling method, of which stack size and lag matter here.
        ratio: student frames per teacher frame, or the student's clock, where the exact times are to follow
            it.
        at_teacher_rate: True where the student has the teacher's frames.

    Raises:
        LengthError: S stacks that do not fit the clip.
    """
    stack = max(method.size, 1)
    count, lag = student * stack, min(method.shift, student) * stack
    inside = count  # frames within the clip, at the rate of the stretches
    if method.size:
        inside = frames_of(clip)
        check_stack(inside, student, stack)
        ratio, at_teacher_rate = None, True
    teacher = clip.first.clock
    own = _student_clock(teacher, ratio, at_teacher_rate)
    if own is None:  # even shares of the clip
        step = clip.length / inside
    else:
        step = own.shift
    first_centre, teacher_centre = step / 2, Fraction(1, 2)  # in seconds of the clip; in teacher frames
    if own and teacher and own.offset is not None and teacher.offset is not None:
        first_centre, teacher_centre = own.offset, teacher.offset / teacher.shift

    if lag:
        yield Stretch.without_target(None, lag)
    end = min(count, lag + inside) if method.size else count
    begin, first = Fraction(0), lag  # of the piece, in seconds of the clip and in frames
    for number, piece in enumerate(clip.pieces):
        if number == len(clip.pieces) - 1:
            next_first = end
        else:
            next_first = lag + math.ceil((begin + piece.length - first_centre) / step)
        next_first = min(max(next_first, first), end)
        if next_first > first:
            frames = next_first - first
            if piece.id:
                shift = (
                    teacher.shift if own and teacher else clip.seconds[piece.id] / clip.targets[piece.id].T
                )
                at = (first_centre + step * (first - lag) - begin) * piece.speed + piece.start
                yield Stretch(piece, Ramp(at / shift - teacher_centre, step * piece.speed / shift, frames))
            else:
                yield Stretch.without_target(piece, frames)
        begin, first = begin + piece.length, next_first
    if count > end:
        yield Stretch.without_target(None, count - end)


def _student_clock(
    teacher: FrameClock | None, ratio: Ratio | None, at_teacher_rate: bool
) -> FrameClock | None:
    """Return the times of the student's frames; None where they share the clip evenly."""
    if teacher is None or (ratio is None and not at_teacher_rate):
        return None
    if isinstance(ratio, tuple):
        return FrameClock(teacher.shift * ratio[1] / ratio[0])
    return ratio or teacher


def resample_clip(
    clip: Clipped, stream: str, parts: Sequence[Stretch], method: Method, temperature: float
) -> Resampled:
    """Return a stream of distributions at a student's frames and a temperature.

    Frames of silence and of a student's lag are not valid, except silence with a target of only blank.

    Args:
        clip: a clip with its targets.
        stream: name of the stream.
        parts: positions of the frames (:func:`stretches`).
        method: resampling method.
        temperature: 1 or more.

    Raises:
        UsageError: a cropped or joined stream with labels, silence around a path, or a method that cannot
            resample the stream.
    """
    if not follows_frames(stream):
        _require_whole(clip, stream, "It has no time axis: the labels within a part are not known.")
        return resample_stream(clip.first, stream, clip.first.T, Method(), temperature)
    if is_lattice(clip.first, stream, method):
        _require_whole(clip, stream, "A lattice's labels belong to the whole utterance.")
    targets = {
        n: resample_stream(clip.targets[part.utterance], stream, part.ramp, method.single, temperature)
        for n, part in enumerate(parts)
        if part.utterance
    }
    if not targets:
        raise UsageError(
            "no frame of the student is within an utterance", where=clip.id, do="Make the clip longer."
        )
    first = min(targets)
    like = targets[first]
    joined = _joined(
        [
            targets[n] if n in targets else _silence(part, like, clip.first.blank, before=n < first)
            for n, part in enumerate(parts)
        ]
    )
    if method.size:
        return replace(joined, axes=(joined.axes[0] // method.size, method.size))
    return joined


def clip_vectors(
    clip: Clipped, stream: str, parts: Sequence[Stretch], method: Method
) -> tuple[Float, NDArray[np.bool_]]:
    """Return the numbers of a layer at a student's frames: (S, D) or (S, n, D), and (S,) or (S, n) valid.

    Frames of silence are not valid, and 0. Raises ``UsageError`` for methods that need classes.
    """
    width = clip.first.shapes[stream][-1]
    rows, valid = [], []
    for part in parts:
        if part.utterance:
            numbers, given = resample_vectors(clip.targets[part.utterance], stream, part.ramp, method.single)
        else:
            numbers, given = np.zeros((part.ramp.count, width), np.float32), np.zeros(part.ramp.count, bool)
        rows.append(numbers)
        valid.append(given)
    all_rows, all_valid = np.concatenate(rows), np.concatenate(valid)
    if method.size:
        return all_rows.reshape(-1, method.size, width), all_valid.reshape(-1, method.size)
    return all_rows, all_valid


def _require_whole(clip: Clipped, stream: str, why: str) -> None:
    """Raise ``UsageError`` unless the clip is one whole utterance, at any speed, with or without silence."""
    first, *others = clip.utterances
    if others:
        what = f"{len(clip.utterances)} pieces, joined"
    elif not clip.is_whole(first):
        what = f"{float(first.duration):g} s of {float(clip.seconds[first.id]):g} s"
    else:
        return
    raise UsageError(
        f"{stream} of {what}",
        where=clip.id,
        why=why,
        do="Take the ctc stream of such clips (streams=['ctc']), or whole utterances: a change of speed and "
        "silence around them are possible.",
    )


def _silence(part: Stretch, like: Resampled, blank: int, *, before: bool) -> Resampled:
    """Return frames of only blank.

    Args:
        part: frames without an utterance; valid where their silence has a target of blank.
        like: frames of an utterance of the clip, to copy the form and label positions of.
        blank: id of the blank.
        before: True before the first utterance, False after it.
    """
    if like.frame is not None:
        raise UsageError(
            "silence around a path",
            why="Its T + U nodes are one alignment of the utterance alone.",
            do="Leave the padding out, or dump the lattice as banded:S.",
        )
    axes = (part.ramp.count, *like.axes[1:])
    width = int(np.prod(axes[1:], dtype=np.int64))
    count = axes[0] * width
    logp = np.full((count, like.rows.logp.shape[1]), NOTHING, np.float32)
    ids: NDArray[np.int32] | None = None
    if like.rows.ids is None:
        logp[:, blank] = 0.0
    else:
        logp[:, 0] = 0.0
        ids = np.full(logp.shape, blank, np.int32)
    has_target = part.piece is not None and part.piece.blank
    occupancy = None
    if like.occupancy is not None:  # alignments wait before the first label, or after the last
        frames = np.zeros((axes[0], width), np.float32)
        frames[:, 0 if before else -1] = has_target
        occupancy = frames.reshape(-1)
    position = None
    if like.position is not None:
        neighbour = like.position[:width] if before else like.position[-width:]
        position = np.tile(neighbour, axes[0])
    return Resampled(
        rows=replace(like.rows, logp=logp, ids=ids, tail=np.full(count, NOTHING, np.float32)),
        axes=axes,
        valid=np.full(count, has_target),
        position=position,
        occupancy=occupancy,
    )


def _joined(parts: Sequence[Resampled]) -> Resampled:
    """Return the frames of all parts, one after the other."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    return Resampled(
        rows=concatenate([part.rows for part in parts]),
        axes=(sum(part.axes[0] for part in parts), *parts[0].axes[1:]),
        valid=joined("valid"),
        position=joined("position"),
        frame=joined("frame"),
        occupancy=joined("occupancy"),
        tokens=sum(part.tokens for part in parts),
        lost=sum(part.lost for part in parts),
    )


def check_frames(source: Target | Clipped, student: int, ratio: Ratio, tolerance: int) -> None:
    """Raise ``LengthError`` unless S frames, T frames and the audio fit together.

    Args:
        source: an utterance or a clip.
        student: number of student frames, S.
        ratio: student frames per teacher frame, against which T is checked; or the student's clock, against
            which the stored seconds are checked.
        tolerance: student frames by which S may differ. T may differ from the stored seconds by what
            subsampling and padding cost.
    """
    targets = [source] if isinstance(source, Target) else list(source.targets.values())
    for target in targets:
        if target.clock is not None and target.meta.get("seconds"):
            check_audio(target.T, seconds_of(target), target.clock, target.id)
    if isinstance(ratio, tuple):
        return check_ratio(frames_of(source), student, ratio, tolerance, source.id)
    seconds = seconds_of(source) if isinstance(source, Target) else source.length
    expected = ratio.frames(seconds)
    if abs(student - expected) > tolerance:
        raise LengthError(
            f"{float(seconds):.3f} s of audio are {float(expected):.1f} frames of {float(ratio.shift):g} s, "
            f"but {student} were asked for (tolerance {tolerance})",
            where=source.id,
            why="Stretching over such a gap would move every label.",
            do="Check the speed, the frame shift, and that teacher and student have the same audio; or widen "
            "the tolerance knowingly.",
        )
