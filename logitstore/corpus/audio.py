"""Reading of audio: recordings as one channel of float32 at the teacher's sample rate."""

from __future__ import annotations

import io
import os
import stat
import subprocess
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AudioError
from ..schema.checksums import sha256
from .manifest import Utterance

Float = NDArray[np.float32]
DURATION_TOLERANCE = 0.1  # seconds; toolkits round the durations in manifests, some to 0.01 s


def _soundfile() -> Any:
    import soundfile

    return soundfile


def seconds_of(utt: Utterance) -> float:
    """Return the duration of an utterance in seconds, from the manifest or the recording's header."""
    stated = stated_seconds(utt)
    if stated is not None:
        return stated
    frames, rate = header(utt)
    return max(0.0, frames / rate - utt.offset)


def stated_seconds(utt: Utterance) -> float | None:
    """Return the duration of an utterance in seconds by the manifest alone; None if it gives none."""
    if utt.duration is not None:
        return utt.duration
    return None if utt.expected is None else max(0.0, utt.expected - utt.offset)


def header(utt: Utterance) -> tuple[int, int]:
    """Return (samples, sample rate) of the whole recording from its header; raise ``AudioError``."""
    sf = _soundfile()
    try:
        info = sf.info(_recording(utt))
    except (sf.LibsndfileError, OSError) as e:
        raise _unreadable(utt, e) from None
    return int(info.frames), int(info.samplerate)


def _recording(utt: Utterance) -> bytes | io.BytesIO:
    """Return the path of a recording, or the output of its shell command; raise ``AudioError``."""
    if not utt.pipe:
        _require_file(utt)
        return os.fsencode(utt.audio)  # the name of a file need not be UTF-8
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", utt.pipe], capture_output=True, check=False)
    if ran.returncode:
        message = ran.stderr.decode("utf-8", "replace").strip()
        raise AudioError(f"{utt.pipe!r} ended with status {ran.returncode}: {message}", where=utt.id)
    return io.BytesIO(ran.stdout)


def _require_file(utt: Utterance) -> None:
    """Raise ``AudioError`` for a named pipe, a socket or a device, which could block for ever."""
    try:
        mode = os.stat(utt.audio).st_mode
    except OSError:
        return  # libsndfile reports it
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise AudioError(
            f"{utt.audio} is a pipe, a socket or a device, and not a file",
            where=utt.id,
            why="Reading it could wait for ever.",
            do="Give the recording as a file.",
        )


def fingerprint(audio: Float) -> str:
    """Return the first 64 bits of the SHA-256 of samples, which record metadata holds (SPEC S3)."""
    return sha256(audio.tobytes())[: len("sha256:") + 16]


def load_audio(utt: Utterance, rate: int) -> Float:
    """Read the audio of an utterance as (samples,) float32 in [-1, 1].

    The result is one channel or the mean of all, resampled to ``rate`` Hz with soxr (high quality).

    Raises:
        AudioError: the recording is missing, unreadable, empty or shorter than the manifest says, lacks the
            channel, or has samples that are not finite.
    """
    import soxr

    sf = _soundfile()
    try:
        with sf.SoundFile(_recording(utt)) as f:
            source = f.samplerate
            begin = round(utt.offset * source)
            count = -1 if utt.duration is None else round(utt.duration * source)
            if begin > f.frames or (count >= 0 and begin + count > f.frames + source // 100):
                raise AudioError(
                    f"{utt.audio} lasts {f.frames / source:.3f} s, but the manifest asks for "
                    f"{utt.offset:.3f} + {utt.duration or 0:.3f} s",
                    where=utt.id,
                    why="The manifest was made for another recording, or this recording was cut.",
                )
            if utt.expected is not None and abs(f.frames / source - utt.expected) > DURATION_TOLERANCE:
                raise AudioError(
                    f"{utt.audio} lasts {f.frames / source:.3f} s, the manifest says {utt.expected:.3f} s",
                    where=utt.id,
                    why="The manifest was made for another recording, or this recording was cut.",
                )
            if utt.channel is not None and utt.channel >= f.channels:
                raise AudioError(
                    f"{utt.audio} has {f.channels} channels: there is no channel {utt.channel}, counted from 0",
                    where=utt.id,
                )
            f.seek(begin)
            channels = f.read(count, dtype="float32", always_2d=True)
            audio = channels.mean(axis=1) if utt.channel is None else channels[:, utt.channel]
    except (sf.LibsndfileError, OSError) as e:
        raise _unreadable(utt, e) from None
    if count > 0 and len(audio) < count - source // 100:
        raise AudioError(f"{utt.audio} ends after {len(audio)} of {count} samples", where=utt.id)
    if not len(audio):
        raise AudioError(f"{utt.audio} is empty", where=utt.id)
    if not np.isfinite(audio).all():
        raise AudioError(f"{utt.audio} contains NaN or infinity", where=utt.id)
    if source != rate:
        audio = soxr.resample(audio, source, rate)
    return np.ascontiguousarray(audio, np.float32)


def _unreadable(utt: Utterance, error: Exception) -> AudioError:
    if not utt.pipe and not utt.audio.exists():
        return AudioError(
            f"{utt.audio} does not exist",
            where=utt.id,
            do="Check the manifest, or give the folder that its paths are relative to (audio_root).",
        )
    return AudioError(f"{utt.audio} cannot be read: {error}", where=utt.id)
