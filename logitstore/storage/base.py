"""What a storage does, and what all of them share: the table of row starts and checksums."""

from __future__ import annotations

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

ROW = Column("row", "uint8", (), "one JSON object in UTF-8 per utterance: id, lengths, text, ...")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32")


@dataclass(frozen=True)
class ShardFile:
    """One file of a sealed shard, relative to the store; its length in bytes and CRC-32C."""

    path: str
    bytes: int
    crc32c: int


@dataclass
class ShardContents:
    """What a finished shard is made of: its files, and what its storage wants to remember of the layout."""

    files: list[ShardFile]
    layout: dict[str, Any] = field(default_factory=dict)


class ShardWriter(Protocol):
    """Writes one shard into a folder of its own; rows go to disk as they come."""

    def add(self, row: EncodedRecord) -> None:
        """Append a row."""

    def finish(self) -> ShardContents:
        """Complete the files."""

    def close(self) -> None:
        """Let go of the files, finished or not."""


class StorageBackend(Protocol):
    """A frozen dataclass; ``str()`` of it is its name and settings as the user writes them."""

    def path(self, shard: str) -> str:
        """The file or folder of a shard, relative to the store."""

    def create(self, staged: Path, shard: str, columns: Sequence[Column]) -> ShardWriter:
        """Begin a shard at a path that does not exist."""

    def open(self, place: Place, shard: str, contents: ShardContents, columns: Sequence[Column]) -> Shard:
        """Open a sealed shard; raises ``CorruptError`` or ``FormatError``."""

    def describe(self, place: Place, about: dict[str, Any]) -> None:
        """Leave what other readers of this storage expect at the top of a store."""


def parse_storage(text: str) -> StorageBackend:
    """The storage written ``name`` or ``name:setting``: ``zarr``, ``zarr:zstd``, ``webdataset``."""
    name, found, setting = text.partition(":")
    storage: StorageBackend = registry.load("storage", name).parse(setting if found else None)
    return storage


def open_storage(settings: Mapping[str, Any]) -> StorageBackend:
    """The storage that a store says it was written with."""
    return parse_storage(str(settings.get("name", "")))


class RecordTable:
    """Record starts and checksums of a shard in the making."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = (ROW, *columns)
        self._start = [[0] * len(self.columns)]
        self._crc: list[list[int]] = []

    def add(self, row: EncodedRecord) -> Iterator[tuple[int, Column, NDArray[Any]]]:
        """Check a row against the columns; gives each column's number and contiguous little-endian array."""
        try:
            blob = np.frombuffer(canonical({**row.meta, "id": row.id}), np.uint8)
        except (TypeError, ValueError) as e:
            raise FormatError(f"what goes with it is not JSON (SPEC S3): {e}", where=row.id) from None
        arrays = {ROW.name: blob, **row.arrays}
        if set(arrays) != {c.name for c in self.columns}:
            raise FormatError(
                f"arrays {sorted(row.arrays)} where the store has {sorted(c.name for c in self.columns[1:])}",
                where=row.id,
            )
        start, crc, out = [], [], []
        for i, column in enumerate(self.columns):
            array = np.ascontiguousarray(arrays[column.name])
            if array.shape[1:] != column.shape or array.dtype != np.dtype(column.dtype):
                raise FormatError(
                    f"{column.name} is {array.dtype}{list(array.shape)}, not {column.dtype} of (n, "
                    f"{', '.join(map(str, column.shape))})",
                    where=row.id,
                )
            start.append(self._start[-1][i] + len(array))
            crc.append(crc32c(array))
            out.append((i, column, array))
        self._start.append(start)
        self._crc.append(crc)
        return iter(out)

    def start(self) -> NDArray[np.int64]:
        """(N+1, columns) where each row begins, in items; the last line is the end."""
        return np.array(self._start, np.int64).reshape(-1, len(self.columns))

    def crc32c(self) -> NDArray[np.uint32]:
        """(N, columns) CRC-32C of each row's bytes; 0 for an empty one."""
        return np.array(self._crc, np.uint32).reshape(-1, len(self.columns))


