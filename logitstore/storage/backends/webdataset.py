"""The storage backend ``webdataset``: a shard is a tar file that plain webdataset can read.

The members of one utterance are ``KEY.row.json``, ``KEY.ctc.logp.npy``, ... The record table comes last,
under ``__logitstore__/``, which webdataset skips. Tar headers are USTAR with fixed times, owners and modes, so
the same records give the same bytes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptError, FormatError, UsageError
from ...schema.checksums import canonical, crc32c, id_hash
from ...schema.spec import Column
from ..base import METADATA, EncodedRecord, RecordTable, Shard, ShardContents, ShardFile, SizeWatch
from ..places import Place

MAX_KEY = 60


def escape(utt_id: str) -> str:
    """Return the webdataset key of an utterance id (SPEC W2).

    webdataset takes the part of a member's name before the first dot as the key. So dots, slashes, spaces and
    all other characters outside ``[A-Za-z0-9_-]`` become ``%XX`` of their UTF-8. A key of more than 60
    characters is cut and ends in ``~`` and the hash of the id. The record metadata has the id itself.
    """
    key = quote(utt_id, safe="").replace(".", "%2E").replace("~", "%7E")
    if len(key) <= MAX_KEY:
        return key
    return f"{key[: MAX_KEY - 17]}~{id_hash(utt_id):016x}"


@dataclass(frozen=True)
class WebDatasetStorage:
    """Storage backend of tar shards."""

    def __str__(self) -> str:
        return "webdataset"

    def path(self, shard: str) -> str:
        return f"shards/{shard}.tar"

    def create(self, staged: Path, shard: str, columns: Sequence[Column]) -> TarShardWriter:
        return TarShardWriter(self.path(shard), staged, columns)

    def open(self, place: Place, shard: str, contents: ShardContents, columns: Sequence[Column]) -> Shard:
        return _open(place, shard, contents, columns)

    def describe(self, place: Place, about: dict[str, Any]) -> None:
        """Write nothing; webdataset needs no files at the top of a store."""


class _ChecksummedFile:
    """A file with the number and the CRC-32C of the bytes written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.bytes, self.crc = file, 0, 0

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        self.crc = crc32c(data, self.crc)
        return self._file.write(data)


