"""Kaldi data folders: ``wav.scp``, and if they exist ``segments``, ``text`` and ``utt2dur``.

Facts: https://kaldi-asr.org/doc/data_prep.html. Paths are relative to the working directory, as in all
Kaldi recipes. A shell command that stands for a recording (``cmd |``) is run only if the user allows it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ManifestError
from ...schema.checksums import id_hash
from .base import ManifestLine, raw_lines

BESIDE = False
PARTS = ("wav.scp", "segments", "text", "utt2dur")


def recognises(path: Path, first: dict[str, Any] | None) -> bool:
    """Return whether it is a folder with a wav.scp."""
    return first is None and (path / "wav.scp").is_file()


def files(path: Path) -> Sequence[Path]:
    """Return the files of wav.scp, segments, text and utt2dur that exist; raise ``ManifestError``."""
    if not (path / "wav.scp").is_file():
        raise ManifestError("there is no wav.scp", where=str(path), do="Give a Kaldi data folder.")
    return [path / name for name in PARTS if (path / name).is_file()]


def lines(path: Path) -> Iterator[ManifestLine]:
    """Yield every line of ``segments``, or of ``wav.scp`` if there are no segments."""
    texts, lengths = _LinesByKey(path / "text"), _LinesByKey(path / "utt2dur")
    segmented = (path / "segments").is_file()
    recordings = _LinesByKey(path / "wav.scp") if segmented else None
    source = path / ("segments" if segmented else "wav.scp")
    for number, raw in raw_lines(source):
        where = f"{source}:{number}"
        value: dict[str, Any] = {}
        try:
            key, rest = _split(raw, where)
            value["id"] = key
            if recordings is not None:
                rest = _segment(rest, recordings, value, where)
            elif (seconds := lengths.get(key)) is not None:
                value["expected"] = _seconds(seconds, f"utt2dur of {key}")
            value.update(_audio(rest, where))
            if (text := texts.get(key)) is not None:
                value["text"] = text
        except ManifestError as e:
            yield ManifestLine(number, where, value, e)
        else:
            yield ManifestLine(number, where, value)


def _split(raw: bytes, where: str) -> tuple[str, str]:
    """Split a line into its key and the rest."""
    try:
        key, _, rest = raw.decode("utf-8").strip().partition(" ")
    except UnicodeDecodeError as e:
        raise ManifestError(f"not UTF-8: {e}", where=where) from None
    if "\t" in key:
        key, _, rest = raw.decode("utf-8").strip().partition("\t")
    return key, rest.strip()


def _segment(rest: str, recordings: _LinesByKey, value: dict[str, Any], where: str) -> str:
    """Parse ``RECORDING BEGIN END [CHANNEL]`` into ``value``; return the recording's entry of wav.scp."""
    fields = rest.split()
    if len(fields) not in (3, 4):
        raise ManifestError(f"{rest!r} is not RECORDING BEGIN END", where=where)
    begin, end = _seconds(fields[1], where), _seconds(fields[2], where)
    if end >= 0:  # Kaldi writes -1 for the recording's end
        if end <= begin:
            raise ManifestError(f"it ends at {end} s, but begins at {begin} s", where=where)
        value["duration"] = round(end - begin, 6)
    value["offset"] = begin
    if len(fields) == 4:
        if not fields[3].isdigit():
            raise ManifestError(f"channel {fields[3]!r} is not a number", where=where)
        value["channel"] = int(fields[3])
    found = recordings.get(fields[0])
    if found is None:
        raise ManifestError(f"its recording {fields[0]!r} is not in wav.scp", where=where)
    return found


def _audio(text: str, where: str) -> dict[str, str]:
    if text.endswith("|"):
        return {"pipe": text[:-1].strip()}
    path, colon, at = text.rpartition(":")
    if text == "-" or (colon and path and at.isdigit()):
        raise ManifestError(
            f"{text!r} is inside an archive or a stream, not in a file of its own",
            where=where,
            do="Copy it out first: wav-copy scp:wav.scp 'scp:out.scp'.",
        )
    return {"audio": text}


def _seconds(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ManifestError(f"{text!r} is not seconds", where=where) from None


class _LinesByKey:
    """A file of ``KEY REST`` lines, looked up by key; takes sixteen bytes of memory per line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "rb") if path.is_file() else None
        hashes, offsets, at = array("Q"), array("q"), 0
        for raw in self._file or ():
            words = raw.split(maxsplit=1)
            if words:
                hashes.append(id_hash(words[0].decode("utf-8", "surrogateescape")) if _utf8(words[0]) else 0)
                offsets.append(at)
            at += len(raw)
        keys = np.frombuffer(hashes, np.uint64) if hashes else np.zeros(0, np.uint64)
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._offsets = (np.frombuffer(offsets, np.int64) if offsets else np.zeros(0, np.int64))[order]

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def get(self, key: str) -> str | None:
        """Return the rest of a key's line; None if there is none. Raise ``ManifestError`` if there are two."""
        if self._file is None:
            return None
        low, high = (int(np.searchsorted(self._keys, np.uint64(id_hash(key)), s)) for s in ("left", "right"))
        found: str | None = None
        for i in range(low, high):
            self._file.seek(int(self._offsets[i]))
            name, rest = _split(self._file.readline(), str(self._path))
            if name != key:
                continue
            if found is not None:
                raise ManifestError(f"{key!r} stands twice", where=str(self._path))
            found = rest
        return found


def _utf8(key: bytes) -> bool:
    try:
        key.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
