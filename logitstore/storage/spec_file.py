"""The files ``logitstore.json``, which makes a place a store, and ``notes.json`` (SPEC F4, F8)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from ..errors import CorruptError, FormatError, NotAStore
from ..schema.checksums import open_json, seal_json, sha256
from ..schema.spec import StoreSpec
from .places import Place

SPEC_FILE = "logitstore.json"
NOTES_FILE = "notes.json"


def is_store(place: Place) -> bool:
    """Return whether a place holds a store."""
    return place.exists(SPEC_FILE)


def read_spec(place: Place) -> StoreSpec:
    """Read the description and the notes of the store at a place; notes that are missing or damaged are empty.

    Raises:
        NotAStore: the place holds no ``logitstore.json``.
        FormatError: the file breaks a rule of SPEC.md.
        CorruptError: the file does not match its checksum.
    """
    where = f"{place}/{SPEC_FILE}"
    if not is_store(place):
        raise NotAStore(
            f"there is no {SPEC_FILE}",
            where=str(place),
            do="Give the location that logitstore dump or a StoreWriter wrote to.",
        )
    data = place.read(SPEC_FILE)
    try:
        described = open_json(data, where)
        spec = StoreSpec.from_json(described)
        with suppress(CorruptError, FormatError, FileNotFoundError):
            notes = open_json(place.read(NOTES_FILE), f"{place}/{NOTES_FILE}")
            spec = StoreSpec.from_json({**notes, **described})
    except FormatError as e:
        e.where = e.where or where
        raise
    return replace(spec, identity=sha256(data))


def write_spec(place: Place, spec: StoreSpec) -> StoreSpec:
    """Write the description of a new store and return it with its identity; the caller holds the store's lock."""
    write_notes(place, spec)
    data = seal_json(spec.description())
    place.write(SPEC_FILE, data)
    return replace(spec, identity=sha256(data))


def write_notes(place: Place, spec: StoreSpec) -> None:
    """Write or replace the notes of the store at a place; the caller holds the store's lock."""
    place.write(NOTES_FILE, seal_json(spec.notes()))
