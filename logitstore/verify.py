"""Reads every byte of a store and says everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import CorruptError, LogitStoreError
from .places import Place
from .reader import Store
from .sealed import Entry, read_entry, shard_names
from .storage.base import check_file


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        where: file, shard, row, utterance.
        what: is wrong there.
        utterances: that cannot be read because of it.
    """

    where: str
    what: str
    utterances: tuple[str, ...] = ()

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
    store = Store(location)
    place, verdict = store.place, Verdict([])
    names = shard_names(place)
    seen: dict[str, str] = {}
    for name in names:
        verdict.shards += 1
        try:
            entry = read_entry(place, name)
        except LogitStoreError as e:
            verdict.findings.append(Finding(f"shard {name}", str(e)))
            continue
        verdict.findings += _files(place, name, entry, verdict)
        verdict.findings += _rows(store, name, entry, verdict)
        for utt_id in entry.ids:
            if utt_id in seen:
                what = f"{utt_id!r} stands in shard {seen[utt_id]} as well (SPEC S3)"
                verdict.findings.append(Finding(f"shard {name}", what, (utt_id,)))
            seen[utt_id] = name
    verdict.findings += _orphans(place, set(names))
    return verdict


def _files(place: Place, name: str, entry: Entry, verdict: Verdict) -> Iterator[Finding]:
    for file in entry.sealing.files:
        try:
            check_file(place.map(file.path), file)
            verdict.bytes += file.bytes
        except LogitStoreError as e:
            yield Finding(f"shard {name}", str(e))
        except OSError as e:
            yield Finding(f"shard {name}", f"{file.path}: {e.strerror} (SPEC S6)")


def _rows(store: Store, name: str, entry: Entry, verdict: Verdict) -> Iterator[Finding]:
    """Read each row as a student would, and find it through the index."""
    for number, utt_id in enumerate(entry.ids):
        where = f"shard {name} row {number} ({utt_id!r})"
        try:
            target = store[utt_id]
            for stream in target.streams.values():
                if not (stream.at(1.0).logp <= 1e-3).all():
                    raise CorruptError("a log-probability above 0 (SPEC E2)", where=where)
            verdict.rows += 1
        except LogitStoreError as e:
            yield Finding(where, str(e), (utt_id,))


def _orphans(place: Place, sealed: set[str]) -> Iterator[Finding]:
    """Shards without an entry are invisible to readers; a finished dump leaves none."""
    for name in place.names("shards"):
        shard = name.removesuffix(".tar")
        if name != "zarr.json" and shard not in sealed:
            yield Finding(
                f"shards/{name}", "it has no sealed entry: left by a crash, and read by nobody (SPEC C1)"
            )
