"""Clips: stored utterances cropped, at another speed, joined, and padded with silence, in exact seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from ..errors import LengthError, UsageError
from ..schema.clock import exact
from .target import Target

ROUNDING = Fraction(1, 1000)  # seconds by which a crop may end too late: toolkits round written durations
Number = int | float | str | Fraction  # a float is the decimal that it is written as


@dataclass(frozen=True)
class Piece:
    """A part of a stored utterance, or silence.

    Attributes:
        id: utterance id; empty for silence.
        start: seconds from the beginning of the utterance.
        duration: seconds of the utterance, at its own speed.
        speed: speed relative to the utterance's own: 1.1 is 1.1 times as fast.
        blank: for silence: True where its frames have a target of only blank, False where they have no
            target.
    """

    id: str
    start: Fraction
    duration: Fraction
    speed: Fraction = Fraction(1)
    blank: bool = False

    @property
    def length(self) -> Fraction:
        """Seconds in the clip: the duration at the piece's speed."""
        return self.duration / self.speed

    def part(self, begin: Fraction, end: Fraction) -> Piece:
        """Return the part from ``begin`` to ``end``, seconds of the clip from the piece's beginning on."""
        start, duration = self.start + begin * self.speed, (end - begin) * self.speed
        return replace(self, start=start, duration=duration)


