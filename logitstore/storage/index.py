"""An index run: finds shard and number of a record by utterance id, for the shards that the run covers.

A run is an immutable file, mapped into memory. Its layout (little-endian; SPEC I2): a header of 80 bytes; one
line of text for each shard; the first hash and the CRC-32C of every block of 512 rows; the sorted hashes; the
number of each row's record; where each id begins; the ids. Opening reads the header, the shards and the table
of blocks. A look-up reads and checks one block, and compares the id itself.
"""

from __future__ import annotations

import hashlib
import re
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptError, FormatError
from ..schema.checksums import crc32c, id_hash
from .entries import Entry, RecordIds, is_name

MAGIC = b"LOGITIDX"
BLOCK = 512  # rows with a checksum of their own
MAX_RECORDS = (1 << 32) - 1
# magic, records, bytes of the shard lines, bytes of the ids, identity of the store, CRC-32C of shard lines and
# block table, CRC-32C of the ids and where they begin, zeros, CRC-32C of the header
_HEADER = struct.Struct("<8sQQQ32sIIII")
_SHARD = re.compile(r"([A-Za-z0-9._-]{1,200}) (0|[1-9]\d{0,9}) (0|[1-9]\d{0,9})", re.ASCII)
_FILE = re.compile(r"[0-9a-f]{32}\.idx")


@dataclass(frozen=True)
class CoveredShard:
    """One shard that an index run covers, with the ids of its records.

    Attributes:
        name: name of the shard.
        checksum: CRC-32C of the file of its entry.
        ids: ids of its records.
        hashes: (N,) their hashes.
    """

    name: str
    checksum: int
    ids: RecordIds
    hashes: NDArray[np.uint64] = field(repr=False)

    @classmethod
    def of(cls, entry: Entry) -> CoveredShard:
        """Return what an index run holds of a sealed shard."""
        return cls(entry.shard, entry.checksum, entry.record_ids, hashes(entry.ids))


