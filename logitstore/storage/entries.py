"""Sealed entries: a shard exists if and only if its sealed entry exists (SPEC C1).

An entry is sealed JSON, the head, with the ids of the shard's records behind it, one a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptError, FormatError, IdentityError, Vanished
from ..schema.checksums import crc32c, seal_json, split_sealed
from ..schema.ids import MAX_ID_BYTES
from .base import ShardContents, ShardFile
from .places import Place

SUFFIX = ".entry"
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_LINE_FEED = 10


class RecordIds(Sequence[str]):
    """The ids of a shard's records, in record order; held as UTF-8 and decoded when they are asked for.

    Args:
        text: the ids, each followed by a line feed.
        count: number of ids.

    Attributes:
        text: the ids, each followed by a line feed.
    """

    def __init__(self, text: bytes, count: int) -> None:
        self.text, self._count = text, count

    @classmethod
    def of(cls, ids: Iterable[str]) -> RecordIds:
        """Return the ids of a sequence of strings."""
        lines = [f"{utt_id}\n" for utt_id in ids]
        return cls("".join(lines).encode("utf-8"), len(lines))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[str, ...]: ...

    def __getitem__(self, at: int | slice) -> str | tuple[str, ...]:
        if isinstance(at, slice):
            return tuple(self[n] for n in range(*at.indices(self._count)))
        number = at + self._count if at < 0 else at
        if not 0 <= number < self._count:
            raise IndexError(f"record {at} of {self._count}")
        return self.text[self.begin[number] : self.begin[number + 1] - 1].decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return iter(self.text.decode("utf-8").split("\n")[:-1])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, RecordIds):
            return self.text == other.text
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"RecordIds({list(self)})"

    @cached_property
    def begin(self) -> NDArray[np.int64]:
        """(N + 1,) first byte of each id in ``text``, and the end."""
        feeds = np.flatnonzero(np.frombuffer(self.text, np.uint8) == _LINE_FEED)
        return np.concatenate([np.zeros(1, np.int64), feeds + 1])


@dataclass(frozen=True)
class Entry:
    """The content of ``sealed/SHARD.entry``, the sealed entry of one shard.

    Attributes:
        shard: name of the shard.
        ids: utterance ids, in the order of the records.
        seconds: total audio in seconds.
        frames: total number of teacher frames.
        contents: the shard's files and layout; no files for a shard without records.
        skipped: ``id``, ``reason`` and ``what`` of the utterances that could not be dumped into this shard.
        replaces: names of the shards that this one replaces (SPEC C6).
        identity: identity of the store that the shard was made for (SPEC F5).
        checksum: CRC-32C of the entry's file.
    """

    shard: str
    ids: Sequence[str]
    seconds: float
    frames: int
    contents: ShardContents
    skipped: tuple[dict[str, str], ...] = ()
    replaces: tuple[str, ...] = ()
    identity: str = ""
    checksum: int = field(default=-1, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.ids, RecordIds):
            object.__setattr__(self, "ids", RecordIds.of(self.ids))

    @property
    def record_ids(self) -> RecordIds:
        """The ids with their bytes."""
        assert isinstance(self.ids, RecordIds)
        return self.ids

    def to_bytes(self) -> bytes:
        """Return the bytes of the entry's file (SPEC C2)."""
        text = self.record_ids.text
        head = {
            "shard": self.shard,
            "identity": self.identity,
            "records": len(self.ids),
            "seconds": round(self.seconds, 6),
            "frames": self.frames,
            "files": [asdict(f) for f in self.contents.files],
            "layout": self.contents.layout,
            "skipped": list(self.skipped),
            **({"replaces": list(self.replaces)} if self.replaces else {}),
            "ids": {"bytes": len(text), "crc32c": crc32c(text)},
        }
        return seal_json(head) + text

    @property
    def bytes(self) -> int:
        """Total size of the shard's files in bytes."""
        return sum(f.bytes for f in self.contents.files)


def entry_name(shard: str) -> str:
    """Return the name of a shard's entry in a store."""
    return f"sealed/{shard}{SUFFIX}"


def shard_names(place: Place) -> list[str]:
    """Return the names of all sealed shards, sorted, including those that another one replaces (SPEC C6)."""
    found = (n.removesuffix(SUFFIX) for n in place.names("sealed") if n.endswith(SUFFIX))
    return sorted(n for n in found if is_name(n))


def is_name(shard: object) -> bool:
    """Return whether a value is a valid name of a shard (SPEC S1)."""
    return isinstance(shard, str) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", shard) is not None


