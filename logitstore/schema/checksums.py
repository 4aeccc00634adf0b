"""Checksums, and sealed JSON: objects in a file that ends with its own checksum."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptError, FormatError

MAX_JSON_BYTES = 64 << 20
_LAST_LINE = b'\n"crc32c": '
_CHECKSUM = re.compile(rb"(0|[1-9][0-9]{0,9})\}\n")


def crc32c(data: bytes | NDArray[Any], before: int = 0) -> int:
    """Return the CRC-32C (Castagnoli, RFC 3720) of bytes or a contiguous array: an unsigned 32-bit integer.

    Args:
        data: the bytes; none at all have checksum 0.
        before: the checksum of the bytes in front of them.
    """
    raw = data if isinstance(data, bytes) else data.reshape(-1).view(np.uint8)
    return int(google_crc32c.extend(before, raw)) if len(raw) else before


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes as ``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def id_hash(utt_id: str) -> int:
    """Return the 64-bit BLAKE2b hash of an utterance id in UTF-8, big-endian (SPEC I3)."""
    return int.from_bytes(hashlib.blake2b(utt_id.encode("utf-8"), digest_size=8).digest(), "big")


def compact_json(value: Any) -> bytes:
    """Encode a value as JSON in UTF-8, keys sorted, no spaces; raise ``ValueError`` for NaN or infinity."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8")


def seal_json(value: dict[str, Any]) -> bytes:
    """Encode an object as sealed JSON: its last line holds the CRC-32C of all bytes before that line (SPEC F3)."""
    body = {k: v for k, v in value.items() if k != "crc32c"}
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)
    covered = (text[:-1].rstrip("\n") + (",\n" if body else "\n")).encode("utf-8")
    return covered + b'"crc32c": %d}\n' % crc32c(covered)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [k for k, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key appears twice in one object")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large for a double")
    return number


def parse_json(data: bytes, where: str) -> Any:
    """Parse untrusted JSON: of bounded size, without repeated keys, NaN and infinity.

    Args:
        data: the JSON in UTF-8.
        where: the file or record, for the message of the ``FormatError`` that invalid JSON raises.
    """
    if len(data) > MAX_JSON_BYTES:
        raise FormatError(
            f"there are {len(data)} bytes of JSON; at most {MAX_JSON_BYTES} are read", where=where
        )
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as e:
        raise FormatError(f"not valid JSON: {e}", where=where) from None


def open_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse and check sealed JSON (SPEC F3).

    Raises:
        FormatError: the data is not a JSON object with its checksum.
        CorruptError: the checksum does not match.
    """
    return split_sealed(data, where)[0]


def split_sealed(data: bytes, where: str, *, more: bool = False) -> tuple[dict[str, Any], int]:
    """Parse and check the sealed JSON at the start of a file; return the object and its length in bytes.

    Args:
        data: the file, or its start if that holds the whole object.
        where: the file, for messages.
        more: whether other bytes may follow the object.

    Raises:
        FormatError: the data does not start with a JSON object with its checksum.
        CorruptError: the checksum does not match.
    """
    covered = data.find(_LAST_LINE) + 1
    found = _CHECKSUM.match(data, covered + len(_LAST_LINE) - 1) if covered else None
    if found is None or (found.end() != len(data) and not more):
        raise FormatError("it is not JSON that ends with a line of its crc32c (SPEC F3)", where=where)
    if crc32c(data[:covered]) != int(found[1]):
        raise CorruptError(
            "its checksum does not match its bytes (SPEC F3)",
            where=where,
            why="The file was changed or damaged after it was written.",
            do="Restore it from a copy, or dump this shard again.",
        )
    value = parse_json(data[: found.end()], where)
    if not isinstance(value, dict):
        raise FormatError("it is not a JSON object (SPEC F3)", where=where)
    if b"\\u" in data[: found.end()]:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as e:  # half of a surrogate pair
            raise FormatError(f"not valid JSON: {e}", where=where) from None
    del value["crc32c"]
    return value, found.end()
