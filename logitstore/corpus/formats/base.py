"""What a format of manifests is, and how the format of a file or folder is found."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from ... import registry
from ...errors import ManifestError

LOOK = 100  # lines that are looked at to recognise a format; the first ones may be damaged
DEFAULT = "jsonl"


@dataclass(frozen=True)
class ManifestLine:
    """One utterance as a format found it, in the words of our own JSON lines.

    Attributes:
        number: its place, from 1; the same whenever the manifest is read.
        where: the same for people, e.g. ``train.jsonl:12``.
        value: ``id``, ``audio`` (or ``pipe``, a shell command that gives it), ``offset``, ``duration``,
            ``channel``, ``recording``, ``expected``, ``text``, ``tokens``; not yet checked.
        error: why the line cannot be used, where the format knows already.
        inside: bytes of the recording where the manifest holds them itself; ``audio`` is then a mere name.
    """

    number: int
    where: str
    value: dict[str, Any] = field(default_factory=dict)
    error: ManifestError | None = None
    inside: bytes | None = field(default=None, repr=False)


class ManifestFormat(Protocol):
    """A module of this package."""

    BESIDE: bool
    """Whether relative audio paths are relative to the manifest; else to the working directory."""

    def recognises(self, path: Path, first: dict[str, Any] | None) -> bool:
        """Whether a folder (``first`` is None), or a file of that first JSON object, is of this format."""

    def files(self, path: Path) -> Sequence[Path]:
        """The files whose bytes are the manifest; raises ``ManifestError`` where one is missing."""

    def lines(self, path: Path) -> Iterator[ManifestLine]:
        """Every utterance, one after the other; raises ``ManifestError`` where nothing can be read at all."""


def find_format(path: Path, name: str | None = None) -> tuple[str, ManifestFormat]:
    """The format of a manifest: the one named, or the one recognised.

    Raises:
        ManifestError: a folder that is like no known manifest, or what cannot be read.
        UnknownName: no format of that name.
        UsageError: the library that reads it is not installed.
    """
    name = name or recognise(path)
    return name, load(name)


def load(name: str) -> ManifestFormat:
    """The format of that name; raises ``UnknownName`` or ``UsageError``."""
    return cast(ManifestFormat, registry.load("manifest_formats", name))


def recognise(path: Path) -> str:
    """Name of the format of a file or folder by what it holds; a file like no other is JSON lines."""
    try:
        first = None if path.is_dir() else first_object(path)
    except OSError as e:
        raise ManifestError(f"cannot be read: {e.strerror}", where=str(path)) from None
    for name in registry.names("manifest_formats"):
        if load(name).recognises(path, first):
            return name
    if path.is_dir():
        raise ManifestError(
            "this directory is like no manifest known here",
            where=str(path),
            do="A Kaldi data folder holds wav.scp, one of Hugging Face datasets dataset_info.json.",
        )
    return DEFAULT


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number from 1 and bytes of every line that is not empty; gzip is opened."""
    with open(path, "rb") as f:
        packed = f.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if packed else open(path, "rb") as lines:
        for number, raw in enumerate(lines, 1):
            if raw.strip():
                yield number, raw


def first_object(path: Path) -> dict[str, Any]:
    """The first line that is a JSON object, of the first hundred; empty where there is none."""
    try:
        for number, raw in raw_lines(path):
            if number > LOOK:
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
    """Every line of a file as a JSON object, or with the error that it is none."""
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
