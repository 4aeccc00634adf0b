"""Transcripts and their word and token error rates."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def words(text: str) -> list[str]:
    """Split a text into words; Han, Hiragana and Katakana, written without spaces, into characters."""
    return _UNSPACED.sub(r" \g<0> ", text).split()


def plain(text: str) -> str:
    """Return a text without upper case and punctuation, which error rates ignore."""
    kept = (c for c in text.casefold() if unicodedata.category(c)[0] != "P")
    return "".join(kept)


def edit_distance(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """Return the fewest substitutions, insertions and deletions between two sequences (Levenshtein 1966).

    One column of the dynamic programme is held in the bits of two integers (Myers 1999, Hyyrö 2003).
    """
    if not reference:
        return len(hypothesis)
    positions: dict[Hashable, int] = {}
    for i, item in enumerate(reference):
        positions[item] = positions.get(item, 0) | 1 << i
    every, last = (1 << len(reference)) - 1, 1 << (len(reference) - 1)
    up, down, distance = (
        every,
        0,
        len(reference),
    )  # bits of the rows at which the column increases, and decreases
    for item in hypothesis:
        same = positions.get(item, 0)
        across = same | down
        diagonal = (((same & up) + up) ^ up) | same
        more, less = down | (every & ~(diagonal | up)), up & diagonal
        distance += bool(more & last) - bool(less & last)
        more, less = (more << 1 | 1) & every, less << 1 & every
        up, down = less | (every & ~(across | more)), more & across
    return distance


@dataclass(frozen=True)
class Transcript:
    """The hypothesis of one stream for one utterance, from greedy decoding or from a teacher that gives text.

    Attributes:
        tokens: token ids.
        text: text of the tokens.
        score: natural logarithm of the probability of the decoded path, blanks included; None if unknown.
        words: (errors, length of the reference) in words; None without a reference text.
        labels: (errors, length of the reference) in tokens; None without reference token ids.
        reference: reference token ids; None if there are none.
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
        reference_text: str | None,
        reference: Sequence[int] | None,
    ) -> Transcript:
        """Compare a hypothesis with the reference text and the reference token ids, if there are any."""
        by_words = None
        if reference_text is not None:
            reference_words = words(reference_text)
            by_words = edit_distance(reference_words, words(text)), len(reference_words)
        by_labels = None if reference is None else (edit_distance(reference, tokens), len(reference))
        known = None if reference is None else tuple(reference)
        return cls(tuple(tokens), text, score, by_words, by_labels, known)

    @property
    def broken(self) -> bool:
        """True if the score is NaN or infinite."""
        return self.score is not None and not math.isfinite(self.score)

    @property
    def tokens_or_text(self) -> tuple[int, ...] | str:
        """Token ids, or the text where there are none, to compare hypotheses by; empty for silence."""
        return self.tokens or self.text

    @property
    def rounded(self) -> float | None:
        """The score as it is stored; None if it is unknown or not finite."""
        return None if self.score is None or self.broken else round(self.score, 3)

    def to_json(self) -> dict[str, Any]:
        """Return the transcript as record metadata (SPEC S8)."""
        value: dict[str, Any] = {"text": self.text, "score": self.rounded}
        for name, errors in (("wer", self.words), ("ter", self.labels)):
            if errors is not None:
                value[name] = rate(*errors)
        return value


def rate(errors: int, length: int) -> float:
    """Return errors over the length of the reference (over 1 for an empty one), to four decimals."""
    return round(errors / max(length, 1), 4)
