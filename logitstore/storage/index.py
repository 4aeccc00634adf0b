"""The index: finds the shard and number of a record by utterance id, without loading any id.

It is a memory-mapped table of sorted 64-bit hashes. Layout (little-endian; SPEC I1-I4): a header of 64 bytes,
shard names as JSON, the fan-out (2^bits + 1 × u64: the first entry of each bucket of leading hash bits), one
CRC-32C per bucket (u32), then 16 bytes per record: hash u64, shard u32, number in the shard u32, sorted.
Opening reads the header and the fan-out; a look-up reads and checks one bucket.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptError, FormatError
from ..schema.checksums import canonical, crc32c, id_hash, parse_json

MAGIC = b"LOGITIDX"
RECORD = np.dtype([("hash", "<u8"), ("shard", "<u4"), ("number", "<u4")])
# magic, records, bits, bytes of the shard names, digest, CRC-32C of the tables, CRC-32C of the header
_HEADER = struct.Struct("<8sQQQQI16xI")
RECORDS_PER_BUCKET = 64
MAX_BITS = 40
SPARE_BITS = 4  # more bits than this writer would take that a reader accepts: bounds the size of the tables
MAX_BUCKET = 1 << 16  # records; hashes spread evenly, so that only a forged index has a larger bucket


@dataclass(frozen=True)
class Index:
    """An opened index.

    Attributes:
        shards: names of the shards, in order.
        records: number of records.
        digest: digest of the names of the sealed entries that it was built from.
    """

    shards: tuple[str, ...]
    records: int
    digest: int
    _bits: int
    _fan: NDArray[np.uint64] = field(repr=False)
    _crc: NDArray[np.uint32] = field(repr=False)
    _table: NDArray[Any] = field(repr=False)
    _checked: NDArray[np.bool_] = field(repr=False)

    def find(self, utt_id: str) -> list[tuple[str, int]]:
        """Return (shard, number) of every record with the hash of an id; the caller compares the ids."""
        key = id_hash(utt_id)
        bucket = key >> (64 - self._bits) if self._bits else 0
        a, b = int(self._fan[bucket]), int(self._fan[bucket + 1])
        records = self._table[a:b]
        if not self._checked[bucket]:
            if crc32c(records) != self._crc[bucket]:
                raise CorruptError(
                    "a bucket of the index is damaged (SPEC I4)",
                    where="index.bin",
                    do="Build the index again from the sealed entries: logitstore index STORE.",
                )
            self._checked[bucket] = True
        hashes = records["hash"]
        i = int(np.searchsorted(hashes, np.uint64(key)))
        found = []
        while i < len(records) and int(hashes[i]) == key:
            shard = int(records["shard"][i])
            if shard >= len(self.shards):
                raise FormatError(
                    f"it refers to shard {shard} of {len(self.shards)} (SPEC I4)", where="index.bin"
                )
            found.append((self.shards[shard], int(records["number"][i])))
            i += 1
        return found

    def intact(self) -> bool:
        """Return whether every bucket matches its checksum; reads the whole index."""
        return all(
            crc32c(self._table[a:b]) == c for (a, b), c in zip(pairwise(self._fan), self._crc, strict=True)
        )

    def repeated(self) -> list[tuple[str, int]]:
        """Return (shard, number) of records with a hash that appeared before: duplicate ids, or collisions."""
        hashes = self._table["hash"]
        same = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
        return [(self.shards[int(self._table["shard"][i])], int(self._table["number"][i])) for i in same]


def entries_digest(names: Iterable[str]) -> int:
    """Return the digest of sealed entries' names by which an index is known to be out of date."""
    return id_hash("\n".join(sorted(names)))


