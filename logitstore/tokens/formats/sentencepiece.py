"""SentencePiece: the ``.model`` file by its own library, the ``.vocab`` file (piece, tab, score) without."""

from __future__ import annotations

from pathlib import Path

from ...errors import UsageError, VocabError
from ..table import TokenTable
from . import _blank, _lines


def recognises(name: str, data: bytes) -> bool:
    """By the names that SentencePiece's trainer gives its two files."""
    return name.endswith((".model", ".vocab"))


def parse(path: Path, data: bytes, blank: int | None) -> TokenTable:
    """Pieces in id order; a ``blank`` that equals their number is appended, as NeMo's training does."""
    where = str(path)
    pieces = _scored(data, where) if path.suffix == ".vocab" else _model(data, where)
    if blank is None:
        blank = _blank.named(pieces)
    if blank is None:
        raise VocabError(
            "no piece is named like a blank",
            where=where,
            why="The recogniser put its blank somewhere that the text model does not know of.",
            do=f"blank={len(pieces)} appends it, as NeMo does; otherwise say which id it is.",
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
            raise VocabError(f"{piece!r} stands on line {seen[piece]} already", where=f"{where}:{number}")
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
    except Exception as e:  # the library raises RuntimeError or OSError, by version
        raise VocabError(f"not a SentencePiece model: {e}", where=where) from None
    return [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]
