"""Constants: arrays that a store holds once for all records, e.g. heads of factored streams (SPEC E13)."""

from __future__ import annotations

import io
import math
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
DTYPES = ("float32", "int8", "int16", "int32", "uint8", "uint16")


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
        data = place.read(where)
    except FileNotFoundError:
        raise CorruptError(
            "it is missing (SPEC E13)", why="No record of its stream can be decoded.", where=where
        ) from None
    shape = tuple(listed.get("shape", ()))
    if not all(type(n) is int and n >= 0 for n in shape):
        raise FormatError(f"{dict(listed)} does not describe a constant (SPEC E13)", where=stream)
    # The items are checked against the checksum first, and the header byte for byte: numpy's parser of headers
    # is Python's own, and raises any error on damaged ones.
    dtype = np.dtype(listed["dtype"])
    size = dtype.itemsize * math.prod(shape)
    header, items = data[: max(len(data) - size, 0)], data[max(len(data) - size, 0) :]
    if len(items) != size or crc32c(items) != listed.get("crc32c") or not _is_header(header, dtype, shape):
        raise CorruptError(
            "its checksum or its header does not match its bytes (SPEC E13)",
            where=where,
            why="Every record of the stream is decoded with it.",
            do="Restore the file from a copy.",
        )
    return np.frombuffer(items, dtype).reshape(shape)


def _is_header(header: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Return whether bytes are the .npy header of an array in C order; any error of numpy's parser means no."""
    file = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        found = read(file)
    except Exception:  # of the tokeniser, the parser or the decoder
        return False
    return found == (shape, False, dtype) and file.tell() == len(header)
