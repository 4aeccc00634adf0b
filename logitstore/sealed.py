"""Sealed entries: a shard exists if and only if its entry exists (SPEC C1)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .digest import open_json, seal_json
from .errors import CorruptError, FormatError, ManifestError
from .index import Index, build, entries_digest, open_index
from .manifest import check_id
from .places import Place
from .storage.base import Sealing, ShardFile


@dataclass(frozen=True)
class Entry:
    """What ``sealed/NAME.json`` says of a shard.

    Attributes:
        shard: its name.
        ids: utterances, in row order.
        seconds: of audio, summed.
        frames: teacher frames, summed.
        sealing: files with sizes and checksums, and the storage's layout; no files where nothing was kept.
        skipped: utterances of this part of the manifest that could not be dumped: id, reason, what.
    """

    shard: str
    ids: tuple[str, ...]
    seconds: float
    frames: int
    sealing: Sealing
    skipped: tuple[dict[str, str], ...] = field(default=())

    def to_bytes(self) -> bytes:
        return seal_json(
            {
                "shard": self.shard,
                "rows": len(self.ids),
                "seconds": round(self.seconds, 6),
                "frames": self.frames,
                "files": [asdict(f) for f in self.sealing.files],
                "layout": self.sealing.layout,
                "ids": list(self.ids),
                "skipped": list(self.skipped),
            }
        )

    @property
    def bytes(self) -> int:
        """Bytes of the shard's files."""
        return sum(f.bytes for f in self.sealing.files)


def entry_name(shard: str) -> str:
    """Where the entry of a shard lies in a store."""
    return f"sealed/{shard}.json"


def shard_names(place: Place) -> list[str]:
    """Names of all sealed shards, sorted."""
    return [n.removesuffix(".json") for n in place.names("sealed") if n.endswith(".json") and n[0] != "."]


def read_entry(place: Place, shard: str) -> Entry:
    """Raises ``FormatError`` or ``CorruptError``."""
    where = entry_name(shard)
    try:
        data = place.read(where)
    except FileNotFoundError:
        raise FormatError("the index names a shard without its entry (SPEC C1)", where=where) from None
    return parse_entry(data, shard, where)


def parse_entry(data: bytes, shard: str, where: str) -> Entry:
    """The entry of a shard; raises ``FormatError`` or ``CorruptError``."""
    value: dict[str, Any] = open_json(data, where)
    try:
        files = [ShardFile(str(f["path"]), int(f["bytes"]), int(f["crc32c"])) for f in value["files"]]
        entry = Entry(
            shard=value["shard"],
            ids=tuple(check_id(i) for i in value["ids"]),
            seconds=float(value["seconds"]),
            frames=int(value["frames"]),
            sealing=Sealing(files, dict(value["layout"])),
            skipped=tuple(value.get("skipped", ())),
        )
    except (KeyError, TypeError, ValueError, ManifestError) as e:
        raise FormatError(f"not a sealed entry: {e!r} (SPEC C2)", where=where) from None
    if entry.shard != shard or value.get("rows") != len(entry.ids):
        raise FormatError(f"it is about shard {entry.shard!r} (SPEC C2)", where=where)
    for f in files:
        if not f.path.startswith("shards/") or ".." in f.path.split("/") or f.bytes < 0:
            raise FormatError(f"a file {f.path!r} outside of shards/ (SPEC C2)", where=where)
    return entry


def current_index(place: Place, *, write: bool = False) -> Index:
    """The index over all sealed entries; made anew, and with ``write`` kept, where it is missing or stale.

    A damaged one is made anew as well: entries are the truth, the index only finds them faster.
    """
    names = shard_names(place)
    digest = entries_digest(names)
    if place.exists("index.bin"):
        with suppress(CorruptError, FormatError):
            index = open_index(place.map("index.bin"))
            if index.digest == digest and (not write or index.intact()):
                return index
    entries = (read_entry(place, n).ids for n in names)
    data = build(names, entries, digest)
    if write:
        place.write("index.bin", data)
    return open_index(np.frombuffer(data, np.uint8))
