"""Merges small shards into large ones; rows, ids and their order stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..storage.entries import Entry, ShardSize
from .reader import Store
from .writer import StoreWriter


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
