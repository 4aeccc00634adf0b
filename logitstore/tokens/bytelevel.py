"""Tokens that stand for bytes, one character each, as GPT-2's tokenizer writes them (Radford et al. 2019).

Bytes that print stand for themselves, the others, in order, for the characters from U+0100 on: a space is Ġ.
Facts: ``bytes_to_unicode`` in https://github.com/openai/gpt-2/blob/master/src/encoder.py.
"""

from __future__ import annotations

from collections.abc import Sequence

SPACE = "Ġ"
_PRINT = (range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100))
_OTHERS = [b for b in range(256) if not any(b in r for r in _PRINT)]
BYTES = {**{chr(b): b for r in _PRINT for b in r}, **{chr(0x100 + n): b for n, b in enumerate(_OTHERS)}}


def is_byte_level(tokens: Sequence[str]) -> bool:
    """Whether tokens of a table are bytes: some begin with Ġ, and none with SentencePiece's ▁."""
    return any(t.startswith(SPACE) for t in tokens) and not any(t.startswith("▁") for t in tokens)


def text_of(joined: str) -> str:
    """The text of joined tokens; bytes that are no UTF-8 become U+FFFD."""
    data = bytearray()
    for c in joined:
        data += bytes([BYTES[c]]) if c in BYTES else c.encode("utf-8")
    return data.decode("utf-8", "replace")
