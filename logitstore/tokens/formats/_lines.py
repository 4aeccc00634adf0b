"""Lines of text tables: a token and its id, or a token alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import VocabError

_PAIR = re.compile(r"(.*\S|[ \t])[ \t]+(-?[0-9]+)[ \t]*")
DISAMBIGUATION = re.compile(r"#[0-9]+")


@dataclass(frozen=True)
class TokenLine:
    """A token, its id where the line gives one, and where it stands.

    Attributes:
        number: from 1.
        token: without the white space that pads columns; a lone space is a token itself.
        id: None where the line is a token alone.
    """

    number: int
    token: str
    id: int | None


def decode(data: bytes, where: str) -> str:
    """UTF-8, with or without a byte-order mark; raises ``VocabError``."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise VocabError(f"not UTF-8: {e}", where=where) from None


def split(data: bytes, where: str) -> list[TokenLine]:
    """Every line that holds something; raises ``VocabError`` for other encodings than UTF-8."""
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
    """As :func:`split`; nothing where the bytes are no text."""
    try:
        return split(data, "") if b"\0" not in data else []
    except VocabError:
        return []


def is_comment(line: TokenLine) -> bool:
    """``# some words``. A lone ``#`` is a token."""
    return line.token.startswith("# ")


def kind(name: str, data: bytes) -> str:
    """What a text table looks like, from its name and content.

    ``pairs``: a token and its id, each id once. ``classes``: the same, where ids may be shared or -1 and
    comments may stand, as dict.txt and units.txt have them. ``list``: tokens alone. Empty: no text table.
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
    """Whether most lines give an id, comments aside: a table of pairs, though some may be wrong."""
    ids = [line.id is not None for line in lines if not is_comment(line)]
    return 2 * sum(ids) > len(ids) > 0


def by_id(lines: list[TokenLine], where: str) -> dict[int, TokenLine]:
    """Lines by id; raises ``VocabError`` where a line has none, or one that another has."""
    found: dict[int, TokenLine] = {}
    seen: dict[str, TokenLine] = {}
    for line in lines:
        at = f"{where}:{line.number}"
        if line.id is None:
            raise VocabError(f"{line.token!r} is not a token and its id", where=at)
        if line.id < 0:
            raise VocabError(f"{line.token!r} has id {line.id}", where=at, do="format='dict_txt' reads -1.")
        if line.id in found:
            raise VocabError(
                f"id {line.id} is given to {found[line.id].token!r} and to {line.token!r}",
                where=at,
                do="Correct it; or, where they share a class on purpose, say format='dict_txt'.",
            )
        no_twin(line, seen, where)
        found[line.id] = line
    return found


def no_twin(line: TokenLine, seen: dict[str, TokenLine], where: str) -> None:
    """Remember a line's token; raises ``VocabError`` where another line has it."""
    if line.token in seen:
        raise VocabError(
            f"token {line.token!r} stands on line {seen[line.token].number} already",
            where=f"{where}:{line.number}",
        )
    seen[line.token] = line
