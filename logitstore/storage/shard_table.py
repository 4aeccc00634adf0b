"""The table of a shard: counts, places and checksums of its records (SPEC S4)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..schema.checksums import crc32c, parse_json
from ..schema.spec import Column
from .base import EncodedRecord
from .record_metadata import metadata_line

LABELS = "labels"
HEAD_ALIGNMENT, ARRAY_ALIGNMENT = 64, 8
_DTYPES = ("uint8", "uint16", "uint32", "uint64")
_MAX = 1 << 53  # of any number in a table, as in JSON


def item_bytes(column: Column) -> int:
    """Return the bytes of one item of a column."""
    return int(np.dtype(column.dtype).itemsize * np.prod(column.shape, dtype=int))


def checksum_groups(columns: Sequence[Column]) -> dict[str, list[int]]:
    """Return the column numbers of every group that shares a checksum, by name (SPEC S5)."""
    groups: dict[str, list[int]] = {}
    for number, column in enumerate(columns):
        stream, _, name = column.name.partition(".")
        groups.setdefault(column.name if name == LABELS else stream, []).append(number)
    return groups


@dataclass(frozen=True)
class PreparedRecord:
    """A record that matches the columns.

    Attributes:
        line: its metadata as JSON.
        arrays: its arrays in the order of the columns, contiguous and little-endian.
    """

    line: bytes
    arrays: list[NDArray[Any]]


class TableBuilder:
    """The part of a table that does not depend on where the arrays lie: counts, lengths, checksums.

    Args:
        columns: columns of the store.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        self._groups = checksum_groups(self.columns)
        self._counts: list[list[int]] = []  # items in every column, then T and U
        self._crc: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._crc)

    def prepare(self, record: EncodedRecord) -> PreparedRecord:
        """Check a record against the columns; raise ``FormatError``, and add nothing."""
        line = metadata_line(record)
        for name in ("T", "U"):
            value = record.meta.get(name, 0)
            if type(value) is not int or not 0 <= value < 1 << 31:
                raise FormatError(f"{name} is {value!r} (SPEC S3)", where=record.id)
        if set(record.arrays) != {c.name for c in self.columns}:
            expected = sorted(c.name for c in self.columns)
            raise FormatError(f"it has arrays {sorted(record.arrays)}, not {expected}", where=record.id)
        arrays = []
        for column in self.columns:
            array = np.ascontiguousarray(record.arrays[column.name])
            if array.shape[1:] != column.shape or array.dtype != np.dtype(column.dtype):
                raise FormatError(
                    f"{column.name} is {array.dtype}{list(array.shape)}, not {column.dtype} of (n, "
                    f"{', '.join(map(str, column.shape))})",
                    where=record.id,
                )
            arrays.append(array)
        return PreparedRecord(line, arrays)

    def add(self, record: EncodedRecord, prepared: PreparedRecord) -> None:
        """Count a record and compute its checksums."""
        counts = [len(array) for array in prepared.arrays]
        self._counts.append([*counts, record.meta.get("T", 0), record.meta.get("U", 0)])
        crc = []
        for numbers in self._groups.values():
            value = 0
            for number in numbers:
                value = crc32c(prepared.arrays[number], value)
            crc.append(value)
        self._crc.append(crc)

    def counts(self, first: int) -> NDArray[np.int64]:
        """Return (n, C) int64: items of the records from number ``first`` on in every column."""
        return np.array(self._counts[first:], np.int64).reshape(-1, len(self.columns) + 2)[:, :-2]

    def encode(
        self,
        about: Mapping[str, Any],
        packs: Sequence[int],
        offsets: Sequence[Sequence[int]],
        blocks: Sequence[Sequence[int]],
        chunks: Sequence[Mapping[str, int]] = (),
    ) -> bytes:
        """Return the table.

        Args:
            about: description of the shard (SPEC S18).
            packs: number of the first record of every pack.
            offsets: for every pack the byte of the file where each column begins.
            blocks: (first record, begin in the file, bytes, CRC-32C) of every metadata block.
            chunks: ``chunk`` and ``bytes`` of every column, where columns are compressed.
        """
        records, width = len(self), len(self.columns)
        arrays: dict[str, NDArray[Any]] = {}
        numbers: dict[bytes, int] = {}  # of equal counts only one array is kept
        counts = np.array(self._counts, np.int64).reshape(records, width + 2)
        kept = [numbers.setdefault(np.ascontiguousarray(count).tobytes(), len(numbers)) for count in counts.T]
        for k in range(len(numbers)):
            count = counts[:, kept.index(k)]
            arrays[f"count.{k}"] = count[:1] if records and (count == count[0]).all() else count
        arrays["pack"] = np.array([*packs, records], np.int64)
        arrays["offset"] = np.array(offsets, np.int64).reshape(len(packs), width)
        arrays["block"] = np.array(blocks, np.int64).reshape(-1, 4)
        arrays["crc32c"] = np.array(self._crc, np.int64).reshape(records, len(self._groups))
        listed, body = {}, bytearray()
        for name, array in arrays.items():
            packed = array.astype(_smallest(array))
            listed[name] = {"dtype": packed.dtype.name, "shape": list(packed.shape), "begin": len(body)}
            body += packed.tobytes()
            body += bytes(-len(body) % ARRAY_ALIGNMENT)
        columns: list[dict[str, Any]] = [
            {"name": c.name, "dtype": c.dtype, "shape": list(c.shape), "count": k}
            for c, k in zip(self.columns, kept[:width], strict=True)
        ]
        for column, chunk in zip(columns, chunks, strict=False):
            column |= chunk
        head = {
            "about": dict(about),
            "records": records,
            "T": kept[width],
            "U": kept[width + 1],
            "columns": columns,
            "checksums": list(self._groups),
            "arrays": listed,
        }
        line = json.dumps(head, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
        return line + b" " * (-(len(line) + 1) % HEAD_ALIGNMENT) + b"\n" + bytes(body)


def _smallest(array: NDArray[Any]) -> str:
    """Return the name of the smallest unsigned dtype that holds all numbers of an array."""
    largest = int(array.max(initial=0))
    return next(d for d in _DTYPES if largest <= np.iinfo(d).max)


@dataclass(frozen=True, eq=False)
class ShardTable:
    """The table of a sealed shard, checked and held in memory.

    Attributes:
        columns: columns of the store.
        about: description of the shard (SPEC S18).
        T: (N,) int64, valid teacher frames of every record.
        U: (N,) int64, labels of every record.
        pack: (P+1,) int64, first record of every pack, and N.
        offset: (P, C) int64, byte of the file where a column of a pack begins.
        block: (B, 4) int64, first record, begin in the file, bytes and CRC-32C of every metadata block.
        crc32c: (N, G) int64, checksum of every record in every group.
        groups: column numbers of every group.
        chunks: (items of an inner chunk, bytes of the data) of every column, where columns are compressed.
    """

    columns: tuple[Column, ...]
    about: Mapping[str, Any]
    T: NDArray[np.int64]
    U: NDArray[np.int64]
    pack: NDArray[np.int64]
    offset: NDArray[np.int64]
    block: NDArray[np.int64]
    crc32c: NDArray[np.int64]
    groups: Mapping[str, list[int]]
    chunks: tuple[tuple[int, int], ...]
    _counts: tuple[NDArray[np.int64], ...] = field(repr=False)
    _count_of: tuple[int, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.crc32c)

    def counts(self, column: int) -> NDArray[np.int64]:
        """Return (N,) int64: items of every record in a column."""
        return self._counts[self._count_of[column]]

    def starts(self, column: int) -> NDArray[np.int64]:
        """Return (N,) int64: number of every record's first item in a column, counted from its pack's first."""
        return self._starts[self._count_of[column]]

    def totals(self, column: int) -> NDArray[np.int64]:
        """Return (P,) int64: items of every pack in a column."""
        counts = self.counts(column)
        sums = np.concatenate(([0], np.cumsum(counts)))[self.pack]
        return np.asarray(np.diff(sums))

    @cached_property
    def pack_of(self) -> NDArray[np.int64]:
        """(N,) int64: the pack of every record."""
        return np.repeat(np.arange(len(self.pack) - 1), np.diff(self.pack))

    @cached_property
    def _starts(self) -> list[NDArray[np.int64]]:
        found = []
        for counts in self._counts:
            ends = np.cumsum(counts)
            start = ends - counts
            found.append(start - start[self.pack[:-1]][self.pack_of])
        return found


def parse_table(data: bytes, columns: Sequence[Column], file_bytes: int, where: str) -> ShardTable:
    """Parse the table of a shard, and check that everything it names lies in the file.

    Args:
        data: the table; its checksum has been checked.
        columns: columns of the store.
        file_bytes: length of the shard's file.
        where: the shard, for messages.

    Raises:
        FormatError: the table breaks a rule of SPEC.md, or has other columns.
    """
    line, found, body = data.partition(b"\n")
    try:
        if not found or (len(line) + 1) % HEAD_ALIGNMENT:
            raise ValueError("it has no head")
        head = parse_json(line, where)
        records = _number(head["records"])
        described = head["arrays"]  # others than those read here are of later versions (SPEC F5)
        listed = head["columns"]
        count_of = tuple(_number(c["count"]) for c in (*listed, {"count": head["T"]}, {"count": head["U"]}))
        counts = tuple(
            _count(_array(described[f"count.{k}"], body), records) for k in range(max(count_of) + 1)
        )
        if any(int(c.max(initial=0)) > _MAX // max(records, 1) for c in counts):
            raise ValueError("a record has too many items")
        chunks = tuple((_number(c["chunk"]), _number(c["bytes"])) for c in listed if "chunk" in c)
        pack, block = _array(described["pack"], body), _array(described["block"], body)
        groups = checksum_groups(columns)
        if head["checksums"] != list(groups):
            raise ValueError(f"its checksums are of {head['checksums']}")
        same = [(c["name"], c["dtype"], tuple(c["shape"])) for c in listed]
        if same != [(c.name, c.dtype, c.shape) for c in columns]:
            raise FormatError(f"its columns are {same}, not those of logitstore.json (SPEC S2)", where=where)
        if chunks and len(chunks) != len(columns):
            raise ValueError("only some of its columns are compressed")
        table = ShardTable(
            tuple(columns),
            dict(head["about"]),
            counts[count_of[-2]],
            counts[count_of[-1]],
            pack,
            _shaped(_array(described["offset"], body), (len(pack) - 1, len(columns))),
            _shaped(block, (len(block), 4)),
            _shaped(_array(described["crc32c"], body), (records, len(groups))),
            groups,
            chunks,
            counts,
            count_of[:-2],
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, MemoryError) as e:
        raise FormatError(f"its table cannot be read: {e!r} (SPEC S4)", where=where) from None
    _require_order(table, file_bytes, where)
    return table


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX:
        raise ValueError(f"{value!r} stands where a number should")
    return value


def _array(listed: Mapping[str, Any], body: bytes) -> NDArray[np.int64]:
    """Return an array of the table as int64."""
    dtype, begin, shape = listed["dtype"], _number(listed["begin"]), [_number(n) for n in listed["shape"]]
    size = 1
    for n in shape:
        size *= n
    if dtype not in _DTYPES or begin % ARRAY_ALIGNMENT or size > len(body):
        raise ValueError(f"{dict(listed)} is no array of the table")
    array = np.frombuffer(body, np.dtype(dtype).newbyteorder("<"), size, begin).reshape(shape)
    if dtype == "uint64" and array.size and int(array.max()) >= _MAX:
        raise ValueError("a number is too large")
    return array.astype(np.int64)


def _count(array: NDArray[np.int64], records: int) -> NDArray[np.int64]:
    """Return the items of every record, from an array that may hold one number for all."""
    return np.repeat(array, records) if array.shape == (1,) else _shaped(array, (records,))


def _shaped(array: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    if array.shape != shape:
        raise ValueError(f"an array has shape {array.shape}, not {shape}")
    return array


def _require_order(table: ShardTable, file_bytes: int, where: str) -> None:
    """Raise ``FormatError`` unless packs, blocks and columns rise, do not overlap and lie in the file (SPEC S4)."""
    records, pack, block = len(table), table.pack, table.block

    def rising(first: NDArray[np.int64]) -> bool:
        return bool(len(first) and not first[0] and (np.diff(first) > 0).all())

    good = pack.ndim == 1 and rising(pack) and int(pack[-1]) == records
    good = good and (rising(np.append(block[:, 0], records)) if records else not len(block))
    good = good and _apart(block[:, 1], block[:, 1] + block[:, 2], file_bytes)
    if good and table.columns:
        sizes = np.array([item_bytes(c) for c in table.columns])
        totals = np.stack([table.totals(c) for c in range(len(sizes))], -1)
        if table.chunks:
            lengths = np.array([[length for _, length in table.chunks]])
            good = bool((lengths <= file_bytes).all())
        else:
            good = bool((totals <= file_bytes // np.maximum(sizes, 1)).all())
            lengths = totals * sizes
        used = (totals > 0).reshape(-1)  # a column without items has no bytes anywhere
        begins = table.offset.reshape(-1)[used]
        good = good and _apart(begins, begins + lengths.reshape(-1)[used], file_bytes)
    if not good:
        raise FormatError(
            "its packs, blocks or columns overlap, or are outside of the file (SPEC S4)", where=where
        )


def _apart(begins: NDArray[np.int64], ends: NDArray[np.int64], file_bytes: int) -> bool:
    """Return whether ranges of bytes rise, do not overlap and end in the file."""
    return bool(
        not len(begins)
        or ((begins[1:] >= ends[:-1]).all() and (ends >= begins).all() and int(ends.max()) <= file_bytes)
    )
