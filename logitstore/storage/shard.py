"""Sealed shards, opened for reading through one memory map."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptError, FormatError
from ..schema.checksums import crc32c, parse_json
from ..schema.spec import Column
from .base import EncodedRecord, ShardContents, SizeWatch
from .places import Place
from .record_metadata import block_lines
from .shard_table import ShardTable, item_bytes, parse_table

OPEN_BLOCKS = 4  # decompressed metadata blocks that a shard keeps, the most recently read ones

Unpack = Callable[[NDArray[np.uint8], int, int, int], NDArray[np.uint8]]


class Shard:
    """A sealed shard, opened for reading records.

    No file stays open: all bytes come from one map of the file.

    Args:
        name: name of the shard.
        raw: bytes of the file.
        table: the shard's table.
        watch: watch over the length of the mapped file.
        unpack: function of (bytes of a column's data, column number, a, b) that returns the bytes of items
            [a, b), where columns are compressed; None where they lie in the file as they are.

    Attributes:
        name: name of the shard.
        table: the shard's table.
    """

    def __init__(
        self,
        name: str,
        raw: NDArray[np.uint8],
        table: ShardTable,
        watch: SizeWatch,
        unpack: Unpack | None = None,
    ) -> None:
        self.name, self.table = name, table
        self._raw, self._watch, self._unpack = raw, watch, unpack
        self._numbers = {c.name: i for i, c in enumerate(table.columns)}
        self._dtypes = [np.dtype(c.dtype).newbyteorder("<") for c in table.columns]
        self._sizes = [item_bytes(c) for c in table.columns]
        self._blocks: OrderedDict[int, list[bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.table)

    def meta(self, i: int, verify: bool = True) -> dict[str, Any]:
        """Return the record metadata of record i: ``id``, lengths, text, ..."""
        where = f"shard {self.name} record {i}"
        if not 0 <= i < len(self):
            raise IndexError(f"{where}: it has {len(self)} records")
        first = self.table.block[:, 0]
        number = int(np.searchsorted(first, i, "right")) - 1
        value = parse_json(self._block(number, verify, where)[i - int(first[number])], where)
        if not isinstance(value, dict) or not isinstance(value.get("id"), str):
            raise FormatError("the record has no id (SPEC S3)", where=where)
        if value.get("T", 0) != self.table.T[i] or value.get("U", 0) != self.table.U[i]:
            raise FormatError("its T and U are not those of the table (SPEC S4)", where=where)
        return value

    def record(self, i: int, *, verify: bool = True, only: Collection[str] | None = None) -> EncodedRecord:
        """Return record i, with all columns or only those named; arrays are read-only views of the map.

        Raises ``CorruptError`` where a checksum does not match. With ``verify`` all columns that share a
        checksum with a named one are read.
        """
        meta = self.meta(i, verify)
        self._watch.check()
        arrays: dict[str, NDArray[Any]] = {}
        for number, (group, columns) in enumerate(self.table.groups.items()):
            named = [c for c in columns if only is None or self.table.columns[c].name in only]
            if not named:
                continue
            found = {c: self._items(i, c) for c in (columns if verify else named)}
            if verify:
                crc = 0
                for array in found.values():
                    crc = crc32c(array, crc)
                if crc != self.table.crc32c[i, number]:
                    raise _damaged(group, f"shard {self.name} record {i} ({meta['id']!r})")
            arrays |= {self.table.columns[c].name: found[c] for c in named}
        return EncodedRecord(meta["id"], meta, arrays)

    def gather(
        self, records: Sequence[int], columns: Collection[str], *, verify: bool = True
    ) -> dict[str, tuple[NDArray[Any], NDArray[np.int64]]]:
        """Return the stored items of several records, each column as one array.

        Args:
            records: B numbers of records, in any order.
            columns: names of columns.
            verify: check the checksums of the columns' groups.

        Returns by column (items, counts): the items of all records one behind the other, (sum of counts,
        *shape), and (B,) int64 their number in each record. Record metadata is not read; ``table.T`` and
        ``table.U`` have the lengths.

        Raises ``CorruptError`` where a checksum does not match.
        """
        self._watch.check()
        wanted, chosen = {self._numbers[name] for name in columns}, np.asarray(records, np.int64)
        found: dict[int, list[NDArray[Any]]] = {}
        for number, (group, together) in enumerate(self.table.groups.items()):
            if wanted.isdisjoint(together):
                continue
            for c in together:
                if verify or c in wanted:
                    found[c] = self._slices(chosen, c)
            if verify:
                stored = self.table.crc32c[chosen, number].tolist()
                for i, pieces, expected in zip(
                    chosen.tolist(), zip(*(found[c] for c in together), strict=True), stored, strict=True
                ):
                    crc = 0
                    for piece in pieces:
                        crc = crc32c(piece, crc)
                    if crc != expected:
                        raise _damaged(group, f"shard {self.name} record {i}{self._id(i)}")
        gathered = {}
        for name in columns:
            c = self._numbers[name]
            column = self.table.columns[c]
            items = np.concatenate(found[c]) if len(chosen) else np.zeros((0, *column.shape), column.dtype)
            gathered[name] = items, self.table.counts(c)[chosen]
        return gathered

    def _slices(self, records: NDArray[np.int64], c: int) -> list[NDArray[Any]]:
        """Return the items of records in column number c, one array each; places are computed at once."""
        if self._unpack is not None:
            return [self._items(i, c) for i in records.tolist()]
        size, counts = self._sizes[c], self.table.counts(c)[records]
        begin = self.table.offset[self.table.pack_of[records], c] + self.table.starts(c)[records] * size
        begin = np.where(counts > 0, begin, 0)  # a column without items lies nowhere
        raw, dtype, shape = self._raw, self._dtypes[c], self.table.columns[c].shape
        return [
            raw[a:b].view(dtype).reshape(-1, *shape)
            for a, b in zip(begin.tolist(), (begin + counts * size).tolist(), strict=True)
        ]

    def _items(self, i: int, c: int) -> NDArray[Any]:
        """Return the items of record i in column number c."""
        table, size, column = self.table, self._sizes[c], self.table.columns[c]
        count, start = int(table.counts(c)[i]), int(table.starts(c)[i])
        if not count:
            raw = self._raw[:0]
        elif self._unpack is None:
            begin = int(table.offset[table.pack_of[i], c]) + start * size
            raw = self._raw[begin : begin + count * size]
        else:
            begin = int(table.offset[0, c])
            raw = self._unpack(self._raw[begin : begin + table.chunks[c][1]], c, start, start + count)
        return raw.view(self._dtypes[c]).reshape(count, *column.shape)

    def _block(self, number: int, verify: bool, where: str) -> list[bytes]:
        """Return the JSON of every record of a metadata block."""
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        self._watch.check()
        first, begin, size, crc = self.table.block[number].tolist()
        end = int(self.table.block[number + 1, 0]) if number + 1 < len(self.table.block) else len(self)
        data = self._raw[begin : begin + size].tobytes()
        if verify and crc32c(data) != crc:
            raise CorruptError(
                "the checksum of the metadata does not match its bytes (SPEC S5)",
                where=where,
                why=f"The metadata of records {first} to {end - 1} changed after they were sealed.",
                do=_REPAIR,
            )
        lines = block_lines(data, end - first, where)
        self._blocks[number] = lines
        if len(self._blocks) > OPEN_BLOCKS:
            self._blocks.popitem(last=False)
        return lines

    def _id(self, i: int) -> str:
        try:
            return f" ({self.meta(i)['id']!r})"
        except (FormatError, CorruptError):
            return ""


_REPAIR = "Repair the store (logitstore verify --repair) and dump the lost utterances again."


def _damaged(group: str, where: str) -> CorruptError:
    return CorruptError(
        f"the checksum of {group} does not match its bytes (SPEC S5)",
        where=where,
        why="The stored bytes changed after they were sealed.",
        do=_REPAIR,
    )


def open_shard(
    place: Place, name: str, contents: ShardContents, columns: Sequence[Column]
) -> tuple[NDArray[np.uint8], ShardTable, SizeWatch]:
    """Map the file of a sealed shard, and read its table.

    Args:
        place: place of the store.
        name: name of the shard.
        contents: file and layout of its entry.
        columns: columns of the store.

    Raises:
        CorruptError: the file is missing or has another length, or the table does not match its checksum.
        FormatError: entry or table break a rule of SPEC.md.
    """
    where = f"shard {name}"
    listed = contents.layout.get("table")
    if len(contents.files) != 1 or not isinstance(listed, dict):
        raise FormatError("its entry does not name one file and the table in it (SPEC S6)", where=where)
    at, size, crc = (listed.get(key) for key in ("offset", "bytes", "crc32c"))
    (file,) = contents.files
    if not (type(at) is int and type(size) is int and 0 <= at <= at + size <= file.bytes):
        raise FormatError(
            f"its table is said to lie at {listed} of {file.bytes} bytes (SPEC S6)", where=where
        )
    try:
        raw = place.map(file.path)
        watch = SizeWatch(place, file)
    except FileNotFoundError:
        raise CorruptError("a file of a sealed shard is missing (SPEC S6)", where=file.path) from None
    if len(raw) != file.bytes:
        raise CorruptError(
            f"it has {len(raw)} bytes, not the {file.bytes} that were sealed (SPEC S6)", where=file.path
        )
    watch.check()
    table = raw[at : at + size].tobytes()  # a copy: a file that is cut later must not take it along
    if crc32c(table) != crc:
        raise CorruptError(
            "its table does not match its checksum (SPEC S6)",
            where=where,
            why="No record of the shard can be found without it.",
            do=_REPAIR,
        )
    return raw, parse_table(table, columns, file.bytes, where), watch
