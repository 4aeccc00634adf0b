"""Sealed entries: a shard exists if and only if its sealed entry exists (SPEC C1)."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptError, FormatError, ManifestError, StoreError, UsageError, Vanished
from ..schema.checksums import open_json, seal_json
from ..schema.ids import check_id
from .base import ShardContents, ShardFile
from .index import Index, build, entries_digest, hashes, open_index
from .places import Place


@dataclass(frozen=True)
class Entry:
    """The content of ``sealed/NAME.json``, the sealed entry of one shard.

    Attributes:
        shard: name of the shard.
        ids: utterance ids, in the order of the records.
        seconds: total audio in seconds.
        frames: total number of teacher frames.
        contents: the shard's files and layout; no files for a shard without records.
        skipped: ``id``, ``reason`` and ``what`` of the utterances that could not be dumped into this shard.
        replaces: names of the shards that this one replaces (SPEC C6).
    """

    shard: str
    ids: tuple[str, ...]
    seconds: float
    frames: int
    contents: ShardContents
    skipped: tuple[dict[str, str], ...] = field(default=())
    replaces: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        return seal_json(
            {
                "shard": self.shard,
                "rows": len(self.ids),
                "seconds": round(self.seconds, 6),
                "frames": self.frames,
                "files": [asdict(f) for f in self.contents.files],
                "layout": self.contents.layout,
                "ids": list(self.ids),
                "skipped": list(self.skipped),
                **({"replaces": list(self.replaces)} if self.replaces else {}),
            }
        )

    @property
    def bytes(self) -> int:
        """Total size of the shard's files in bytes."""
        return sum(f.bytes for f in self.contents.files)


def entry_name(shard: str) -> str:
    """Return the name of a shard's entry in a store."""
    return f"sealed/{shard}.json"


def shard_names(place: Place) -> list[str]:
    """Return the names of all sealed shards, sorted, including those that another one replaces (SPEC C6)."""
    found = (n.removesuffix(".json") for n in place.names("sealed") if n.endswith(".json"))
    return [n for n in found if is_name(n)]


def is_name(shard: object) -> bool:
    """Return whether a value is a valid name of a shard (SPEC S1)."""
    return isinstance(shard, str) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", shard) is not None


def read_entry(place: Place, shard: str) -> Entry:
    """Read the entry of a shard.

    Raises:
        Vanished: there is no such entry.
        FormatError: the entry breaks a rule of SPEC.md.
        CorruptError: the entry does not match its checksum.
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
    return parse_entry(data, shard, where)


def parse_entry(data: bytes, shard: str, where: str) -> Entry:
    """Parse the entry of a shard; raise ``FormatError`` or ``CorruptError``."""
    try:
        value: dict[str, Any] = open_json(data, where)
    except CorruptError as e:
        e.do = "Restore it from a copy, or repair the store (logitstore verify --repair) and dump again."
        raise
    try:
        files = [ShardFile(str(f["path"]), int(f["bytes"]), int(f["crc32c"])) for f in value["files"]]
        entry = Entry(
            shard=value["shard"],
            ids=tuple(check_id(i) for i in value["ids"]),
            seconds=float(value["seconds"]),
            frames=int(value["frames"]),
            contents=ShardContents(files, dict(value["layout"])),
            skipped=tuple({str(k): str(v) for k, v in s.items()} for s in value.get("skipped", ())),
            replaces=tuple(value.get("replaces", ())),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, ManifestError) as e:
        raise FormatError(f"it is not a sealed entry: {e!r} (SPEC C2)", where=where) from None
    if entry.shard != shard or value.get("rows") != len(entry.ids):
        raise FormatError(
            f"it describes shard {entry.shard!r}, or another number of records (SPEC C2)", where=where
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


OnDamaged = Callable[[str, StoreError], None]


def read_ids(place: Place, damaged: OnDamaged | None = None) -> tuple[dict[str, NDArray[np.uint64]], int]:
    """Return the id hashes of every shard by name, and the digest of all entries (SPEC I5).

    Replaced shards are left out. The result is consistent: if entries appear or disappear meanwhile, all are
    listed again.

    Args:
        place: place of the store.
        damaged: called with the name and the error of an entry that cannot be read, which is then left out;
            without it the error is raised.
    """
    known: dict[str, tuple[NDArray[np.uint64], tuple[str, ...]]] = {}  # id hashes and replaced shards
    names = shard_names(place)
    while True:
        known = {n: known[n] for n in names if n in known}
        for name in names:
            if name not in known:
                try:
                    entry = read_entry(place, name)
                    known[name] = hashes(entry.ids), entry.replaces
                except Vanished:
                    continue
                except StoreError as e:
                    if damaged is None:
                        raise
                    damaged(name, e)
                    known[name] = hashes(()), ()
        before, names = names, shard_names(place)
        if before == names and len(known) == len(names):
            break
    replaced = {n for _, replaces in known.values() for n in replaces}
    return {n: known[n][0] for n in names if n not in replaced}, entries_digest(names)


def current_index(place: Place, *, write: bool = False, damaged: OnDamaged | None = None) -> Index:
    """Return the index over all sealed entries; build it again if it is missing, damaged or out of date.

    Args:
        place: place of the store.
        write: write a new index to the store.
        damaged: see :func:`read_ids`; an index that lacks a damaged entry must not be written.
    """
    if place.exists("index.bin"):
        with suppress(CorruptError, FormatError, FileNotFoundError):
            index = open_index(place.map("index.bin"))
            names = shard_names(place)
            if index.digest == entries_digest(names) and (
                not write or (_is_plausible(place, index, names) and index.intact())
            ):
                return index
    ids, digest = read_ids(place, damaged)
    data = build(list(ids), ids.values(), digest)
    if write:
        place.write("index.bin", data)
    return open_index(np.frombuffer(data, np.uint8))


def _is_plausible(place: Place, index: Index, names: list[str]) -> bool:
    """Return whether the entries are large enough to list as many ids as the index has records."""
    bytes_of_an_id = 4  # in JSON: quotes, a comma and at least one character
    return index.records * bytes_of_an_id <= sum(place.size(entry_name(n)) for n in names)


DEFAULT_SHARD_SIZE = "500"


@dataclass(frozen=True)
class ShardSize:
    """The size of one shard.

    Attributes:
        utterances: largest number of utterances; 0 for no limit.
        seconds: seconds of audio from which on a shard is complete; 0 for no limit.
    """

    utterances: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> ShardSize:
        """Parse a number of utterances (``500``) or an amount of audio (``90s``, ``30m``, ``2h``)."""
        m = re.fullmatch(r"(\d{1,9})([smh]?)", text)
        if not m or int(m[1]) == 0:
            raise UsageError(
                f"{text!r} is not a shard size",
                do="Give a number of utterances (500) or an amount of audio (90s, 30m, 2h).",
            )
        if not m[2]:
            return cls(utterances=int(m[1]))
        return cls(seconds=float(int(m[1]) * {"s": 1, "m": 60, "h": 3600}[m[2]]))
