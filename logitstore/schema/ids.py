"""Utterance ids."""

from __future__ import annotations

from typing import Any

from ..errors import ManifestError

MAX_ID_BYTES = 4096


def check_id(utt_id: Any, where: str = "") -> str:
    """Return an utterance id that can be stored and printed; raise ``ManifestError`` for any other value."""
    if not isinstance(utt_id, str) or not utt_id:
        raise ManifestError(f"the id is {utt_id!r}, not a non-empty string", where=where)
    try:
        size = len(utt_id.encode("utf-8"))
    except UnicodeEncodeError:
        raise ManifestError(f"the id {utt_id!r} is not valid Unicode", where=where) from None
    if size > MAX_ID_BYTES:
        raise ManifestError(f"the id has {size} bytes; at most {MAX_ID_BYTES} are allowed", where=where)
    if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in utt_id):
        raise ManifestError(f"the id {utt_id!r} contains control characters", where=where)
    return utt_id
