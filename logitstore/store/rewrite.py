"""Drops what is damaged, so that readers see only what is whole and a dump makes just the rest again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import StoreError, UsageError
from ..storage import open_storage, parse_storage
from ..storage.commit import drop_shard, finish_replacements, finish_store
from ..storage.entries import Entry, ShardSize, shard_names
from ..storage.places import open_place
from .reader import Store
from .verify import Finding, check_row, verify
from .writer import StoreWriter


@dataclass
class Repaired:
    """What :func:`repair` did.

    Attributes:
        findings: what was wrong.
        dropped: utterances that are not in the store any more.
        shards: dropped as a whole, with utterances nobody can name: without an entry that can be read.
    """

    findings: list[Finding]
    dropped: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)


def repair(location: Any) -> Repaired:
    """Verify a store, then drop what is damaged; whole rows of a damaged shard go into a new one (SPEC C6).

    A crash leaves every whole row readable, and repairing again goes on. The store's own logitstore.json
    and tokens.txt cannot be repaired.
    """
    verdict = verify(location)
    done = Repaired(verdict.findings)
    place = open_place(location)
    bad: dict[str, set[int]] = defaultdict(set)
    for finding in verdict.findings:
        if finding.shard:
            bad[finding.shard].add(finding.row)
    store = Store(location, damaged=lambda name, error: None)
    with place.lock("repair"), place.lock("store", wait=True):
        for name in list(bad):
            try:
                store.entry(name)
            except StoreError:
                drop_shard(place, name)
                done.shards.append(name)
                del bad[name]
        finish_replacements(place)
        for finding in verdict.findings:
            if finding.where == "index.bin":
                place.remove("index.bin")
    with StoreWriter(place, store.spec, writer="repair").begin(store.tokens) as writer:
        store = Store(location)
        for name, rows in bad.items():
            good = [n for n in range(len(store.entry(name).ids)) if n not in rows and _whole(store, name, n)]
            done.dropped += [i for n, i in enumerate(store.entry(name).ids) if n not in good]
            if good or store.entry(name).skipped:
                rewrite(store, writer, [name], lambda _, number, good=good: number in good)  # type: ignore[misc]
            else:
                with place.lock("store", wait=True):
                    drop_shard(place, name)
        with place.lock("store", wait=True):
            done.shards += _sweep(store)
    finish_store(place)
    return done


def _whole(store: Store, shard: str, number: int) -> bool:
    try:
        check_row(store, shard, number)
    except StoreError:
        return False
    return True


def _sweep(store: Store) -> list[str]:
    """Remove shards without an entry; the caller holds the store's lock, so nobody is about to write one."""
    gone = []
    storage = open_storage(store.spec.storage)
    known = {storage.path(n) for n in shard_names(store.place)} | {"shards/zarr.json"}
    for name in store.place.names("shards"):
        if f"shards/{name}" not in known and not name.startswith("."):
            store.place.remove(f"shards/{name}")
            gone.append(name.removesuffix(".tar"))
    return gone


def compact(location: Any, shard_size: str, *, report: Callable[[int], None] = lambda shards: None) -> int:
    """Merge neighbouring shards as long as they fit into one; gives the shards that went into others.

    A reader sees every row once at any moment, and so does one after a crash (SPEC C6). Merging again does
    only what is left.

    Args:
        location: of the store.
        shard_size: what a shard may hold: utterances (``5000``) or audio (``2h``).
        report: called with the shards merged so far, after every group.
    """
    size = ShardSize.parse(shard_size)
    store = Store(location)
    merged = 0
    with StoreWriter(store.place, store.spec, writer="compact").begin(store.tokens) as writer:
        store = Store(location)
        for group in _groups(store, size):
            rewrite(store, writer, group)
            merged += len(group)
            report(merged)
    return merged


def rewrite(
    store: Store,
    writer: StoreWriter,
    shards: list[str],
    keep: Callable[[str, int], bool] = lambda shard, number: True,
) -> Entry | None:
    """One new shard of the rows of others, which it replaces.

    Args:
        store: to read from.
        writer: into the same place.
        shards: to merge, in order.
        keep: whether to keep a row of a shard.
    """
    shard = writer.shard(shards[0])
    skipped = []
    try:
        for name in shards:
            entry = store.entry(name)
            skipped += [s for s in entry.skipped if s not in skipped]
            for number in range(len(entry.ids)):
                if keep(name, number):
                    shard.add(store.row_at(name, number))
    except BaseException:
        shard.discard()
        raise
    return shard.seal(skipped, replaces=shards)


def _groups(store: Store, size: ShardSize) -> Iterator[list[str]]:
    """Runs of two shards and more that fit into one."""
    group: list[str] = []
    rows, seconds = 0, 0.0
    for name in store.shards:
        entry = store.entry(name)
        full = 0 < size.utterances < rows + len(entry.ids) or 0 < size.seconds < seconds + entry.seconds
        if group and full:
            if len(group) > 1:
                yield group
            group, rows, seconds = [], 0, 0.0
        group.append(name)
        rows, seconds = rows + len(entry.ids), seconds + entry.seconds
    if len(group) > 1:
        yield group


def convert(
    source: Any, destination: Any, storage: str, *, report: Callable[[int], None] = lambda rows: None
) -> int:
    """Write every shard of a store again in another storage; gives the rows written.

    Shards keep their names, rows their order, arrays their bits. Converting again does only what is missing.

    Args:
        source: the store to read.
        destination: the store to write; must not be the source.
        storage: ``zarr``, ``zarr:zstd``, ``webdataset``, ...
        report: called with the rows written so far, after every shard.
    """
    store = Store(source)
    place = open_place(destination)
    if str(place) == str(store.place):
        raise UsageError("a store cannot be converted onto itself", where=str(place))
    spec = replace(store.spec, storage={"name": str(parse_storage(storage))})
    rows = 0
    with StoreWriter(place, spec, writer="convert").begin(store.tokens, constants=store.constants) as writer:
        done = set(shard_names(place))
        for name in store.shards:
            if name in done:
                continue
            shard = writer.shard(name)
            try:
                for row in store.rows(name):
                    shard.add(row)
                    rows += 1
            except BaseException:
                shard.discard()
                raise
            shard.seal(store.entry(name).skipped)
            report(rows)
    return rows
