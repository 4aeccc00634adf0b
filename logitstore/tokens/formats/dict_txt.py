"""``dict.txt`` and ``units.txt`` of WeKws, WeNet and ESPnet: a token and its id, or tokens in id order."""

from __future__ import annotations

from pathlib import Path

from ...errors import VocabError
from ..table import BLANKS, TokenTable, find_blank, in_order
from . import _blank, _lines
from ._lines import TokenLine


def recognises(name: str, data: bytes) -> bool:
    """Return whether it has pairs that k2 does not allow (shared ids, -1, comments), or a list with a blank."""
    kind = _lines.kind(name, data)
    if kind == "list":
        return _blank.named([line.token for line in _lines.peek(data)]) is not None
    return kind == "classes"


def parse(path: Path, data: bytes, blank: int | None) -> TokenTable:
    """Parse a table in which tokens of the same id share a class, and tokens of id -1 have none.

    A class is named by its blank, or else by its first token. If ids begin at 1 and ``blank`` is 0, a blank is
    inserted at 0, as in ESPnet's training.
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
            raise VocabError(f"{line.token!r} has no id, but the other lines have one", where=at)
        if line.id < -1:
            raise VocabError(f"{line.token!r} has id {line.id}; only -1 stands for no class", where=at)
        _lines.require_new(line, seen, where)
        classes.setdefault(line.id, []).append(line.token)
    outside = classes.pop(-1, [])
    if classes and min(classes) == 1:
        if blank != 0:
            raise VocabError(
                "ids begin at 1",
                where=where,
                why="Either id 0 is a blank that is not listed, or every id is too high by one.",
                do="Give blank=0 to insert a blank there; otherwise write the file again with ids from 0.",
            )
        classes[0] = [_blank.APPENDED]
    names = {i: _name(tokens) for i, tokens in classes.items()}
    tokens = in_order(names, where)
    also = [(t, i) for i, members in sorted(classes.items()) for t in members if t != names[i]]
    also += [(t, -1) for t in outside]
    return TokenTable(tokens, find_blank(tokens, where) if blank is None else blank, tuple(also))


def _name(members: list[str]) -> str:
    """Return the name of a class: its token that is named like a blank, or else its first token."""
    return next((b for b in BLANKS if b in members), members[0])


def _comment(line: TokenLine, where: str) -> bool:
    """Return whether a line is a comment; raise ``VocabError`` for ``#word 5``, which may be a token."""
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
                f"{line.token!r} has an id, but most lines have none", where=f"{where}:{line.number}"
            )
        _lines.require_new(line, seen, where)
    tokens = tuple(seen)
    return TokenTable(tokens, find_blank(tokens, where) if blank is None else blank)
