"""Reads every byte of a store and says everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


from ..errors import CorruptError, LogitStoreError, StoreError
from ..storage.base import check_file
from ..storage.commit import skipped_lines
from ..storage.entries import Entry, read_entry, shard_names
from ..storage.index import open_index
from ..storage.places import Place, open_place
from .reader import Store


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        where: file, shard, row, utterance.
        what: is wrong there.
        utterances: that cannot be read because of it.
        shard: its name; empty where it is about no shard.
        row: its number; -1 where it is about no single row.
    """

    where: str
    what: str
    utterances: tuple[str, ...] = ()
    shard: str = ""
    row: int = -1

    def to_json(self) -> dict[str, Any]:
        return {"where": self.where, "what": self.what, "utterances": list(self.utterances)}


@dataclass
class Verdict:
    """What :func:`verify` saw.

    Attributes:
        findings: what is wrong; a store is good when there are none.
        shards: looked at.
        rows: read.
        bytes: read.
    """

    findings: list[Finding]
    shards: int = 0
    rows: int = 0
    bytes: int = 0


def verify(location: Any) -> Verdict:
    """Check every file's checksum, every row's, and every rule a reader relies on.

    Raises an error of the tree only when the store cannot be opened at all.
    """
    findings: list[Finding] = []

    def damaged(name: str, error: StoreError) -> None:
        findings.append(Finding(f"shard {name}", str(error), shard=name))

    place = open_place(location)
    findings += _index(place)
    store = Store(location, damaged=damaged)
    verdict, seen = Verdict(findings), dict[str, str]()
    unreadable = {f.shard for f in findings}
    for name in store.shards:
        verdict.shards += 1
        if name in unreadable:
            continue
        try:
            entry = read_entry(place, name)
        except StoreError as e:
            damaged(name, e)
            continue
        findings += _files(place, name, entry, verdict)
        findings += _rows(store, name, entry, verdict)
        for number, utt_id in enumerate(entry.ids):
            if utt_id in seen:
                what = f"{utt_id!r} stands in shard {seen[utt_id]} as well (SPEC S3)"
                findings.append(Finding(f"shard {name} row {number}", what, (utt_id,), name, number))
            seen[utt_id] = name
    findings += _orphans(place, set(shard_names(place)))
    findings += _skipped(place, bool(unreadable))
    return verdict


def _index(place: Place) -> Iterator[Finding]:
    """A missing or stale index is made anew; a damaged one says that the disk rots."""
    try:
        if place.exists("index.bin") and not open_index(place.map("index.bin")).intact():
            yield Finding("index.bin", "a bucket does not match its checksum (SPEC I4)")
    except StoreError as e:
        yield Finding("index.bin", str(e))


def _skipped(place: Place, unreadable: bool) -> Iterator[Finding]:
    """What skipped.jsonl says comes from the entries, so it can be checked against them."""
    if place.exists("skipped.jsonl") and not unreadable:
        try:
            if place.read("skipped.jsonl") != skipped_lines(place):
                yield Finding("skipped.jsonl", "not what the entries say; logitstore index makes it anew")
        except StoreError as e:
            yield Finding("skipped.jsonl", str(e))


def _files(place: Place, name: str, entry: Entry, verdict: Verdict) -> Iterator[Finding]:
    for file in entry.contents.files:
        try:
            check_file(place.map(file.path), file)
            verdict.bytes += file.bytes
        except StoreError as e:
            yield Finding(f"shard {name}", str(e), shard=name)
        except OSError as e:
            yield Finding(f"shard {name}", f"{file.path}: {e.strerror} (SPEC S6)", shard=name)


def _rows(store: Store, name: str, entry: Entry, verdict: Verdict) -> Iterator[Finding]:
    """Read each row as a student would, and find it through the index."""
    for number, utt_id in enumerate(entry.ids):
        where = f"shard {name} row {number} ({utt_id!r})"
        try:
            check_row(store, name, number)
            if utt_id not in store:
                raise CorruptError("the index does not find it (SPEC I4)", where=where)
            verdict.rows += 1
        except LogitStoreError as e:
            yield Finding(where, str(e), (utt_id,), name, number)


def check_row(store: Store, shard: str, number: int) -> None:
    """Read and decode one row; raises ``CorruptError`` or ``FormatError``."""
    target = store.decode(store.row_at(shard, number))
    for name, rows in target.streams.items():
        try:
            rows.check(name)
        except CorruptError as e:
            raise CorruptError(e.what, where=f"shard {shard} row {number}") from None


def _orphans(place: Place, sealed: set[str]) -> Iterator[Finding]:
    """Shards without an entry are invisible to readers; a finished dump leaves none."""
    for name in place.names("shards"):
        shard = name.removesuffix(".tar")
        if name != "zarr.json" and shard not in sealed:
            what = "it has no sealed entry: left by a crash, and read by nobody (SPEC C1)"
            yield Finding(f"shards/{name}", what)
