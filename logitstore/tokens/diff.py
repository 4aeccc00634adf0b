"""Comparison of token tables: the kind of their difference, described in words.

A re-sorted or reduced table may have as many tokens as the right one, so tables are compared by token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

MARKERS = ("▁", "Ġ", "##", "@@")
MAPPABLE = ("same", "blank", "re-sorted", "reduced", "extended", "overlapping")
# Largest share of tokens longer than one character in a character table, smallest share in a BPE table.
MAX_CHARACTER_SHARE, MIN_BPE_SHARE = 0.1, 0.4
MIN_CHARACTERS = 10  # fewer characters belong to a keyword table, not to a character table
_USE_OWN = "Use the table the teacher was trained with"
_MAP_TOKENS = f"{_USE_OWN}, or map by name: open_store(..., vocab=VocabMap.by_token(store.tokens, table))."


class Tokens(Protocol):
    """The tokens of a table in id order, and the id of its blank."""

    @property
    def tokens(self) -> tuple[str, ...]: ...

    @property
    def blank(self) -> int: ...


@dataclass(frozen=True)
class TableDifference:
    """The difference between two token tables.

    Attributes:
        kind: one of ``MAPPABLE``, or ``case``, ``marker``, ``units`` or ``foreign``, where equal tokens of the
            two tables need not mean the same.
        what: description of the difference, with both sizes and the first differing token.
        do: the remedy.
    """

    kind: str
    what: str
    do: str

    @property
    def mappable(self) -> bool:
        """True if the tables can be mapped by token."""
        return self.kind in MAPPABLE


def compare(ours: Tokens, theirs: Tokens, which: tuple[str, str]) -> TableDifference:
    """Compare two tables; ``which`` are their names in the description."""
    one, two = which
    if ours.tokens == theirs.tokens:
        if ours.blank == theirs.blank:
            return TableDifference("same", "the tables are the same", "")
        what = f"blank is {ours.blank} in {one} but {theirs.blank} in {two}"
        return TableDifference("blank", what, f"Say which blank is right. {_USE_OWN}.")
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
    """Return (kind, description, remedy) for two tables with different tokens."""
    one, two = which
    a, b = _without_blank(ours), _without_blank(theirs)
    if a == b:
        if ours.blank == theirs.blank:
            return "blank", "only the token of the blank differs", _MAP_TOKENS
        shift = f"blank moved from {ours.blank} to {theirs.blank}, and every id between moved by one"
        return "blank", shift, _MAP_TOKENS
    if sorted(a) == sorted(b):
        moved = "" if ours.blank == theirs.blank else f", and blank is {ours.blank} against {theirs.blank}"
        return "re-sorted", f"the tokens are the same, in another order{moved}", _MAP_TOKENS
    units = _units(a, b, which)
    if units:
        return "units", units, "Use the stored transcripts as hard targets, or a teacher with such units."
    known, wanted = set(a), set(b)
    both = known & wanted
    for kind, form, name, how in _SPELLINGS:
        folded = {form(t) for t in _without_special(known)} & {form(t) for t in _without_special(wanted)}
        fewest = min(len(_without_special(known)), len(_without_special(wanted)))
        if len(folded) >= max(0.5 * fewest, 1.5 * len(_without_special(both)), 1):
            sentence = f"they differ in {name}: {len(both)} tokens are equal with it, {len(folded)} without"
            return kind, sentence, f"VocabMap.by_token(..., {how}) maps one spelling to the other."
    if not _without_special(both) and _without_special(known) and _without_special(wanted):
        return "foreign", "they have no token in common", f"{_USE_OWN}."
    if both and _without_special(wanted) <= known:
        return "reduced", _reduced(ours, theirs, which), _MAP_TOKENS
    if both and _without_special(known) <= wanted:
        more = len(wanted - known)
        return "extended", f"every token of {one} is in {two}, which has {more} more", _MAP_TOKENS
    if not both:
        return "foreign", "they have no token in common", f"{_USE_OWN}."
    return "overlapping", f"they share {len(both)} tokens", _MAP_TOKENS


def _units(a: Sequence[str], b: Sequence[str], which: tuple[str, str]) -> str:
    """Describe the difference between a character table and a BPE table; return "" for other tables."""
    shares = _share_of_longer(a), _share_of_longer(b)
    if min(shares) > MAX_CHARACTER_SHARE or max(shares) < MIN_BPE_SHARE:
        return ""
    characters, pieces = (a, b) if shares[0] < shares[1] else (b, a)
    if len(_without_special(characters)) < MIN_CHARACTERS and _without_special(characters) <= set(pieces):
        return ""
    kinds = [("a character" if s <= MAX_CHARACTER_SHARE else "a BPE") for s in shares]
    return (
        f"{which[0]} is {kinds[0]} table ({shares[0]:.0%} of its tokens are longer than one character), "
        f"{which[1]} {kinds[1]} table ({shares[1]:.0%}): they split the same words into different "
        "tokens, so a distribution over the one cannot be mapped to the other"
    )


def _reduced(ours: Tokens, theirs: Tokens, which: tuple[str, str]) -> str:
    """Describe a table with fewer tokens, in which later ids stand for other tokens."""
    ids = {t: i for i, t in enumerate(ours.tokens)}
    kept = [(t, ids[t], i) for i, t in enumerate(theirs.tokens) if t in ids]
    sentence = f"{which[1]} is a reduced table: {len(kept)} of the tokens of {which[0]}"
    moved = [(t, was, now) for t, was, now in kept if was != now]
    if moved:
        token, was, now = moved[0]
        sentence += f", {len(moved)} of them under another id, the first {token!r}: {was} became {now}"
    return sentence


def _at(table: Tokens, index: int) -> str:
    return repr(table.tokens[index]) if index < len(table.tokens) else "nothing"


def _without_blank(table: Tokens) -> list[str]:
    """Return the tokens in order, without the blank."""
    return [t for i, t in enumerate(table.tokens) if i != table.blank]


def is_special(token: str) -> bool:
    """Return whether a token is in brackets, e.g. ``<unk>`` or ``[PAD]``, and so not text."""
    return len(token) > 2 and token[0] + token[-1] in ("<>", "[]")


def _without_special(tokens: Iterable[str]) -> set[str]:
    return {t for t in tokens if not is_special(t)}


def bare(token: str) -> str:
    """Return a token without the marker that begins or joins a word."""
    for mark in MARKERS:
        token = token.removeprefix(mark).removesuffix(mark) or token
    return " " if token in ("|", "▁", "<space>", "Ġ") else token


def _share_of_longer(tokens: Sequence[str]) -> float:
    """Return the share of tokens that are longer than one character, markers and special tokens aside."""
    plain = [bare(t) for t in tokens if not is_special(t)]
    return sum(len(t) > 1 for t in plain) / len(plain) if plain else 0.0


_SPELLINGS: tuple[tuple[str, Callable[[str], str], str, str], ...] = (
    ("case", str.casefold, "upper and lower case", "spell=str.lower"),
    ("marker", bare, "word markers such as ▁", "spell=..."),
)
