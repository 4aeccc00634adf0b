"""Writing of Zarr shards: the keys of a Zarr v3 group as the members of a ZIP archive."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...schema.checksums import crc32c
from ...schema.spec import Column
from ..base import EncodedRecord, ShardContents, ShardFile
from ..record_metadata import MetadataBlocks
from ..shard_table import TableBuilder, item_bytes
from ._summed_file import SummedFile
from ._zip import StoredZip

CHUNK_BYTES = 1 << 20  # of an inner chunk, or one item
SPILL_BYTES = 16 << 20  # of all columns in memory from which on they go to the spool file
COPY_BYTES = 1 << 20
RECORD = Column("record", "uint8", (), "record metadata: gzip members, together a JSON list (SPEC S3)")
TABLE = Column("table", "uint8", (), "where each record lies, and its checksums (SPEC S4)")


class _ColumnData:
    """The data of one array: items are appended, and leave memory through :meth:`spill`.

    Args:
        column: column of the array.
        compressor: compressor of the inner chunks.

    Attributes:
        bytes: length of the data so far.
        crc32: their CRC-32.
        held: those that are in memory, the last of all.
    """

    def __init__(self, column: Column, compressor: str) -> None:
        self.column, self.compressor = column, compressor
        self.item = item_bytes(column)
        self.items_per_chunk = max(1, CHUNK_BYTES // self.item)
        self.items = self.bytes = self.crc32 = 0
        self.held = bytearray()
        self._chunks: list[tuple[int, int]] = []
        self._pending = bytearray()  # items of a compressed inner chunk that is not full
        self._spilled: list[tuple[int, int]] = []  # (begin, bytes) in the spool file

    @property
    def waiting(self) -> int:
        """Bytes in memory."""
        return len(self.held) + len(self._pending)

    def append(self, array: NDArray[Any]) -> None:
        """Append items."""
        if not array.size:
            return
        self.items += len(array)
        data = array.reshape(-1).view(np.uint8).data
        if self.compressor == "none":
            return self._take(data)
        self._pending += data
        size = self.items_per_chunk * self.item
        while len(self._pending) >= size:
            self._take_chunk(bytes(self._pending[:size]))
            del self._pending[:size]

    def finish(self) -> int:
        """Pad the last inner chunk and append the index; return the items of an inner chunk."""
        if self.items == 0:
            return 1
        count = -(-self.items // self.items_per_chunk)
        chunk = -(-self.items // count)
        if self.compressor == "none":
            self._take(bytes((chunk * count - self.items) * self.item))
            self._chunks = [(i * chunk * self.item, chunk * self.item) for i in range(count)]
        else:
            chunk = self.items_per_chunk if count > 1 else self.items
            if self._pending:
                self._take_chunk(bytes(self._pending).ljust(chunk * self.item, b"\0"))
        index = np.array(self._chunks, "<u8").tobytes()
        self._take(index + crc32c(index).to_bytes(4, "little"))
        return chunk

    def spill(self, spool: BinaryIO) -> None:
        """Move the bytes in memory to the end of the spool file."""
        if self.held:
            self._spilled.append((spool.tell(), len(self.held)))
            spool.write(self.held)
            self.held = bytearray()

    def pieces(self, spool: BinaryIO | None) -> Iterator[bytes]:
        """Yield all bytes in order."""
        for begin, size in self._spilled:
            assert spool is not None
            spool.seek(begin)
            while size:
                piece = spool.read(min(size, COPY_BYTES))
                yield piece
                size -= len(piece)
        yield bytes(self.held)

    def _take_chunk(self, raw: bytes) -> None:
        data = _blosc(np.dtype(self.column.dtype).itemsize, raw)
        self._chunks.append((self.bytes, len(data)))
        self._take(data)

    def _take(self, data: bytes | memoryview) -> None:
        self.held += data
        self.crc32 = zlib.crc32(data, self.crc32)
        self.bytes += len(data)


def _blosc(itemsize: int, raw: bytes) -> bytes:
    """Compress with Blosc, which takes the size of an element from the buffer's type."""
    import numcodecs

    codec = numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)
    return bytes(codec.encode(np.frombuffer(raw, f"u{itemsize}")))


