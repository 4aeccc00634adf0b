"""The blank of tables that name it or leave it out."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import VocabError
from ..table import TokenTable

NAMES = ("<blk>", "<blank>", "[blank]", "<ctc_blank>", "<b>")  # names that only a blank has
APPENDED = "<blank>"


def named(tokens: Sequence[str]) -> int | None:
    """Return the id of the token that can only be a blank, or None; padding and ε may be other tokens."""
    return next((tokens.index(b) for b in NAMES if b in tokens), None)


def appended(tokens: Sequence[str], where: str) -> TokenTable:
    """Return a table with the blank after its tokens; raise ``VocabError`` if its name is taken."""
    if APPENDED in tokens:
        raise VocabError(
            f"blank {len(tokens)} would be appended, but {APPENDED!r} is {tokens.index(APPENDED)} already",
            where=where,
        )
    return TokenTable((*tokens, APPENDED), len(tokens))
