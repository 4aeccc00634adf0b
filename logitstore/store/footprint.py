"""What a store weighs: what grows with its rows, and what it keeps once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..schema.spec import StoreSpec
from ..storage.constants import file_name
from ..storage.entries import Entry, entry_name
from ..storage.places import Place

ONCE = ("logitstore.json", "tokens.txt", "zarr.json", "shards/zarr.json")
DERIVED = ("index.bin", "skipped.jsonl")


@dataclass(frozen=True)
class Footprint:
    """Bytes of a store's files.

    Attributes:
        rows: shards, their entries, the index: what grows with what is dumped.
        once: heads of factored streams, the token table, logitstore.json: the same for any number of rows.
    """

    rows: int
    once: int

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.rows + self.once


def footprint(place: Place, spec: StoreSpec, entries: Iterable[Entry]) -> Footprint:
    """Of a store whose shards are those of ``entries``."""
    once = [*ONCE, *(file_name(s.name, str(c["name"])) for s in spec.streams for c in s.constants)]
    rows = sum(e.bytes + place.size(entry_name(e.shard)) for e in entries)
    return Footprint(rows + _sizes(place, DERIVED), _sizes(place, once))


def _sizes(place: Place, names: Iterable[str]) -> int:
    return sum(place.size(name) for name in names if place.exists(name))
