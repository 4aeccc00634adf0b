"""WeNet's ``data.list``: JSON lines of ``key``, ``wav``, ``txt``, and ``start`` and ``end`` of a part in seconds.

Facts: wenet/dataset/processor.py (``parse_json``, ``decode_wav``) and tools/make_raw_list.py of
https://github.com/wenet-e2e/wenet. Paths are relative to the working directory, as in WeNet's recipes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import ManifestError
from .base import ManifestLine, json_lines

BESIDE = False


def recognises(path: Path, first: dict[str, Any] | None) -> bool:
    """Return whether the first object has a key and a wav."""
    return first is not None and {"key", "wav"} <= first.keys() and "audio" not in first


def files(path: Path) -> Sequence[Path]:
    """Return the file itself."""
    return [path]


def lines(path: Path) -> Iterator[ManifestLine]:
    """Yield every line."""
    for line in json_lines(path):
        yield line if line.error else _line(line)


def _line(line: ManifestLine) -> ManifestLine:
    given = line.value
    wav, start, end = given.get("wav"), given.get("start"), given.get("end")
    if not isinstance(wav, str) or not wav:
        error = ManifestError(f"wav is {wav!r}, not a path", where=line.where)
        return ManifestLine(line.number, line.where, error=error)
    value: dict[str, Any] = {"id": given.get("key"), "audio": wav}
    if given.get("txt") is not None:
        value["text"] = given["txt"]
    if start is not None or end is not None:
        begin = 0.0 if start is None else start
        if not _is_time(begin) or not (end is None or (_is_time(end) and end > begin)):
            error = ManifestError(
                f"start is {start!r} and end {end!r}, not times in seconds", where=line.where
            )
            return ManifestLine(line.number, line.where, value, error)
        value["offset"] = begin
        if end is not None:
            value["duration"] = round(end - begin, 6)
    return ManifestLine(line.number, line.where, value)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
