"""Verification of a store: every file, every record and every rule that a reader relies on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import CorruptError, LogitStoreError, StoreError
from ..storage import open_storage
from ..storage.base import check_file
from ..storage.commit import skipped_lines
from ..storage.entries import Entry, read_entry, shard_names
from ..storage.index import open_index
from ..storage.places import Place, open_place
from .reader import Store

LOGP_ROUNDING = 1e-3  # how far above 0 a stored log-probability may lie by rounding (SPEC E2)


@dataclass(frozen=True)
class VerifyFinding:
    """One thing that is wrong in a store.

    Attributes:
        where: the file, shard, record or utterance.
        what: a sentence that says what is wrong there.
        utterances: ids of the utterances that cannot be read because of it.
        shard: name of the shard; empty if the finding concerns no shard.
        record: number of the record in its shard; -1 if the finding concerns no single record.
    """

    where: str
    what: str
    utterances: tuple[str, ...] = ()
    shard: str = ""
    record: int = -1

    def to_json(self) -> dict[str, Any]:
        """Return place, sentence and utterances as JSON values."""
        return {"where": self.where, "what": self.what, "utterances": list(self.utterances)}


@dataclass
class VerifyReport:
    """The result of :func:`verify_store`.

    Attributes:
        findings: everything that is wrong; empty for a good store.
        shards: number of shards in the store.
        records: number of records that were read and are good.
        bytes: bytes of the shard files that match their checksums.
    """

    findings: list[VerifyFinding] = field(default_factory=list)
    shards: int = 0
    records: int = 0
    bytes: int = 0

    @property
    def good(self) -> bool:
        """True if nothing is wrong."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Return counts and findings as JSON values."""
        return {
            "shards": self.shards,
            "records": self.records,
            "bytes": self.bytes,
            "findings": [finding.to_json() for finding in self.findings],
        }


def verify_store(location: Any) -> VerifyReport:
    """Read every byte of a store and check it against its checksums and the rules of SPEC.md.

    The check goes on after a finding: one damaged record, entry or file hides no other.

    Args:
        location: folder or URL of the store.

    Raises:
        NotAStore: the location holds no store.
        FormatError, CorruptError: ``logitstore.json``, the token table or a constant cannot be read.
    """
    report = VerifyReport()
    findings = report.findings

    def entry_is_damaged(shard: str, error: StoreError) -> None:
        findings.append(_finding(error, f"shard {shard}", shard=shard))

    place = open_place(location)
    findings += _check_index(place)
    store = Store(location, damaged=entry_is_damaged)
    unreadable = {finding.shard for finding in findings}
    shard_of: dict[str, str] = {}
    for name in store.shards:
        report.shards += 1
        if name in unreadable:
            continue
        try:
            entry = read_entry(place, name)
        except StoreError as error:
            entry_is_damaged(name, error)
            continue
        findings += _check_files(place, name, entry, report)
        findings += _check_records(store, name, entry, report)
        for number, utt_id in enumerate(entry.ids):
            if utt_id in shard_of:
                what = f"{utt_id!r} is also in shard {shard_of[utt_id]} (SPEC S3)"
                findings.append(VerifyFinding(f"shard {name} record {number}", what, (utt_id,), name, number))
            shard_of[utt_id] = name
    findings += _check_orphans(store)
    if not unreadable:
        findings += _check_skipped(place)
    return report


def check_record(store: Store, shard: str, number: int) -> None:
    """Read and decode one record; raises ``CorruptError`` or ``FormatError`` if that fails.

    Args:
        store: the store.
        shard: name of the shard.
        number: number of the record in its shard, from 0.
    """
    where = f"shard {shard} record {number}"
    target = store.decode(store.record_at(shard, number))
    for name, rows in target.streams.items():
        try:
            rows.check(name)
        except CorruptError as error:
            raise CorruptError(error.what, where=where) from None


def _finding(
    error: Exception, where: str, utterances: tuple[str, ...] = (), shard: str = "", record: int = -1
) -> VerifyFinding:
    """Return the finding of an error: its place once, and no advice."""
    if not isinstance(error, LogitStoreError):
        return VerifyFinding(where, f"it cannot be decoded: {error!r}", utterances, shard, record)
    if error.where.startswith(where):
        where = error.where
    elif error.where not in where and not error.where.startswith(f"shard {shard} "):
        where = f"{where}: {error.where}"
    what = f"{error.what}\n  {error.why}" if error.why else error.what
    return VerifyFinding(where, what, utterances, shard, record)


def _check_index(place: Place) -> Iterator[VerifyFinding]:
    """Check the index's own checksums; a missing or stale index is no finding, since readers rebuild it."""
    try:
        if place.exists("index.bin") and not open_index(place.map("index.bin")).intact():
            yield VerifyFinding("index.bin", "a bucket does not match its checksum (SPEC I4)")
    except StoreError as error:
        yield _finding(error, "index.bin")


def _check_files(place: Place, name: str, entry: Entry, report: VerifyReport) -> Iterator[VerifyFinding]:
    """Check size and checksum of every file of a shard."""
    for file in entry.contents.files:
        try:
            check_file(place.map(file.path), file)
            report.bytes += file.bytes
        except StoreError as error:
            yield _finding(error, f"shard {name}", shard=name)
        except OSError as error:
            what = f"the file cannot be read: {error.strerror} (SPEC S6)"
            yield VerifyFinding(f"shard {name}: {file.path}", what, shard=name)


def _check_records(store: Store, name: str, entry: Entry, report: VerifyReport) -> Iterator[VerifyFinding]:
    """Read every record of a shard as a student would, and find it through the index."""
    for number, utt_id in enumerate(entry.ids):
        where = f"shard {name} record {number} ({utt_id!r})"
        try:
            check_record(store, name, number)
            if utt_id not in store:
                raise CorruptError("the index does not find this utterance (SPEC I4)", where=where)
            report.records += 1
        except Exception as error:  # a record may hold anything, and every other one must still be read
            yield _finding(error, where, (utt_id,), name, number)


def _check_orphans(store: Store) -> Iterator[VerifyFinding]:
    """Look for shards without an entry: readers ignore them, and a finished dump leaves none."""
    storage = open_storage(store.spec.storage)
    sealed = {storage.path(name) for name in shard_names(store.place)}
    for name in store.place.names("shards"):
        if f"shards/{name}" not in sealed:
            what = "this shard has no sealed entry: a crash left it, and readers ignore it (SPEC C1)"
            yield VerifyFinding(f"shards/{name}", what)


def _check_skipped(place: Place) -> Iterator[VerifyFinding]:
    """Compare ``skipped.jsonl`` with the entries that it is made from."""
    if not place.exists("skipped.jsonl"):
        return
    try:
        if place.read("skipped.jsonl") != skipped_lines(place):
            what = "the file differs from the entries; logitstore index, or index_store(), writes it again"
            yield VerifyFinding("skipped.jsonl", what)
    except StoreError as error:
        yield _finding(error, "skipped.jsonl")
