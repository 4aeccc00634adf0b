"""Writing a Zarr shard: metadata by zarr, data files appended to as the sharding codec lays them out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...schema.checksums import crc32c
from ...schema.spec import Column
from ..base import EncodedRecord, RecordTable, ShardContents, ShardFile

CHUNK_BYTES = 1 << 20


class _ArrayFile:
    """Appends items to one array's data file, inner chunk by inner chunk."""

    def __init__(self, folder: Path, column: Column, compressor: str) -> None:
        self.column, self.compressor = column, compressor
        self.path = folder.joinpath(column.name.replace(".", "/"), "c", *["0"] * (1 + len(column.shape)))
        self.item = int(np.dtype(column.dtype).itemsize * np.prod(column.shape, dtype=int))
        self.target = max(1, CHUNK_BYTES // self.item)
        self.items = 0
        self.crc = 0
        self.bytes = 0
        self._chunks: list[tuple[int, int]] = []
        self._buffer = bytearray()
        self._file: BinaryIO | None = None

    def append(self, array: NDArray[Any]) -> None:
        self.items += len(array)
        if not array.size:
            return
        data = array.reshape(-1).view(np.uint8)
        if self.compressor == "none":
            return self._write(data)
        self._buffer += data.tobytes()
        size = self.target * self.item
        while len(self._buffer) >= size:
            self._write_chunk(bytes(self._buffer[:size]))
            del self._buffer[:size]

    def finish(self) -> int:
        """Pad, write the index, close; gives the items of one inner chunk."""
        if self.items == 0:
            return 1
        count = -(-self.items // self.target)
        chunk = -(-self.items // count)
        if self.compressor == "none":
            self._write(bytes((chunk * count - self.items) * self.item))
            self._chunks = [(i * chunk * self.item, chunk * self.item) for i in range(count)]
        else:
            chunk = self.target if count > 1 else self.items
            if self._buffer:
                self._write_chunk(bytes(self._buffer).ljust(chunk * self.item, b"\0"))
        index = np.array(self._chunks, "<u8").tobytes()
        self._write(index + crc32c(index).to_bytes(4, "little"))
        self.close()
        return chunk

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write_chunk(self, raw: bytes) -> None:
        data = _codec(self.compressor, np.dtype(self.column.dtype).itemsize).encode(raw)
        self._chunks.append((self.bytes, len(data)))
        self._write(data)

    def _write(self, data: Any) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "xb")
        self._file.write(data)
        self.crc = crc32c(data, self.crc)
        self.bytes += len(data)


def _codec(compressor: str, itemsize: int) -> Any:
    """The numcodecs twin of zarr's own codec; the same bytes come out."""
    import numcodecs

    if compressor == "zstd":
        return numcodecs.Zstd(level=3)
    return _Blosc(itemsize)


class _Blosc:
    """numcodecs takes blosc's element size from the buffer it is given."""

    def __init__(self, itemsize: int) -> None:
        import numcodecs

        self._dtype = f"u{itemsize}"
        self._blosc = numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)

    def encode(self, raw: bytes) -> bytes:
        return bytes(self._blosc.encode(np.frombuffer(raw, self._dtype)))


def _zarr_codec(compressor: str, itemsize: int) -> Any:
    from zarr.codecs import BloscCodec, ZstdCodec

    if compressor == "none":
        return None
    if compressor == "zstd":
        return ZstdCodec(level=3)
    return BloscCodec(typesize=itemsize, cname="zstd", clevel=5, shuffle="shuffle")


class ZarrShardWriter:
    """Writes one group.

    Args:
        folder: where it is staged.
        path: where it will lie, relative to the store.
        compressor: of the inner chunks.
        columns: of every row.
    """

    def __init__(self, folder: Path, path: str, compressor: str, columns: Sequence[Column]) -> None:
        self._folder, self._path = folder, path
        folder.mkdir(parents=True)
        self._table = RecordTable(columns)
        self._files = [_ArrayFile(folder, c, compressor) for c in self._table.columns]

    def add(self, row: EncodedRecord) -> None:
        for i, _, array in self._table.add(row):
            self._files[i].append(array)

    def finish(self) -> ShardContents:
        import zarr

        about = {
            "about": "One shard of a logitstore store; see SPEC.md of the Python package logitstore.",
            "columns": [c.to_json() for c in self._table.columns],
        }
        zarr.create_group(str(self._folder), attributes={"logitstore": about})
        for file in self._files:
            self._describe(file, file.finish())
        tables: dict[str, NDArray[Any]] = {"start": self._table.start(), "crc32c": self._table.crc32c()}
        texts = (
            "first item of every row in every column; the last line is the end",
            "CRC-32C of every row's bytes in every column; 0 for an empty one",
        )
        for (name, table), text in zip(tables.items(), texts, strict=True):
            column = Column(f"table.{name}", str(table.dtype), table.shape[1:], text)
            file = _ArrayFile(self._folder, column, "none")
            file.append(table)
            self._describe(file, file.finish())
            self._files.append(file)
        return ShardContents(sorted(self._sealed(), key=lambda f: f.path))

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _describe(self, file: _ArrayFile, chunk: int) -> None:
        """Write the array's zarr.json with zarr itself."""
        import zarr

        column = file.column
        shard = max(1, -(-file.items // chunk)) * chunk
        array = zarr.create_array(
            str(self._folder),
            name=column.name.replace(".", "/"),
            shape=(file.items, *column.shape),
            chunks=(chunk, *column.shape),
            shards=(shard, *column.shape),
            dtype=column.dtype,
            compressors=_zarr_codec(file.compressor, np.dtype(column.dtype).itemsize),
            filters=None,
            fill_value=0,
            attributes={"about": column.about},
        )
        assert array.metadata.zarr_format == 3

    def _sealed(self) -> list[ShardFile]:
        """Every file with its checksum: the data files' were summed while they were written."""
        known = {file.path: file for file in self._files}
        found = []
        for parent, _, names in os.walk(self._folder):
            for name in names:
                path = Path(parent, name)
                relative = f"{self._path}/{path.relative_to(self._folder).as_posix()}"
                if path in known:
                    found.append(ShardFile(relative, known[path].bytes, known[path].crc))
                else:
                    data = path.read_bytes()
                    found.append(ShardFile(relative, len(data), crc32c(data)))
        return found
