"""Clips of stored utterances for a student's lhotse cuts.

lhotse keeps arrays that are attached to a cut unchanged when the cut's speed changes: after ``perturb_speed``
they are cropped by the new seconds at the old rate, without an error. :class:`CutClips` reads from a cut what
was done to its audio, which lhotse records: recording, start, duration, transforms and tracks. This module
does not import lhotse. Source: https://lhotse.readthedocs.io/en/latest/cuts.html.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..errors import MissingUtterance, UsageError
from ..schema.clock import exact
from ..targets.clip import ROUNDING, Clip, Piece, silence
from .reader import Store

# The suffixes that each transform of lhotse may append to ids: https://github.com/lhotse-speech/lhotse
AFFIXES: dict[str, Sequence[str]] = {
    "Speed": ("_sp{factor}",),
    "Tempo": ("_tp{factor}",),
    "Volume": ("_vp{factor}",),
    "Resample": ("_rs{target_sampling_rate}",),
    "Narrowband": ("_nb_{codec}",),
    "LoudnessNormalization": ("_ln{target}",),
    "DereverbWPE": ("_wpe",),
    "ReverbWithImpulseResponse": ("_rvb",),
    "Clipping": ("_cl{gain_db}", "_cl{gain_db:.1f}"),
}
SPEED_CHANGES = ("Speed", "Tempo")


@dataclass(frozen=True)
class _StoredPart:
    """The part of a recording that a stored utterance covers, in seconds.

    Attributes:
        id: utterance id.
        start: beginning within the recording.
        seconds: length of the utterance.
        recording_seconds: length of the recording; None where it is not stored.
        channel: channel of the recording; None for all.
    """

    id: str
    start: Fraction
    seconds: Fraction
    recording_seconds: Fraction | None = None
    channel: int | None = None

    @property
    def end(self) -> Fraction:
        """End within the recording."""
        return self.start + self.seconds

    def __str__(self) -> str:
        return f"{self.id} {float(self.start):g}-{float(self.end):g} s"


@dataclass(frozen=True)
class _CutPart:
    """The part of a recording that a cut covers, in seconds of the recording before any transform.

    Attributes:
        start: beginning within the recording.
        duration: length of the part.
        recording_seconds: length of the recording.
        speed: speed of the cut's audio, relative to the recording's.
        affixes: suffixes that transforms may have appended to ids, in order.
    """

    start: Fraction
    duration: Fraction
    recording_seconds: Fraction
    speed: Fraction
    affixes: tuple[str, ...]

    @property
    def end(self) -> Fraction:
        """End within the recording."""
        return self.start + self.duration

    @classmethod
    def of(cls, cut: Any) -> _CutPart:
        """Return the part that a cut of one recording covers.

        Raises ``UsageError`` for a transform that is not known to keep times.
        """
        recording, rate, speed = cut.recording, cut.recording.sampling_rate, Fraction(1)
        for transform in recording.transforms or ():
            name, settings = _name_and_settings(transform)
            if name == "Speed":  # as lhotse does it: resampled from a rate that is rounded to whole Hz
                speed *= Fraction(round(rate * settings["factor"]), rate)
            elif name == "Tempo":
                speed *= exact(settings["factor"], "a tempo")
            else:
                _require_same_times(transform, f"cut {cut.id}")
        return cls(
            start=_whole_samples(cut.start, rate) * speed,
            duration=_whole_samples(cut.duration, rate) * speed,
            recording_seconds=Fraction(recording.num_samples, rate) * speed,
            speed=speed,
            affixes=_affixes(recording.transforms),
        )


class CutClips:
    """A function from lhotse cuts to clips of a store's utterances::

        clips = CutClips(store)
        batch = store.batch([clips(cut) for cut in cuts], frames=lengths, ratio=(1, 1))

    A stored utterance is found by the recording that its record metadata names (SPEC S16; dumps of cuts write
    it), or by the id of the cut, of its recording or of a supervision, without the suffixes that transforms
    appended, where lengths agree.

    Args:
        store: an opened store; the metadata of all records is read once.
        blank: True to give padding a target of only blank; False to mask it.
    """

    def __init__(self, store: Store, *, blank: bool = False) -> None:
        self._store, self._blank = store, blank
        self._recordings: dict[str, list[_StoredPart]] = {}
        for meta in store.metadata():
            recording = meta.get("recording")
            if isinstance(recording, Mapping) and isinstance(recording.get("id"), str):
                self._recordings.setdefault(recording["id"], []).append(_stored_part(meta, recording))

    def __call__(self, cut: Any) -> Clip:
        """Return the clip of a cut.

        Args:
            cut: a ``MonoCut``, ``MultiCut``, ``MixedCut`` or ``PaddingCut`` of lhotse.

        Raises:
            UsageError: a transform that is not known to keep times, overlapping speech, a cut without a
                recording, or an object that is no cut.
            MissingUtterance: audio that no stored utterance holds.
        """
        kind = type(cut).__name__
        if kind == "MixedCut":
            return self._of_tracks(cut)
        if kind == "PaddingCut":
            return Clip(silence(exact(cut.duration, "a pause"), blank=self._blank))
        if kind not in ("MonoCut", "MultiCut"):
            raise UsageError(f"a {kind} is no cut of lhotse", do="Give a MonoCut, MultiCut or MixedCut.")
        if cut.recording is None:
            raise UsageError(
                "it has no recording",
                where=f"cut {cut.id}",
                why="Without one, its audio is not known.",
                do="Use cuts with recordings.",
            )
        part = _CutPart.of(cut)
        utterance = self._find(cut, part)
        start = max(part.start - utterance.start, Fraction(0))
        duration = min(part.duration, utterance.seconds - start)
        if start <= ROUNDING and utterance.seconds - start - duration <= ROUNDING:
            return Clip(utterance.id, speed=part.speed)
        return Clip(utterance.id, start=start, duration=duration, speed=part.speed)

    def _of_tracks(self, cut: Any) -> Clip:
        """Return the clip of a mixed cut, with its speech in order.

        Noise beside the speech changes no time; speech beside other speech raises ``UsageError``.
        """
        where = f"cut {cut.id}"
        for transform in cut.transforms or ():
            _require_same_times(transform, where)
        audible = [track for track in cut.tracks if not getattr(track, "mute", False)] or cut.tracks
        parts: list[Piece | Clip] = []
        at = Fraction(0)  # end of the speech so far, in seconds of the cut
        for track in sorted(audible, key=lambda track: float(track.offset)):
            clip = self._speech(track.cut)
            if clip is None:
                continue
            offset = _whole_samples(track.offset, cut.sampling_rate)
            if offset < at - ROUNDING:
                raise UsageError(
                    f"{clip.name} begins at {float(offset):g} s, other speech goes on to {float(at):g} s",
                    where=where,
                    why="The teacher was given each of them alone; it has no output for their mixture.",
                    do="Leave such cuts out of the soft targets, or dump the mixed audio itself.",
                )
            if offset > at:
                parts.append(silence(offset - at, blank=self._blank))
            parts.append(clip)
            at = offset + _seconds(track.cut)
        rest = _seconds(cut) - at
        if rest > ROUNDING:
            parts.append(silence(rest, blank=self._blank))
        return Clip(*parts)

    def _speech(self, cut: Any) -> Clip | None:
        """Return the clip of a track; None for padding, and for noise: neither supervised nor stored."""
        if type(cut).__name__ == "PaddingCut":
            return None
        try:
            return self(cut)
        except (MissingUtterance, UsageError):
            if cut.supervisions or self._of_recording(cut):
                raise
            return None

    def _of_recording(self, cut: Any) -> list[_StoredPart]:
        """Return the stored utterances of a cut's recording."""
        if cut.recording is None:
            return []
        names = _without_affixes(cut.recording.id, _affixes(cut.recording.transforms))
        return [part for name in names for part in self._recordings.get(name, [])]

    def _find(self, cut: Any, part: _CutPart) -> _StoredPart:
        """Return the shortest stored utterance that holds all of a cut; raises ``MissingUtterance``."""
        candidates = self._candidates(cut, part)
        holding = [
            stored
            for stored in candidates
            if stored.start - ROUNDING <= part.start and part.end <= stored.end + ROUNDING
        ]
        if holding:
            return min(holding, key=lambda stored: (stored.seconds, stored.id))
        what = (
            f"no stored utterance holds {float(part.start):g}-{float(part.end):g} s of the recording "
            f"{cut.recording.id!r}"
        )
        why = "Neither the recording, nor the cut's or a supervision's id is known at that length."
        if candidates:
            nearest = sorted(candidates, key=lambda stored: stored.start)[:4]
            what = f"{what}; there are {', '.join(map(str, nearest))}"
            why = "The teacher has no output for audio that it was not given."
        raise MissingUtterance(
            what,
            where=f"cut {cut.id}",
            why=why,
            do="Dump cuts that are as long as the students' cuts, and keep ids as they are.",
        )

    def _candidates(self, cut: Any, part: _CutPart) -> list[_StoredPart]:
        """Return the stored utterances of the recording and channel, and those of fitting ids and lengths."""
        channel = _channel(cut)
        candidates = [
            stored
            for stored in self._of_recording(cut)
            if stored.recording_seconds is not None
            and abs(stored.recording_seconds - part.recording_seconds) <= ROUNDING
            and stored.channel == channel
        ]
        whole = (cut.id, cut.recording.id)
        candidates += self._by_id(whole, part.affixes, Fraction(0), part.recording_seconds)
        for supervision in cut.supervisions:
            start, duration = (
                _whole_samples(seconds, cut.sampling_rate) * part.speed
                for seconds in (supervision.start, supervision.duration)
            )
            candidates += self._by_id((supervision.id,), part.affixes, part.start + start, duration)
        return candidates

    def _by_id(
        self, ids: Iterable[str], affixes: Sequence[str], start: Fraction, seconds: Fraction
    ) -> Iterator[_StoredPart]:
        """Yield stored utterances of these ids, with or without suffixes, that have this length."""
        for utt_id in dict.fromkeys(name for i in ids for name in _without_affixes(i, affixes)):
            if utt_id in self._store:
                meta = self._store.record(utt_id, only=()).meta
                length = exact(meta.get("seconds") or 0.0, "a length")
                if abs(length - seconds) <= ROUNDING:
                    yield _StoredPart(utt_id, start, length)


