"""Rows of a clip: each piece resampled from its own utterance, then put together, silence between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import NOTHING, Float, Tempered
from ..errors import LengthError, UsageError
from ..schema.clock import FrameClock, check_audio
from .clip import Clipped, Piece, seconds_of
from .frames import Method, Ramp, check_ratio, check_stack
from .resample import Resampled, follows_frames, is_lattice, resample_stream, resample_vectors
from .target import Target


def resample_clip(
    heard: Clipped, stream: str, stretches: Sequence[Stretch], method: Method, temperature: float
) -> Resampled:
    """One stream of a clip at a student's frames (:func:`logitstore.targets.clip_resample.stretches`), at a temperature.

    Frames of silence, and those before a lagging student speaks, are not valid; where silence is to be said
    as blank they are rows of nothing but blank. Raises ``UsageError`` where targets cannot follow.
    """
    first = next(iter(heard.targets.values()))
    if not follows_frames(stream):
        _require_whole(heard, stream, "It has no time axis: which of its labels a part holds is not known.")
        return resample_stream(first, stream, first.T, Method(), temperature)
    if is_lattice(first, stream, method):
        _require_whole(heard, stream, "A lattice's labels belong to the whole utterance.")
    each = Method("nearest" if method.size else method.name)
    spoken = {
        n: resample_stream(heard.targets[s.piece.id], stream, s.ramp, each, temperature)
        for n, s in enumerate(stretches)
        if s.piece is not None and s.piece.id
    }
    if not spoken:
        raise UsageError("no frame of the student hears the utterance", where=heard.id)
    like, begun = next(iter(spoken.values())), min(spoken)
    found = _joined(
        [
            spoken[n] if n in spoken else _silent(s, like, first.blank, before=n < begun)
            for n, s in enumerate(stretches)
        ]
    )
    return replace(found, axes=(found.axes[0] // method.size, method.size)) if method.size else found


def clip_vectors(
    heard: Clipped, stream: str, stretches: Sequence[Stretch], method: Method
) -> tuple[Float, NDArray[np.bool_]]:
    """(S, D) numbers of a layer at a clip's frames, and where there are any: none in silence.

    Raises ``UsageError`` as :func:`logitstore.targets.resample.resample_vectors`.
    """
    each = Method("nearest" if method.size else method.name)
    width = next(iter(heard.targets.values())).shapes[stream][-1]
    parts = [
        resample_vectors(heard.targets[s.piece.id], stream, s.ramp, each)
        if s.piece is not None and s.piece.id
        else (np.zeros((s.ramp.count, width), np.float32), np.zeros(s.ramp.count, bool))
        for s in stretches
    ]
    rows, valid = (np.concatenate(x) for x in zip(*parts, strict=True))
    if method.size:
        return rows.reshape(-1, method.size, width), valid.reshape(-1, method.size)
    return rows, valid


def _require_whole(heard: Clipped, stream: str, why: str) -> None:
    said = [p for p in heard.pieces if p.id]
    what = ""
    if len(said) > 1:
        what = f"{len(said)} pieces one behind the other"
    elif not heard.whole(said[0]):
        what = f"{float(said[0].duration):g} s of {float(heard.seconds[said[0].id]):g} s"
    if what:
        raise UsageError(
            f"{stream} of {what}",
            where=heard.id,
            why=why,
            do="Take the ctc stream of such clips (streams=['ctc']), or whole utterances: another speed and "
            "silence around them are no trouble.",
        )


def _silent(stretch: Stretch, like: Resampled, blank: int, before: bool) -> Resampled:
    """As many frames of nothing but blank, before or after what is said; valid where blank is wanted."""
    axes = (stretch.ramp.count, *like.axes[1:])
    width = int(np.prod(axes[1:], dtype=np.int64))
    rows = axes[0] * width
    if like.frame is not None:
        raise UsageError("silence around a path", why="Its T + U nodes are one alignment of what is said.")
    logp = np.full((rows, like.rows.logp.shape[1]), NOTHING, np.float32)
    ids: NDArray[np.int32] | None = None
    if like.rows.ids is None:
        logp[:, blank] = 0.0
    else:
        logp[:, 0] = 0.0
        ids = np.full(logp.shape, blank, np.int32)
    edge = slice(0, width) if before else slice(len(like.rows.logp) - width, None)
    said = stretch.piece is not None and stretch.piece.blank
    occupied = None
    if like.occupancy is not None:
        occupied = np.zeros((axes[0], width), np.float32)
        occupied[:, 0 if before else -1] = said  # alignments wait before the first label or after the last
    return Resampled(
        rows=replace(like.rows, logp=logp, ids=ids, tail=np.full(rows, NOTHING, np.float32)),
        axes=axes,
        valid=np.full(rows, said),
        position=None if like.position is None else np.tile(like.position[edge], axes[0]),
        occupancy=None if occupied is None else occupied.reshape(-1),
    )


def _joined(parts: Sequence[Resampled]) -> Resampled:
    """Frames one behind the other."""
    if len(parts) == 1:
        return parts[0]

    def together(name: str) -> Any:
        arrays = [getattr(p, name) for p in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    first = parts[0]
    return Resampled(
        rows=_stacked([p.rows for p in parts]),
        axes=(sum(p.axes[0] for p in parts), *first.axes[1:]),
        valid=together("valid"),
        position=together("position"),
        frame=together("frame"),
        occupancy=together("occupancy"),
    )


def _stacked(rows: Sequence[Tempered]) -> Tempered:
    """Rows one behind the other; K becomes the largest."""
    k = max(r.logp.shape[1] for r in rows)
    wide = [r.logp.shape[1] == k for r in rows]
    logp = [r.logp if w else _widened(r.logp, k, NOTHING) for r, w in zip(rows, wide, strict=True)]
    ids = None
    if rows[0].ids is not None:
        ids = np.concatenate([_widened(r.ids, k, None) for r in rows if r.ids is not None])
    return replace(rows[0], logp=np.concatenate(logp), ids=ids, tail=np.concatenate([r.tail for r in rows]))


def _widened(values: NDArray[Any], k: int, fill: float | None) -> NDArray[Any]:
    """(N, K) made (N, k): with a value, or with what each row begins with."""
    more = k - values.shape[1]
    last = values[:, :1] if fill is None else np.full((len(values), 1), fill, values.dtype)
    return np.concatenate([values, np.repeat(last, more, axis=1)], axis=1)


def only_target(heard: Target | Clipped) -> Target | None:
    """The utterance, where it is heard as it is stored."""
    return heard if isinstance(heard, Target) else heard.plain


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
