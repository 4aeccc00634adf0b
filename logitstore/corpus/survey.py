"""Survey of a manifest and its recordings, and manifests written as JSON lines."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import AudioError
from .audio import DURATION_TOLERANCE, header
from .manifest import Manifest, Problem, Utterance

ROUNDING = 0.01  # seconds by which an utterance may end after its recording, as in load_audio


@dataclass
class Survey:
    """Content of a manifest, and its problems.

    Attributes:
        format: format of the manifest.
        utterances: number of valid utterances, with recordings that exist and are long enough.
        seconds: total audio of these in seconds.
        rates: number of utterances by sample rate in Hz.
        texts: number of utterances with a reference text.
        tokens: number of utterances with reference token ids.
        problems: lines and utterances that cannot be used.
    """

    format: str
    utterances: int = 0
    seconds: float = 0.0
    rates: Counter[int] = field(default_factory=Counter)
    texts: int = 0
    tokens: int = 0
    problems: list[Problem] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "utterances": self.utterances,
            "hours": self.seconds / 3600,
            "rates": {str(rate): count for rate, count in sorted(self.rates.items())},
            "texts": self.texts,
            "tokens": self.tokens,
            "problems": [p.to_json() for p in self.problems],
        }


def survey(manifest: Manifest, into: Survey) -> Iterator[Utterance]:
    """Yield every valid utterance with the duration from its recording's header, and count it in ``into``.

    The header is read once for consecutive utterances of the same recording.
    """
    into.problems.extend(manifest.problems)
    last: tuple[object, tuple[int, int]] | None = None
    for utt in manifest:
        try:
            recording = utt.pipe or utt.audio
            if last is None or last[0] != recording:
                last = recording, header(utt)
            yield _measured(utt, last[1], into)
        except AudioError as e:
            into.problems.append(Problem(utt.id, type(e).__name__, str(e)))


def _measured(utt: Utterance, found: tuple[int, int], into: Survey) -> Utterance:
    """Return the utterance with its measured duration; raise ``AudioError`` if the recording is too short."""
    frames, rate = found
    whole = frames / rate
    duration = whole - utt.offset if utt.duration is None else utt.duration
    wrong = ""
    if duration <= 0:
        wrong = f"it ends before the utterance begins, at {utt.offset:.3f} s" if utt.offset else "it is empty"
    elif utt.offset + duration > whole + ROUNDING:
        wrong = f"the manifest asks for {utt.offset:.3f} + {duration:.3f} s"
    elif utt.expected is not None and abs(utt.expected - whole) > DURATION_TOLERANCE:
        wrong = f"the manifest says {utt.expected:.3f} s"
    if wrong:
        raise AudioError(f"{utt.audio} lasts {whole:.3f} s: {wrong}", where=utt.id)
    into.utterances += 1
    into.seconds += duration
    into.rates[rate] += 1
    into.texts += utt.text is not None
    into.tokens += utt.tokens is not None
    return replace(utt, duration=duration, expected=whole if utt.recording else None)


def to_line(utt: Utterance, beside: Path) -> bytes:
    """Encode an utterance as a JSON line; the path of a recording below ``beside`` becomes relative to it."""
    value: dict[str, Any] = {"id": utt.id}
    if utt.pipe:
        value["pipe"] = utt.pipe
    else:
        audio, folder = os.path.abspath(utt.audio), os.path.abspath(beside)
        value["audio"] = os.path.relpath(audio, folder) if Path(audio).is_relative_to(folder) else audio
    if utt.offset:
        value["offset"] = utt.offset
    if utt.duration is not None:
        value["duration"] = utt.duration
    if utt.recording:
        value |= {"recording": utt.recording, "expected": utt.expected}
    if utt.channel is not None:
        value["channel"] = utt.channel
    if utt.text is not None:
        value["text"] = utt.text
    if utt.tokens is not None:
        value["tokens"] = list(utt.tokens)
    line = json.dumps(value, ensure_ascii=False) + "\n"
    try:
        return line.encode("utf-8")
    except UnicodeEncodeError:  # a file name that is not UTF-8; its bytes became half surrogates
        return (json.dumps(value) + "\n").encode("ascii")


def write_lines(utterances: Iterator[Utterance], to: Path) -> None:
    """Write utterances as JSON lines; the file gets its name when it is complete."""
    write_bytes((to_line(utt, to.parent) for utt in utterances), to)


def write_bytes(lines: Iterator[bytes], to: Path) -> int:
    """Write lines and return their number; the file gets its name when it is complete."""
    count = 0
    partial = to.with_name(f".{to.name}.{os.getpid()}")
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(partial, "wb") as f:
            for line in lines:
                f.write(line)
                count += 1
        partial.replace(to)
    finally:
        partial.unlink(missing_ok=True)
    return count
