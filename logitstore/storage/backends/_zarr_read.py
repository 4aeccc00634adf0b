"""Reading of compressed Zarr shards: inner chunks are decoded one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptError, FormatError
from ...schema.checksums import crc32c
from ..shard_table import ShardTable, item_bytes

MAX_CHUNK_BYTES = 64 << 20  # of a decoded inner chunk; writers make them of one mebibyte, or one item
MAX_UNPACKED_BYTES = 256 << 20  # of one read; more only where the compressed bytes are at least this part:
MAX_RATIO = 1000
_BLOSC_HEAD = 16


def unpacker(
    table: ShardTable, shard: str
) -> Callable[[NDArray[np.uint8], int, int, int], NDArray[np.uint8]]:
    """Return the function by which a shard's records are decoded.

    Args:
        table: the shard's table.
        shard: name of the shard.
    """

    def unpack(raw: NDArray[np.uint8], c: int, a: int, b: int) -> NDArray[np.uint8]:
        column, (chunk, _) = table.columns[c], table.chunks[c]
        where = f"shard {shard}: {column.name}"
        return _decoded(raw, int(table.totals(c)[0]), chunk, item_bytes(column), a, b, where)

    return unpack


def _decoded(
    raw: NDArray[np.uint8], items: int, chunk: int, item: int, a: int, b: int, where: str
) -> NDArray[np.uint8]:
    """Decode the bytes of items [a, b), each inner chunk into a buffer of the chunk's size.

    Args:
        raw: data of the array, with its index.
        items: items of the array.
        chunk: items of an inner chunk.
        item: bytes of an item.
        a: first item.
        b: item behind the last.
        where: the column, for messages.
    """
    size = chunk * item
    if not 0 < size <= max(MAX_CHUNK_BYTES, item):
        raise FormatError(f"its inner chunks have {size} bytes, too many to decode (SPEC Z3)", where=where)
    pairs, end = _pairs(raw, -(-items // chunk), where)
    first, last = a // chunk, -(-b // chunk)
    begins, lengths = pairs[:, 0], pairs[:, 1]
    if (lengths > end).any() or (begins[1:] < begins[:-1] + lengths[:-1]).any():
        raise FormatError("its inner chunks overlap or are not in order (SPEC Z3)", where=where)
    packed = int(lengths[first:last].sum())
    if (last - first) * size > max(MAX_UNPACKED_BYTES, MAX_RATIO * packed):
        raise FormatError(
            f"{packed} compressed bytes stand for {(last - first) * size} bytes, too many to decode (SPEC Z3)",
            where=where,
        )
    out = np.empty(max(last - first, 0) * size, np.uint8)
    for n, (at, length) in enumerate(pairs[first:last].tolist()):
        if not _BLOSC_HEAD <= length <= end or at + length > end:
            raise FormatError("an inner chunk is outside of its column (SPEC Z3)", where=where)
        _decode(raw[at : at + length].tobytes(), out[n * size : (n + 1) * size], where)
    found = out[(a - first * chunk) * item :][: (b - a) * item]
    found.flags.writeable = False  # like a mapped array
    return found


def _pairs(raw: NDArray[np.uint8], count: int, where: str) -> tuple[NDArray[np.uint64], int]:
    """Return ((chunks, 2) offset and length of every inner chunk, end of the last); check the index."""
    end = len(raw) - 16 * count - 4
    if end < 0:
        raise FormatError(f"it has {len(raw)} bytes for {count} inner chunks (SPEC Z2)", where=where)
    index = raw[end:-4]
    if crc32c(index) != int.from_bytes(raw[-4:].tobytes(), "little"):
        raise CorruptError("the index of its inner chunks does not match its checksum (SPEC Z2)", where=where)
    return index.view("<u8").reshape(count, 2), end


def _decode(data: bytes, buffer: NDArray[np.uint8], where: str) -> None:
    """Decode an inner chunk into a buffer of its size."""
    from numcodecs import blosc

    declared = int.from_bytes(data[4:8], "little")
    if declared != len(buffer):  # checked first: the decoder would write as much as the chunk declares
        raise CorruptError(f"an inner chunk has {declared} bytes, not {len(buffer)} (SPEC Z3)", where=where)
    try:
        blosc.decompress(data, buffer)
    except Exception as e:  # numcodecs raises errors of several kinds
        raise CorruptError(f"it cannot be decoded: {e} (SPEC S6)", where=where) from e
