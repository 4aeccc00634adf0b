"""Constants: arrays that a store holds once for all records, e.g. heads of factored streams (SPEC E13)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptError, FormatError
from ..schema.checksums import crc32c
from ..schema.spec import StoreSpec, StreamSpec
from .places import Place

Constants = Mapping[str, Mapping[str, NDArray[Any]]]  # by stream, then by name
DTYPES = ("float32", "int8")


def file_name(stream: str, name: str) -> str:
    """Return the name of a constant's file in a store."""
    return f"constants/{stream}.{name}.npy"


def declared(stream: StreamSpec, arrays: Mapping[str, NDArray[Any]]) -> StreamSpec:
    """Return the spec of a stream with the list of its constants."""
    listed = [
        {"name": n, "dtype": a.dtype.name, "shape": list(a.shape), "crc32c": crc32c(np.ascontiguousarray(a))}
        for n, a in sorted(arrays.items())
    ]
    return replace(stream, constants=tuple(listed))


def write(place: Place, constants: Constants) -> None:
    """Write constants; call it before logitstore.json, which lists them, is written."""
    for stream, arrays in constants.items():
        for name, array in arrays.items():
            file = io.BytesIO()
            np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            place.write(file_name(stream, name), file.getvalue())


def read(place: Place, spec: StoreSpec) -> Constants:
    """Read all constants of a store as read-only arrays; raise ``FormatError`` or ``CorruptError``."""
    return {s.name: {str(c["name"]): _read(place, s.name, c) for c in s.constants} for s in spec.streams}


def _read(place: Place, stream: str, listed: Mapping[str, Any]) -> NDArray[Any]:
    where = file_name(stream, str(listed.get("name")))
    if listed.get("dtype") not in DTYPES or "/" in str(listed.get("name")):
        raise FormatError(f"{dict(listed)} does not describe a constant (SPEC E13)", where=stream)
    try:
        array = np.lib.format.read_array(io.BytesIO(place.read(where)), allow_pickle=False)
    except FileNotFoundError:
        raise CorruptError(
            "it is missing (SPEC E13)", why="No record of its stream can be decoded.", where=where
        ) from None
    except (ValueError, EOFError, OSError, SyntaxError) as e:
        raise CorruptError(f"it is not a .npy array: {e} (SPEC E13)", where=where) from None
    stated = (listed["dtype"], list(listed.get("shape", ())), listed.get("crc32c"))
    if (array.dtype.name, list(array.shape), crc32c(np.ascontiguousarray(array))) != stated:
        raise CorruptError(
            "its checksum does not match its bytes (SPEC E13)",
            where=where,
            why="Every record of the stream is decoded with it.",
            do="Restore the file from a copy.",
        )
    array.flags.writeable = False
    return array
