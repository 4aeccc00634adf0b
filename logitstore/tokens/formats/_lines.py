"""Lines of token tables in text: a token and its id, or a token alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import VocabError

_PAIR = re.compile(r"(.*\S|[ \t])[ \t]+(-?[0-9]+)[ \t]*")
DISAMBIGUATION = re.compile(r"#[0-9]+")


@dataclass(frozen=True)
class TokenLine:
    """One line of a token table.

    Attributes:
        number: number of the line, from 1.
        token: the token, without the white space that pads columns; a lone space is a token.
        id: id of the token; None for a line with a token alone.
    """

    number: int
    token: str
    id: int | None


def decode(data: bytes, where: str) -> str:
    """Decode UTF-8, with or without a byte-order mark; raise ``VocabError`` for other bytes."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise VocabError(f"not UTF-8: {e}", where=where) from None


def split(data: bytes, where: str) -> list[TokenLine]:
    """Return all lines that are not empty; raise ``VocabError`` for bytes that are not UTF-8."""
    found = []
    for number, line in enumerate(decode(data, where).split("\n"), 1):
        line = line.rstrip("\r")
        pair = _PAIR.fullmatch(line)
        if pair is not None:
            found.append(TokenLine(number, pair[1], int(pair[2])))
        elif line:
            found.append(TokenLine(number, line.strip(" \t") or line[0], None))
    return found


def peek(data: bytes) -> list[TokenLine]:
    """Return the lines as :func:`split` does; none for bytes that are not text."""
    try:
        return split(data, "") if b"\0" not in data else []
    except VocabError:
        return []


def is_comment(line: TokenLine) -> bool:
    """Return whether a line is a comment, ``# some words``; a lone ``#`` is a token."""
    return line.token.startswith("# ")


def kind(name: str, data: bytes) -> str:
    """Return the kind of a token table by its name and content.

    ``pairs``: tokens and ids, each id once. ``classes``: tokens and ids, where ids may be shared or -1 and there
    may be comments, as in dict.txt and units.txt. ``list``: tokens alone. Empty: not a token table in text.
    """
    lines = [] if name.endswith((".model", ".vocab", ".json", ".yaml", ".yml")) else peek(data)
    if not pairs(lines):
        return "list" if lines and all(line.id is None for line in lines) else ""
    if name == "tokens.txt":
        return "pairs"
    ids = {line.id for line in lines if line.id is not None and line.id >= 0}
    if name.startswith(("dict", "units", "lang_char")) or len(ids) != len(lines):
        return "classes"
    return "pairs"


def pairs(lines: list[TokenLine]) -> bool:
    """Return whether most lines that are not comments give an id; a few lines may be wrong."""
    ids = [line.id is not None for line in lines if not is_comment(line)]
    return 2 * sum(ids) > len(ids) > 0


def by_id(lines: list[TokenLine], where: str) -> dict[int, TokenLine]:
    """Return lines by id; raise ``VocabError`` for a line without an id, or with that of another line."""
    found: dict[int, TokenLine] = {}
    seen: dict[str, TokenLine] = {}
    for line in lines:
        at = f"{where}:{line.number}"
        if line.id is None:
            raise VocabError(f"{line.token!r} is not a token and its id", where=at)
        if line.id < 0:
            raise VocabError(
                f"{line.token!r} has id {line.id}",
                where=at,
                do="Read it with format='dict_txt' if -1 stands for no class.",
            )
        if line.id in found:
            raise VocabError(
                f"id {line.id} is given to {found[line.id].token!r} and to {line.token!r}",
                where=at,
                do="Correct it. If both share a class on purpose, read it with format='dict_txt'.",
            )
        require_new(line, seen, where)
        found[line.id] = line
    return found


def require_new(line: TokenLine, seen: dict[str, TokenLine], where: str) -> None:
    """Add a line to ``seen``; raise ``VocabError`` if another line has its token."""
    if line.token in seen:
        raise VocabError(
            f"token {line.token!r} is already on line {seen[line.token].number}",
            where=f"{where}:{line.number}",
        )
    seen[line.token] = line