@dataclass(frozen=True)
class Clip:
    """A recipe for the audio of one training example, in exact seconds::

        Clip("utt1").at_speed("1.1").crop(0, 2) + Clip("utt2").pad(after=1)

    Every step counts in the seconds that the step before gives. Clips of clips are clips.

    Attributes:
        parts: utterance ids, silence and other clips, one after the other.
        start: seconds that are left out in front.
        duration: seconds that are kept; None for all that follow.
        speed: speed of the kept seconds.
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
        """Make a clip; raises ``UsageError`` for seconds or a speed that no audio has."""
        set_field = object.__setattr__  # the dataclass is frozen
        set_field(self, "parts", parts)
        set_field(self, "start", exact(start, "a start"))
        set_field(self, "duration", None if duration is None else exact(duration, "a duration"))
        set_field(self, "speed", exact(speed, "a speed"))
        if self.start < 0 or self.speed <= 0 or (self.duration is not None and self.duration <= 0):
            raise UsageError(
                f"a clip from {start} s of {duration} s at speed {speed}",
                do="Give a start of 0 or more, and a duration and a speed above 0.",
            )

    def crop(self, start: Number = 0, duration: Number | None = None) -> Clip:
        """Return ``duration`` seconds from ``start`` on; exact samples are ``Fraction(samples, rate)``."""
        return Clip(self, start=start, duration=duration)

    def at_speed(self, speed: Number) -> Clip:
        """Return the clip at a speed: ``"1.1"`` is 1.1 times as fast. Pitch does not matter to frames."""
        return Clip(self, speed=speed)

    def pad(self, before: Number = 0, after: Number = 0, *, blank: bool = False) -> Clip:
        """Return the clip with silence before and after it, in seconds.

        With ``blank`` the frames of the silence have a target of only blank; without it they are masked.
        """
        around = [silence(seconds, blank=blank) for seconds in (before, after)]
        parts = (around[0], self, around[1])
        return Clip(*(p for p in parts if isinstance(p, Clip) or p.duration))

    def __add__(self, other: Clip) -> Clip:
        return Clip(self, other)

    @property
    def ids(self) -> list[str]:
        """Utterance ids, in order."""
        parts = [p.ids if isinstance(p, Clip) else [p] for p in self.parts if not isinstance(p, Piece)]
        return [utt for part in parts for utt in part]

    @property
    def name(self) -> str:
        """Utterance ids, joined by ``+``."""
        return "+".join(self.ids)

    def pieces(self, seconds: Callable[[str], Fraction]) -> list[Piece]:
        """Return the pieces that the clip is made of, in order.

        Args:
            seconds: returns the length of an utterance.

        Raises:
            LengthError: a crop beyond the end.
        """
        pieces: list[Piece] = []
        for part in self.parts:
            if isinstance(part, str):
                pieces.append(Piece(part, Fraction(0), seconds(part)))
            elif isinstance(part, Clip):
                pieces += part.pieces(seconds)
            else:
                pieces.append(part)
        if self.start or self.duration is not None:
            pieces = self._cropped(pieces)
        return [replace(piece, speed=piece.speed * self.speed) for piece in pieces]

    def _cropped(self, pieces: Sequence[Piece]) -> list[Piece]:
        total = sum((piece.length for piece in pieces), Fraction(0))
        end = total if self.duration is None else self.start + self.duration
        if self.start >= total or end > total + ROUNDING:
            raise LengthError(
                f"{float(self.start):g} s to {float(end):g} s are asked of {float(total):g} s",
                where=self.name,
                why="The teacher has no output for audio that it was not given.",
                do="Seconds count from the utterance's own beginning, after any change of speed before.",
            )
        kept, at = [], Fraction(0)
        for piece in pieces:
            begin = max(self.start - at, Fraction(0))
            stop = min(end - at, piece.length)
            if stop > begin:
                kept.append(piece.part(begin, stop))
            at += piece.length
        return kept


def silence(seconds: Number, *, blank: bool = False) -> Piece:
    """Return silence; see :meth:`Clip.pad` for ``blank``. Raises ``UsageError`` below 0 s."""
    pause = Piece("", Fraction(0), exact(seconds, "a pause"), blank=blank)
    if pause.duration < 0:
        raise UsageError(f"a pause of {seconds} s", do="Give 0 or more; Clip.crop() shortens.")
    return pause


@dataclass(frozen=True)
class Clipped:
    """A clip with the targets of its utterances.

    Attributes:
        id: name of the clip.
        pieces: pieces one after the other.
        targets: targets by utterance id.
        seconds: lengths by utterance id.
    """

    id: str
    pieces: tuple[Piece, ...]
    targets: Mapping[str, Target]
    seconds: Mapping[str, Fraction] = field(default_factory=dict)

    @classmethod
    def of(cls, clip: Clip, target: Callable[[str], Target]) -> Clipped:
        """Read the targets of a clip.

        Args:
            clip: a clip of stored utterances.
            target: returns the target of an utterance id.

        Raises:
            LengthError: a crop beyond the end, or an utterance without a stored length.
            UsageError: a clip of silence only.
        """
        targets: dict[str, Target] = {}

        def seconds(utt_id: str) -> Fraction:
            if utt_id not in targets:
                targets[utt_id] = target(utt_id)
            return seconds_of(targets[utt_id])

        pieces = tuple(piece for piece in clip.pieces(seconds) if piece.duration)
        used = {piece.id: targets[piece.id] for piece in pieces if piece.id}
        if not used:
            raise UsageError(
                "a clip of silence only", where=clip.name, why="It has no target.", do="Leave it out."
            )
        return cls(clip.name, pieces, used, {utt_id: seconds(utt_id) for utt_id in used})

    @property
    def first(self) -> Target:
        """Target of the first utterance; all others have the same streams."""
        return next(iter(self.targets.values()))

    @property
    def utterances(self) -> tuple[Piece, ...]:
        """Pieces that are no silence."""
        return tuple(piece for piece in self.pieces if piece.id)

    def is_whole(self, piece: Piece) -> bool:
        """Tell whether a piece is all of its utterance, at any speed."""
        return piece.start == 0 and piece.duration == self.seconds[piece.id]

    @property
    def plain(self) -> Target | None:
        """Target of the utterance where the clip is one whole utterance at its own speed; else None."""
        piece = self.pieces[0]
        if len(self.pieces) == 1 and piece.id and piece.speed == 1 and self.is_whole(piece):
            return self.targets[piece.id]
        return None

    @property
    def length(self) -> Fraction:
        """Seconds of the clip."""
        return sum((piece.length for piece in self.pieces), Fraction(0))


def seconds_of(target: Target) -> Fraction:
    """Return the exact length of an utterance in seconds; raises ``LengthError`` where none is stored."""
    seconds: Any = target.meta.get("seconds") or 0.0
    if seconds <= 0:
        raise LengthError(
            "its length in seconds is not stored",
            where=target.id,
            why="Without the length, the times of its frames are not known.",
            do="Dump with logitstore dump, or give seconds= to StoreWriter.add.",
        )
    rate = target.clock.rate if target.clock else 0
    return Fraction(round(seconds * rate), rate) if rate else exact(seconds, "a length")
