"""``tokens.txt`` of k2, icefall, sherpa and of a store: a token, a space and its id per line."""

from __future__ import annotations

from pathlib import Path

from ..table import TokenTable, find_blank, in_order
from . import _lines
from ._lines import DISAMBIGUATION, TokenLine


def recognises(name: str, data: bytes) -> bool:
    """Return whether it has pairs with each id once, or is called tokens.txt."""
    return _lines.kind(name, data) == "pairs"


def parse(path: Path, data: bytes, blank: int | None) -> TokenTable:
    """Parse a table; leave out the disambiguation symbols (#0, #1, ...) at its end, which have no classes."""
    found = _lines.by_id(_lines.split(data, str(path)), str(path))
    for i in _disambiguation(found):
        del found[i]
    tokens = in_order({i: line.token for i, line in found.items()}, str(path))
    return TokenTable(tokens, find_blank(tokens, str(path)) if blank is None else blank)


def _disambiguation(found: dict[int, TokenLine]) -> list[int]:
    """Return the last ids, if their tokens are #0, #1, ... in this order."""
    last = sorted(found)
    while last and DISAMBIGUATION.fullmatch(found[last[-1]].token):
        last.pop()
    symbols = sorted(found)[len(last) :]
    right = all(found[i].token == f"#{n}" for n, i in enumerate(symbols))
    return symbols if right else []
