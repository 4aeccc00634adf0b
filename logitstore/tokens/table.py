"""Token tables: the token of every id, and the id of the blank."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..errors import TokenError, VocabError
from ..schema.checksums import sha256
from .diff import compare

BLANKS = ("<blk>", "<blank>", "<eps>", "[blank]", "<pad>", "[PAD]", "<ctc_blank>", "<b>")
_PAIR = re.compile(r"(.+)[ \t]([0-9]+)[ \t]*")


@dataclass(frozen=True)
class TokenTable:
    """A token table of V classes in id order, each named by a token.

    Attributes:
        tokens: token of every id, from 0.
        blank: id of the blank.
        also: (token, id) of further tokens that share a class, as in reduced tables of keyword spotting; id -1
            for a known token without a class. ``id`` and ``members`` look them up; :meth:`to_bytes`, and so a
            store, leaves them out.
    """

    tokens: tuple[str, ...]
    blank: int
    also: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "also", tuple((str(t), int(i)) for t, i in self.also))
        object.__setattr__(self, "_ids", {t: i for i, t in enumerate(self.tokens)})
        if not 0 <= self.blank < len(self.tokens):
            raise VocabError(f"blank {self.blank} is outside a table of {len(self.tokens)} tokens")
        if len(self._ids) != len(self.tokens):
            i, token = next((i, t) for i, t in enumerate(self.tokens) if self._ids[t] != i)
            raise VocabError(f"token {token!r} stands at both {i} and {self._ids[token]}")
        for i, token in enumerate(self.tokens):
            if not token:
                raise VocabError(f"token {i} is empty, which tokens.txt cannot hold")
            if "\n" in token or "\r" in token:
                raise VocabError(f"token {i} ({token!r}) holds a line break, which tokens.txt cannot hold")
        for token, i in self.also:
            if token in self._ids:
                raise VocabError(f"token {token!r} stands at both {self._ids[token]} and {i}")
            if not -1 <= i < len(self.tokens):
                raise VocabError(f"token {token!r} has id {i}, outside a table of {len(self.tokens)} tokens")
            self._ids[token] = i

    @cached_property
    def _bytes(self) -> bool:
        return is_byte_level(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> str:
        return self.tokens[index]

    def __contains__(self, token: object) -> bool:
        return self._ids.get(token, -1) >= 0 if isinstance(token, str) else False

    def id(self, token: str) -> int:
        """Return the id of a token; raise ``TokenError`` if it has none."""
        found = self._ids.get(token)
        if found is None:
            raise TokenError(f"{token!r} is not in the token table")
        if found < 0:
            raise TokenError(f"{token!r} is in the token table, but has no class (-1)")
        return found

    def members(self, index: int) -> tuple[str, ...]:
        """Return all tokens of a class, beginning with the one that names it."""
        return (self.tokens[index], *(t for t, i in self.also if i == index))

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; raise ``TokenError`` for an id outside the table.

        ``▁`` becomes a space, and so does ``|`` in a table that has neither a space nor ``▁``. Byte-level
        tokens, as of GPT-2 and Whisper, are decoded as UTF-8.
        """
        for i in ids:
            if not 0 <= i < len(self.tokens):
                raise TokenError(f"label {i} is outside a table of {len(self.tokens)} tokens")
        words = "".join(self.tokens[i] for i in ids)
        if self._bytes:
            return text_of(words).strip()
        words = words.replace("▁", " ")
        if "|" in self._ids and " " not in self._ids and not any("▁" in t for t in self.tokens):
            words = words.replace("|", " ")
        return words.strip()

    def to_bytes(self) -> bytes:
        """Encode as k2's tokens.txt, in UTF-8: a token, a space and its id per line, in id order."""
        return "".join(f"{t} {i}\n" for i, t in enumerate(self.tokens)).encode("utf-8")

    def digest(self) -> str:
        """Return the SHA-256 of :meth:`to_bytes`."""
        return sha256(self.to_bytes())

    @classmethod
    def read(cls, path: str | Path, blank: int | None = None) -> TokenTable:
        """Read a store's tokens.txt; without ``blank``, the blank is found by its name.

        :func:`logitstore.tokens.formats.read_table` reads all formats, and tokens.txt of other toolkits.
        """
        return cls.parse(Path(path).read_bytes(), blank=blank, where=str(path))

    @classmethod
    def parse(cls, data: bytes, *, blank: int | None = None, where: str = "") -> TokenTable:
        """Parse the output of :meth:`to_bytes`; raise ``VocabError`` with the line that is wrong."""
        try:
            lines = data.decode("utf-8").split("\n")
        except UnicodeDecodeError as e:
            raise VocabError(f"not UTF-8: {e}", where=where) from None
        found: dict[int, str] = {}
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r")
            if not line.strip():
                continue
            pair = _PAIR.fullmatch(line)
            if pair is None:
                raise VocabError(f"{line!r} is not a token and its id", where=f"{where}:{number}")
            token, i = pair[1], int(pair[2])
            if i in found:
                raise VocabError(
                    f"id {i} is given to {found[i]!r} and to {token!r}", where=f"{where}:{number}"
                )
            found[i] = token
        tokens = in_order(found, where)
        return cls(tokens, find_blank(tokens, where) if blank is None else blank)


def in_order(found: dict[int, str], where: str) -> tuple[str, ...]:
    """Return tokens in id order; raise ``VocabError`` unless the ids are 0…V-1."""
    if sorted(found) != list(range(len(found))):
        missing = next(i for i in range(len(found) + 1) if i not in found)
        raise VocabError(f"ids are not 0…{len(found) - 1}: {missing} is missing", where=where)
    return tuple(found[i] for i in range(len(found)))


def find_blank(tokens: Sequence[str], where: str) -> int:
    """Return the id of the token that is named like a blank; raise ``VocabError`` if there is none."""
    found = next((tokens.index(b) for b in BLANKS if b in tokens), None)
    if found is None:
        raise VocabError("no token is named like a blank", where=where, do="Say which id it is.")
    return found


def require_same(ours: TokenTable, theirs: TokenTable, *, where: str, which: tuple[str, str]) -> None:
    """Raise ``VocabError`` unless two tables are equal; the message describes the difference.

    Args:
        ours: one table.
        theirs: the other table.
        where: the store or file, for the message.
        which: names of the two tables in the message.
    """
    if ours == theirs:
        return
    found = compare(ours, theirs, which)
    raise VocabError(
        found.what,
        where=where,
        why="The position of a logit stands for a token. With another table, targets stand for other words.",
        do=found.do,
    )


# Byte-level tokens (GPT-2): a printable byte stands for itself, the n-th other byte is U+0100 + n; Ġ is the space.
SPACE = "Ġ"
_PRINT = (range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100))
_OTHERS = [b for b in range(256) if not any(b in r for r in _PRINT)]
BYTES = {**{chr(b): b for r in _PRINT for b in r}, **{chr(0x100 + n): b for n, b in enumerate(_OTHERS)}}


def is_byte_level(tokens: Sequence[str]) -> bool:
    """Return whether tokens are byte-level: some begin with Ġ, and none with SentencePiece's ▁."""
    return any(t.startswith(SPACE) for t in tokens) and not any(t.startswith("▁") for t in tokens)


def text_of(joined: str) -> str:
    """Decode joined byte-level tokens; bytes that are not UTF-8 become U+FFFD."""
    data = bytearray()
    for c in joined:
        data += bytes([BYTES[c]]) if c in BYTES else c.encode("utf-8")
    return data.decode("utf-8", "replace")
