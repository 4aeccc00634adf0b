"""One store, one set of answers: teacher, tokens, streams, storage, manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ..errors import IdentityError, StoreBusy
from ..schema.spec import StoreSpec, StreamSpec, differences
from ..storage import constants
from ..storage.constants import Constants
from ..storage.entries import shard_names
from ..storage.places import Place
from ..storage.spec_file import SPEC_FILE, is_store, read_spec, write_spec
from ..tokens.table import TokenTable

ALLOWABLE = ("teacher", "manifest")
PLANNING = "plan"  # the lock of whoever chooses the encodings of a store to be


def establish(
    place: Place, spec: StoreSpec, tokens: TokenTable, allowed: set[str], heads: Constants | None = None
) -> StoreSpec:
    """Write logitstore.json and tokens.txt, or compare with those there; raises ``IdentityError``."""
    if not is_store(place):
        place.write("tokens.txt", tokens.to_bytes())
        constants.write(place, heads or {})
        write_spec(place, spec)
        return spec
    was = read_spec(place)
    if len(was.streams) == len(spec.streams):  # constants are made once: by whoever came first
        streams = [_with_constants(*pair) for pair in zip(was.streams, spec.streams, strict=True)]
        spec = replace(spec, streams=tuple(streams))
    found = differences(was, spec)
    refused = [d for d in found if not any(_below(d[0], a) for a in allowed)]
    if refused:
        width = max(len(field) for field, _, _ in refused)
        table = "\n".join(f"  {f:<{width}}  {_short(a):<24}  {_short(b)}" for f, a, b in refused)
        raise IdentityError(
            f"this store was made with other answers\n  {'':<{width}}  {'store':<24}  now\n{table}",
            where=str(place),
            why="Rows of two teachers, tables or encodings in one store cannot be told apart by a student.",
            do="Write to another store; only teacher and manifest may differ: --allow-different FIELD.",
        )
    if found:
        notes = [{"field": f, "was": a, "now": b} for f, a, b in found]
        fresh = [n for n in notes if n not in was.allowed]
        if fresh:
            was = StoreSpec.from_json({**was.to_json(), "allowed": [*was.allowed, *fresh]})
            write_spec(place, was)
    return was


def _with_constants(was: StreamSpec, now: StreamSpec) -> StreamSpec:
    if (was.name, was.encoding, was.width) != (now.name, now.encoding, now.width):
        return now
    return replace(now, constants=was.constants, tail_points=was.tail_points)


def forget_empty(place: Place, writer: str) -> None:
    """Remove the answers of a store that holds no shard and that nobody else writes: a stopped first try.

    Whoever mends the teacher that a gate refused may go on in the same place. The caller holds the store's
    lock and its own.
    """
    if is_store(place) and not is_declared(place, writer):
        place.remove(SPEC_FILE)


def is_declared(place: Place, writer: str) -> bool:
    """Whether a store's answers stand: it has shards, or another live process writes them."""
    if not is_store(place):
        return False
    if shard_names(place):
        return True
    for name in place.names("partial"):
        other = name.removesuffix(".lock")
        if name.endswith(".lock") and other not in (writer, "store", PLANNING):
            try:
                with place.lock(other):
                    pass
            except StoreBusy:
                return True
    return False


def note_gate(place: Place, gate: str, reason: str) -> StoreSpec:
    """Write into logitstore.json that a gate was skipped; the caller holds the store's lock."""
    was = read_spec(place)
    note = {"gate": gate, "reason": reason}
    if note in was.gates:
        return was
    now = replace(was, gates=(*was.gates, note))
    write_spec(place, now)
    return now


def _below(field: str, allowed: str) -> bool:
    """Whether allowing one field allows another; what decides the meaning of bytes never may differ."""
    if field.partition(".")[0] not in ALLOWABLE:
        return False
    return field == allowed or field.startswith((f"{allowed}.", f"{allowed}["))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else text[:20] + "…" + text[-3:]
