"""Several stores of one teacher, read as one store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from ..errors import IdentityError, MissingUtterance, UsageError
from ..schema.spec import StoreSpec, differences
from ..storage.base import EncodedRecord
from ..storage.entries import Entry
from ..storage.index import CoveredShard
from ..targets.target import Target
from .reader import Store

MAY_DIFFER = ("manifest", "storage")  # fields of a description that do not change what a record means


class StoreUnion(Store):
    """Stores of one teacher and one token table, read as one; ``open_store([a, b, ...])`` returns it.

    A record is read by the store that holds it. Shards are named ``0:SHARD``, ``1:SHARD``, ... by the number of
    their store. The ids of all stores are compared when it is opened, from the hashes of their indexes.

    Args:
        parts: opened stores.

    Attributes:
        parts: the opened stores, in the order of the ids.

    Raises:
        UsageError: no store.
        IdentityError: teacher, token table or streams differ, or two stores hold one id.
    """

    def __init__(self, parts: Sequence[Store]) -> None:
        if not parts:
            raise UsageError("a list of no stores", do="Give at least one: open_store([a, b]).")
        self.parts = tuple(parts)
        first = self.parts[0]
        for part in self.parts[1:]:
            _require_one_teacher(first, part)
        _require_disjoint(self.parts)
        self.place, self.tokens, self.vocab_map = first.place, first.tokens, first.vocab_map
        self.constants = first.constants
        self.spec = _spec_of(self.parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreUnion, (self.parts,)

    def __repr__(self) -> str:
        return f"<StoreUnion of {len(self.parts)} stores: {len(self)} utterances: {', '.join(map(repr, self.parts))}>"

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __contains__(self, utt_id: object) -> bool:
        return any(utt_id in part for part in self.parts)

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self.parts)

    def __getitem__(self, utt_id: str) -> Target:
        return self._part(utt_id)[utt_id]

    def target(self, utt_id: str, streams: Sequence[str] | None = None) -> Target:
        """Read and decode some streams of an utterance, as :meth:`Store.target`."""
        return self._part(utt_id).target(utt_id, streams)

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the sealed shards of all stores, each behind the number of its store."""
        return tuple(f"{n}:{shard}" for n, part in enumerate(self.parts) for shard in part.shards)

    def entry(self, shard: str) -> Entry:
        """Return the sealed entry of a shard."""
        part, name = self._shard(shard)
        return part.entry(name)

    def record(self, utt_id: str, only: Sequence[str] | None = None) -> EncodedRecord:
        """Read the record of an utterance, as :meth:`Store.record`."""
        return self._part(utt_id).record(utt_id, only)

    def record_at(self, shard: str, number: int) -> EncodedRecord:
        """Read a record by its shard and its number in that shard, from 0."""
        part, name = self._shard(shard)
        return part.record_at(name, number)

    def decode(self, record: EncodedRecord, only: Sequence[str] | None = None) -> Target:
        """Return the target of a record of one of the stores."""
        return self._part(record.id).decode(record, only)

    def metadata(self) -> Iterator[Mapping[str, Any]]:
        """Yield the metadata of every record of all stores, in the order of the ids."""
        return chain.from_iterable(part.metadata() for part in self.parts)

    def _part(self, utt_id: object) -> Store:
        """Return the store that holds an utterance; the first of them, whose error is raised, for no string."""
        if not isinstance(utt_id, str):
            return self.parts[0]
        for part in self.parts:
            if utt_id in part:
                return part
        raise MissingUtterance(
            f"no utterance {utt_id!r} in {len(self.parts)} stores",
            where=", ".join(str(part.place) for part in self.parts),
            do="Open the store that holds it as well, or use missing='mask' or 'skip'.",
        )

    def _shard(self, shard: str) -> tuple[Store, str]:
        """Return the store of a shard and the shard's name in it."""
        number, _, name = shard.partition(":")
        return self.parts[int(number)], name


def _spec_of(parts: Sequence[Store]) -> StoreSpec:
    """Return the description of the first store, with an identity made from those of all."""
    identities = json.dumps([part.spec.identity for part in parts]).encode()
    records = sum(part.spec.records for part in parts)
    identity = f"sha256:{hashlib.sha256(identities).hexdigest()}"
    return replace(parts[0].spec, identity=identity, records=records)


def _require_one_teacher(first: Store, other: Store) -> None:
    """Raise ``IdentityError`` unless the records of two stores mean the same."""
    found = [
        (field, was, now)
        for field, was, now in differences(first.spec, other.spec)
        if field.partition(".")[0] not in MAY_DIFFER and ".constants" not in field
    ]
    if found:
        lines = "\n".join(f"  {field}: {was!r:.60} here, {now!r:.60} there" for field, was, now in found)
        raise IdentityError(
            f"{other.place} does not go with this store\n{lines}",
            where=str(first.place),
            why="A student could not tell the records of two teachers, token tables or encodings apart.",
            do="Open stores of one teacher, token table and streams together.",
        )


def _require_disjoint(parts: Sequence[Store]) -> None:
    """Raise ``IdentityError`` where two stores hold one id."""
    covered = [list(_covered(part)) for part in parts]
    hashes = [
        np.unique(np.concatenate([np.zeros(0, np.uint64), *(s.hashes for s in own)])) for own in covered
    ]
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    shared = values[counts > 1]
    if not len(shared):
        return
    for n, own in enumerate(covered):
        for utt_id in _ids_of(own, shared):
            holders = [str(part.place) for part in parts if utt_id in part]
            if len(holders) > 1:
                raise IdentityError(
                    f"{' and '.join(holders)} hold {utt_id!r}, one of up to {len(shared)} such ids",
                    where=str(parts[n].place),
                    why="Which of the records is read would depend on the order of the stores.",
                    do="Open stores whose ids differ, or give each corpus a prefix of its own in its manifest.",
                )


def _covered(store: Store) -> Iterator[CoveredShard]:
    """Yield the shards of a store with their ids and hashes."""
    catalog = store._catalog
    live = set(store.shards)
    for shard in chain(catalog.uncovered, *(run.covered() for run in catalog.runs.values())):
        if shard.name in live:
            yield shard


def _ids_of(shards: Iterable[CoveredShard], hashes: Any) -> Iterator[str]:
    """Yield the ids of shards that have one of some hashes."""
    for shard in shards:
        for n in np.flatnonzero(np.isin(shard.hashes, hashes)):
            yield shard.ids[int(n)]
