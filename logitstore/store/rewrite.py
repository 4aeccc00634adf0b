"""Rewriting of stores: repair, compact and convert, and the index over the shards that exist."""

from __future__ import annotations

import fnmatch
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import IdentityError, StoreError, UsageError
from ..registry import suggest
from ..storage import open_storage, parse_storage
from ..storage.commit import accept_losses, drop_shard, finish_replacements, finish_store
from ..storage.entries import Entry, shard_names
from ..storage.places import open_place
from ..storage.shard_size import ShardSize
from .reader import Store, all_foreign
from .verify import VerifyFinding, check_record, verify_store
from .writer import StoreWriter

Keep = Callable[[str, int], bool]


@dataclass
class RepairReport:
    """The result of :func:`repair_store`.

    Attributes:
        findings: everything that was wrong.
        dropped: ids of the utterances that are no longer in the store.
        shards: names of the shards that were dropped as a whole because no entry names their utterances.
    """

    findings: list[VerifyFinding]
    dropped: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return findings, utterances and shards as JSON values."""
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "dropped": self.dropped,
            "shards": self.shards,
        }


@dataclass
class DropReport:
    """The result of :func:`drop_shards`.

    Attributes:
        shards: names of the shards that were removed.
        utterances: ids of their utterances.
    """

    shards: list[str] = field(default_factory=list)
    utterances: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return shards and utterances as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class CompactReport:
    """The result of :func:`compact_store`.

    Attributes:
        merged: number of shards that were merged into others.
        shards: number of shards in the store now.
        utterances: number of utterances in the store.
    """

    merged: int
    shards: int
    utterances: int

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class ConvertReport:
    """The result of :func:`convert_store`.

    Attributes:
        written: number of utterances that this run wrote.
        utterances: number of utterances in the destination now.
        shards: number of shards in the destination now.
    """

    written: int
    utterances: int
    shards: int

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class IndexReport:
    """The result of :func:`index_store`.

    Attributes:
        utterances: number of utterances in the store.
        shards: number of shards in the store.
    """

    utterances: int
    shards: int

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return asdict(self)


def repair_store(location: Any) -> RepairReport:
    """Verify a store, then drop what is damaged, so that the next dump writes just that again.

    Whole records of a damaged shard move into a new shard (SPEC C6). A crash leaves every whole record
    readable, and a second repair goes on from there. ``logitstore.json`` and ``tokens.txt`` cannot be
    repaired.

    Args:
        location: folder or URL of the store.

    Raises:
        NotAStore, FormatError, CorruptError: as :func:`verify_store`.
        StoreBusy: another process repairs this store.
        IdentityError: every shard belongs to another store.
    """
    found = verify_store(location)
    report = RepairReport(found.findings)
    place = open_place(location)
    damaged: dict[str, set[int]] = defaultdict(set)
    for finding in found.findings:
        if finding.shard:
            damaged[finding.shard].add(finding.record)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is missing is among the findings
        store = Store(location, damaged=lambda name, error: None)
    _require_some_shard_of_this_store(store)
    with place.lock("repair"), place.lock("store", wait=True):
        accept_losses(place)
        for name in list(damaged):
            try:
                store.entry(name)
            except StoreError:
                drop_shard(place, name)
                report.shards.append(name)
                del damaged[name]
        finish_replacements(place)
        for finding in found.findings:
            if finding.where.startswith("index/"):
                place.remove(finding.where)
    with StoreWriter(place, store.spec, writer="repair").begin(store.tokens) as writer:
        store = Store(location)
        for name, bad in damaged.items():
            _rewrite_whole_records(store, writer, name, bad, report)
        with place.lock("store", wait=True):
            report.shards += _remove_orphans(store)
    finish_store(place)
    return report


def drop_shards(location: Any, patterns: Sequence[str]) -> DropReport:
    """Remove whole shards whose records are known to be wrong, so that the next run makes them again.

    Args:
        location: folder or URL of the store.
        patterns: names of shards, with ``*`` and ``?`` as in file names.

    Raises:
        UsageError: no shard has such a name; nothing is removed then.
        StoreBusy: another process repairs this store.
    """
    store = Store(location, damaged=lambda name, error: None)
    report = DropReport()
    with store.place.lock("repair"), store.place.lock("store", wait=True):
        finish_replacements(store.place)
        names = shard_names(store.place)
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise UsageError(
                    f"no shard has the name {pattern}", where=str(store.place), do=suggest(pattern, names)
                )
        for name in [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]:
            with suppress(StoreError):  # an entry that cannot be read names no utterances
                report.utterances += store.entry(name).ids
            drop_shard(store.place, name)
            report.shards.append(name)
    finish_store(store.place)
    return report


def _require_some_shard_of_this_store(store: Store) -> None:
    """Raise ``IdentityError`` if every shard belongs to another store: its description was exchanged."""
    foreign = 0
    for name in store.shards:
        try:
            store.entry(name)
        except IdentityError:
            foreign += 1
        except StoreError:
            pass
    if foreign and foreign == len(store.shards):
        raise all_foreign(store.place)


def _rewrite_whole_records(
    store: Store, writer: StoreWriter, shard: str, bad: set[int], report: RepairReport
) -> None:
    """Replace a damaged shard by one of its whole records, or drop it where nothing is left to keep."""
    entry = store.entry(shard)
    good = {n for n in range(len(entry.ids)) if n not in bad and _is_whole(store, shard, n)}
    report.dropped += [utt_id for n, utt_id in enumerate(entry.ids) if n not in good]
    if good or entry.skipped:
        merge_shards(store, writer, [shard], lambda _, number: number in good)
    else:
        with store.place.lock("store", wait=True):
            drop_shard(store.place, shard)


def _is_whole(store: Store, shard: str, number: int) -> bool:
    """Return whether a record can be read and decoded."""
    try:
        check_record(store, shard, number)
    except Exception:  # a damaged record may fail in any way
        return False
    return True


def _remove_orphans(store: Store) -> list[str]:
    """Remove shards without an entry and return their names.

    The caller holds the store's lock, under which alone entries are written.
    """
    removed = []
    storage = open_storage(store.spec.storage)
    known = {storage.path(name) for name in shard_names(store.place)}
    for name in store.place.names("shards"):
        if f"shards/{name}" not in known and not name.startswith("."):
            store.place.remove(f"shards/{name}")
            removed.append(name.removesuffix(storage.path("").removeprefix("shards/")))
    return removed


def compact_store(
    location: Any, shard_size: str, *, report: Callable[[int], None] = lambda merged: None
) -> CompactReport:
    """Merge neighbouring shards as long as they fit into one.

    A reader finds every record exactly once at any moment, also after a crash (SPEC C6). A second run does
    only what is left.

    Args:
        location: folder or URL of the store.
        shard_size: size of a merged shard: utterances (``5000``), audio (``2h``) or bytes (``256MB``).
        report: function called with the number of shards merged so far, after every group.

    Raises:
        UsageError: ``shard_size`` is no size.
        StoreBusy: another process compacts this store.
    """
    size = ShardSize.parse(shard_size)
    store = Store(location)
    merged = 0
    with StoreWriter(store.place, store.spec, writer="compact").begin(store.tokens) as writer:
        store = Store(location)
        for group in _groups(store, size):
            merge_shards(store, writer, group)
            merged += len(group)
            report(merged)
    store = Store(location)
    return CompactReport(merged, len(store.shards), len(store))


def merge_shards(
    store: Store, writer: StoreWriter, shards: list[str], keep: Keep = lambda shard, number: True
) -> Entry | None:
    """Write one shard of the records of others, which it replaces.

    Args:
        store: the store to read from.
        writer: an open writer of the same place.
        shards: names of the shards to merge, in order.
        keep: predicate of shard and record number; records for which it is false are dropped.

    Returns the new shard's entry, or None if another writer sealed a shard of that name meanwhile.
    """
    writer.refresh()
    shard = writer.shard(shards[0])
    skipped = []
    try:
        for name in shards:
            entry = store.entry(name)
            skipped += [s for s in entry.skipped if s not in skipped]
            for number in range(len(entry.ids)):
                if keep(name, number):
                    shard.add(store.record_at(name, number))
    except BaseException:
        shard.discard()
        raise
    return shard.seal(skipped, replaces=shards)


def _groups(store: Store, size: ShardSize) -> Iterator[list[str]]:
    """Yield runs of two or more neighbouring shards that fit into one of a size."""
    group: list[str] = []
    utterances, seconds, stored = 0, 0.0, 0
    for name in store.shards:
        entry = store.entry(name)
        too_many = 0 < size.utterances < utterances + len(entry.ids)
        too_long = 0 < size.seconds < seconds + entry.seconds
        too_large = 0 < size.bytes < stored + entry.bytes
        if group and (too_many or too_long or too_large):
            if len(group) > 1:
                yield group
            group, utterances, seconds, stored = [], 0, 0.0, 0
        group.append(name)
        utterances += len(entry.ids)
        seconds += entry.seconds
        stored += entry.bytes
    if len(group) > 1:
        yield group


def convert_store(
    source: Any, destination: Any, storage: str, *, report: Callable[[int], None] = lambda written: None
) -> ConvertReport:
    """Copy a store into another storage backend, record for record and bit for bit.

    Shards keep their names and records their order. A second run writes only the shards that are missing.

    Args:
        source: folder or URL of the store to read.
        destination: folder or URL of the store to write; it must not be the source.
        storage: storage backend with its setting: ``zarr``, ``zarr:blosc``, ``webdataset``, ...
        report: function called with the number of utterances written so far, after every shard.

    Raises:
        UsageError: source and destination are one place, or there is no such storage backend.
        IdentityError: the destination holds another store.
        StoreBusy: another process converts into the destination.
    """
    store = Store(source)
    place = open_place(destination)
    if str(place) == str(store.place):
        raise UsageError(
            "a store cannot be converted onto itself",
            where=str(place),
            do="Give another destination; the source can be removed afterwards.",
        )
    spec = replace(store.spec, storage={"name": str(parse_storage(storage))})
    written = 0
    with StoreWriter(place, spec, writer="convert").begin(store.tokens, constants=store.constants) as writer:
        done = set(shard_names(place))
        for name in store.shards:
            if name in done:
                continue
            writer.refresh()
            shard = writer.shard(name)
            try:
                for record in store.records(name):
                    shard.add(record)
                    written += 1
            except BaseException:
                shard.discard()
                raise
            shard.seal(store.entry(name).skipped)
            report(written)
    copy = Store(destination)
    return ConvertReport(written, len(copy), len(copy.shards))


def index_store(location: Any) -> IndexReport:
    """Bring the index and ``skipped.jsonl`` up to date with the shards that exist.

    Every dump and every writer does this when it ends. After several jobs wrote into one store at the same
    time, one more call makes both files final.

    Args:
        location: folder or URL of the store.
    """
    finish_store(Store(location).place)
    store = Store(location)
    return IndexReport(len(store), len(store.shards))