def _stored_part(meta: Mapping[str, Any], recording: Mapping[str, Any]) -> _StoredPart:
    """Return the part of a recording that record metadata names."""
    seconds = recording.get("seconds")
    return _StoredPart(
        meta["id"],
        exact(recording.get("start") or 0, "a start"),
        exact(meta.get("seconds") or 0, "a length"),
        None if seconds is None else exact(seconds, "a length"),
        recording.get("channel"),
    )


def _require_same_times(transform: Any, where: str) -> None:
    """Raise ``UsageError`` unless a transform is known to leave every sound at its time."""
    name, settings = _name_and_settings(transform)
    if name not in AFFIXES or name in SPEED_CHANGES:
        written = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise UsageError(
            f"its audio goes through {name}({written})",
            where=where,
            why="Whether that moves sounds in time is not known here.",
            do=f"Known: {', '.join(AFFIXES)}. Leave others out, or dump the audio that they give.",
        )


def _name_and_settings(transform: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the name and settings of a transform, an object of lhotse or its dictionary."""
    if isinstance(transform, Mapping):
        return str(transform.get("name")), transform.get("kwargs") or {}
    return type(transform).__name__, vars(transform)


def _affixes(transforms: Any) -> tuple[str, ...]:
    """Return all suffixes that transforms may have appended to ids, in order."""
    affixes = []
    for transform in transforms or ():
        name, settings = _name_and_settings(transform)
        for affix in AFFIXES.get(name, ()):
            try:
                affixes.append(affix.format(**settings))
            except (KeyError, ValueError, TypeError):
                continue
    return tuple(affixes)


def _without_affixes(name: str, affixes: Sequence[str]) -> list[str]:
    """Return an id without these suffixes, and the id as it is."""
    bare = name
    for affix in reversed(affixes):
        bare = bare.removesuffix(affix)
    return list(dict.fromkeys((bare, name)))


def _whole_samples(seconds: float, rate: int) -> Fraction:
    """Return seconds in floating point as the whole number of samples that they stand for, in seconds."""
    return Fraction(round(seconds * rate), rate)


def _seconds(cut: Any) -> Fraction:
    """Return the length of a cut."""
    return _whole_samples(cut.duration, cut.sampling_rate)


def _channel(cut: Any) -> int | None:
    """Return the only channel of a cut, counted within its file as dumps of cuts count it; None for all."""
    wanted = [cut.channel] if isinstance(cut.channel, int) else list(cut.channel)
    if wanted == list(cut.recording.channel_ids):
        return None
    return list(cut.recording.sources[0].channels).index(wanted[0]) if len(wanted) == 1 else -1
