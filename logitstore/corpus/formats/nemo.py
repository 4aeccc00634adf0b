"""NeMo manifests: JSON lines of ``audio_filepath``, ``duration``, ``text``, ``offset``.

Facts: https://docs.nvidia.com/nemo-framework/user-guide/latest/nemotoolkit/asr/datasets.html. They have no
ids; NeMo names an utterance after its recording. So the id is the file's name without its ending. For a part of
a recording, begin and end in milliseconds follow. A line's own ``id`` is preferred.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import ManifestError
from .base import ManifestLine, json_lines

BESIDE = True
KEPT = ("duration", "offset", "channel", "text", "tokens")


def recognises(path: Path, first: dict[str, Any] | None) -> bool:
    """Return whether the first object has an audio_filepath."""
    return first is not None and "audio_filepath" in first


def files(path: Path) -> Sequence[Path]:
    """Return the file itself."""
    return [path]


def lines(path: Path) -> Iterator[ManifestLine]:
    """Yield every line; a line of a tarred manifest has an error, because its recording is in an archive."""
    for line in json_lines(path):
        yield line if line.error else _line(line)


def _line(line: ManifestLine) -> ManifestLine:
    given = line.value
    audio = given.get("audio_filepath")
    if not isinstance(audio, str) or not audio:
        error = ManifestError(f"audio_filepath is {audio!r}, not a path", where=line.where)
        return ManifestLine(line.number, line.where, error=error)
    value: dict[str, Any] = {k: given[k] for k in KEPT if k in given}
    value["audio"] = audio
    value["id"] = given.get("id") or name_of(audio, given)
    if given.get("shard_id", -1) != -1:
        error = ManifestError(
            f"{audio!r} is inside tar archive {given['shard_id']}, not in a file of its own",
            where=line.where,
            do="Unpack the archives and give a manifest of the files.",
        )
        return ManifestLine(line.number, line.where, value, error)
    return ManifestLine(line.number, line.where, value)


def name_of(audio: str, given: dict[str, Any]) -> str:
    """Return the id of an utterance: the file's name, and begin and end if it is a part of the recording."""
    stem = PurePosixPath(audio).stem
    offset, duration = given.get("offset"), given.get("duration")
    if isinstance(offset, int | float) and isinstance(duration, int | float):
        return f"{stem}-{round(1000 * offset):07d}-{round(1000 * (offset + duration)):07d}"
    return stem
