"""Tokenisation of text with a token table alone, or with its SentencePiece model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from .. import registry
from ..errors import UsageError
from .table import TokenTable

UNKNOWN = "<unk>"
SPACES = (" ", "<space>", "|")  # word separators of tables without ▁


class Tokeniser:
    """Converts text to ids of a token table.

    Without a SentencePiece model there are two methods. If every longer token consists of two tokens of lower
    ids, pairs are merged in the order of the table, as byte-pair encoding does (Sennrich et al. 2016).
    Otherwise the longest matching token is taken, from left to right.

    Args:
        table: token table of the labels.
        bpe: path of a SentencePiece model; its pieces are looked up in the table, because ids may differ.

    Attributes:
        how: description of the method, for messages.

    Raises:
        UsageError: the model cannot be read.
    """

    def __init__(self, table: TokenTable, bpe: str = "") -> None:
        self._table = table
        self._ids = {t: i for i, t in enumerate(table.tokens)}
        self._split: Callable[[str], list[str]]
        if bpe:
            self._split, self.how = _sentencepiece(bpe), f"by {Path(bpe).name}"
        else:
            merged = self._is_merged()
            self._cut = self._merge if merged else self._longest
            self._split, self.how = (
                self._words,
                "by byte pairs" if merged else "by the longest tokens that fit",
            )

    def labels(self, text: str) -> list[int]:
        """Return the token ids of a text; raise ``ValueError`` if it cannot be tokenised."""
        blank = self._table.blank
        pieces = self._split(text)
        for piece in pieces:
            if piece == UNKNOWN or self._ids.get(piece, blank) == blank:
                raise ValueError(f"{text!r} does not tokenise: {piece!r} is not in the token table")
        return [self._ids[p] for p in pieces]

    def _words(self, text: str) -> list[str]:
        words = text.split()
        if any(t.startswith("▁") for t in self._ids):
            return [t for word in words for t in self._cut("▁" + word)]
        space = [t for t in SPACES if t in self._ids][:1]
        return [t for i, word in enumerate(words) for t in (*(space if i else ()), *self._cut(word))]

    def _is_merged(self) -> bool:
        """Return whether the table was made by byte-pair encoding."""
        longer = [t for t in self._ids if len(t) > 1 and t[0] not in "<#[⟨"]
        return bool(longer) and all(map(self._is_pair, longer))

    def _is_pair(self, token: str) -> bool:
        """Return whether a token consists of two tokens of lower ids."""
        own = self._ids[token]
        splits = ((token[:n], token[n:]) for n in range(1, len(token)))
        return any(self._ids.get(a, own) < own and self._ids.get(b, own) < own for a, b in splits)

    def _merge(self, word: str) -> list[str]:
        parts = list(word)
        if unknown := [c for c in parts if c not in self._ids]:
            raise ValueError(f"it does not tokenise: no token contains {unknown[0]!r}")
        while len(parts) > 1:
            joins = [(self._ids.get(a + b, len(self._ids)), at) for at, (a, b) in enumerate(pairwise(parts))]
            best, at = min(joins)
            if best == len(self._ids):
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts

    def _longest(self, rest: str) -> list[str]:
        pieces = []
        while rest:
            n = next((n for n in range(len(rest), 0, -1) if rest[:n] in self._ids), 0)
            if not n:
                raise ValueError(f"it does not tokenise: no token begins {rest[:8]!r}")
            pieces.append(rest[:n])
            rest = rest[n:]
        return pieces


def _sentencepiece(path: str) -> Callable[[str], list[str]]:
    with registry.needs("sentencepiece"):
        import sentencepiece
    if not Path(path).is_file():
        raise UsageError(f"{path} does not exist", where="--bpe")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=path)
    except (OSError, RuntimeError) as e:
        raise UsageError(f"not a SentencePiece model: {e}", where=path) from None
    return lambda text: [str(p) for p in processor.encode(text, out_type=str)]
