"""When a model's frames are, in exact seconds, and whether they fit the audio."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..errors import LengthError, UsageError


@dataclass(frozen=True)
class FrameClock:
    """When a model's frames are, in exact seconds.

    Attributes:
        shift: from one frame to the next: ``Fraction(640, 16000)``, ``"0.04"``.
        offset: of the centre of frame 0 from the beginning of the audio; None where it is not known. It
            counts only where teacher and student both say theirs; else frames lie in the middle of their
            shifts.
        rate: samples a second: lengths of audio are whole numbers of them; 0 where it is not known.
    """

    shift: Fraction
    offset: Fraction | None = None
    rate: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", exact(self.shift, "a frame shift"))
        if self.offset is not None:
            object.__setattr__(self, "offset", exact(self.offset, "a frame offset"))
        if self.shift <= 0:
            raise UsageError(f"a frame shift of {self.shift} s")

    def frames(self, seconds: Fraction) -> Fraction:
        """How many frames that is, not rounded."""
        return seconds / self.shift


def exact(value: Any, what: str) -> Fraction:
    """A rational number; a float is the shortest decimal that reads back as it. Raises ``UsageError``."""
    try:
        return Fraction(repr(value) if isinstance(value, float) else value)
    except (TypeError, ValueError, ZeroDivisionError):
        raise UsageError(f"{what} of {value!r}", do="Give a Fraction, an integer or a decimal.") from None


STRAY = 4  # teacher frames by which T may miss the audio: what subsampling and padding cost


def check_audio(teacher: int, seconds: Fraction, clock: FrameClock, where: str) -> None:
    """Raise ``LengthError`` unless T teacher frames are as long as the audio, within ``STRAY`` of them."""
    expected = clock.frames(seconds)
    if abs(teacher - expected) <= STRAY:
        return
    raise LengthError(
        f"{teacher} teacher frames of {float(clock.shift * 1000):g} ms are {float(teacher * clock.shift):.3f}"
        f" s, but the audio lasts {float(seconds):.3f} s: {float(expected):.1f} frames (tolerance {STRAY})",
        where=where,
        why=_suspect(teacher / expected),
        do=f"If every frame is right, its shift is about {float(seconds / max(teacher, 1) * 1000):.3g} ms: "
        "correct frame_shift (samples) in describe(); else return the encoder's own lengths from lengths().",
    )


def _suspect(times: Fraction) -> str:
    """What so many times as many frames as there should be look like."""
    many, few = round(times), round(1 / times) if times else 0
    if many > 1 and abs(times / many - 1) < Fraction(1, 10):
        return f"{many} times too many: lengths in feature frames, before subsampling, look like this."
    if few > 1 and abs(times * few - 1) < Fraction(1, 10):
        return f"{few} times too few: a frame shift without the subsampling looks like this."
    return "Every student frame would look at another time than it hears."