def hashes(ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return (N,) uint64: the hashes of utterance ids."""
    return np.fromiter(map(id_hash, ids), np.uint64, len(ids))


def build(shards: Sequence[str], ids: Iterable[Sequence[str] | NDArray[np.uint64]], digest: int) -> bytes:
    """Encode an index.

    Args:
        shards: names of the shards.
        ids: utterance ids of each shard, or their hashes, in the order of its records.
        digest: digest of the entries' names.
    """
    parts = []
    for shard, shard_ids in enumerate(ids):
        part = np.zeros(len(shard_ids), RECORD)
        part["hash"] = shard_ids if isinstance(shard_ids, np.ndarray) else hashes(shard_ids)
        part["shard"], part["number"] = shard, np.arange(len(shard_ids))
        parts.append(part)
    table = np.concatenate(parts) if parts else np.zeros(0, RECORD)
    table.sort(order=("hash", "shard", "number"))
    bits = _bits(len(table))
    edges = np.arange((1 << bits) + 1, dtype=np.uint64)
    fan = np.empty(len(edges), "<u8")
    fan[:-1] = np.searchsorted(table["hash"], edges[:-1] << np.uint64(64 - bits)) if bits else 0
    fan[-1] = len(table)
    crc = np.array([crc32c(table[a:b]) for a, b in pairwise(fan)], "<u4")
    names_json = canonical(list(shards))
    names_json += b" " * (-len(names_json) % 8)
    pad = bytes(-crc.nbytes % 8)
    tables = names_json + fan.tobytes() + crc.tobytes() + pad
    head = _HEADER.pack(MAGIC, len(table), bits, len(names_json), digest, crc32c(tables), 0)[:-4]
    return head + crc32c(head).to_bytes(4, "little") + tables + table.tobytes()


def _bits(records: int) -> int:
    """Return the number of leading hash bits that choose a bucket."""
    return min(MAX_BITS, max(0, math.ceil(math.log2(records / RECORDS_PER_BUCKET)))) if records else 0


def open_index(raw: NDArray[np.uint8]) -> Index:
    """Open the bytes of an index; raise ``FormatError`` or ``CorruptError``."""
    where = "index.bin"
    if len(raw) < _HEADER.size:
        raise FormatError(f"its {len(raw)} bytes are not an index (SPEC I1)", where=where)
    head = raw[: _HEADER.size].tobytes()
    magic, records, bits, names_bytes, digest, crc_tables, crc_head = _HEADER.unpack(head)
    if magic != MAGIC or crc32c(head[:-4]) != crc_head:
        raise CorruptError("its header is damaged (SPEC I1)", where=where)
    buckets = 1 << min(bits, MAX_BITS)
    fan_begin = _HEADER.size + names_bytes
    crc_begin = fan_begin + 8 * (buckets + 1)
    crc_end = crc_begin + 4 * buckets
    table_begin = crc_end + -(4 * buckets) % 8
    if bits > _bits(records) + SPARE_BITS or table_begin + records * RECORD.itemsize != len(raw):
        raise FormatError(f"its {len(raw)} bytes do not hold {records} records (SPEC I1)", where=where)
    if crc32c(raw[_HEADER.size : table_begin]) != crc_tables:
        raise CorruptError("its fan-out is damaged (SPEC I3)", where=where)
    shards = parse_json(raw[_HEADER.size : fan_begin].tobytes(), where)
    if not isinstance(shards, list) or not all(isinstance(s, str) and s and "/" not in s for s in shards):
        raise FormatError("its shard names are not a list of names (SPEC I1)", where=where)
    fan = raw[fan_begin:crc_begin].view("<u8")
    if int(fan[0]) != 0 or int(fan[-1]) != records or bool((fan[1:] < fan[:-1]).any()):
        raise FormatError("its fan-out decreases (SPEC I3)", where=where)
    if int((fan[1:] - fan[:-1]).max()) > MAX_BUCKET:
        raise FormatError(f"a bucket has more than {MAX_BUCKET} records (SPEC I3)", where=where)
    return Index(
        shards=tuple(shards),
        records=records,
        digest=digest,
        _bits=bits,
        _fan=fan,
        _crc=raw[crc_begin:crc_end].view("<u4"),
        _table=raw[table_begin:].view(RECORD),
        _checked=np.zeros(buckets, bool),
    )
