"""The protocol of a storage backend, and the record table that all backends share."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import registry
from ..errors import CorruptError, FormatError
from ..schema.checksums import canonical, crc32c, parse_json
from ..schema.spec import Column
from .places import Place

METADATA = Column("row", "uint8", (), "one JSON object in UTF-8 per utterance: id, lengths, text, ...")
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
    """Writer of one shard at a local path; every record is written to disk when it is added."""

    def add(self, record: EncodedRecord) -> None:
        """Append a record; raise ``FormatError`` if it does not match the columns."""

    def finish(self) -> ShardContents:
        """Complete the files and return their list."""

    def close(self) -> None:
        """Close the files, finished or not."""


class StorageBackend(Protocol):
    """A storage backend: a frozen dataclass; ``str()`` gives its name and settings as users write them."""

    def path(self, shard: str) -> str:
        """Return the path of a shard's file or folder, relative to the store."""

    def create(self, staged: Path, shard: str, columns: Sequence[Column]) -> ShardWriter:
        """Begin a shard at a local path that does not exist yet."""

    def open(self, place: Place, shard: str, contents: ShardContents, columns: Sequence[Column]) -> Shard:
        """Open a sealed shard; raise ``CorruptError`` or ``FormatError``."""

    def describe(self, place: Place, about: dict[str, Any]) -> None:
        """Write the files that other readers of this format expect at the top of a store."""


def parse_storage(text: str) -> StorageBackend:
    """Return the storage backend written ``name`` or ``name:setting``, e.g. ``zarr:zstd``."""
    name, found, setting = text.partition(":")
    storage: StorageBackend = registry.load("storage", name).parse(setting if found else None)
    return storage


def open_storage(settings: Mapping[str, Any]) -> StorageBackend:
    """Return the storage backend that a store was written with."""
    return parse_storage(str(settings.get("name", "")))


class RecordTable:
    """Start and checksum of every record in every column of a shard that is being written."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = (METADATA, *columns)
        self._start = [[0] * len(self.columns)]
        self._crc: list[list[int]] = []

    def add(self, record: EncodedRecord) -> Iterator[tuple[int, Column, NDArray[Any]]]:
        """Add a record and return (column number, column, contiguous little-endian array) for each column.

        Raises ``FormatError``, and adds nothing, if the record does not match the columns.
        """
        try:
            metadata = np.frombuffer(canonical({**record.meta, "id": record.id}), np.uint8)
        except (TypeError, ValueError) as e:
            raise FormatError(f"the record metadata is not JSON (SPEC S3): {e}", where=record.id) from None
        arrays = {METADATA.name: metadata, **record.arrays}
        if set(arrays) != {c.name for c in self.columns}:
            expected = sorted(c.name for c in self.columns[1:])
            raise FormatError(f"it has arrays {sorted(record.arrays)}, not {expected}", where=record.id)
        start, crc, out = [], [], []
        for i, column in enumerate(self.columns):
            array = np.ascontiguousarray(arrays[column.name])
            if array.shape[1:] != column.shape or array.dtype != np.dtype(column.dtype):
                raise FormatError(
                    f"{column.name} is {array.dtype}{list(array.shape)}, not {column.dtype} of (n, "
                    f"{', '.join(map(str, column.shape))})",
                    where=record.id,
                )
            start.append(self._start[-1][i] + len(array))
            crc.append(crc32c(array))
            out.append((i, column, array))
        self._start.append(start)
        self._crc.append(crc)
        return iter(out)

    def start(self) -> NDArray[np.int64]:
        """Return (N+1, columns) int64: the first item of each record in each column, and the end."""
        return np.array(self._start, np.int64).reshape(-1, len(self.columns))

    def crc32c(self) -> NDArray[np.uint32]:
        """Return (N, columns) uint32: CRC-32C of each record's bytes in each column; 0 for no bytes."""
        return np.array(self._crc, np.uint32).reshape(-1, len(self.columns))


class Shard:
    """A sealed shard, opened for reading records.

    Args:
        name: name of the shard.
        columns: columns of the store.
        start: (N+1, 1 + columns) first item of each record in each column, and the end.
        crc: (N, 1 + columns) checksum of each record in each column.
        load: function of (i, c, a, b) that returns items [a, b) of record i in column number c.
    """

    def __init__(
        self,
        name: str,
        columns: Sequence[Column],
        start: NDArray[np.int64],
        crc: NDArray[np.uint32],
        load: Callable[[int, int, int, int], NDArray[Any]],
    ) -> None:
        self.name, self.columns = name, (METADATA, *columns)
        self._number = {c.name: i for i, c in enumerate(self.columns)}
        self._start, self._crc, self._load = start, crc, load
        check_table(name, start, crc, len(self.columns))

    def __len__(self) -> int:
        return len(self._crc)

    def array(self, i: int, column: str, verify: bool = True) -> NDArray[Any]:
        """Return one array of record i, a read-only view; raise ``CorruptError`` if its checksum differs."""
        c = self._number[column]
        a, b = int(self._start[i, c]), int(self._start[i + 1, c])
        array = self._load(i, c, a, b)
        if verify and crc32c(array) != self._crc[i, c]:
            raise CorruptError(
                f"the checksum of {column} does not match its bytes (SPEC S5)",
                where=f"shard {self.name} record {i}{self._id(i)}",
                why="The stored bytes changed after they were sealed.",
                do="Repair the store (logitstore verify --repair) and dump the lost utterances again.",
            )
        return array

    def meta(self, i: int, verify: bool = True) -> dict[str, Any]:
        """Return the record metadata of record i: ``id``, lengths, text, ..."""
        value = parse_json(self.array(i, METADATA.name, verify).tobytes(), f"shard {self.name} record {i}")
        if not isinstance(value, dict) or not isinstance(value.get("id"), str):
            raise FormatError("the record has no id (SPEC S3)", where=f"shard {self.name} record {i}")
        return value

    def record(self, i: int, *, verify: bool = True, only: Collection[str] | None = None) -> EncodedRecord:
        """Return record i, with all columns or only those named."""
        meta = self.meta(i, verify)
        names = [c.name for c in self.columns[1:] if only is None or c.name in only]
        return EncodedRecord(meta["id"], meta, {n: self.array(i, n, verify) for n in names})

    def _id(self, i: int) -> str:
        try:
            return f" ({self.meta(i, verify=False)['id']!r})"
        except (FormatError, CorruptError, ValueError, IndexError):
            return ""


def check_table(name: str, start: NDArray[np.int64], crc: NDArray[np.uint32], columns: int) -> None:
    """Raise ``FormatError`` unless record starts begin at 0 and never decrease (SPEC S4)."""
    if start.shape != (len(crc) + 1, columns) or crc.shape[1:] != (columns,):
        raise FormatError(
            f"the record table has shapes {start.shape} and {crc.shape} for {columns} columns (SPEC S4)",
            where=f"shard {name}",
        )
    if start[0].any() or (start[1:] < start[:-1]).any():
        raise FormatError("record starts decrease (SPEC S4)", where=f"shard {name}")


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
    if len(data) != file.bytes or crc32c(data) != file.crc32c:
        raise CorruptError(
            f"its {len(data)} bytes are not the {file.bytes} bytes that were sealed (SPEC S6)",
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
