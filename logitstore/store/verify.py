"""Verification of a store: every file, every record and every rule that a reader relies on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import CorruptError, LogitStoreError, StoreError
from ..schema.checksums import open_json
from ..schema.spec import StoreSpec
from ..storage import open_storage
from ..storage.base import check_file
from ..storage.commit import skipped_lines
from ..storage.entries import Entry, read_entry, shard_names
from ..storage.index import is_run_name, open_run, run_name
from ..storage.places import Place, open_place
from ..storage.spec_file import NOTES_FILE
from .reader import Store, records_lost

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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a lost record is a finding
        store = Store(location, damaged=entry_is_damaged)
    unreadable = {finding.shard for finding in findings}
    shard_of: dict[str, str] = {}
    known: dict[str, tuple[int, int]] = {}
    for name in store.shards:
        report.shards += 1
        if name in unreadable:
            continue
        try:
            entry = read_entry(place, name, store.spec.identity)
        except StoreError as error:
            entry_is_damaged(name, error)
            unreadable.add(name)
            continue
        known[name] = entry.checksum, len(entry.ids)
        findings += _check_files(place, name, entry, report)
        findings += _check_records(store, name, entry, report)
        for number, utt_id in enumerate(entry.ids):
            if utt_id in shard_of:
                what = f"{utt_id!r} is also in shard {shard_of[utt_id]} (SPEC S3)"
                findings.append(VerifyFinding(f"shard {name} record {number}", what, (utt_id,), name, number))
            shard_of[utt_id] = name
    findings += _check_index(place, store.spec, known)
    if not unreadable and len(store) < store.spec.records:
        findings.append(_finding(records_lost(store), "notes.json"))
    findings += _check_notes(place)
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


def _check_index(
    place: Place, spec: StoreSpec, known: Mapping[str, tuple[int, int]]
) -> Iterator[VerifyFinding]:
    """Check index runs: their own checksums, and that they were made from the entries that exist.

    A missing run is no finding, since readers then use the entries.
    """
    records = sum(count for _, count in known.values())
    for name in filter(is_run_name, place.names("index")):
        where = f"index/{name}"
        try:
            raw = place.map(where)
            run = open_run(raw, where)
            wrong = [shard for shard, said in run.table().items() if known.get(shard, said) != said]
            if run.store != spec.identity:
                yield VerifyFinding(where, "it belongs to another store (SPEC I1); readers ignore it")
            elif wrong or run.records > max(records, spec.records):
                what = f"it was made from other entries, e.g. of shard {[*wrong, *run.shards][0]} (SPEC I1)"
                yield VerifyFinding(where, what)
            elif where != run_name(raw.tobytes()) or not run.intact():
                yield VerifyFinding(where, "it does not match its name or its checksums (SPEC I2)")
        except StoreError as error:
            yield _finding(error, where)


def _check_notes(place: Place) -> Iterator[VerifyFinding]:
    """Check the checksum of ``notes.json``; readers do without it."""
    try:
        if place.exists(NOTES_FILE):
            open_json(place.read(NOTES_FILE), NOTES_FILE)
    except StoreError as error:
        yield _finding(error, NOTES_FILE)


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
                raise CorruptError("the index does not find this utterance (SPEC I1)", where=where)
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
