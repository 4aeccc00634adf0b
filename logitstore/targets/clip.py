"""What a student hears: stored utterances whole or in part, faster or slower, joined, with silence around."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from ..errors import LengthError, UsageError
from ..schema.clock import exact
from .target import Target

ROUNDING = Fraction(1, 1000)  # seconds by which a crop may end too late: toolkits round what they write down
Number = int | float | str | Fraction  # a float is the decimal that it is written as


@dataclass(frozen=True)
class Piece:
    """Part of a stored utterance, or silence.

    Attributes:
        id: the utterance; empty for silence.
        start: seconds into it.
        duration: seconds of it, at its own speed.
        speed: 1.1 where the student hears it 1.1 times as fast.
        blank: of silence: the student is told to say blank there; otherwise it is told nothing.
    """

    id: str
    start: Fraction
    duration: Fraction
    speed: Fraction = Fraction(1)
    blank: bool = False

    @property
    def heard(self) -> Fraction:
        """Seconds that the student hears."""
        return self.duration / self.speed

    def part(self, begin: Fraction, end: Fraction) -> Piece:
        """What is heard of it from ``begin`` to ``end``, seconds."""
        start, duration = self.start + begin * self.speed, (end - begin) * self.speed
        return replace(self, start=start, duration=duration)


@dataclass(frozen=True)
class Clip:
    """A recipe for what a student hears, in exact seconds::

        Clip("utt1").at_speed("1.1").crop(0, 2) + Clip("utt2").pad(after=1)

    Every step counts in the seconds that the one before gives.

    Attributes:
        parts: one behind the other: ids, silence, other clips.
        start: seconds that are left out in front.
        duration: seconds that are kept; None for all that follow.
        speed: of what is kept.
    """

    parts: tuple[str | Piece | Clip, ...]
    start: Fraction = Fraction(0)
    duration: Fraction | None = None
    speed: Fraction = Fraction(1)

    def __init__(
        self,
        *parts: str | Piece | Clip,
        start: Number = 0,
        duration: Number | None = None,
        speed: Number = 1,
    ) -> None:
        set_ = object.__setattr__
        set_(self, "parts", parts)
        set_(self, "start", exact(start, "a start"))
        set_(self, "duration", None if duration is None else exact(duration, "a duration"))
        set_(self, "speed", exact(speed, "a speed"))
        if self.start < 0 or self.speed <= 0 or (self.duration is not None and self.duration <= 0):
            raise UsageError(f"a clip from {start} s of {duration} s at speed {speed}")

    def crop(self, start: Number = 0, duration: Number | None = None) -> Clip:
        """``duration`` seconds of it from ``start``; exact samples are ``Fraction(samples, rate)``."""
        return Clip(self, start=start, duration=duration)

    def at_speed(self, speed: Number) -> Clip:
        """It heard 0.9 or 1.1 times as fast; pitch does not matter to frames."""
        return Clip(self, speed=speed)

    def pad(self, before: Number = 0, after: Number = 0, *, blank: bool = False) -> Clip:
        """It with so many seconds of silence around; see :attr:`Piece.blank`."""
        around = [silence(seconds, blank=blank) for seconds in (before, after)]
        parts = (around[0], self, around[1])
        return Clip(*(p for p in parts if isinstance(p, Clip) or p.duration))

    def __add__(self, other: Clip) -> Clip:
        return Clip(self, other)

    @property
    def ids(self) -> list[str]:
        """Utterances it is made of, in order."""
        parts = [p.ids if isinstance(p, Clip) else [p] for p in self.parts if not isinstance(p, Piece)]
        return [utt for part in parts for utt in part]

    @property
    def name(self) -> str:
        """Ids of what is heard, joined by ``+``."""
        return "+".join(self.ids)

    def pieces(self, seconds: Callable[[str], Fraction]) -> list[Piece]:
        """What it comes to; ``seconds`` gives how long an utterance is. Raises ``LengthError``."""
        found: list[Piece] = []
        for part in self.parts:
            if isinstance(part, str):
                found.append(Piece(part, Fraction(0), seconds(part)))
            else:
                found += part.pieces(seconds) if isinstance(part, Clip) else [part]
        if self.start or self.duration is not None:
            found = self._cropped(found)
        return [replace(p, speed=p.speed * self.speed) for p in found]

    def _cropped(self, pieces: Sequence[Piece]) -> list[Piece]:
        total = sum((p.heard for p in pieces), Fraction(0))
        end = total if self.duration is None else self.start + self.duration
        if self.start >= total or end > total + ROUNDING:
            raise LengthError(
                f"{float(self.start):g} s to {float(end):g} s are asked of {float(total):g} s",
                where=self.name,
                why="Nobody knows what the teacher would say of audio that it never heard.",
                do="Seconds count from the utterance's own beginning, after any change of speed before.",
            )
        found, at = [], Fraction(0)
        for piece in pieces:
            begin = max(self.start - at, Fraction(0))
            stop = min(end - at, piece.heard)
            if stop > begin:
                found.append(piece.part(begin, stop))
            at += piece.heard
        return found


def silence(seconds: Number, *, blank: bool = False) -> Piece:
    """Silence of so many seconds; raises ``UsageError`` below 0."""
    found = Piece("", Fraction(0), exact(seconds, "a pause"), blank=blank)
    if found.duration < 0:
        raise UsageError(f"a pause of {seconds} s")
    return found


@dataclass(frozen=True)
class Clipped:
    """A clip with the targets of what is heard in it.

    Attributes:
        id: the clip's name.
        pieces: one behind the other.
        targets: by utterance id.
        seconds: how long each utterance is.
    """

    id: str
    pieces: tuple[Piece, ...]
    targets: Mapping[str, Target]
    seconds: Mapping[str, Fraction] = field(default_factory=dict)

    @classmethod
    def of(cls, clip: Clip, target: Callable[[str], Target]) -> Clipped:
        """Raises what ``target`` raises, and ``LengthError``."""
        targets: dict[str, Target] = {}

        def seconds(utt_id: str) -> Fraction:
            targets.setdefault(utt_id, target(utt_id))
            return seconds_of(targets[utt_id])

        pieces = tuple(p for p in clip.pieces(seconds) if p.duration)
        if not any(p.id for p in pieces):
            raise UsageError("a clip in which nothing is said", where=clip.name)
        heard = {p.id: targets[p.id] for p in pieces if p.id}
        return cls(clip.name, pieces, heard, {i: seconds(i) for i in heard})

    def whole(self, piece: Piece) -> bool:
        """Whether an utterance is all there, at whatever speed."""
        return piece.start == 0 and piece.duration == self.seconds[piece.id]

    @property
    def plain(self) -> Target | None:
        """The utterance, where it is heard as it is stored."""
        (first, *others) = self.pieces
        same = not others and bool(first.id) and first.speed == 1 and self.whole(first)
        return self.targets[first.id] if same else None

    @property
    def heard(self) -> Fraction:
        """Seconds of all of it."""
        return sum((p.heard for p in self.pieces), Fraction(0))


def seconds_of(target: Target) -> Fraction:
    """Exact length of an utterance, samples over rate; raises ``LengthError`` where nobody stored it."""
    seconds: Any = target.meta.get("seconds") or 0.0
    if seconds <= 0:
        raise LengthError(
            "how many seconds it lasts is not stored",
            where=target.id,
            why="Without, no time can be told from its frames.",
            do="Dump with logitstore dump, or give seconds= to StoreWriter.add.",
        )
    rate = target.clock.rate if target.clock else 0
    return Fraction(round(seconds * rate), rate) if rate else exact(seconds, "a length")
