"""Reading of Zarr shards: uncompressed arrays are memory-mapped, compressed ones decoded chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptError, FormatError
from ...schema.checksums import crc32c, parse_json
from ...schema.spec import Column
from ..base import DTYPES, METADATA, Shard, ShardContents, ShardFile, SizeWatch, check_file
from ..places import Place

_TABLE = ("table/start", "table/crc32c")
MAX_CHUNK_BYTES = 64 << 20  # of a decoded inner chunk; writers make them of one mebibyte, or one item
MAX_UNPACKED_BYTES = 256 << 20  # of one read; more only where the compressed bytes are at least this part:
MAX_RATIO = 1000
_CODECS = {"none": [], "zstd": ["zstd"], "blosc": ["blosc"]}  # codecs after "bytes"


def open_zarr(
    place: Place, path: str, compressor: str, contents: ShardContents, columns: Sequence[Column]
) -> Shard:
    """Open the group at a path of a place; raise ``CorruptError`` or ``FormatError``."""
    shard = path.rpartition("/")[2]
    files = {f.path: f for f in contents.files}
    views = [_View(place, path, c, files, compressor) for c in (METADATA, *columns)]
    width = len(views)
    tables = []
    for name, dtype in zip(_TABLE, ("int64", "uint32"), strict=True):
        view = _View(place, path, Column(name.replace("/", "."), dtype, (width,)), files, "none")
        tables.append(view.all())
    start, crc = tables
    for i, view in enumerate(views):
        if start.ndim == 2 and start.shape[1] == width and len(start) and start[-1, i] != view.items:
            raise FormatError(
                f"{view.column.name} has {view.items} items, but its records {start[-1, i]} (SPEC S4)",
                where=f"shard {shard}",
            )
    return Shard(shard, columns, start, crc, lambda i, c, a, b: views[c].items_of(a, b))


class _View:
    """One array of a sealed shard.

    Args:
        place: place of the store.
        path: path of the shard.
        column: column of the array.
        files: files of the shard by path.
        compressor: compressor of the inner chunks.
    """

    def __init__(
        self, place: Place, path: str, column: Column, files: dict[str, ShardFile], compressor: str
    ) -> None:
        self.column, self._place, self._compressor = column, place, compressor
        self._path = f"{path}/{column.name.replace('.', '/')}"
        meta_name = f"{self._path}/zarr.json"
        self._data_name = "/".join([self._path, "c", *["0"] * (1 + len(column.shape))])
        if meta_name not in files:
            raise FormatError(f"it has no array {column.name} (SPEC S2)", where=path)
        meta = _read(place, files[meta_name])
        check_file(meta, files[meta_name])
        self.items, self._chunk = _parse(parse_json(meta, meta_name), column, compressor, meta_name)
        self._file = files.get(self._data_name)
        if (self._file is None) != (self.items == 0):
            raise FormatError(
                "it has data without items, or items without data (SPEC S2)", where=self._data_name
            )
        self._mapped: NDArray[Any] | None = None
        self._watch: SizeWatch | None = None
        self._dtype = np.dtype(column.dtype).newbyteorder("<")
        self._item = int(self._dtype.itemsize * np.prod(column.shape, dtype=int))
        if self._file is not None and _size(place, self._file) != self._file.bytes:
            raise CorruptError(
                f"its size is not the {self._file.bytes} bytes sealed (SPEC S6)", where=self._data_name
            )

    def all(self) -> NDArray[Any]:
        """Return a copy of the whole array after a check of its file's checksum; for the record table."""
        if self._file is not None:
            check_file(self._raw(), self._file)
        return self.items_of(0, self.items).copy()  # a file that is cut later must not take it along

    def items_of(self, a: int, b: int) -> NDArray[Any]:
        """Return items [a, b) as a read-only array."""
        if b > self.items:
            raise FormatError(f"a record ends at item {b} of {self.items} (SPEC S4)", where=self._path)
        if self._compressor != "none" and self._file is not None:
            return self._decoded(a, b)
        if self._mapped is None:
            self._mapped = self._map()
        if self._watch is not None:
            self._watch.check()
        return self._mapped[a:b]

    def _raw(self) -> NDArray[np.uint8]:
        raw = self._place.map(self._data_name)
        if self._file is not None:
            self._watch = SizeWatch(self._place, self._file)
        if self._file is None or len(raw) != self._file.bytes:
            raise CorruptError(
                f"it has {len(raw)} bytes, another number than was sealed (SPEC S6)", where=self._data_name
            )
        return raw

    def _pairs(self, raw: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], int]:
        """Return ((chunks, 2) offset and length of every inner chunk, end of the last); check the index."""
        count = -(-self.items // self._chunk)
        end = len(raw) - 16 * count - 4
        if end < 0:
            raise FormatError(
                f"it has {len(raw)} bytes for {count} inner chunks (SPEC Z2)", where=self._data_name
            )
        index = raw[end:-4]
        if crc32c(index) != int.from_bytes(raw[-4:].tobytes(), "little"):
            raise CorruptError("the shard index does not match its checksum (SPEC Z2)", where=self._data_name)
        return index.view("<u8").reshape(count, 2), end

    def _map(self) -> NDArray[Any]:
        """Check in the shard's index that the inner chunks are contiguous and in order, then map them."""
        if self._file is None:
            return np.zeros((0, *self.column.shape), self._dtype)
        raw = self._raw()
        pairs, end = self._pairs(raw)
        size = self._chunk * self._item
        if end != len(pairs) * size:
            raise FormatError(
                f"it has {len(raw)} bytes for {len(pairs)} inner chunks (SPEC Z2)", where=self._data_name
            )
        if (pairs[:, 1] != size).any() or (pairs[:, 0] != np.arange(len(pairs), dtype="<u8") * size).any():
            raise FormatError(
                "its inner chunks are not contiguous and in order (SPEC Z2)", where=self._data_name
            )
        return raw[: self.items * self._item].view(self._dtype).reshape(self.items, *self.column.shape)

    def _decoded(self, a: int, b: int) -> NDArray[Any]:
        """Decode items [a, b) of compressed inner chunks, each into a buffer of the chunk's size."""
        raw = self._raw()
        pairs, end = self._pairs(raw)
        size = self._chunk * self._item
        if size > max(MAX_CHUNK_BYTES, self._item):
            raise FormatError(
                f"its inner chunks have {size} bytes, too many to decode (SPEC Z1)", where=self._data_name
            )
        first, last = a // self._chunk, -(-b // self._chunk)
        begins, lengths = pairs[:, 0], pairs[:, 1]
        if (lengths > end).any() or (begins[1:] < begins[:-1] + lengths[:-1]).any():
            raise FormatError("its inner chunks overlap or are not in order (SPEC Z1)", where=self._data_name)
        packed = int(lengths[first:last].sum())
        if (last - first) * size > max(MAX_UNPACKED_BYTES, MAX_RATIO * packed):
            raise FormatError(
                f"{packed} compressed bytes stand for {(last - first) * size} bytes, too many to decode (SPEC Z1)",
                where=self._data_name,
            )
        out = np.empty(max(last - first, 0) * size, np.uint8)
        for n, (at, length) in enumerate(pairs[first:last].tolist()):
            if not 0 < length <= end or at + length > end:
                raise FormatError("an inner chunk is outside of its file (SPEC Z1)", where=self._data_name)
            buffer = out[n * size : (n + 1) * size]
            try:
                written = decoder(self._compressor)(raw[at : at + length].tobytes(), buffer)
            except Exception as e:  # every codec raises errors of its own
                raise CorruptError(f"it cannot be decoded: {e} (SPEC S6)", where=self._data_name) from e
            if written != size:
                raise CorruptError(
                    f"an inner chunk has {written} bytes, not {size} (SPEC Z1)", where=self._data_name
                )
        items = out.view(self._dtype).reshape(-1, *self.column.shape)[a - first * self._chunk :][: b - a]
        items.flags.writeable = False  # like a mapped array
        return items


def decoder(compressor: str) -> Callable[[bytes, NDArray[np.uint8]], int]:
    """Return a function that decodes a chunk into a buffer and returns the decoded size in bytes.

    A chunk that declares another size than the buffer's is not decoded; the declared size is returned.
    """
    from numcodecs import blosc, zstd

    codec = zstd if compressor == "zstd" else blosc

    def decode(data: bytes, buffer: NDArray[np.uint8]) -> int:
        declared = _zstd_size(data) if compressor == "zstd" else int.from_bytes(data[4:8], "little")
        if declared != len(buffer):
            return declared
        codec.decompress(data, buffer)
        return len(buffer)

    return decode


def _zstd_size(frame: bytes) -> int:
    """Return the content size that a Zstandard frame declares (RFC 8878, section 3.1.1.1), or -1."""
    if frame[:4] != b"\x28\xb5\x2f\xfd" or len(frame) < 6:
        return -1
    flags = frame[4]
    single = flags >> 5 & 1
    at = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]  # after the window descriptor and the dictionary id
    width = (1 if single else 0, 2, 4, 8)[flags >> 6]
    if not width:
        return -1
    return int.from_bytes(frame[at : at + width], "little") + (256 if width == 2 else 0)