class ZarrShardWriter:
    """Writer of one shard as a Zarr group in a ZIP archive.

    Columns are collected in memory. From ``SPILL_BYTES`` on they go to a spool file without a name, from which
    :meth:`finish` copies them, so that each column lies in one piece.

    Args:
        staged: local path of the unfinished file; must not exist.
        path: final path of the shard, relative to the store.
        compressor: compressor of the inner chunks.
        columns: columns of the store.
        about: description of the shard (SPEC S18).
    """

    def __init__(
        self, staged: Path, path: str, compressor: str, columns: Sequence[Column], about: Mapping[str, Any]
    ) -> None:
        self._staged, self._path, self._compressor, self._about = staged, path, compressor, about
        self._table, self._blocks = TableBuilder(columns), MetadataBlocks(0)
        self._data = [_ColumnData(c, compressor) for c in columns]
        self._file: SummedFile | None = None
        self._spool: BinaryIO | None = None

    def add(self, record: EncodedRecord) -> None:
        prepared = self._table.prepare(record)
        self._table.add(record, prepared)
        self._blocks.add(prepared.line)
        for data, array in zip(self._data, prepared.arrays, strict=True):
            data.append(array)
        if sum(data.waiting for data in self._data) >= SPILL_BYTES:
            self._spill()

    def finish(self) -> ShardContents:
        if len(self._table):
            self._blocks.finish()
        chunks = [data.finish() for data in self._data]
        self._file = file = SummedFile(self._staged)
        archive = StoredZip(file.write)
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"logitstore": dict(self._about)}}
        _member(archive, "zarr.json", _json(group))
        for stream in dict.fromkeys(d.column.name.partition(".")[0] for d in self._data):
            about: Mapping[str, Any] = next(
                (s for s in self._about.get("streams", ()) if s.get("name") == stream), {}
            )
            _member(archive, f"{stream}/zarr.json", _json({**group, "attributes": about}))
        offsets = list[int]()
        for data, chunk in zip(self._data, chunks, strict=True):
            _member(archive, f"{_key(data.column)}/zarr.json", _array_json(data, chunk))
            at = 0
            if data.items:
                at = archive.begin(_data_key(data.column), data.bytes, data.crc32, align=True)
                for piece in data.pieces(self._spool):
                    archive.write(piece)
            offsets.append(at)
        at = self._own_array(archive, RECORD, bytes(self._blocks.data))
        blocks = [(first, at + begin, size, crc) for first, begin, size, crc in self._blocks.table]
        packed = [
            {"chunk": chunk, "bytes": data.bytes} for data, chunk in zip(self._data, chunks, strict=True)
        ]
        packs = [0] if len(self._table) else []
        table = self._table.encode(
            self._about, packs, [offsets] * len(packs), blocks, packed if self._compressor != "none" else ()
        )
        at = self._own_array(archive, TABLE, table)
        archive.finish()
        self.close()
        layout = {"table": {"offset": at, "bytes": len(table), "crc32c": crc32c(table)}}
        return ShardContents([ShardFile(self._path, file.bytes, file.crc)], layout)

    def close(self) -> None:
        for file in (self._file, self._spool):
            if file is not None:
                file.close()

    def _spill(self) -> None:
        if self._spool is None:
            path = self._staged.with_name(f"{self._staged.name}.spool")
            self._spool = open(path, "xb+")
            os.unlink(path)  # the open file lives on, and a crash leaves nothing
        for data in self._data:
            data.spill(self._spool)

    @staticmethod
    def _own_array(archive: StoredZip, column: Column, raw: bytes) -> int:
        """Write an array of bytes; return where its items begin."""
        data = _ColumnData(column, "none")
        data.append(np.frombuffer(raw, np.uint8))
        chunk = data.finish()
        _member(archive, f"{column.name}/zarr.json", _array_json(data, chunk))
        if not raw:
            return 0
        at = archive.begin(_data_key(column), data.bytes, data.crc32, align=True)
        archive.write(bytes(data.held))
        return at


def _member(archive: StoredZip, name: str, data: bytes) -> None:
    archive.begin(name, len(data), zlib.crc32(data))
    archive.write(data)


def _key(column: Column) -> str:
    return column.name.replace(".", "/")


def _data_key(column: Column) -> str:
    return "/".join([_key(column), "c", *["0"] * (1 + len(column.shape))])


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def _array_json(data: _ColumnData, chunk: int) -> bytes:
    """Return the metadata document of an array (Zarr v3 core, and its codec ``sharding_indexed``).

    Args:
        data: the array.
        chunk: items of an inner chunk.
    """
    column = data.column
    itemsize = np.dtype(column.dtype).itemsize
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    inner: list[dict[str, Any]] = [little if itemsize > 1 else {"name": "bytes"}]
    if data.compressor != "none":
        settings = {"typesize": itemsize, "cname": "zstd", "clevel": 5, "shuffle": "shuffle", "blocksize": 0}
        inner.append({"name": "blosc", "configuration": settings})
    sharding = {
        "chunk_shape": [chunk, *column.shape],
        "codecs": inner,
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    shard = max(1, -(-data.items // chunk)) * chunk
    grid = {"name": "regular", "configuration": {"chunk_shape": [shard, *column.shape]}}
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [data.items, *column.shape],
        "data_type": column.dtype,
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if column.dtype.startswith("float") else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {"about": column.about},
    }
    return _json(document)
