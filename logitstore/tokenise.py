"""From a text to label ids, given nothing but a token table, or the SentencePiece model beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import registry
from .errors import UsageError
from .vocab import TokenTable

UNKNOWN = "<unk>"
SPACES = (" ", "<space>", "|")  # of tables whose tokens do not begin words themselves


class Tokeniser:
    """Texts as ids of a table.

    Args:
        table: of the labels.
        bpe: a SentencePiece model, whose pieces are looked up in the table by their names: ids may differ.
            Without one, the longest tokens that fit are taken, from the left.

    Raises ``UsageError`` where the model cannot be read.
    """

    def __init__(self, table: TokenTable, bpe: str = "") -> None:
        self._table = table
        self._ids = {t: i for i, t in enumerate(table.tokens)}
        self._split: Callable[[str], list[str]] = _sentencepiece(bpe) if bpe else self._longest

    def labels(self, text: str) -> list[int]:
        """Token ids; raises ``ValueError`` for a text that has none."""
        blank = self._table.blank
        pieces = self._split(text)
        for piece in pieces:
            if piece == UNKNOWN or self._ids.get(piece, blank) == blank:
                raise ValueError(f"{text!r} does not tokenise: {piece!r} is not in the token table")
        return [self._ids[p] for p in pieces]

    def _longest(self, text: str) -> list[str]:
        words = text.split()
        if any(t.startswith("▁") for t in self._ids):
            return self._cut("".join("▁" + word for word in words))
        space = [t for t in SPACES if t in self._ids][:1]
        return [t for i, word in enumerate(words) for t in (*(space if i else ()), *self._cut(word))]

    def _cut(self, rest: str) -> list[str]:
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
