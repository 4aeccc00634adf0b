"""Recordings to mono float32 at the teacher's sample rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import AudioError
from .manifest import Utterance

Float = NDArray[np.float32]


def _soundfile() -> Any:
    import soundfile

    return soundfile


def seconds_of(utt: Utterance) -> float:
    """Length of an utterance in seconds, from the manifest or the recording's header."""
    if utt.duration is not None:
        return utt.duration
    sf = _soundfile()
    try:
        info = sf.info(str(utt.audio))
    except (sf.LibsndfileError, OSError) as e:
        raise _unreadable(utt.audio, e) from None
    length: float = info.frames / info.samplerate
    return max(0.0, length - utt.offset)


def load_audio(utt: Utterance, rate: int) -> Float:
    """(samples,) float32 in [-1, 1], channels averaged, resampled with soxr (high quality).

    Raises ``AudioError`` where a recording is missing, unreadable, empty, shorter than the manifest says
    or not finite.
    """
    import soxr

    sf = _soundfile()
    try:
        with sf.SoundFile(str(utt.audio)) as f:
            source = f.samplerate
            begin = round(utt.offset * source)
            count = -1 if utt.duration is None else round(utt.duration * source)
            if begin > f.frames or (count >= 0 and begin + count > f.frames + source // 100):
                raise AudioError(
                    f"{utt.audio} lasts {f.frames / source:.3f} s, but the manifest asks for "
                    f"{utt.offset:.3f} + {utt.duration or 0:.3f} s",
                    where=utt.id,
                    why="The manifest was made for another recording, or this one was cut.",
                )
            f.seek(begin)
            audio = f.read(count, dtype="float32", always_2d=True).mean(axis=1)
    except (sf.LibsndfileError, OSError) as e:
        raise _unreadable(utt.audio, e, utt.id) from None
    if count > 0 and len(audio) < count - source // 100:
        raise AudioError(f"{utt.audio} ends after {len(audio)} of {count} samples", where=utt.id)
    if not len(audio):
        raise AudioError(f"{utt.audio} is empty", where=utt.id)
    if not np.isfinite(audio).all():
        raise AudioError(f"{utt.audio} holds NaN or infinity", where=utt.id)
    if source != rate:
        audio = soxr.resample(audio, source, rate)
    return np.ascontiguousarray(audio, np.float32)


def _unreadable(path: Path, error: Exception, utt_id: str = "") -> AudioError:
    if not path.exists():
        return AudioError(
            f"{path} does not exist", where=utt_id, do="Check the manifest, or give --audio-root."
        )
    return AudioError(f"{path} cannot be read: {error}", where=utt_id)
