"""What kind of difference lies between two token tables, in words.

A re-sorted or reduced dictionary has as good a shape as the right one, so nothing but the names can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

MARKERS = ("▁", "Ġ", "##", "@@")
MAPPABLE = ("same", "blank", "re-sorted", "reduced", "extended", "overlapping")
CHARACTERS, PIECES = 0.1, 0.4  # share of pieces of several characters: of a character table, of a BPE table
KEYWORDS = 10  # so few characters are a keyword's, not a character table
_OWN = "Use the table the teacher was trained with"
_MAP = f"{_OWN}, or map by name: open_store(..., vocab=VocabMap.by_token(store.tokens, table))."


class Tokens(Protocol):
    """The tokens of a table in id order, and the id of its blank."""

    @property
    def tokens(self) -> tuple[str, ...]: ...

    @property
    def blank(self) -> int: ...


@dataclass(frozen=True)
class TableDifference:
    """How two tables differ.

    Attributes:
        kind: one of ``MAPPABLE``, or ``case``, ``marker``, ``units``, ``foreign``: there, tokens of one name
            are not what the other table calls so.
        what: the difference, with both counts and the first differing token.
        do: what to do about it.
    """

    kind: str
    what: str
    do: str

    @property
    def mappable(self) -> bool:
        """Whether a map by token name makes sense."""
        return self.kind in MAPPABLE


def compare(ours: Tokens, theirs: Tokens, which: tuple[str, str]) -> TableDifference:
    """The difference between two tables, called ``which`` in the text."""
    one, two = which
    if ours.tokens == theirs.tokens:
        if ours.blank == theirs.blank:
            return TableDifference("same", "the tables are the same", "")
        what = f"blank is {ours.blank} in {one} but {theirs.blank} in {two}"
        return TableDifference("blank", what, f"Say which blank is right. {_OWN}.")
    kind, more, do = _kind(ours, theirs, which)
    counts = f"{one} has {len(ours.tokens)} tokens, {two} {len(theirs.tokens)}"
    first = next(
        (i for i, (a, b) in enumerate(zip(ours.tokens, theirs.tokens, strict=False)) if a != b),
        min(len(ours.tokens), len(theirs.tokens)),
    )
    return TableDifference(
        kind,
        f"{counts}; they differ first at id {first}: {_at(ours, first)} against {_at(theirs, first)}; {more}",
        do,
    )


def _kind(ours: Tokens, theirs: Tokens, which: tuple[str, str]) -> tuple[str, str, str]:
    """Kind, its sentence, and what to do, of two tables whose tokens differ."""
    one, two = which
    a, b = _spoken(ours), _spoken(theirs)
    if a == b:
        if ours.blank == theirs.blank:
            return "blank", "only the blank is called differently", _MAP
        shift = f"blank moved from {ours.blank} to {theirs.blank}, and every id between moved by one"
        return "blank", shift, _MAP
    if sorted(a) == sorted(b):
        moved = "" if ours.blank == theirs.blank else f", and blank is {ours.blank} against {theirs.blank}"
        return "re-sorted", f"the tokens are the same, in another order{moved}", _MAP
    units = _units(a, b, which)
    if units:
        return "units", units, "Use the stored transcripts as hard targets, or a teacher with such units."
    known, wanted = set(a), set(b)
    both = known & wanted
    for kind, form, name, how in _SPELLINGS:
        folded = {form(t) for t in _plain(known)} & {form(t) for t in _plain(wanted)}
        fewest = min(len(_plain(known)), len(_plain(wanted)))
        if len(folded) >= max(0.5 * fewest, 1.5 * len(_plain(both)), 1):
            say = f"they differ in {name}: {len(both)} tokens are equal with it, {len(folded)} without"
            return kind, say, f"VocabMap.by_token(..., {how}) maps one spelling to the other."
    if not _plain(both) and _plain(known) and _plain(wanted):
        return "foreign", "they have no token in common", f"{_OWN}."
    if both and _plain(wanted) <= known:
        return "reduced", _reduced(ours, theirs, which), _MAP
    if both and _plain(known) <= wanted:
        more = len(wanted - known)
        return "extended", f"every token of {one} is in {two}, which has {more} more", _MAP
    if not both:
        return "foreign", "they have no token in common", f"{_OWN}."
    return "overlapping", f"they share {len(both)} tokens", _MAP


def _units(a: Sequence[str], b: Sequence[str], which: tuple[str, str]) -> str:
    """What to say of a character table against a BPE table; empty where they are not that."""
    shares = _several(a), _several(b)
    if min(shares) > CHARACTERS or max(shares) < PIECES:
        return ""
    characters, pieces = (a, b) if shares[0] < shares[1] else (b, a)
    if len(_plain(characters)) < KEYWORDS and _plain(characters) <= set(pieces):
        return ""
    kinds = [("a character" if s <= CHARACTERS else "a BPE") for s in shares]
    return (
        f"{which[0]} is {kinds[0]} table ({shares[0]:.0%} of its tokens are longer than one character), "
        f"{which[1]} {kinds[1]} table ({shares[1]:.0%}): the same words are cut into other pieces, and a "
        "frame's distribution over the one says nothing about the other"
    )


def _reduced(ours: Tokens, theirs: Tokens, which: tuple[str, str]) -> str:
    """The accident this module is for: fewer tokens, so that every later id means another one."""
    ids = {t: i for i, t in enumerate(ours.tokens)}
    kept = [(t, ids[t], i) for i, t in enumerate(theirs.tokens) if t in ids]
    say = f"{which[1]} is a reduced table: {len(kept)} of the tokens of {which[0]}"
    moved = [(t, was, now) for t, was, now in kept if was != now]
    if moved:
        token, was, now = moved[0]
        say += f", {len(moved)} of them under another id, the first {token!r}: {was} became {now}"
    return say


def _at(table: Tokens, index: int) -> str:
    return repr(table.tokens[index]) if index < len(table.tokens) else "nothing"


def _spoken(table: Tokens) -> list[str]:
    """The tokens in order, without the blank."""
    return [t for i, t in enumerate(table.tokens) if i != table.blank]


def is_special(token: str) -> bool:
    """``<unk>``, ``[PAD]``, ``#0``: not text."""
    return len(token) > 2 and token[0] + token[-1] in ("<>", "[]")


def _plain(tokens: Iterable[str]) -> set[str]:
    return {t for t in tokens if not is_special(t)}


def bare(token: str) -> str:
    """A token without the mark that begins or joins a word."""
    for mark in MARKERS:
        token = token.removeprefix(mark).removesuffix(mark) or token
    return " " if token in ("|", "▁", "<space>", "Ġ") else token


def _several(tokens: Sequence[str]) -> float:
    """Share of the tokens that are longer than one character."""
    plain = [bare(t) for t in tokens if not is_special(t)]
    return sum(len(t) > 1 for t in plain) / len(plain) if plain else 0.0


_SPELLINGS: tuple[tuple[str, Callable[[str], str], str, str], ...] = (
    ("case", str.casefold, "upper and lower case", "spell=str.lower"),
    ("marker", bare, "word markers such as ▁", "spell=..."),
)