def read_entry(place: Place, shard: str, store: str = "") -> Entry:
    """Read the entry of a shard.

    Args:
        place: place of the store.
        shard: name of the shard.
        store: identity of the store, which the entry must carry; empty to accept any.

    Raises:
        Vanished: there is no such entry.
        FormatError: the entry breaks a rule of SPEC.md.
        CorruptError: the entry does not match its checksum.
        IdentityError: the shard belongs to another store.
    """
    where = entry_name(shard)
    if not is_name(shard):
        raise FormatError(f"{shard!r} is not a valid name of a shard (SPEC S1)", where=where)
    try:
        data = place.read(where)
    except FileNotFoundError:
        raise Vanished(
            "the entry does not exist: the shard was removed or replaced (SPEC C1)", where=where
        ) from None
    entry = parse_entry(data, shard, where)
    if store and entry.identity != store:
        raise IdentityError(
            "the shard belongs to another store (SPEC C2)",
            where=where,
            why=f"Its entry says that it was made for the store {entry.identity[:19]}…, this one is {store[:19]}…: "
            "another teacher, token table, encoding or storage backend.",
            do="Remove the entry and its shard, or put the right logitstore.json back.",
        )
    return entry


def parse_entry(data: bytes, shard: str, where: str) -> Entry:
    """Parse the entry of a shard; raise ``FormatError`` or ``CorruptError``."""
    try:
        value, end = split_sealed(data, where, more=True)
    except CorruptError as e:
        e.do = "Restore it from a copy, or repair the store (logitstore verify --repair) and dump again."
        raise
    try:
        files = [ShardFile(str(f["path"]), int(f["bytes"]), int(f["crc32c"])) for f in value["files"]]
        records, size, checksum = value["records"], value["ids"]["bytes"], value["ids"]["crc32c"]
        if not all(type(n) is int and n >= 0 for n in (records, size, checksum)):
            raise ValueError("a count is not an integer")
        entry = Entry(
            shard=value["shard"],
            ids=RecordIds(data[end:], records),
            seconds=float(value["seconds"]),
            frames=int(value["frames"]),
            contents=ShardContents(files, dict(value["layout"])),
            skipped=tuple({str(k): str(v) for k, v in s.items()} for s in value.get("skipped", ())),
            replaces=tuple(value.get("replaces", ())),
            identity=value["identity"],
            checksum=crc32c(data),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as e:
        raise FormatError(f"it is not a sealed entry: {e!r} (SPEC C2)", where=where) from None
    if len(data) != end + size or records > size:
        raise FormatError(
            f"{len(data) - end} bytes follow its head, not {size} of {records} ids (SPEC C2)", where=where
        )
    _check_ids(entry.record_ids.text, records, checksum, where)
    if entry.shard != shard or not isinstance(entry.identity, str):
        raise FormatError(
            f"it describes shard {entry.shard!r} of store {entry.identity!r} (SPEC C2)", where=where
        )
    if not all(map(is_name, entry.replaces)):
        raise FormatError(
            f"it replaces {entry.replaces!r}, which are not names of shards (SPEC C6)", where=where
        )
    for f in files:
        parts = f.path.split("/")
        if parts[0] != "shards" or {"", ".", ".."} & set(parts) or "\0" in f.path or f.bytes < 0:
            raise FormatError(f"its file {f.path!r} is not below shards/ (SPEC C2)", where=where)
    return entry


def _check_ids(text: bytes, count: int, checksum: int, where: str) -> None:
    """Raise ``CorruptError`` or ``FormatError`` unless text is the lines of so many valid ids."""
    if crc32c(text) != checksum:
        raise CorruptError(
            "the ids do not match their checksum (SPEC C2)",
            where=where,
            why="The file was changed or damaged after it was written.",
            do="Restore it from a copy, or repair the store (logitstore verify --repair) and dump again.",
        )
    feeds = np.flatnonzero(np.frombuffer(text, np.uint8) == _LINE_FEED)
    lengths = np.diff(feeds, prepend=-1) - 1
    try:
        good = (
            len(feeds) == count
            and (not count or 1 <= int(lengths.min()) <= int(lengths.max()) <= MAX_ID_BYTES)
            and text.endswith(b"\n" if count else b"")
            and not _CONTROL.search(text.decode("utf-8"))
        )
    except UnicodeDecodeError:
        good = False
    if not good:
        raise FormatError(f"its ids are not {count} lines of ids (SPEC C2)", where=where)
