"""Record metadata of a shard: lines of a JSON list in small gzip members (SPEC S3)."""

from __future__ import annotations

import struct
import zlib

from ..errors import CorruptError, FormatError
from ..schema.checksums import compact_json, crc32c
from .base import EncodedRecord

BLOCK_RECORDS = 128
BLOCK_BYTES = 1 << 20  # of JSON from which on a block is complete, whatever the number of its records
MAX_BLOCK_BYTES = 128 << 20  # of JSON that a reader decompresses
_GZIP = 31  # zlib's number of a gzip member of the largest window
_GZIP_HEADER = bytes((0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 2, 255))  # no name, no time, best compression, any system


def metadata_line(record: EncodedRecord) -> bytes:
    """Return the metadata of a record as JSON on one line; raise ``FormatError`` if it is not JSON."""
    try:
        return compact_json({**record.meta, "id": record.id})
    except (TypeError, ValueError) as e:
        raise FormatError(f"the record metadata is not JSON (SPEC S3): {e}", where=record.id) from None


class MetadataBlocks:
    """The metadata blocks of one pack, compressed as records are added.

    Args:
        first: number of the pack's first record.

    Attributes:
        data: the blocks, one behind the other.
        table: (first record, begin in ``data``, bytes, CRC-32C) of every block.
    """

    def __init__(self, first: int) -> None:
        self.data = bytearray()
        self.table: list[tuple[int, int, int, int]] = []
        self._first, self._lines = first, list[bytes]()
        self._bytes = 0

    def add(self, line: bytes) -> None:
        """Append the metadata of a record."""
        if len(self._lines) == BLOCK_RECORDS or self._bytes >= BLOCK_BYTES:
            self._close(b"")
        opening = b"," if self.table or self._lines else b"["
        self._lines.append(opening + line + b"\n")
        self._bytes += len(line)

    def finish(self) -> None:
        """Close the last block; at least one record must have been added."""
        self._close(b"]\n")

    def _close(self, end: bytes) -> None:
        block = gzip_member(b"".join(self._lines) + end)
        self.table.append((self._first, len(self.data), len(block), crc32c(block)))
        self.data += block
        self._first += len(self._lines)
        self._lines, self._bytes = [], 0


def gzip_member(data: bytes) -> bytes:
    """Return data as one gzip member without a time; the same zlib gives the same bytes."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    body = deflate.compress(data) + deflate.flush()
    return _GZIP_HEADER + body + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def block_lines(block: bytes, records: int, where: str) -> list[bytes]:
    """Return the JSON objects of a metadata block, one for each record.

    Args:
        block: the gzip member.
        records: number of records in it.
        where: the block, for messages.

    Raises:
        CorruptError: the block is not a gzip member of bounded size.
        FormatError: it holds another number of records.
    """
    inflate = zlib.decompressobj(_GZIP)
    try:
        text = inflate.decompress(block, MAX_BLOCK_BYTES)
    except zlib.error as e:
        raise CorruptError(f"the metadata block cannot be decompressed: {e} (SPEC S3)", where=where) from None
    if not inflate.eof or inflate.unused_data:
        raise CorruptError("the metadata block is not one whole gzip member (SPEC S3)", where=where)
    lines = text.split(b"\n")
    while lines and lines[-1] in (b"", b"]"):
        lines.pop()
    if len(lines) != records or any(line[:1] not in (b"[", b",") for line in lines):
        raise FormatError(f"the metadata block does not hold {records} records (SPEC S3)", where=where)
    return [line[1:] for line in lines]