class Shard:
    """A sealed shard, read row by row.

    Args:
        name: of the shard.
        columns: as the store declares them.
        start: (N+1, 1 + columns) row starts.
        crc: (N, 1 + columns) checksums.
        load: gives items [a, b) of row i in column number c.
    """

    def __init__(
        self,
        name: str,
        columns: Sequence[Column],
        start: NDArray[np.int64],
        crc: NDArray[np.uint32],
        load: Callable[[int, int, int, int], NDArray[Any]],
    ) -> None:
        self.name, self.columns = name, (ROW, *columns)
        self._number = {c.name: i for i, c in enumerate(self.columns)}
        self._start, self._crc, self._load = start, crc, load
        check_table(name, start, crc, len(self.columns))

    def __len__(self) -> int:
        return len(self._crc)

    def array(self, i: int, column: str, verify: bool = True) -> NDArray[Any]:
        """One array of one row, a read-only view; raises ``CorruptError`` where its checksum differs."""
        c = self._number[column]
        a, b = int(self._start[i, c]), int(self._start[i + 1, c])
        array = self._load(i, c, a, b)
        if verify and crc32c(array) != self._crc[i, c]:
            raise CorruptError(
                f"checksum of {column} does not match its bytes (SPEC S5)",
                where=f"shard {self.name} row {i}{self._id(i)}",
                why="The stored bytes changed after they were sealed.",
                do="logitstore verify lists everything that is damaged; dump these utterances again.",
            )
        return array

    def meta(self, i: int, verify: bool = True) -> dict[str, Any]:
        """What the row says about itself: ``id``, lengths, text."""
        value = parse_json(self.array(i, ROW.name, verify).tobytes(), f"shard {self.name} row {i}")
        if not isinstance(value, dict) or not isinstance(value.get("id"), str):
            raise FormatError("a row without its id (SPEC S3)", where=f"shard {self.name} row {i}")
        return value

    def record(self, i: int, *, verify: bool = True, only: Collection[str] | None = None) -> EncodedRecord:
        """A whole row, or the columns named."""
        meta = self.meta(i, verify)
        names = [c.name for c in self.columns[1:] if only is None or c.name in only]
        return EncodedRecord(meta["id"], meta, {n: self.array(i, n, verify) for n in names})

    def _id(self, i: int) -> str:
        try:
            return f" ({self.meta(i, verify=False)['id']!r})"
        except (FormatError, CorruptError, ValueError, IndexError):
            return ""


def check_table(name: str, start: NDArray[np.int64], crc: NDArray[np.uint32], columns: int) -> None:
    """Record starts begin at 0 and never go back (SPEC S4); raises ``FormatError``."""
    if start.shape != (len(crc) + 1, columns) or crc.shape[1:] != (columns,):
        raise FormatError(
            f"row table of shape {start.shape} and {crc.shape} for {columns} columns (SPEC S4)",
            where=f"shard {name}",
        )
    if start[0].any() or (start[1:] < start[:-1]).any():
        raise FormatError("row starts that go back (SPEC S4)", where=f"shard {name}")


def check_file(data: NDArray[np.uint8] | bytes, file: ShardFile) -> None:
    """Raise ``CorruptError`` unless bytes are what was sealed."""
    if len(data) != file.bytes or crc32c(data) != file.crc32c:
        raise CorruptError(
            f"{len(data)} bytes whose checksum is not that of the {file.bytes} bytes sealed (SPEC S6)",
            where=file.path,
            why="The file was cut, changed or replaced after it was sealed.",
            do="Restore it from a copy, or remove the shard's entry and dump again.",
        )


@dataclass(frozen=True)
class EncodedRecord:
    """One utterance as a storage keeps it.

    Attributes:
        id: the utterance.
        meta: JSON: ``T``, ``U``, ``seconds``, ``text``, ...
        arrays: by column name; ``(n, *column.shape)``.
    """

    id: str
    meta: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
