"""A transcript, and how far it is from the reference."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def words(text: str) -> list[str]:
    """Words of a text; where a script writes none apart (Han, Hiragana, Katakana), its characters."""
    return _UNSPACED.sub(r" \g<0> ", text).split()


def plain(text: str) -> str:
    """A text without upper case and punctuation, by which no teacher is judged."""
    kept = (c for c in text.casefold() if unicodedata.category(c)[0] != "P")
    return "".join(kept)


def edit_distance(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """Fewest substitutions, insertions and deletions between two sequences (Levenshtein 1966).

    One column of the table is held as bits of two integers and updated at once (Myers 1999, Hyyrö 2003).
    """
    if not reference:
        return len(hypothesis)
    places: dict[Hashable, int] = {}
    for i, item in enumerate(reference):
        places[item] = places.get(item, 0) | 1 << i
    every, last = (1 << len(reference)) - 1, 1 << (len(reference) - 1)
    up, down, distance = every, 0, len(reference)  # where the column's steps are +1, and where -1
    for item in hypothesis:
        same = places.get(item, 0)
        across = same | down
        diagonal = (((same & up) + up) ^ up) | same
        more, less = down | (every & ~(diagonal | up)), up & diagonal
        distance += bool(more & last) - bool(less & last)
        more, less = (more << 1 | 1) & every, less << 1 & every
        up, down = less | (every & ~(across | more)), more & across
    return distance


@dataclass(frozen=True)
class Transcript:
    """One branch's greedy decode of one utterance.

    Attributes:
        tokens: ids.
        text: their text.
        score: natural logarithm of the probability of the path taken, blanks included; None where a black
            box does not say.
        words: errors and length of the reference in words; None without a reference text.
        labels: errors and length of the reference in tokens; None without reference token ids.
        reference: these ids.
    """

    tokens: tuple[int, ...]
    text: str
    score: float | None
    words: tuple[int, int] | None
    labels: tuple[int, int] | None
    reference: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        tokens: Sequence[int],
        text: str,
        score: float | None,
        said: str | None,
        reference: Sequence[int] | None,
    ) -> Transcript:
        """Compare with what was ``said``, and with ``reference`` token ids, where these are known."""
        by_words = None if said is None else (edit_distance(words(said), words(text)), len(words(said)))
        by_labels = None if reference is None else (edit_distance(reference, tokens), len(reference))
        known = None if reference is None else tuple(reference)
        return cls(tuple(tokens), text, score, by_words, by_labels, known)

    @property
    def broken(self) -> bool:
        """Whether NaN or infinity stood on the path."""
        return self.score is not None and not math.isfinite(self.score)

    @property
    def said(self) -> tuple[int, ...] | str:
        """What tells it from another one: its tokens, or the text of a black box; empty for silence."""
        return self.tokens or self.text

    @property
    def rounded(self) -> float | None:
        """The score as it is stored; None where it is not known or not finite."""
        return None if self.score is None or self.broken else round(self.score, 3)

    def to_json(self) -> dict[str, Any]:
        """What a row keeps of it (SPEC S8)."""
        value: dict[str, Any] = {"text": self.text, "score": self.rounded}
        for name, errors in (("wer", self.words), ("ter", self.labels)):
            if errors is not None:
                value[name] = rate(*errors)
        return value


def rate(errors: int, length: int) -> float:
    """Errors over the length of the reference, 0.0001 exact; over one where that is empty."""
    return round(errors / max(length, 1), 4)