class TarShardWriter:
    """Writer of one tar shard.

    Args:
        name: final path of the file, relative to the store.
        path: local path of the unfinished file; must not exist.
        columns: columns of the store.
    """

    def __init__(self, name: str, path: Path, columns: Sequence[Column]) -> None:
        self._name = name
        self._file = open(path, "xb")
        self._tar = _ChecksummedFile(self._file)
        self._table = RecordTable(columns)
        self._offset: list[list[int]] = []
        self._keys: dict[str, str] = {}

    def add(self, record: EncodedRecord) -> None:
        key = escape(record.id)
        if self._keys.setdefault(key, record.id) != record.id:
            raise FormatError(f"its key is also that of {self._keys[key]!r} (SPEC W2)", where=record.id)
        offsets = []
        for _, column, array in self._table.add(record):
            if column is METADATA:
                offsets.append(self._member(f"{key}.row.json", array.tobytes()))
            else:
                offsets.append(self._array(f"{key}.{column.name}.npy", array))
        self._offset.append(offsets)

    def finish(self) -> ShardContents:
        columns = [c.to_json() for c in self._table.columns]
        self._member("__logitstore__/columns.json", canonical(columns))
        offset = np.array(self._offset, np.int64).reshape(-1, len(columns))
        tables: dict[str, NDArray[Any]] = {
            "start": self._table.start(),
            "offset": offset,
            "crc32c": self._table.crc32c(),
        }
        layout: dict[str, Any] = {"rows": len(offset)}
        for name, table in tables.items():
            at = self._array(f"__logitstore__/{name}.npy", table)
            layout[name] = {"offset": at, "crc32c": crc32c(table)}
        end = 2 * tarfile.BLOCKSIZE  # at least two blocks of zeros, then whole tar records
        self._tar.write(bytes(end + -(self._tar.bytes + end) % tarfile.RECORDSIZE))
        self.close()
        return ShardContents([ShardFile(self._name, self._tar.bytes, self._tar.crc)], layout)

    def close(self) -> None:
        self._file.close()

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
        self._tar.write(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
        at = self._tar.bytes
        self._tar.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
        return at


def _open(place: Place, shard: str, contents: ShardContents, columns: Sequence[Column]) -> Shard:
    """Map the tar and find every array through the record table; no tar header is parsed."""
    where = f"shard {shard}"
    if len(contents.files) != 1 or not {"rows", "start", "offset", "crc32c"} <= set(contents.layout):
        raise FormatError("its entry does not describe a tar (SPEC W4)", where=where)
    (file,) = contents.files
    try:
        raw = place.map(file.path)
        watch = SizeWatch(place, file)
    except FileNotFoundError:
        raise CorruptError("a file of a sealed shard is missing (SPEC S6)", where=file.path) from None
    if len(raw) != file.bytes:
        raise CorruptError(
            f"it has {len(raw)} bytes, not the {file.bytes} that were sealed (SPEC S6)", where=file.path
        )

    width = 1 + len(columns)
    rows = _number(contents.layout["rows"], where)

    def table(name: str, dtype: str, length: int) -> NDArray[Any]:
        at = contents.layout[name]
        if not isinstance(at, dict) or "crc32c" not in at:
            raise FormatError(f"its layout lacks the table {name} (SPEC W4)", where=where)
        size = length * width * np.dtype(dtype).itemsize
        data = _slice(raw, _number(at.get("offset"), where), size, where)
        if crc32c(data) != at["crc32c"]:
            raise CorruptError(f"the table {name} is damaged (SPEC S5)", where=where)
        return (
            data.view(dtype).reshape(length, width).copy()
        )  # a file that is cut later must not take it along

    offset, start = table("offset", "<i8", rows), table("start", "<i8", rows + 1)
    dtypes = [(np.dtype(c.dtype).newbyteorder("<"), c.shape) for c in (METADATA, *columns)]
    sizes = np.array([int(d.itemsize * np.prod(s, dtype=int)) for d, s in dtypes])
    _check_offsets(offset, start, sizes, len(raw), where)

    def load(i: int, c: int, a: int, b: int) -> NDArray[Any]:
        dtype, shape = dtypes[c]
        watch.check()
        data = _slice(raw, int(offset[i, c]), (b - a) * int(sizes[c]), where)
        return data.view(dtype).reshape(b - a, *shape)

    return Shard(shard, columns, start, table("crc32c", "<u4", rows), load)


def _number(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise FormatError(f"its layout has {value!r} instead of a number (SPEC W4)", where=where)
    return value


def _check_offsets(
    offset: NDArray[np.int64], start: NDArray[np.int64], sizes: NDArray[np.int64], end: int, where: str
) -> None:
    """Raise ``FormatError`` unless arrays are in order and do not overlap (SPEC W4)."""
    counts = np.diff(start, axis=0)
    good = bool((offset >= 0).all() and (counts >= 0).all() and (counts <= end // sizes).all())
    if good and offset.size:
        ends = (offset + counts * sizes).reshape(-1)
        begins = offset.reshape(-1)
        good = bool((begins[1:] >= ends[:-1]).all() and ends[-1] <= end)
    if not good:
        raise FormatError("its arrays overlap, or are outside of the file (SPEC W4)", where=where)


def _slice(raw: NDArray[np.uint8], at: int, size: int, where: str) -> NDArray[np.uint8]:
    if not 0 <= at <= at + size <= len(raw):
        raise FormatError(f"it refers to bytes {at} to {at + size} of {len(raw)} (SPEC S4)", where=where)
    return raw[at : at + size]


def parse(setting: str | None) -> WebDatasetStorage:
    """Return the backend; raise ``UsageError`` for any setting."""
    if setting is not None:
        raise UsageError(f"webdataset has no settings, but {setting!r} was given")
    return WebDatasetStorage()
