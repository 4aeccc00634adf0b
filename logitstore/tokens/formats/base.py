"""The protocol of a token table format, and recognition of a file's format."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from ... import registry
from ...errors import VocabError
from ..table import TokenTable


class TokenFormat(Protocol):
    """A format of token tables: a module of this package, or a registered component."""

    def recognises(self, name: str, data: bytes) -> bool:
        """Return whether a file of this name and content has this format and no other."""

    def parse(self, path: Path, data: bytes, blank: int | None) -> TokenTable:
        """Parse a table; raise ``VocabError`` with the line that is wrong."""


def read_table(path: str | Path, blank: int | None = None, format: str | None = None) -> TokenTable:
    """Read a token table of any known format.

    Args:
        path: the file.
        blank: id of the blank; by default found by its name, or by the convention of the format.
        format: ``tokens_txt``, ``dict_txt``, ``sentencepiece``, ``nemo`` or ``huggingface``; by default
            recognised by name and content.

    Raises:
        VocabError: the file has no known format, may have several, or breaks the rules of its format.
        UnknownName: there is no format of that name.
        UsageError: the library that reads the format is not installed.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise VocabError(f"the token table cannot be read: {e.strerror}", where=str(path)) from None
    return _load(format or recognise(path, data)).parse(path, data, blank)


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
