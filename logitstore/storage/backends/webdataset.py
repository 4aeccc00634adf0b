"""The storage backend ``webdataset``: a shard is a tar file that plain webdataset can read.

Consecutive records form packs, since a tar member costs 512 bytes and more. A pack is one sample of webdataset:
``KEY.record.json.gz``, ``KEY.items.json.gz``, ``KEY.ctc.logp.npy``, ... The table comes last, under
``__logitstore__/``, which webdataset skips. Tar headers are USTAR with fixed times, owners and modes, so the
same records give the same bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import FormatError, UsageError
from ...schema.checksums import crc32c
from ...schema.spec import Column
from ..base import EncodedRecord, ShardContents, ShardFile
from ..places import Place
from ..record_metadata import MetadataBlocks, gzip_member
from ..shard import Shard, open_shard
from ..shard_table import TableBuilder
from ._summed_file import SummedFile

PACK_BYTES = 256 << 10  # of items at which a pack is complete
PACK_RECORDS = 4096
OWN = "__logitstore__"


@dataclass(frozen=True)
class WebDatasetStorage:
    """Storage backend of tar shards."""

    def __str__(self) -> str:
        return "webdataset"

    def path(self, shard: str) -> str:
        return f"shards/{shard}.tar"

    def create(
        self, staged: Path, shard: str, columns: Sequence[Column], about: Mapping[str, Any]
    ) -> TarShardWriter:
        return TarShardWriter(staged, self.path(shard), shard, columns, {**about, "shard": shard})

    def open(self, place: Place, shard: str, contents: ShardContents, columns: Sequence[Column]) -> Shard:
        raw, table, watch = open_shard(place, shard, contents, columns)
        if table.chunks:
            raise FormatError("its columns are compressed (SPEC W3)", where=f"shard {shard}")
        return Shard(shard, raw, table, watch)


class TarShardWriter:
    """Writer of one tar shard.

    Args:
        staged: local path of the unfinished file; must not exist.
        path: final path of the file, relative to the store.
        shard: name of the shard.
        columns: columns of the store.
        about: description of the shard (SPEC S18).
    """

    def __init__(
        self, staged: Path, path: str, shard: str, columns: Sequence[Column], about: Mapping[str, Any]
    ) -> None:
        self._path, self._prefix, self._about = path, shard[:100], about
        self._file = SummedFile(staged)
        self._table = TableBuilder(columns)
        self._packs: list[int] = []
        self._offsets: list[list[int]] = []
        self._listed: list[tuple[int, int, int, int]] = []
        self._member(f"{OWN}/shard.json", _json({**about, "columns": [c.to_json() for c in columns]}))
        self._begin()

    def add(self, record: EncodedRecord) -> None:
        prepared = self._table.prepare(record)
        self._table.add(record, prepared)
        self._blocks.add(prepared.line)
        for items, array in zip(self._items, prepared.arrays, strict=True):
            if array.size:
                items += array.reshape(-1).view(np.uint8).data
        if sum(map(len, self._items)) >= PACK_BYTES or len(self._table) - self._first >= PACK_RECORDS:
            self._close_pack()
            self._begin()

    def finish(self) -> ShardContents:
        if len(self._table) > self._first:
            self._close_pack()
        table = self._table.encode(self._about, self._packs, self._offsets, self._listed)
        at = self._member(f"{OWN}/table", table)
        end = 2 * tarfile.BLOCKSIZE  # at least two blocks of zeros, then whole tar records
        self._file.write(bytes(end + -(self._file.bytes + end) % tarfile.RECORDSIZE))
        self.close()
        layout = {"table": {"offset": at, "bytes": len(table), "crc32c": crc32c(table)}}
        return ShardContents([ShardFile(self._path, self._file.bytes, self._file.crc)], layout)

    def close(self) -> None:
        self._file.close()

    def _begin(self) -> None:
        """Begin a pack with the next record."""
        self._first = len(self._table)
        self._blocks = MetadataBlocks(self._first)
        self._items = [bytearray() for _ in self._table.columns]

    def _close_pack(self) -> None:
        """Write the members of the records since the last pack."""
        key, counts = f"{self._prefix}/{len(self._packs):06d}", self._table.counts(self._first)
        self._blocks.finish()
        at = self._member(f"{key}.record.json.gz", bytes(self._blocks.data))
        self._listed += [(first, at + begin, size, crc) for first, begin, size, crc in self._blocks.table]
        columns = self._table.columns
        items = {c.name: n for c, n in zip(columns, counts.T.tolist(), strict=True)}
        self._member(f"{key}.items.json.gz", gzip_member(_json(items)))
        offsets = []
        for number, column in enumerate(columns):
            array = np.frombuffer(self._items[number], column.dtype).reshape(-1, *column.shape)
            offsets.append(self._array(f"{key}.{column.name}.npy", array))
        self._packs.append(self._first)
        self._offsets.append(offsets)

    def _array(self, name: str, array: NDArray[Any]) -> int:
        """Write a ``.npy`` member; return the offset of its items."""
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
        return self._member(name, head.getvalue() + array.tobytes()) + len(head.getvalue())

    def _member(self, name: str, data: bytes) -> int:
        """Write a member; return the offset of its data."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        self._file.write(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
        at = self._file.bytes
        self._file.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
        return at


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def parse(setting: str | None) -> WebDatasetStorage:
    """Return the backend; raise ``UsageError`` for any setting."""
    if setting is not None:
        raise UsageError(f"webdataset has no settings, but {setting!r} was given")
    return WebDatasetStorage()
