"""Targets for a student's lhotse cuts: what each of them hears of which stored utterance.

lhotse itself keeps arrays that were attached to a cut as they are when its speed changes: after
``perturb_speed`` they are cut by the new seconds at the old rate, without an error. Here a cut is read for
what was done to its audio, which lhotse writes down: recording, start, duration, transforms and tracks.
Nothing of lhotse is imported. Facts: https://lhotse.readthedocs.io/en/latest/cuts.html.
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

# What each transform appends to ids where it was asked to: https://github.com/lhotse-speech/lhotse
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
FASTER = ("Speed", "Tempo")


@dataclass(frozen=True)
class _Known:
    """A stored utterance in its recording: seconds; ``whole`` is how long the recording is."""

    id: str
    start: Fraction
    seconds: Fraction
    whole: Fraction | None = None
    channel: int | None = None


@dataclass(frozen=True)
class _Source:
    """What a cut hears of its recording, in the seconds of the recording as it was before any change."""

    start: Fraction
    duration: Fraction
    whole: Fraction
    speed: Fraction
    affixes: tuple[str, ...]


class CutClips:
    """Finds for any cut what it hears of a store::

        clips = CutClips(store)
        batch = store.batch([clips(cut) for cut in cuts], frames=lengths, ratio=(1, 1))

    A stored utterance is found by the recording that its row names (SPEC S16; dumps of cuts write it), or by
    an id of the cut, its recording or a supervision, less what transforms appended, where lengths agree.

    Args:
        store: whose rows are read through once for what they say of themselves.
        blank: where a cut is padded the student is told blank; otherwise nothing.
    """

    def __init__(self, store: Store, *, blank: bool = False) -> None:
        self._store, self._blank = store, blank
        self._recordings: dict[str, list[_Known]] = {}
        for meta in store.metadata():
            recording = meta.get("recording")
            if isinstance(recording, Mapping) and isinstance(recording.get("id"), str):
                self._recordings.setdefault(recording["id"], []).append(_known(meta, recording))

    def __call__(self, cut: Any) -> Clip:
        """What a cut hears; raises ``UsageError`` where no target can follow, or ``MissingUtterance``."""
        kind = type(cut).__name__
        if kind == "MixedCut":
            return self._mixed(cut)
        if kind == "PaddingCut":
            return Clip(silence(exact(cut.duration, "a pause"), blank=self._blank))
        if kind not in ("MonoCut", "MultiCut"):
            raise UsageError(f"a {kind} is no cut of lhotse's")
        if cut.recording is None:
            raise UsageError("it has no recording: nothing says what it hears", where=f"cut {cut.id}")
        source = _source(cut)
        found = self._find(cut, source)
        begin = max(source.start - found.start, Fraction(0))
        duration = min(source.duration, found.seconds - begin)
        if begin <= ROUNDING and found.seconds - begin - duration <= ROUNDING:
            return Clip(found.id, speed=source.speed)
        return Clip(found.id, start=begin, duration=duration, speed=source.speed)

    def _mixed(self, cut: Any) -> Clip:
        """Tracks one behind the other; noise beside them changes no time, other speech does."""
        where = f"cut {cut.id}"
        for transform in cut.transforms or ():
            _timeless(transform, where)
        audible = [t for t in cut.tracks if not getattr(t, "mute", False)] or cut.tracks
        said = []
        for track in sorted(audible, key=lambda t: float(t.offset)):
            clip = self._said(track.cut)
            if clip is not None:
                said.append((_samples(track.offset, cut.sampling_rate), _lasting(track.cut), clip))
        parts: list[Piece | Clip] = []
        at = Fraction(0)
        for offset, duration, clip in said:
            if offset < at - ROUNDING:
                raise UsageError(
                    f"{clip.name} begins at {float(offset):g} s, other speech goes on to {float(at):g} s",
                    where=where,
                    why="The teacher heard each of them alone: of both at once it said nothing.",
                    do="Leave such cuts out of the soft targets, or dump the mixed audio itself.",
                )
            if offset > at:
                parts.append(silence(offset - at, blank=self._blank))
            parts.append(clip)
            at = offset + duration
        rest = _lasting(cut) - at
        if rest > ROUNDING:
            parts.append(silence(rest, blank=self._blank))
        return Clip(*parts)

    def _said(self, cut: Any) -> Clip | None:
        """What a track says; None for padding, and for noise: of what is neither supervised nor stored."""
        if type(cut).__name__ == "PaddingCut":
            return None
        try:
            return self(cut)
        except (MissingUtterance, UsageError):
            if cut.supervisions or self._candidates(cut):
                raise
            return None

    def _candidates(self, cut: Any) -> list[_Known]:
        if cut.recording is None:
            return []
        names = _bases(cut.recording.id, _affixes(cut.recording.transforms))
        return [k for name in names for k in self._recordings.get(name, [])]

    def _find(self, cut: Any, source: _Source) -> _Known:
        """The stored utterance that holds all of a cut, the shortest where there are several."""
        channel = _channel(cut)
        known = [
            k
            for k in self._candidates(cut)
            if k.whole is not None and abs(k.whole - source.whole) <= ROUNDING and k.channel == channel
        ]
        known += self._alike((cut.id, cut.recording.id), source.affixes, Fraction(0), source.whole)
        for s in cut.supervisions:
            start, duration = (_samples(x, cut.sampling_rate) * source.speed for x in (s.start, s.duration))
            known += self._alike((s.id,), source.affixes, source.start + start, duration)
        holding = [
            k
            for k in known
            if k.start - ROUNDING <= source.start
            and source.start + source.duration <= k.start + k.seconds + ROUNDING
        ]
        if holding:
            return min(holding, key=lambda k: (k.seconds, k.id))
        heard = ", ".join(
            f"{k.id} {float(k.start):g}-{float(k.start + k.seconds):g} s"
            for k in sorted(known, key=lambda k: k.start)[:4]
        )
        raise MissingUtterance(
            f"it hears {float(source.start):g}-{float(source.start + source.duration):g} s of the recording "
            f"{cut.recording.id!r}, which no stored utterance holds"
            + (f"; there are {heard}" if heard else ""),
            where=f"cut {cut.id}",
            why="Of what the teacher did not hear it said nothing."
            if known
            else "Neither the recording, nor the cut's or a supervision's id is known at that length.",
            do="Dump cuts that are as long as what students will hear, and keep ids as they are.",
        )

    def _alike(
        self, names: Iterable[str], affixes: Sequence[str], start: Fraction, seconds: Fraction
    ) -> Iterator[_Known]:
        """Utterances of such ids, less what transforms appended, that last exactly so long."""
        for name in dict.fromkeys(b for n in names for b in _bases(n, affixes)):
            if name in self._store:
                lasts = exact(self._store.record(name, only=()).meta.get("seconds") or 0.0, "a length")
                if abs(lasts - seconds) <= ROUNDING:
                    yield _Known(name, start, lasts)


def _known(meta: Mapping[str, Any], recording: Mapping[str, Any]) -> _Known:
    whole = recording.get("seconds")
    return _Known(
        meta["id"],
        exact(recording.get("start") or 0, "a start"),
        exact(meta.get("seconds") or 0, "a length"),
        None if whole is None else exact(whole, "a length"),
        recording.get("channel"),
    )


def _source(cut: Any) -> _Source:
    recording, rate, speed = cut.recording, cut.recording.sampling_rate, Fraction(1)
    for transform in recording.transforms or ():
        name, settings = _named(transform)
        if name == "Speed":  # as lhotse computes it: resampled from a rate that is rounded to whole Hz
            speed *= Fraction(round(rate * settings["factor"]), rate)
        elif name == "Tempo":
            speed *= exact(settings["factor"], "a tempo")
        else:
            _timeless(transform, f"cut {cut.id}")
    return _Source(
        _samples(cut.start, rate) * speed,
        _samples(cut.duration, rate) * speed,
        Fraction(recording.num_samples, rate) * speed,
        speed,
        _affixes(recording.transforms),
    )


def _timeless(transform: Any, where: str) -> None:
    """Raise ``UsageError`` unless a transform leaves every sound when it is."""
    name, settings = _named(transform)
    if name not in AFFIXES or name in FASTER:
        said = ", ".join(f"{k}={v}" for k, v in settings.items())
        raise UsageError(
            f"its audio goes through {name}({said})",
            where=where,
            why="Whether that moves sounds in time is not known here.",
            do=f"Known: {', '.join(AFFIXES)}. Leave others out, or dump the audio that they give.",
        )


def _named(transform: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(transform, Mapping):
        return str(transform.get("name")), transform.get("kwargs") or {}
    return type(transform).__name__, vars(transform)


def _affixes(transforms: Any) -> tuple[str, ...]:
    """All that these transforms may have appended to ids, in order."""
    found = []
    for transform in transforms or ():
        name, settings = _named(transform)
        for affix in AFFIXES.get(name, ()):
            try:
                found.append(affix.format(**settings))
            except (KeyError, ValueError, TypeError):
                continue
    return tuple(found)


def _bases(name: str, affixes: Sequence[str]) -> list[str]:
    """An id as it is, and as it was before these were appended to it."""
    bare = name
    for affix in reversed(affixes):
        bare = bare.removesuffix(affix)
    return list(dict.fromkeys((bare, name)))


def _samples(seconds: float, rate: int) -> Fraction:
    """Seconds that stand for whole samples."""
    return Fraction(round(seconds * rate), rate)


def _lasting(cut: Any) -> Fraction:
    return _samples(cut.duration, cut.sampling_rate)


def _channel(cut: Any) -> int | None:
    """The channel that alone is heard, counted in its file, as dumps of cuts count it; None for all."""
    wanted = [cut.channel] if isinstance(cut.channel, int) else list(cut.channel)
    if wanted == list(cut.recording.channel_ids):
        return None
    return list(cut.recording.sources[0].channels).index(wanted[0]) if len(wanted) == 1 else -1
