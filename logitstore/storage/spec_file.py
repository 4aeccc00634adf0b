"""The file ``logitstore.json``, which makes a place a store (SPEC F4)."""

from __future__ import annotations

from ..errors import FormatError, NotAStore
from ..schema.checksums import open_json, seal_json
from ..schema.spec import StoreSpec
from .places import Place

SPEC_FILE = "logitstore.json"


def is_store(place: Place) -> bool:
    """Return whether a place holds a store."""
    return place.exists(SPEC_FILE)


def read_spec(place: Place) -> StoreSpec:
    """Read the spec of the store at a place.

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
    try:
        return StoreSpec.from_json(open_json(place.read(SPEC_FILE), where))
    except FormatError as e:
        e.where = e.where or where
        raise


def write_spec(place: Place, spec: StoreSpec) -> None:
    """Write or replace the spec of the store at a place; the caller holds the store's lock."""
    place.write(SPEC_FILE, seal_json(spec.to_json()))
