"""The catalog of a store: its sealed shards and where each record is, from index runs and sealed entries.

The entries are the truth (SPEC C1). Runs of ``index/`` are derived from them (SPEC I1): a shard that no run
covers is read from its entry, and a shard that only a run names does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from ..errors import CorruptError, FormatError, StoreError, Vanished
from ..schema.checksums import id_hash
from . import faults
from .entries import RecordIds, read_entry, shard_names
from .index import CoveredShard, IndexRun, build_run, is_run_name, open_run, run_name
from .places import Place

OnDamaged = Callable[[str, StoreError], None]
MAX_TRIES = 100  # listings of a store in which something vanishes while it is read
FULL_RUN = 1 << 20  # records from which on a run is left as it is when a store is finished


@dataclass(frozen=True, eq=False)
class Catalog:
    """Every sealed shard of a store, at one moment.

    Attributes:
        names: names of all entries, sorted, including replaced and damaged ones.
        shards: names of the shards, sorted; replaced ones are left out.
        runs: the index runs by the name of their files.
        run_names: names of all files of ``index/``, for comparison.
        uncovered: shards that no run covers, with their ids.
        pending: shards whose entry says that they replace others (SPEC C6).
        records: number of records.
    """

    names: tuple[str, ...]
    shards: tuple[str, ...]
    runs: Mapping[str, IndexRun]
    run_names: tuple[str, ...]
    uncovered: tuple[CoveredShard, ...]
    pending: tuple[str, ...]
    records: int
    _searched: tuple[tuple[IndexRun, frozenset[int]], ...] = field(repr=False)  # with shards that count
    _at: Mapping[str, tuple[IndexRun, int]] = field(repr=False)

    def find(self, utt_id: str) -> list[tuple[str, int]]:
        """Return (shard, number in the shard) of every record of an id; more than one in a damaged store only.

        Raises ``CorruptError`` or ``FormatError`` for an index that is damaged where the id would be.
        """
        key = id_hash(utt_id)
        return [
            (run.shards[shard], number)
            for run, live in self._searched
            for shard, number in run.find(utt_id, key)
            if shard in live
        ]

    def ids(self, shard: str) -> RecordIds:
        """Return the ids of the records of a shard; raises ``KeyError`` for a shard without a readable entry."""
        run, number = self._at[shard]
        return run.ids(number)

    @property
    def taken(self) -> frozenset[str]:
        """Names that a new shard must not have: those of entries, and those that a run still has."""
        return frozenset(self.names).union(*(run.shards for run in self.runs.values()))

    @property
    def lost(self) -> dict[str, int]:
        """Number of records by name of the shards that a run covers and that have no entry."""
        known = set(self.names)
        return {
            name: run.first[n + 1] - run.first[n]
            for run in self.runs.values()
            for n, name in enumerate(run.shards)
            if name not in known
        }

    def is_current(self, place: Place) -> bool:
        """Return whether no entry and no run has come or gone since."""
        return self.names == tuple(shard_names(place)) and self.run_names == _run_names(place)


def read_catalog(place: Place, store: str, damaged: OnDamaged | None = None) -> Catalog:
    """Read the catalog of a store: the runs of its index, and the entries that no run covers.

    The result is consistent: if shards appear or disappear meanwhile, all are listed again.

    Args:
        place: place of the store.
        store: identity of the store; runs and entries of other stores are not accepted.
        damaged: called with the name and the error of an entry that cannot be read, which then has no records;
            without it the error is raised.
    """
    known: dict[str, tuple[CoveredShard | None, tuple[str, ...]]] = {}
    for _ in range(MAX_TRIES):
        names, run_names = shard_names(place), _run_names(place)
        try:
            runs = _open_runs(place, store, run_names)
        except FileNotFoundError:  # merged meanwhile
            continue
        covered = {name for run in runs.values() for name in run.shards}
        wanted = [name for name in names if name not in covered]
        known = {name: known[name] for name in wanted if name in known}
        for name in wanted:
            if name not in known:
                with suppress(Vanished):
                    known[name] = _read_uncovered(place, store, name, damaged)
        if len(known) == len(wanted) and (not wanted or names == shard_names(place)):
            return _catalog(store, names, runs, run_names, known)
    raise Vanished("shards come and go faster than they can be listed", where=str(place))


def _run_names(place: Place) -> tuple[str, ...]:
    return tuple(name for name in place.names("index") if is_run_name(name))


def _open_runs(place: Place, store: str, names: Iterable[str]) -> dict[str, IndexRun]:
    """Return the runs of a store by file name; damaged ones and those of another store are left out."""
    runs = {}
    for name in names:
        with suppress(CorruptError, FormatError):
            run = open_run(place.map(f"index/{name}"), f"index/{name}")
            if run.store == store:
                runs[name] = run
    return runs


def _read_uncovered(
    place: Place, store: str, name: str, damaged: OnDamaged | None
) -> tuple[CoveredShard | None, tuple[str, ...]]:
    """Return what a run would hold of a shard, and the names that its entry replaces."""
    try:
        entry = read_entry(place, name, store)
        return CoveredShard.of(entry), entry.replaces
    except Vanished:
        raise
    except StoreError as e:
        if damaged is None:
            raise
        damaged(name, e)
        return None, ()


def _catalog(
    store: str,
    names: list[str],
    runs: dict[str, IndexRun],
    run_names: tuple[str, ...],
    known: Mapping[str, tuple[CoveredShard | None, tuple[str, ...]]],
) -> Catalog:
    replaced = {old for name, (_, replaces) in known.items() for old in replaces if old != name}
    shards = tuple(name for name in names if name not in replaced)
    uncovered = [shard for shard, _ in known.values() if shard is not None]
    alive, searched, at = set(shards), list[tuple[IndexRun, frozenset[int]]](), {}
    opened = list(runs.values())
    if uncovered:
        opened.append(open_run(np.frombuffer(build_run(store, uncovered), np.uint8)))
    for run in opened:
        live = [n for n, name in enumerate(run.shards) if name in alive and name not in at]
        at.update({run.shards[n]: (run, n) for n in live})
        if live:
            searched.append((run, frozenset(live)))
    return Catalog(
        names=tuple(names),
        shards=shards,
        runs=runs,
        run_names=run_names,
        uncovered=tuple(uncovered),
        pending=tuple(name for name, (_, replaces) in known.items() if replaces),
        records=sum(run.first[n + 1] - run.first[n] for run, n in at.values()),
        _searched=tuple(searched),
        _at=at,
    )


def extend_index(place: Place, store: str) -> None:
    """Cover the shards that no index run covers by a new run; the caller holds the store's lock.

    The new run takes in the runs that have no more records than it has, so that a store of n shards has about
    log2(n) runs while it grows. Shards that only a run names stay in it, so that their names are not used again
    and a lost entry can be named.
    """
    catalog = read_catalog(place, store, leave_out)
    if catalog.pending or not catalog.uncovered:
        return
    shards = {shard.name: shard for shard in catalog.uncovered}
    absorbed = []
    for name, run in sorted(catalog.runs.items(), key=lambda item: item[1].records):
        if run.records > sum(len(shard.ids) for shard in shards.values()):
            break
        with suppress(CorruptError):  # a damaged run is made again when the store is finished
            shards.update({s.name: s for s in run.covered() if s.name not in shards})
            absorbed.append(name)
    _write_run(place, store, shards.values(), absorbed, ())


def finish_index(place: Place, store: str, entries: Mapping[str, tuple[int, int]], *, lost: int) -> Catalog:
    """Bring the index up to date with the entries: one run, besides full ones; the caller holds the store's lock.

    Args:
        place: place of the store.
        store: identity of the store.
        entries: (CRC-32C of the entry, number of records) of every shard whose entry is good.
        lost: number of records that the store has lost; if any, shards that only a run names stay in it.
    """
    catalog = read_catalog(place, store, leave_out)
    if _is_finished(catalog, entries) and not lost:
        return catalog
    shards: dict[str, CoveredShard] = {}
    full, old = set[str](), list[str]()
    damaged = {name for name in catalog.run_names if name not in catalog.runs}
    known = sum(records for _, records in entries.values())
    for name, run in sorted(catalog.runs.items()):
        if run.records > known + lost and not entries.items() >= run.table().items():
            damaged.add(name)  # it claims more than there can be: not worth reading
            continue
        try:
            covered = run.covered()
        except CorruptError:
            damaged.add(name)
            continue
        true = {s.name: s for s in covered if entries.get(s.name) == (s.checksum, len(s.ids))}
        if len(true) == len(covered) and run.records >= FULL_RUN and not full.intersection(true):
            full.update(true)
            continue
        old.append(name)
        kept = {s.name: s for s in covered if lost and s.name not in catalog.names}
        shards.update({**true, **kept})
    for name in entries:
        if name not in shards and name not in full:
            with suppress(StoreError):
                shards[name] = CoveredShard.of(read_entry(place, name, store))
    _write_run(place, store, [s for s in shards.values() if s.name not in full], old, damaged)
    return read_catalog(place, store, leave_out)


def _is_finished(catalog: Catalog, entries: Mapping[str, tuple[int, int]]) -> bool:
    """Return whether whole runs cover exactly these entries, each once, and at most one of them is not full."""
    tables = [run.table() for run in catalog.runs.values()]
    return (
        len(catalog.runs) == len(catalog.run_names)
        and sum(run.records < FULL_RUN for run in catalog.runs.values()) <= 1
        and sum(map(len, tables)) == len(entries)
        and all(table.items() <= entries.items() for table in tables)
        and all(run.intact() for run in catalog.runs.values())
    )


def _write_run(
    place: Place, store: str, shards: Iterable[CoveredShard], old: Iterable[str], damaged: Collection[str]
) -> None:
    """Write a run, then remove the files of ``index/`` that it takes the place of, and the damaged ones."""
    shards, name = list(shards), ""
    if shards:
        data = build_run(store, shards)
        name = run_name(data)
        if name.removeprefix("index/") in damaged or not place.exists(name):
            place.write(name, data)
    faults.reach("indexed")
    for other in (*old, *damaged):
        if f"index/{other}" != name:
            place.remove(f"index/{other}")


def leave_out(shard: str, error: StoreError) -> None:
    """Leave out an entry that cannot be read, without a word; ``verify`` reports it."""
