"""Drops what is damaged, so that readers see only what is whole and a dump makes just the rest again."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from ..errors import StoreError
from ..storage import open_storage
from ..storage.commit import drop, finish_store, settle
from ..storage.entries import shard_names
from ..storage.places import open_place
from .compact import rewrite
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
                drop(place, name)
                done.shards.append(name)
                del bad[name]
        settle(place)
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
                    drop(place, name)
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
