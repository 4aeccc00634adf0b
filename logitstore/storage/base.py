"""The protocol of a storage backend, and the records and files that all backends share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import registry
from ..errors import CorruptError
from ..schema.checksums import crc32c
from ..schema.spec import Column
from .places import Place

if TYPE_CHECKING:
    from .shard import Shard

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32")


@dataclass(frozen=True)
class ShardFile:
    """One file of a shard.

    Attributes:
        path: path relative to the store.
        bytes: length in bytes.
        crc32c: CRC-32C of the bytes.
    """

    path: str
    bytes: int
    crc32c: int


@dataclass
class ShardContents:
    """The content of a finished shard.

    Attributes:
        files: its files.
        layout: JSON that the storage backend needs to open the shard.
    """

    files: list[ShardFile]
    layout: dict[str, Any] = field(default_factory=dict)


class ShardWriter(Protocol):
    """Writer of one shard at a local path; one file is open at a time, and memory does not grow with the shard."""

    def add(self, record: EncodedRecord) -> None:
        """Append a record; raise ``FormatError`` and add nothing if it does not match the columns."""

    def finish(self) -> ShardContents:
        """Complete the file and return its size, checksum and layout."""

    def close(self) -> None:
        """Close and forget what is open, finished or not."""


class StorageBackend(Protocol):
    """A storage backend: a frozen dataclass; ``str()`` gives its name and settings as users write them."""

    def path(self, shard: str) -> str:
        """Return the path of a shard's file, relative to the store."""

    def create(
        self, staged: Path, shard: str, columns: Sequence[Column], about: Mapping[str, Any]
    ) -> ShardWriter:
        """Begin a shard at a local path that does not exist yet.

        Args:
            staged: local path of the unfinished file.
            shard: name of the shard.
            columns: columns of the store.
            about: description of the shard (SPEC S18), without its name.
        """

    def open(self, place: Place, shard: str, contents: ShardContents, columns: Sequence[Column]) -> Shard:
        """Open a sealed shard; raise ``CorruptError`` or ``FormatError``."""


def parse_storage(text: str) -> StorageBackend:
    """Return the storage backend written ``name`` or ``name:setting``, e.g. ``zarr:blosc``."""
    name, found, setting = text.partition(":")
    storage: StorageBackend = registry.load("storage", name).parse(setting if found else None)
    return storage


def open_storage(settings: Mapping[str, Any]) -> StorageBackend:
    """Return the storage backend that a store was written with."""
    return parse_storage(str(settings.get("name", "")))


class SizeWatch:
    """Watch over the length of a mapped file: reading beyond the end of a cut file would end the process (SIGBUS).

    Args:
        place: place of the store; only places with local paths are watched.
        file: the mapped file.
    """

    def __init__(self, place: Place, file: ShardFile) -> None:
        self._file, self._path, self._inode = file, place.local(file.path), -1
        if self._path is not None:
            self._inode = os.stat(self._path).st_ino

    def check(self) -> None:
        """Raise ``CorruptError`` if the file was cut since it was mapped; a replaced file keeps its old bytes."""
        if self._path is None:
            return
        try:
            now = os.stat(self._path)
        except OSError:
            return  # removed: the map keeps its bytes
        if now.st_ino == self._inode and now.st_size < self._file.bytes:
            raise CorruptError(
                f"it was cut to {now.st_size} of {self._file.bytes} bytes while it was in use (SPEC S6)",
                where=str(self._path),
                why="Reading the missing part would end this process with SIGBUS.",
                do="Restore it from a copy, or repair the store and dump the lost utterances again.",
            )


def check_file(data: NDArray[np.uint8] | bytes, file: ShardFile) -> None:
    """Raise ``CorruptError`` unless the bytes of a file are those that were sealed."""
    if len(data) != file.bytes:
        wrong = f"it has {len(data)} bytes, and {file.bytes} were sealed (SPEC S6)"
    elif crc32c(data) != file.crc32c:
        wrong = f"the checksum of its {file.bytes} bytes is not the one that was sealed (SPEC S6)"
    else:
        wrong = ""
    if wrong:
        raise CorruptError(
            wrong,
            where=file.path,
            why="The file was cut, changed or replaced after it was sealed.",
            do="Restore it from a copy, or repair the store and dump the lost utterances again.",
        )


@dataclass(frozen=True)
class EncodedRecord:
    """The record of one utterance, as a storage backend stores it.

    Attributes:
        id: utterance id.
        meta: record metadata, as JSON: ``T``, ``U``, ``seconds``, ``text``, ...
        arrays: arrays ``(n, *column.shape)`` by column name.
    """

    id: str
    meta: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