@dataclass(frozen=True, eq=False)
class IndexRun:
    """An opened index run.

    Attributes:
        store: identity of the store that it belongs to.
        shards: names of the shards that it covers, in order.
        checksums: CRC-32C of the file of each shard's entry.
        first: number, within the run, of each shard's first record, and the number of all records.
    """

    store: str
    shards: tuple[str, ...]
    checksums: tuple[int, ...]
    first: tuple[int, ...]
    _fence: Any = field(repr=False)
    _block_crc: Any = field(repr=False)
    _hash: Any = field(repr=False)
    _number: Any = field(repr=False)
    _begin: Any = field(repr=False)
    _text: Any = field(repr=False)
    _text_crc: int = field(repr=False)
    _checked: bytearray = field(repr=False)

    @property
    def records(self) -> int:
        """Number of records of all its shards."""
        return self.first[-1]

    def table(self) -> dict[str, tuple[int, int]]:
        """Return (CRC-32C of the entry, number of records) by the name of each shard."""
        counts = (b - a for a, b in pairwise(self.first))
        return dict(zip(self.shards, zip(self.checksums, counts, strict=True), strict=True))

    def find(self, utt_id: str, key: int) -> Iterator[tuple[int, int]]:
        """Yield (position of the shard in ``shards``, number in the shard) of every record of an id.

        Args:
            utt_id: the id.
            key: its hash.
        """
        begin = max(bisect_left(self._fence, key) - 1, 0) * BLOCK
        end = min(bisect_right(self._fence, key) * BLOCK, self.records)
        for block in range(begin // BLOCK, -(-end // BLOCK)):
            self._check_block(block)
        row = bisect_left(self._hash, key, begin, end) if end else 0
        if row + BLOCK < end and self._hash[row + BLOCK] == key:
            raise FormatError(f"more than {BLOCK} ids have one hash (SPEC I2)", where="index")
        wanted = utt_id.encode("utf-8")
        while row < end and self._hash[row] == key:
            number = self._number[row]
            if number >= self.records:
                raise FormatError(f"it refers to record {number} of {self.records} (SPEC I2)", where="index")
            stored = bytes(self._text[self._begin[number] : self._begin[number + 1]])[:-1]
            if stored != wanted:
                if id_hash(stored.decode("utf-8", "replace")) != key:
                    raise _damaged("an id of the index is damaged (SPEC I2)")
            else:
                shard = bisect_right(self.first, number) - 1
                yield shard, number - self.first[shard]
            row += 1

    def ids(self, shard: int) -> RecordIds:
        """Return the ids of the records of a shard, by its position in ``shards``."""
        a, b = self.first[shard], self.first[shard + 1]
        text = bytes(self._text[self._begin[a] : self._begin[b]])
        if text.count(b"\n") != b - a:
            raise _damaged(f"it does not hold {b - a} ids of shard {self.shards[shard]} (SPEC I2)")
        return RecordIds(text, b - a)

    def covered(self) -> list[CoveredShard]:
        """Return every shard with its ids and hashes; raises ``CorruptError`` where the run is damaged."""
        if not self.intact():
            raise _damaged("the index is damaged (SPEC I2)")
        by_number = np.empty(self.records, np.uint64)
        by_number[np.asarray(self._number)] = np.asarray(self._hash)
        return [
            CoveredShard(name, checksum, self.ids(n), by_number[self.first[n] : self.first[n + 1]])
            for n, (name, checksum) in enumerate(zip(self.shards, self.checksums, strict=True))
        ]

    def intact(self) -> bool:
        """Return whether everything matches its checksum; reads the whole run."""
        try:
            for block in range(len(self._block_crc)):
                self._check_block(block)
        except CorruptError:
            return False
        if crc32c(bytes(self._text), crc32c(bytes(self._begin))) != self._text_crc:
            return False
        if not self.records:
            return True
        begin, number, keys = (np.asarray(a) for a in (self._begin, self._number, self._hash))
        return (
            int(begin[0]) == 0
            and int(begin[-1]) == len(self._text)
            and bool((begin[1:] > begin[:-1]).all())
            and int(number.max()) < self.records
            and bool((keys[1:] >= keys[:-1]).all())
        )

    def _check_block(self, block: int) -> None:
        if self._checked[block]:
            return
        rows = slice(block * BLOCK, (block + 1) * BLOCK)
        found = crc32c(bytes(self._number[rows]), crc32c(bytes(self._hash[rows])))
        if found != self._block_crc[block]:
            raise _damaged("a block of the index is damaged (SPEC I2)")
        self._checked[block] = True


def _damaged(what: str) -> CorruptError:
    return CorruptError(
        what, where="index", do="Build the index again from the sealed entries: logitstore index STORE."
    )


def is_run_name(name: str) -> bool:
    """Return whether a file of ``index/`` has the name of an index run."""
    return _FILE.fullmatch(name) is not None


def run_name(data: bytes) -> str:
    """Return the name of an index run in a store: the first 32 digits of its SHA-256."""
    return f"index/{hashlib.sha256(data).hexdigest()[:32]}.idx"


def hashes(ids: Iterable[str]) -> NDArray[np.uint64]:
    """Return (N,) uint64: the hashes of utterance ids."""
    return np.fromiter(map(id_hash, ids), np.uint64)


def build_run(store: str, shards: Iterable[CoveredShard]) -> bytes:
    """Encode an index run.

    Args:
        store: identity of the store, ``sha256:HEX``.
        shards: the shards to cover; the run holds them sorted by name.
    """
    shards = sorted(shards, key=lambda shard: shard.name)
    records = sum(len(shard.ids) for shard in shards)
    if records > MAX_RECORDS:
        raise FormatError(f"{records} records are too many for one index run (SPEC I2)", where="index")
    by_number = np.concatenate([np.zeros(0, np.uint64), *(shard.hashes for shard in shards)])
    order = np.argsort(by_number, kind="stable")
    keys, number = by_number[order].astype("<u8"), order.astype("<u4")
    text = b"".join(shard.ids.text for shard in shards)
    starts = accumulate((len(shard.ids.text) for shard in shards), initial=0)
    begin = [shard.ids.begin[:-1] + start for shard, start in zip(shards, starts, strict=False)]
    begin_bytes = np.concatenate([*begin, [len(text)]]).astype("<u8").tobytes()
    lines = "".join(f"{s.name} {len(s.ids)} {s.checksum}\n" for s in shards).encode("ascii")
    lines += b" " * (-len(lines) % 8)
    blocks = range(0, records, BLOCK)
    block_crc = np.array(
        [crc32c(number[a : a + BLOCK], crc32c(keys[a : a + BLOCK])) for a in blocks], "<u4"
    ).tobytes()
    tables = lines + keys[::BLOCK].tobytes() + block_crc + bytes(-len(block_crc) % 8)
    ids_crc = crc32c(text, crc32c(begin_bytes))
    head = _HEADER.pack(MAGIC, records, len(lines), len(text), _digest(store), crc32c(tables), ids_crc, 0, 0)[
        :-4
    ]
    number_bytes = number.tobytes() + bytes(-number.nbytes % 8)
    checksum = crc32c(head).to_bytes(4, "little")
    return b"".join((head, checksum, tables, keys.tobytes(), number_bytes, begin_bytes, text))


def _digest(store: str) -> bytes:
    return bytes.fromhex(store.removeprefix("sha256:"))


def open_run(raw: NDArray[np.uint8], where: str = "index") -> IndexRun:
    """Open the bytes of an index run; raise ``FormatError`` or ``CorruptError``."""
    if len(raw) < _HEADER.size:
        raise FormatError(f"its {len(raw)} bytes are not an index (SPEC I2)", where=where)
    head = raw[: _HEADER.size].tobytes()
    magic, records, line_bytes, text_bytes, store, tables_crc, text_crc, _, head_crc = _HEADER.unpack(head)
    if magic != MAGIC or crc32c(head[:-4]) != head_crc:
        raise CorruptError("its header is damaged (SPEC I2)", where=where)
    blocks = -(-records // BLOCK)
    sizes = (line_bytes, 8 * blocks, -(-4 * blocks // 8) * 8, 8 * records, -(-4 * records // 8) * 8)
    edges = list(accumulate((*sizes, 8 * (records + 1), text_bytes), initial=_HEADER.size))
    if line_bytes % 8 or edges[-1] != len(raw):
        raise FormatError(f"its {len(raw)} bytes do not hold {records} records (SPEC I2)", where=where)
    if crc32c(raw[edges[0] : edges[3]]) != tables_crc:
        raise CorruptError("its tables are damaged (SPEC I2)", where=where)
    if raw[edges[4] + 4 * records : edges[5]].any():
        raise FormatError("its numbers are not filled up with zeros (SPEC I2)", where=where)
    lines = raw[edges[0] : edges[1]].tobytes().decode("utf-8", "replace").split("\n")
    found = [_SHARD.fullmatch(line) for line in lines[:-1]]
    if lines[-1].strip(" ") or not all(m and is_name(m[1]) for m in found):
        raise FormatError("its shards are not lines of a name and two integers (SPEC I2)", where=where)
    listed = [(m[1], int(m[2]), int(m[3])) for m in found if m]
    first = tuple(accumulate((count for _, count, _ in listed), initial=0))
    if first[-1] != records or len({name for name, _, _ in listed}) != len(listed):
        raise FormatError(f"its shards do not have {records} records (SPEC I2)", where=where)
    mapped = memoryview(raw)  # type: ignore[arg-type]
    return IndexRun(
        store=f"sha256:{store.hex()}",
        shards=tuple(name for name, _, _ in listed),
        checksums=tuple(checksum for _, _, checksum in listed),
        first=first,
        _fence=mapped[edges[1] : edges[2]].cast("Q"),
        _block_crc=mapped[edges[2] : edges[2] + 4 * blocks].cast("I"),
        _hash=mapped[edges[3] : edges[4]].cast("Q"),
        _number=mapped[edges[4] : edges[4] + 4 * records].cast("I"),
        _begin=mapped[edges[5] : edges[6]].cast("Q"),
        _text=mapped[edges[6] : edges[7]],
        _text_crc=text_crc,
        _checked=bytearray(blocks),
    )
