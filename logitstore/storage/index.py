"""Finds a row by utterance id without loading an id: sorted 64-bit hashes behind a fan-out, memory-mapped.

Layout (little-endian; SPEC I1-I4): a header of 64 bytes, shard names as JSON, the fan-out (2^bits + 1 × u64:
where each bucket of leading hash bits begins), a CRC-32C a bucket (u32), then 16 bytes a row: hash u64, shard
u32, row u32, sorted. Opening costs the header; a look-up reads and checks one bucket.
"""

from __future__ import annotations

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
ROW = np.dtype([("hash", "<u8"), ("shard", "<u4"), ("row", "<u4")])
_HEADER = struct.Struct(
    "<8sQQQQI16xI"
)  # magic, rows, bits, bytes of names, digest, crc of tables, crc of these
PER_BUCKET = 64


@dataclass(frozen=True)
class Index:
    """A mapped index.

    Attributes:
        shards: names, in order.
        rows: utterances.
        digest: of the sealed entries it was made from.
    """

    shards: tuple[str, ...]
    rows: int
    digest: int
    _bits: int
    _fan: NDArray[np.uint64] = field(repr=False)
    _crc: NDArray[np.uint32] = field(repr=False)
    _table: NDArray[Any] = field(repr=False)
    _checked: NDArray[np.bool_] = field(repr=False)

    def find(self, utt_id: str) -> list[tuple[str, int]]:
        """Shard and row of every row whose id has this hash; the caller compares the ids themselves."""
        key = id_hash(utt_id)
        bucket = key >> (64 - self._bits) if self._bits else 0
        a, b = int(self._fan[bucket]), int(self._fan[bucket + 1])
        rows = self._table[a:b]
        if not self._checked[bucket]:
            if crc32c(rows) != self._crc[bucket]:
                raise CorruptError(
                    "a bucket of the index is damaged (SPEC I4)",
                    where="index.bin",
                    do="logitstore index STORE makes it anew from the sealed entries.",
                )
            self._checked[bucket] = True
        hashes = rows["hash"]
        i = int(np.searchsorted(hashes, np.uint64(key)))
        found = []
        while i < len(rows) and int(hashes[i]) == key:
            shard = int(rows["shard"][i])
            if shard >= len(self.shards):
                raise FormatError(f"shard {shard} of {len(self.shards)} (SPEC I4)", where="index.bin")
            found.append((self.shards[shard], int(rows["row"][i])))
            i += 1
        return found

    def intact(self) -> bool:
        """Whether every bucket matches its checksum; reads all of the index."""
        return all(
            crc32c(self._table[a:b]) == c for (a, b), c in zip(pairwise(self._fan), self._crc, strict=True)
        )

    def repeated(self) -> list[tuple[str, int]]:
        """Rows whose hash stands more than once: duplicate ids, or collisions."""
        hashes = self._table["hash"]
        same = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
        return [(self.shards[int(self._table["shard"][i])], int(self._table["row"][i])) for i in same]


def entries_digest(names: Iterable[str]) -> int:
    """What an index remembers of the sealed entries it was made from, to know when it is stale."""
    return id_hash("\n".join(sorted(names)))


def hashes(ids: Sequence[str]) -> NDArray[np.uint64]:
    """(N,) what the index finds ids by."""
    return np.fromiter(map(id_hash, ids), np.uint64, len(ids))


def build(shards: Sequence[str], ids: Iterable[Sequence[str] | NDArray[np.uint64]], digest: int) -> bytes:
    """The bytes of an index over shards and the ids of each, or their hashes."""
    parts = []
    for number, names in enumerate(ids):
        part = np.zeros(len(names), ROW)
        part["hash"] = names if isinstance(names, np.ndarray) else hashes(names)
        part["shard"], part["row"] = number, np.arange(len(names))
        parts.append(part)
    table = np.concatenate(parts) if parts else np.zeros(0, ROW)
    table.sort(order=("hash", "shard", "row"))
    bits = max(0, int(np.ceil(np.log2(max(len(table), 1) / PER_BUCKET)))) if len(table) else 0
    edges = np.arange((1 << bits) + 1, dtype=np.uint64)
    fan = np.empty(len(edges), "<u8")
    fan[:-1] = np.searchsorted(table["hash"], edges[:-1] << np.uint64(64 - bits)) if bits else 0
    fan[-1] = len(table)
    crc = np.array(
        [crc32c(table[a:b]) for a, b in pairwise(fan)],
        "<u4",
    )
    names_json = canonical(list(shards))
    names_json += b" " * (-len(names_json) % 8)
    pad = bytes(-crc.nbytes % 8)
    tables = names_json + fan.tobytes() + crc.tobytes() + pad
    head = _HEADER.pack(MAGIC, len(table), bits, len(names_json), digest, crc32c(tables), 0)[:-4]
    return head + crc32c(head).to_bytes(4, "little") + tables + table.tobytes()


def open_index(raw: NDArray[np.uint8]) -> Index:
    """Raises ``FormatError`` or ``CorruptError``."""
    where = "index.bin"
    if len(raw) < _HEADER.size:
        raise FormatError(f"{len(raw)} bytes are no index (SPEC I1)", where=where)
    head = raw[: _HEADER.size].tobytes()
    magic, rows, bits, names_bytes, digest, crc_tables, crc_head = _HEADER.unpack(head)
    if magic != MAGIC or crc32c(head[:-4]) != crc_head:
        raise CorruptError("its header is damaged (SPEC I1)", where=where)
    buckets = 1 << min(bits, 40)
    a = _HEADER.size + names_bytes
    b = a + 8 * (buckets + 1)
    c = b + 4 * buckets
    d = c + -(4 * buckets) % 8
    if bits > 40 or d + rows * ROW.itemsize != len(raw):
        raise FormatError(f"{len(raw)} bytes do not hold {rows} rows (SPEC I1)", where=where)
    if crc32c(raw[_HEADER.size : d]) != crc_tables:
        raise CorruptError("its fan-out is damaged (SPEC I3)", where=where)
    shards = parse_json(raw[_HEADER.size : a].tobytes(), where)
    if not isinstance(shards, list) or not all(isinstance(s, str) and s and "/" not in s for s in shards):
        raise FormatError("its shard names are not a list of names (SPEC I1)", where=where)
    fan = raw[a:b].view("<u8")
    if int(fan[0]) != 0 or int(fan[-1]) != rows or bool((fan[1:] < fan[:-1]).any()):
        raise FormatError("its fan-out goes back (SPEC I3)", where=where)
    return Index(
        shards=tuple(shards),
        rows=rows,
        digest=digest,
        _bits=bits,
        _fan=fan,
        _crc=raw[b:c].view("<u4"),
        _table=raw[d:].view(ROW),
        _checked=np.zeros(buckets, bool),
    )
