"""Sample rate and frame shift of a probed program, by the headers of the audio files that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aiff", ".sph"})
FRAME_SHIFTS = (5, 10, 12.5, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120, 160, 320)  # ms that recognisers have
LEVELS, MOST_VALUES, MOST_FILES = 5, 100_000, 1024  # bounds of a search for paths in a batch
MOST_FEWER, MOST_MORE = (
    4,
    1,
)  # frames of an utterance beside its length over the shift: edges are lost or padded


@dataclass(frozen=True)
class FoundRates:
    """Rates of the audio and of the frames; None where they are not known.

    Attributes:
        sample_rate: samples per second in the headers.
        frame_shift: samples between two frames.
        reasons: facts that they follow from, for people to read.
    """

    sample_rate: int | None = None
    frame_shift: int | None = None
    reasons: tuple[str, ...] = ()


def is_audio(path: object) -> bool:
    """Return whether a path ends like an audio file."""
    return isinstance(path, str) and PurePosixPath(path).suffix.lower() in SUFFIXES


def audio_paths(*values: Any) -> tuple[str, ...]:
    """Return the paths of audio files in a batch or in items of a dataset, in order, without repeats.

    Mappings, sequences and the attributes of objects are searched, a few levels deep.
    """
    found: dict[str, None] = {}
    left = MOST_VALUES
    level: list[Any] = list(values)
    for _ in range(LEVELS):
        inner: list[Any] = []
        for value in level[:left]:
            if isinstance(value, str | Path):
                if is_audio(str(value)):
                    found.setdefault(os.path.abspath(value))
            elif isinstance(value, Mapping):
                inner += value.values()
            elif isinstance(value, list | tuple | set | frozenset):
                inner += value
            elif type(value).__module__ not in ("builtins", "torch", "numpy"):
                inner += getattr(value, "__dict__", {}).values()
        left -= len(level)
        level = inner
    return tuple(found)[:MOST_FILES]


def rates_of(paths: Sequence[str], ids: Sequence[Any], lengths: Sequence[int]) -> FoundRates:
    """Return the rates that audio files show.

    The sample rate is that of all headers, where these agree. The frame shift is the usual one that fits the length
    of each utterance over its frames, if there is exactly one.

    Args:
        paths: audio files of the first batch. As many as utterances are taken in order, others by the ids.
        ids: ids of the utterances of the first batch, names or paths of files.
        lengths: valid frames of these utterances.
    """
    headers = _headers([*paths, *(i for i in ids if is_audio(i))])
    rates = {rate for rate, _ in headers.values()}
    if len(rates) != 1:
        listed = ", ".join(f"{rate} Hz" for rate in sorted(rates))
        return FoundRates(reasons=(f"the headers of the audio files say {listed}",) if rates else ())
    sample_rate = rates.pop()
    reason = f"{sample_rate} Hz by the headers of {len(headers)} audio files"
    if len(paths) == len(lengths) and all(path in headers for path in paths):
        samples = [headers[path][1] for path in paths]
    else:
        by_name = {PurePosixPath(path).stem: samples for path, (_, samples) in headers.items()}
        samples = [by_name.get(PurePosixPath(str(i)).stem, 0) for i in ids]
    pairs = [(n, frames) for n, frames in zip(samples, lengths, strict=False) if n and frames > 0]
    if not pairs:
        return FoundRates(sample_rate, None, (reason,))
    fitting = [shift for shift in _usual_shifts(sample_rate) if _fits(shift, pairs)]
    if len(fitting) != 1:
        few = "no usual frame shift fits" if not fitting else "several frame shifts fit"
        return FoundRates(sample_rate, None, (reason, f"{few} the lengths of {len(pairs)} of them"))
    said = f"a frame every {1000 * fitting[0] / sample_rate:g} ms by the lengths of {len(pairs)} of them"
    return FoundRates(sample_rate, fitting[0], (reason, said))


def _headers(paths: Iterable[str]) -> Mapping[str, tuple[int, int]]:
    """Return {path: (samples per second, samples)} for files whose header can be read."""
    import soundfile

    found = {}
    for path in dict.fromkeys(paths):
        if Path(path).is_file():
            try:
                header = soundfile.info(path)
            except (soundfile.LibsndfileError, OSError, RuntimeError):
                continue
            found[path] = (int(header.samplerate), int(header.frames))
    return found


def _usual_shifts(sample_rate: int) -> list[int]:
    """Return usual frame shifts in samples, those that are whole numbers."""
    shifts = (ms * sample_rate / 1000 for ms in FRAME_SHIFTS)
    return [int(shift) for shift in shifts if shift == int(shift)]


def _fits(shift: int, pairs: Sequence[tuple[int, int]]) -> bool:
    """Return whether the frames of every utterance are its samples over a shift, but for a few at its ends."""
    return all(-MOST_MORE <= samples / shift - frames <= MOST_FEWER for samples, frames in pairs)