def _read(place: Place, file: ShardFile) -> bytes:
    try:
        return place.read(file.path)
    except FileNotFoundError:
        raise CorruptError("a file of a sealed shard is missing (SPEC S6)", where=file.path) from None


def _size(place: Place, file: ShardFile) -> int:
    try:
        return place.size(file.path)
    except FileNotFoundError:
        raise CorruptError("a file of a sealed shard is missing (SPEC S6)", where=file.path) from None


def _parse(meta: Any, column: Column, compressor: str, where: str) -> tuple[int, int]:
    """Return (items, items of an inner chunk) from an array's metadata; raise ``FormatError`` (SPEC Z1)."""
    try:
        items, *shape = meta["shape"]
        sharding = next(c for c in meta["codecs"] if c["name"] == "sharding_indexed")["configuration"]
        chunk, *inner = sharding["chunk_shape"]
        grid, *rest = meta["chunk_grid"]["configuration"]["chunk_shape"]
        inner_codecs = [c["name"] for c in sharding["codecs"]]
        endian = [c.get("configuration", {}).get("endian", "little") for c in sharding["codecs"]]
        good = (
            [c["name"] for c in meta["codecs"]] == ["sharding_indexed"]
            and inner_codecs == ["bytes", *_CODECS[compressor]]
            and set(endian) == {"little"}
            and sharding.get("index_location", "end") == "end"
            and [c["name"] for c in sharding["index_codecs"]] == ["bytes", "crc32c"]
            and grid >= items
            and tuple(rest) == column.shape
            and meta["data_type"] == column.dtype
            and (column.dtype in DTYPES or column.dtype == "int64")
            and tuple(shape) == tuple(inner) == column.shape
            and type(items) is int
            and type(chunk) is int
            and items >= 0
            and chunk > 0
        )
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
        good = False
    if not good:
        raise FormatError(
            f"it is not the metadata of {column.dtype} items of shape {list(column.shape)} (SPEC Z1)",
            where=where,
        )
    return items, chunk
