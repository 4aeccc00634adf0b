"""How a shard takes the place of others at one moment (SPEC C6): what merging and repairing rest on.

The new entry names the shards it replaces; from the moment it exists readers see it and none of them. What
follows only tidies up, and whoever holds the store's lock next finishes it.
"""

from __future__ import annotations

from dataclasses import replace

from ..schema.checksums import open_json, seal_json
from ..schema.spec import REPLACES, StoreSpec
from . import faults, open_storage
from .entries import entry_name, read_entry, shard_names
from .places import Place


def _spec(place: Place) -> StoreSpec:
    return StoreSpec.from_json(open_json(place.read("logitstore.json"), f"{place}/logitstore.json"))


def announce(place: Place) -> None:
    """Let readers that do not know replaced shards refuse the store until :func:`settle` is through."""
    spec = _spec(place)
    if REPLACES not in spec.requires:
        now = replace(spec, requires=(*spec.requires, REPLACES))
        place.write("logitstore.json", seal_json(now.to_json()))


def drop(place: Place, shard: str) -> None:
    """Make a shard stop existing; the caller holds the store's lock."""
    path = open_storage(_spec(place).storage).path(shard)
    place.remove("index.bin")
    place.remove(entry_name(shard))
    place.remove(path)


def settle(place: Place) -> None:
    """Remove replaced shards, then every trace of the replacement; the caller holds the store's lock.

    Nothing is done in a store that :func:`announce` was not called for.
    """
    if not place.exists("logitstore.json") or REPLACES not in (spec := _spec(place)).requires:
        return
    storage = open_storage(spec.storage)
    entries = {n: read_entry(place, n) for n in shard_names(place)}
    gone = {n for e in entries.values() for n in e.replaces if n != e.shard}
    for name in sorted(gone):
        place.remove(entry_name(name))
        faults.at("replaced:entry")
    for name in sorted(gone):
        place.remove(storage.path(name))
        faults.at("replaced:files")
    for name, entry in entries.items():
        if entry.replaces and name not in gone:
            place.write(entry_name(name), replace(entry, replaces=()).to_bytes())
    now = replace(spec, requires=tuple(r for r in spec.requires if r != REPLACES))
    place.write("logitstore.json", seal_json(now.to_json()))
