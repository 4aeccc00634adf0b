"""Copies a store into another storage, row for row and bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..errors import UsageError
from ..storage import parse_storage
from ..storage.entries import shard_names
from ..storage.places import open_place
from .reader import Store
from .writer import StoreWriter


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
