"""Frame clocks: the times of a model's frames in exact seconds."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..errors import LengthError, UsageError


@dataclass(frozen=True)
class FrameClock:
    """The times of a model's frames, in exact seconds.

    Attributes:
        shift: seconds from one frame to the next, e.g. ``Fraction(640, 16000)`` or ``"0.04"``.
        offset: seconds from the beginning of the audio to the centre of frame 0; None if unknown. Offsets are
            used only if teacher and student both state theirs; otherwise frames lie in the middle of their
            shifts.
        rate: audio samples per second, of which lengths of audio are whole multiples; 0 if unknown.
    """

    shift: Fraction
    offset: Fraction | None = None
    rate: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", exact(self.shift, "the frame shift"))
        if self.offset is not None:
            object.__setattr__(self, "offset", exact(self.offset, "the frame offset"))
        if self.shift <= 0:
            raise UsageError(f"the frame shift is {self.shift} s; it must be positive")

    def frames(self, seconds: Fraction) -> Fraction:
        """Return a duration in frames, not rounded."""
        return seconds / self.shift


def exact(value: Any, what: str) -> Fraction:
    """Return a value as a rational number; a float as the shortest decimal that is read as the same float.

    Args:
        value: a number, or its text.
        what: the quantity, for the message of the ``UsageError`` that any other value raises.
    """
    try:
        return Fraction(repr(value) if isinstance(value, float) else value)
    except (TypeError, ValueError, ZeroDivisionError):
        raise UsageError(
            f"{what} is {value!r}, not a number", do="Give a Fraction, an integer or a decimal."
        ) from None


FRAME_TOLERANCE = 4  # teacher frames by which T may differ from the audio, through subsampling and padding


def check_audio(teacher: int, seconds: Fraction, clock: FrameClock, where: str) -> None:
    """Raise ``LengthError`` unless T teacher frames last as long as the audio, within ``FRAME_TOLERANCE``."""
    expected = clock.frames(seconds)
    if abs(teacher - expected) <= FRAME_TOLERANCE:
        return
    raise LengthError(
        f"{teacher} teacher frames of {float(clock.shift * 1000):g} ms are {float(teacher * clock.shift):.3f}"
        f" s, but the audio lasts {float(seconds):.3f} s: {float(expected):.1f} frames "
        f"(tolerance {FRAME_TOLERANCE})",
        where=where,
        why=_likely_cause(teacher / expected),
        do=f"If all frames are valid, their shift is about {float(seconds / max(teacher, 1) * 1000):.3g} ms: "
        "correct frame_shift (samples) in describe(). Otherwise return the encoder's lengths from lengths().",
    )


def _likely_cause(ratio: Fraction) -> str:
    """Return the likely cause of a ratio of teacher frames to expected frames."""
    many, few = round(ratio), round(1 / ratio) if ratio else 0
    if many > 1 and abs(ratio / many - 1) < Fraction(1, 10):
        return f"{many} times too many: the lengths may count feature frames, before subsampling."
    if few > 1 and abs(ratio * few - 1) < Fraction(1, 10):
        return f"{few} times too few: the frame shift may be that of the features, before subsampling."
    return "Every frame of a student would get the target of another time."
