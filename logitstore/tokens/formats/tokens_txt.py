"""``tokens.txt`` of k2, icefall, sherpa and of a store: a token, a space, its id."""

from __future__ import annotations

from pathlib import Path

from ..table import TokenTable, find_blank, in_order
from . import _lines
from ._lines import DISAMBIGUATION, TokenLine


def recognises(name: str, data: bytes) -> bool:
    """Pairs whose ids are all there, once each; a file of that very name is held to it."""
    return _lines.kind(name, data) == "pairs"


def parse(path: Path, data: bytes, blank: int | None) -> TokenTable:
    """Every id once; the disambiguation symbols at the end (#0, #1, ...) are no classes of a model."""
    found = _lines.by_id(_lines.split(data, str(path)), str(path))
    for i in _disambiguation(found):
        del found[i]
    tokens = in_order({i: line.token for i, line in found.items()}, str(path))
    return TokenTable(tokens, find_blank(tokens, str(path)) if blank is None else blank)


def _disambiguation(found: dict[int, TokenLine]) -> list[int]:
    """The last ids, where they are called #0, #1, ... in this order."""
    last = sorted(found)
    while last and DISAMBIGUATION.fullmatch(found[last[-1]].token):
        last.pop()
    symbols = sorted(found)[len(last) :]
    right = all(found[i].token == f"#{n}" for n, i in enumerate(symbols))
    return symbols if right else []
