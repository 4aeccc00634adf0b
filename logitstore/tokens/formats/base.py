"""The protocol of a token table format, and recognition of a file's format."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from ... import registry
from ...errors import VocabError
from ..table import TokenTable

USUAL_NAMES = (
    ("tokens.txt",),
    ("units.txt",),
    ("vocab.json", "tokenizer.json"),
)  # of toolkits; two of one group agree
MAX_BYTES = 64 << 20  # of a file in a folder that could be a token table


class TokenFormat(Protocol):
    """A format of token tables: a module of this package, or a registered component."""

    def recognises(self, name: str, data: bytes) -> bool:
        """Return whether a file of this name and content has this format and no other."""

    def parse(self, path: Path, data: bytes, blank: int | None) -> TokenTable:
        """Parse a table; raise ``VocabError`` with the line that is wrong."""


def read_table(path: str | Path, blank: int | None = None, format: str | None = None) -> TokenTable:
    """Read a token table of any known format.

    Args:
        path: the file, or a folder that holds one token table, such as ``data/lang_bpe_500`` or a saved
            tokenizer: one of ``tokens.txt``, ``units.txt`` and ``vocab.json`` or ``tokenizer.json``, or
            else the only file of a known format.
        blank: id of the blank; by default found by its name, or by the convention of the format.
        format: ``tokens_txt``, ``dict_txt``, ``sentencepiece``, ``nemo`` or ``huggingface``; by default
            recognised by name and content.

    Raises:
        VocabError: the file has no known format, may have several, or breaks the rules of its format.
        UnknownName: there is no format of that name.
        UsageError: the library that reads the format is not installed.
    """
    path = Path(path)
    if path.is_dir():
        path = _table_of(path, format)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise VocabError(f"the token table cannot be read: {e.strerror}", where=str(path)) from None
    return _load(format or recognise(path, data)).parse(path, data, blank)


def _table_of(folder: Path, format: str | None) -> Path:
    """Return the token table in a folder; raise ``VocabError`` unless exactly one file can be meant."""
    usual = [next((p for n in names if (p := folder / n).is_file()), None) for names in USUAL_NAMES]
    found = [path for path in usual if path is not None]
    if len(found) == 1:
        return found[0]
    known = registry.names("token_formats") if format is None else [format]
    others = sorted(p for p in folder.iterdir() if p.is_file() and p.stat().st_size <= MAX_BYTES)
    for path in () if found else others:
        data = path.read_bytes()
        if any(_load(name).recognises(path.name, data) for name in known):
            found.append(path)
    if len(found) != 1:
        names = ", ".join(p.name for p in found)
        raise VocabError(
            f"this folder has several token tables: {names}" if found else "this folder has no token table",
            where=str(folder),
            why="In another table, every id could stand for another token.",
            do="Give the file itself.",
        )
    return found[0]


def recognise(path: Path, data: bytes) -> str:
    """Return the name of a file's format; raise ``VocabError`` unless exactly one matches."""
    known = registry.names("token_formats")
    fits = [name for name in known if _load(name).recognises(path.name, data)]
    if len(fits) != 1:
        raise VocabError(
            f"it could be {' or '.join(fits)}" if fits else "it has no known format of token tables",
            where=str(path),
            why="In another format, every id could stand for another token.",
            do=f"Give format=, one of: {', '.join(fits or known)}.",
        )
    return fits[0]


def _load(name: str) -> TokenFormat:
    return cast(TokenFormat, registry.load("token_formats", name))
