"""Checksums, and the one way JSON is written so that a checksum of it means something."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptError, FormatError

MAX_JSON_BYTES = 64 << 20


def crc32c(data: bytes | NDArray[Any], before: int = 0) -> int:
    """CRC-32C (Castagnoli, RFC 3720) of bytes or a contiguous array, as an unsigned 32-bit integer.

    ``before`` is the checksum of what stands in front of them; nothing at all has checksum 0.
    """
    raw = data if isinstance(data, bytes) else data.reshape(-1).view(np.uint8)
    return int(google_crc32c.extend(before, raw)) if len(raw) else before


def sha256(data: bytes) -> str:
    """SHA-256 as ``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def id_hash(utt_id: str) -> int:
    """64-bit BLAKE2b of an utterance id in UTF-8, big-endian: the key of the index (SPEC I2)."""
    return int.from_bytes(hashlib.blake2b(utt_id.encode("utf-8"), digest_size=8).digest(), "big")


def canonical(value: Any) -> bytes:
    """JSON in UTF-8 with sorted keys and no spaces; NaN and infinity are refused with ``ValueError``."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8")


def seal_json(value: dict[str, Any]) -> bytes:
    """A JSON object with its own CRC-32C as the key ``crc32c`` (SPEC F3), indented for people."""
    body = {k: v for k, v in value.items() if k != "crc32c"}
    body["crc32c"] = crc32c(canonical(body))
    return json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [k for k, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key stands twice in one object")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is beyond a double")
    return number


def parse_json(data: bytes, where: str) -> Any:
    """Parse JSON from a stranger: bounded size, no key twice, no NaN or infinity. Raises ``FormatError``."""
    if len(data) > MAX_JSON_BYTES:
        raise FormatError(f"{len(data)} bytes of JSON, more than {MAX_JSON_BYTES}", where=where)
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
    """Parse what :func:`seal_json` wrote and check it. Raises ``FormatError`` or ``CorruptError``."""
    value = parse_json(data, where)
    if not isinstance(value, dict) or not isinstance(value.get("crc32c"), int):
        raise FormatError("not a JSON object with its crc32c (SPEC F3)", where=where)
    said = value.pop("crc32c")
    try:
        found = crc32c(canonical(value))
    except (ValueError, RecursionError) as e:  # half of a surrogate pair; too deep
        raise FormatError(f"not valid JSON: {e}", where=where) from None
    if found != said:
        raise CorruptError(
            "its checksum does not match its content (SPEC F3)",
            where=where,
            why="The file was changed or damaged after it was written.",
            do="Restore it from a copy, or dump this shard again.",
        )
    return value
