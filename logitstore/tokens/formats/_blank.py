"""Where the blank is in tables that name it, number it, or leave it out."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import VocabError
from ..table import TokenTable

NAMES = ("<blk>", "<blank>", "[blank]", "<ctc_blank>", "<b>")  # never anything but a CTC blank
APPENDED = "<blank>"


def named(tokens: Sequence[str]) -> int | None:
    """Id of the token that can only be a blank; padding and ε are not such names."""
    return next((tokens.index(b) for b in NAMES if b in tokens), None)


def appended(tokens: Sequence[str], where: str) -> TokenTable:
    """A table whose blank comes after its V tokens, under a name that is free."""
    if APPENDED in tokens:
        raise VocabError(
            f"blank {len(tokens)} would be appended, but {APPENDED!r} is {tokens.index(APPENDED)} already",
            where=where,
        )
    return TokenTable((*tokens, APPENDED), len(tokens))
