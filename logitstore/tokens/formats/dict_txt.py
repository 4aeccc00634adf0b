"""``dict.txt`` and ``units.txt`` of WeKws, WeNet and ESPnet: a token and its id, or tokens in id order."""

from __future__ import annotations

from pathlib import Path

from ...errors import VocabError
from ..table import BLANKS, TokenTable, find_blank, in_order
from . import _blank, _lines
from ._lines import TokenLine


def recognises(name: str, data: bytes) -> bool:
    """Pairs that k2 would not have (ids shared, -1, comments), or a list that names its blank."""
    kind = _lines.kind(name, data)
    if kind == "list":
        return _blank.named([line.token for line in _lines.peek(data)]) is not None
    return kind == "classes"


def parse(path: Path, data: bytes, blank: int | None) -> TokenTable:
    """Tokens of one id share a class, whose name is its blank's or its first token's; -1 is no class.

    Where ids begin at 1 and ``blank`` is 0, the blank is put there, as ESPnet's training does.
    """
    where = str(path)
    lines = [line for line in _lines.split(data, where) if not _comment(line, where)]
    if lines and not _lines.pairs(lines):
        return _listed(lines, blank, where)
    seen: dict[str, TokenLine] = {}
    classes: dict[int, list[str]] = {}
    for line in lines:
        at = f"{where}:{line.number}"
        if line.id is None:
            raise VocabError(f"{line.token!r} has no id, the other lines have", where=at)
        if line.id < -1:
            raise VocabError(f"{line.token!r} has id {line.id}; only -1 is no class", where=at)
        _lines.no_twin(line, seen, where)
        classes.setdefault(line.id, []).append(line.token)
    outside = classes.pop(-1, [])
    if classes and min(classes) == 1:
        if blank != 0:
            raise VocabError(
                "ids begin at 1",
                where=where,
                why="Either 0 is a blank that is not listed, or every id is one too high.",
                do="blank=0 puts a blank there; otherwise write the file again with ids from 0.",
            )
        classes[0] = [_blank.APPENDED]
    names = {i: _name(tokens) for i, tokens in classes.items()}
    tokens = in_order(names, where)
    also = [(t, i) for i, members in sorted(classes.items()) for t in members if t != names[i]]
    also += [(t, -1) for t in outside]
    return TokenTable(tokens, find_blank(tokens, where) if blank is None else blank, tuple(also))


def _name(members: list[str]) -> str:
    """Of tokens that share a class: what looks like a blank, or else the first."""
    return next((b for b in BLANKS if b in members), members[0])


def _comment(line: TokenLine, where: str) -> bool:
    """``# words`` is a comment, ``#`` a token, ``#word 5`` could be either."""
    if line.id is not None and line.token.startswith("#") and len(line.token) > 1 and line.token[1] != "#":
        if _lines.is_comment(line):
            return True
        raise VocabError(
            f"{line.token!r} with id {line.id} is a comment or a token",
            where=f"{where}:{line.number}",
            do="Begin a comment with '# '; a token of this name needs format='tokens_txt'.",
        )
    return _lines.is_comment(line)


def _listed(lines: list[TokenLine], blank: int | None, where: str) -> TokenTable:
    seen: dict[str, TokenLine] = {}
    for line in lines:
        if line.id is not None:
            raise VocabError(
                f"{line.token!r} has an id, most lines have none", where=f"{where}:{line.number}"
            )
        _lines.no_twin(line, seen, where)
    tokens = tuple(seen)
    return TokenTable(tokens, find_blank(tokens, where) if blank is None else blank)
