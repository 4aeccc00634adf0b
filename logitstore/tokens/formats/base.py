"""What a format of token tables is, and how a file's format is found."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from ... import registry
from ...errors import VocabError
from ..table import TokenTable


class TokenFormat(Protocol):
    """A module of this package."""

    def recognises(self, name: str, data: bytes) -> bool:
        """Whether a file of this name and content is of this format and of no other."""

    def parse(self, path: Path, data: bytes, blank: int | None) -> TokenTable:
        """The table; raises ``VocabError`` naming the line that is wrong."""


def read_table(path: str | Path, blank: int | None = None, format: str | None = None) -> TokenTable:
    """Read a token table of any known format.

    Args:
        path: the file.
        blank: id of the blank; found by its name, or by the habit of the format, when it is not given.
        format: ``tokens_txt``, ``dict_txt``, ``sentencepiece``, ``nemo`` or ``huggingface``; recognised
            by name and content when it is not given.

    Raises:
        VocabError: a file that no format, or more than one, fits, or that is wrong in its own.
        UnknownName: no format of that name.
        UsageError: the library that reads the format is not installed.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise VocabError(f"the token table cannot be read: {e.strerror}", where=str(path)) from None
    return _load(format or recognise(path, data)).parse(path, data, blank)


def recognise(path: Path, data: bytes) -> str:
    """Name of the format of a file; raises ``VocabError`` unless exactly one fits."""
    known = registry.names("token_formats")
    fits = [name for name in known if _load(name).recognises(path.name, data)]
    if len(fits) != 1:
        raise VocabError(
            f"it could be {' or '.join(fits)}" if fits else "it is like no token table known here",
            where=str(path),
            why="Read as another format, every id could mean another token.",
            do=f"Say format=, one of: {', '.join(fits or known)}.",
        )
    return fits[0]


def _load(name: str) -> TokenFormat:
    return cast(TokenFormat, registry.load("token_formats", name))
