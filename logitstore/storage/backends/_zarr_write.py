"""Writing of Zarr shards: zarr writes the metadata, this module the data files of the sharding codec."""

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
    """The data file of one array; items are appended in inner chunks.

    Args:
        folder: folder of the shard.
        column: column of the array.
        compressor: compressor of the inner chunks.
    """

    def __init__(self, folder: Path, column: Column, compressor: str) -> None:
        self.column, self.compressor = column, compressor
        self.path = folder.joinpath(column.name.replace(".", "/"), "c", *["0"] * (1 + len(column.shape)))
        self.item = int(np.dtype(column.dtype).itemsize * np.prod(column.shape, dtype=int))
        self.items_per_chunk = max(1, CHUNK_BYTES // self.item)
        self.items = 0
        self.crc = 0
        self.bytes = 0
        self._chunks: list[tuple[int, int]] = []
        self._buffer = bytearray()
        self._file: BinaryIO | None = None

    def append(self, array: NDArray[Any]) -> None:
        """Append items."""
        self.items += len(array)
        if not array.size:
            return
        data = array.reshape(-1).view(np.uint8)
        if self.compressor == "none":
            return self._write(data)
        self._buffer += data.tobytes()
        size = self.items_per_chunk * self.item
        while len(self._buffer) >= size:
            self._write_chunk(bytes(self._buffer[:size]))
            del self._buffer[:size]

    def finish(self) -> int:
        """Pad the last chunk, write the index and close the file; return the items per inner chunk."""
        if self.items == 0:
            return 1
        count = -(-self.items // self.items_per_chunk)
        chunk = -(-self.items // count)
        if self.compressor == "none":
            self._write(bytes((chunk * count - self.items) * self.item))
            self._chunks = [(i * chunk * self.item, chunk * self.item) for i in range(count)]
        else:
            chunk = self.items_per_chunk if count > 1 else self.items
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
    """Return the numcodecs codec that encodes to the same bytes as zarr's own codec."""
    import numcodecs

    if compressor == "zstd":
        return numcodecs.Zstd(level=3)
    return _Blosc(itemsize)


class _Blosc:
    """Blosc for a given element size, which numcodecs takes from the buffer it encodes."""

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
    """Writer of one shard as a Zarr group.

    Args:
        folder: local folder of the unfinished shard; must not exist.
        path: final path of the shard, relative to the store.
        compressor: compressor of the inner chunks.
        columns: columns of the store.
    """

    def __init__(self, folder: Path, path: str, compressor: str, columns: Sequence[Column]) -> None:
        self._folder, self._path = folder, path
        folder.mkdir(parents=True)
        self._table = RecordTable(columns)
        self._files = [_ArrayFile(folder, c, compressor) for c in self._table.columns]

    def add(self, record: EncodedRecord) -> None:
        for i, _, array in self._table.add(record):
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
        """Write the array's zarr.json through zarr."""
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
        """Return all files with sizes and checksums; those of data files were computed while writing."""
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
