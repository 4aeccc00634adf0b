"""Identity of a store: every writer must agree on teacher, token table, streams and storage backend.

A manifest that differs is noted in the store and is no error: a corpus grows, and damaged recordings are removed.
"""

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
from ..storage.spec_file import SPEC_FILE, is_store, read_spec, write_notes, write_spec
from ..tokens.table import TokenTable
from .guide import write_guide

ALLOWABLE = ("teacher", "manifest")
PLANNING = "plan"  # name of the lock that a process holds while it chooses the encodings of a new store
_SHOWN = 24  # characters of a value in a table of differences


def establish(
    place: Place, spec: StoreSpec, tokens: TokenTable, allowed: set[str], heads: Constants | None = None
) -> StoreSpec:
    """Write the description of a new store, or compare with that of the store at a place.

    The caller holds the store's lock.

    Args:
        place: place of the store.
        spec: description that the writer would give the store.
        tokens: token table, written into a new store.
        allowed: fields that may differ, e.g. ``{"teacher.weights"}``; only fields below ``teacher`` can be
            allowed. The manifest may always differ: other utterances do not change what a record means. The
            store keeps a note of each difference.
        heads: constants of a new store, by stream and name.

    Returns the description of the store that is there now.

    Raises:
        IdentityError: the store there differs in another field; the message lists both values of each.
    """
    if not is_store(place):
        place.write("tokens.txt", tokens.to_bytes())
        constants.write(place, heads or {})
        write_guide(place, spec)
        return write_spec(place, replace(spec, records=0))
    was = read_spec(place)
    if len(was.streams) == len(spec.streams):  # the first writer made the constants for all others
        streams = [_with_constants(*pair) for pair in zip(was.streams, spec.streams, strict=True)]
        spec = replace(spec, streams=tuple(streams))
    found = differences(was, spec)
    refused = [d for d in found if not any(_below(d[0], a) for a in (*allowed, "manifest"))]
    if refused:
        width = max(len(field) for field, _, _ in refused)
        rows = [("", "store", "now"), *((field, _short(a), _short(b)) for field, a, b in refused)]
        table = "\n".join(f"  {field:<{width}}  {a:<{_SHOWN}}  {b}" for field, a, b in rows)
        raise IdentityError(
            f"the store was made with other settings\n{table}",
            where=str(place),
            why="A student could not tell the records of two teachers, token tables or encodings apart.",
            do="Write to another store. Fields of the teacher may differ if they are named in "
            "allow_different=[...], or --allow-different FIELD.",
        )
    if found:
        notes = [{"field": f, "was": a, "now": b} for f, a, b in found]
        fresh = [n for n in notes if n not in was.allowed]
        if fresh:
            was = replace(was, allowed=(*was.allowed, *fresh))
            write_notes(place, was)
    return was


def _with_constants(was: StreamSpec, now: StreamSpec) -> StreamSpec:
    """Return a stream with the constants that the store keeps for it already, if it is the same stream."""
    if (was.name, was.encoding, was.width) != (now.name, now.encoding, now.width):
        return now
    return replace(now, constants=was.constants)


def remove_spec_of_empty_store(place: Place, writer: str) -> None:
    """Remove the description of a store without shards that no other process writes.

    A first run that a check of the teacher stopped leaves such a store; the place can be used again once the
    teacher is repaired. The caller holds the store's lock and its own.
    """
    if is_store(place) and not is_declared(place, writer):
        place.remove(SPEC_FILE)


def is_declared(place: Place, writer: str) -> bool:
    """Return whether a store's description is final: it has shards, or another live process writes it."""
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


def note_skipped_check(place: Place, check: str, reason: str) -> StoreSpec:
    """Note in ``notes.json`` that a check of the teacher was skipped; the caller holds the store's lock."""
    was = read_spec(place)
    note = {"gate": check, "reason": reason}
    if note in was.gates:
        return was
    now = replace(was, gates=(*was.gates, note))
    write_notes(place, now)
    return now


def _below(field: str, allowed: str) -> bool:
    """Return whether allowing one field allows another; fields that say what bytes mean never may differ."""
    if field.partition(".")[0] not in ALLOWABLE:
        return False
    return field == allowed or field.startswith((f"{allowed}.", f"{allowed}["))


def _short(value: Any) -> str:
    """Return a value as JSON, cut in the middle to the width of a column."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 4] + "…" + text[-3:]
