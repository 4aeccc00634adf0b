"""SentencePiece: ``.model``, read through its library, and ``.vocab`` (piece, tab, score), read without it."""

from __future__ import annotations

from pathlib import Path

from ...errors import UsageError, VocabError
from ..table import TokenTable
from . import _blank, _lines


def recognises(name: str, data: bytes) -> bool:
    """Return whether the name ends as those that SentencePiece's trainer writes."""
    return name.endswith((".model", ".vocab"))


def parse(path: Path, data: bytes, blank: int | None) -> TokenTable:
    """Parse pieces in id order; append the blank if ``blank`` is their number, as NeMo's training does."""
    where = str(path)
    pieces = _scored(data, where) if path.suffix == ".vocab" else _model(data, where)
    if blank is None:
        blank = _blank.named(pieces)
    if blank is None:
        raise VocabError(
            "no piece is named like a blank",
            where=where,
            why="The SentencePiece model does not know the id that the recogniser uses for its blank.",
            do=f"Give its id; blank={len(pieces)} appends it, as NeMo does.",
        )
    if blank == len(pieces):
        return _blank.appended(pieces, where)
    return TokenTable(tuple(pieces), blank)


def _scored(data: bytes, where: str) -> list[str]:
    seen: dict[str, int] = {}
    for number, line in enumerate(_lines.decode(data, where).split("\n"), 1):
        if not line.rstrip("\r"):
            continue
        piece, tab, score = line.rpartition("\t")
        try:
            float(score)
        except ValueError:
            tab = ""
        if not tab or not piece:
            raise VocabError(f"{line!r} is not a piece and its score", where=f"{where}:{number}")
        if piece in seen:
            raise VocabError(f"{piece!r} is already on line {seen[piece]}", where=f"{where}:{number}")
        seen[piece] = number
    return list(seen)


def _model(data: bytes, where: str) -> list[str]:
    try:
        from sentencepiece import SentencePieceProcessor
    except ModuleNotFoundError:
        raise UsageError(
            "a .model file needs the Python package 'sentencepiece', which is not installed",
            where=where,
            do="pip install 'logitstore[sentencepiece]', or give the .vocab file beside it.",
        ) from None
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
    except Exception as e:  # RuntimeError or OSError, depending on the version of the library
        raise VocabError(f"not a SentencePiece model: {e}", where=where) from None
    return [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]
