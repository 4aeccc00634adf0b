"""The protocol of a manifest format, and recognition of the format of a file or folder."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from ... import registry
from ...errors import ManifestError

RECOGNISED_BY = 100  # lines that are read to recognise a format; the first ones may be damaged
DEFAULT = "jsonl"


@dataclass(frozen=True)
class ManifestLine:
    """One line of a manifest, with the keys of logitstore's own JSON lines.

    Attributes:
        number: number of the line or row, from 1; the same whenever the manifest is read.
        where: location of the line for messages, e.g. ``train.jsonl:12``.
        value: ``id``, ``audio`` (or ``pipe``, a shell command that writes it), ``offset``, ``duration``,
            ``channel``, ``recording``, ``expected``, ``text``, ``tokens``; not checked yet.
        error: the reason that the line cannot be used, if the format has found one.
        recording_bytes: the recording, if it is inside the manifest; ``audio`` is then a name only.
    """

    number: int
    where: str
    value: dict[str, Any] = field(default_factory=dict)
    error: ManifestError | None = None
    recording_bytes: bytes | None = field(default=None, repr=False)


class ManifestFormat(Protocol):
    """A format of manifests: a module of this package, or a registered component."""

    BESIDE: bool
    """True if audio paths are relative to the manifest, and not to the working directory."""

    def recognises(self, path: Path, first: dict[str, Any] | None) -> bool:
        """Return whether a folder (``first`` is None), or a file with that first JSON object, has this format."""

    def files(self, path: Path) -> Sequence[Path]:
        """Return the files that make up the manifest; raise ``ManifestError`` if one is missing."""

    def lines(self, path: Path) -> Iterator[ManifestLine]:
        """Yield every line; raise ``ManifestError`` if the manifest cannot be read at all."""


def find_format(path: Path, name: str | None = None) -> tuple[str, ManifestFormat]:
    """Return name and format of a manifest: the one named, or the one recognised.

    Raises:
        ManifestError: the folder has no known format, or the file cannot be read.
        UnknownName: there is no format of that name.
        UsageError: the library that reads the format is not installed.
    """
    name = name or recognise(path)
    return name, load(name)


def load(name: str) -> ManifestFormat:
    """Return the format of a name; raise ``UnknownName`` or ``UsageError``."""
    return cast(ManifestFormat, registry.load("manifest_formats", name))


def recognise(path: Path) -> str:
    """Return the name of the format of a file or folder by its content; ``jsonl`` for other files."""
    try:
        first = None if path.is_dir() else first_object(path)
    except OSError as e:
        raise ManifestError(f"it cannot be read: {e.strerror}", where=str(path)) from None
    for name in registry.names("manifest_formats"):
        if load(name).recognises(path, first):
            return name
    if path.is_dir():
        raise ManifestError(
            "this folder has no known format of manifests",
            where=str(path),
            do="Give a Kaldi data folder (with wav.scp) or a saved Hugging Face dataset (with dataset_info.json).",
        )
    return DEFAULT


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, bytes) of every line that is not empty; a gzip file is decompressed."""
    with open(path, "rb") as f:
        packed = f.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if packed else open(path, "rb") as lines:
        for number, raw in enumerate(lines, 1):
            if raw.strip():
                yield number, raw


def first_object(path: Path) -> dict[str, Any]:
    """Return the first JSON object among the first lines; empty if there is none."""
    try:
        for number, raw in raw_lines(path):
            if number > RECOGNISED_BY:
                break
            try:
                value = json.loads(raw)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                return value
    except (EOFError, gzip.BadGzipFile):
        pass
    return {}


def json_lines(path: Path) -> Iterator[ManifestLine]:
    """Yield every line of a file as a JSON object, or with an error."""
    for number, raw in raw_lines(path):
        where, value = f"{path}:{number}", None
        try:
            value = json.loads(raw.decode("utf-8-sig"))
        except UnicodeDecodeError as e:
            error = ManifestError(f"not UTF-8: {e}", where=where)
        except (ValueError, RecursionError) as e:
            error = ManifestError(f"not JSON: {e}", where=where)
        else:
            error = ManifestError("not a JSON object", where=where)
        if isinstance(value, dict):
            yield ManifestLine(number, where, value)
        else:
            yield ManifestLine(number, where, error=error)
