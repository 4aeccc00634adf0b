"""Token tables: which id is which token, and where the blank is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .digest import sha256
from .errors import TokenError, VocabError

BLANKS = ("<blk>", "<blank>", "<eps>", "[blank]", "<pad>", "[PAD]", "<ctc_blank>", "<b>")


@dataclass(frozen=True)
class TokenTable:
    """V tokens in id order.

    Attributes:
        tokens: the token of every id from 0.
        blank: id of the blank.
    """

    tokens: tuple[str, ...]
    blank: int
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "_ids", {t: i for i, t in enumerate(self.tokens)})
        if not 0 <= self.blank < len(self.tokens):
            raise VocabError(f"blank {self.blank} is outside a table of {len(self.tokens)} tokens")
        if len(self._ids) != len(self.tokens):
            i, token = next((i, t) for i, t in enumerate(self.tokens) if self._ids[t] != i)
            raise VocabError(f"token {token!r} stands at both {i} and {self._ids[token]}")
        for i, token in enumerate(self.tokens):
            if "\n" in token or "\r" in token:
                raise VocabError(f"token {i} ({token!r}) holds a line break, which tokens.txt cannot hold")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> str:
        return self.tokens[index]

    def id(self, token: str) -> int:
        """The id of a token; raises ``TokenError``."""
        try:
            return self._ids[token]
        except KeyError:
            raise TokenError(f"{token!r} is not in the token table") from None

    def text(self, ids: Sequence[int]) -> str:
        """Tokens joined to words: ▁ begins a word; raises ``TokenError`` for an id outside the table."""
        for i in ids:
            if not 0 <= i < len(self.tokens):
                raise TokenError(f"label {i} is outside a table of {len(self.tokens)} tokens")
        return "".join(self.tokens[i] for i in ids).replace("▁", " ").strip()

    def to_bytes(self) -> bytes:
        """k2's tokens.txt, in UTF-8: a token, a space, its id; in id order."""
        return "".join(f"{t} {i}\n" for i, t in enumerate(self.tokens)).encode("utf-8")

    def digest(self) -> str:
        """SHA-256 of :meth:`to_bytes`."""
        return sha256(self.to_bytes())

    @classmethod
    def read(cls, path: str | Path, blank: int | None = None) -> TokenTable:
        """Read k2's tokens.txt; ``blank`` is found by its name when it is not given."""
        return cls.parse(Path(path).read_bytes(), blank=blank, where=str(path))

    @classmethod
    def parse(cls, data: bytes, *, blank: int | None = None, where: str = "") -> TokenTable:
        """Raises ``VocabError`` naming the line that is wrong."""
        try:
            lines = data.decode("utf-8").split("\n")
        except UnicodeDecodeError as e:
            raise VocabError(f"not UTF-8: {e}", where=where) from None
        found: dict[int, str] = {}
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r")
            if not line.strip():
                continue
            token, _, last = line.rstrip(" \t").replace("\t", " ").rpartition(" ")
            if not token or not last.isascii() or not last.isdigit():
                raise VocabError(f"{line!r} is not a token and its id", where=f"{where}:{number}")
            if int(last) in found:
                raise VocabError(
                    f"id {last} is given to {found[int(last)]!r} and to {token!r}", where=f"{where}:{number}"
                )
            found[int(last)] = token
        if sorted(found) != list(range(len(found))):
            missing = next(i for i in range(len(found) + 1) if i not in found)
            raise VocabError(f"ids are not 0…{len(found) - 1}: {missing} is missing", where=where)
        tokens = tuple(found[i] for i in range(len(found)))
        if blank is None:
            blank = next((tokens.index(b) for b in BLANKS if b in tokens), None)
            if blank is None:
                raise VocabError("no token is named like a blank", where=where, do="Say which id it is.")
        return cls(tokens, blank)


def require_same(ours: TokenTable, theirs: TokenTable, *, where: str, which: tuple[str, str]) -> None:
    """Raise ``VocabError`` naming the first differing token and both counts unless two tables agree.

    Args:
        ours: one table.
        theirs: the other.
        where: whose tables they are.
        which: what to call the two in the message.
    """
    if ours == theirs:
        return
    first = next(
        (i for i, (a, b) in enumerate(zip(ours.tokens, theirs.tokens, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )

    def at(table: TokenTable) -> str:
        return repr(table[first]) if first < len(table) else "nothing"

    if ours.tokens == theirs.tokens:
        what = f"blank is {ours.blank} in {which[0]} but {theirs.blank} in {which[1]}"
    else:
        what = (
            f"{which[0]} has {len(ours)} tokens, {which[1]} {len(theirs)}; they differ first at id {first}: "
            f"{at(ours)} against {at(theirs)}"
        )
        if sorted(ours.tokens) == sorted(theirs.tokens):
            what += "; the tokens are the same, in another order"
    raise VocabError(
        what,
        where=where,
        why="A logit's position is its token: another table turns every target into another word.",
        do="Use the table the teacher was trained with.",
    )
