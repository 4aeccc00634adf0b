"""Options of a teacher, written after ``FRAMEWORK:`` as a path and ``name=value``: ``DIR,epoch=30,avg=5``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .. import registry
from ..errors import UsageError


def read_where(text: str, first: str, known: Iterable[str] = (), free: str = "") -> dict[str, str]:
    """Parse ``PATH,name=value,…`` or ``first=PATH,name=value,…`` to the options by name.

    Args:
        text: text after ``FRAMEWORK:``.
        first: name of the option that a path without a name sets.
        known: names of the other options.
        free: prefix of options that may have any name; empty for none.

    Raises ``UsageError`` for an option that is unknown, given twice or empty, and where the path is missing.
    """
    known = (first, *known)
    found: dict[str, str] = {}
    for i, part in enumerate(text.split(",")):
        name, sign, value = part.partition("=")
        if i == 0 and (not sign or name not in known):
            name, value = first, part
        if name not in known and not (free and sign and name.startswith(free)):
            raise UsageError(f"no option {part!r}", where="--teacher", do=registry.suggest(name, known))
        if name in found or not value:
            raise UsageError(f"option {name!r} is {'given twice' if value else 'empty'}", where="--teacher")
        found[name] = value
    if first not in found:
        raise UsageError(f"{text!r} has no {first}=", where="--teacher")
    return found


def existing(path: str | Path, what: str) -> Path:
    """Return the path; raises ``UsageError`` where no file or folder exists."""
    if not Path(path).exists():
        raise UsageError(f"{path} does not exist", where="--teacher", do=f"Give the path of {what}.")
    return Path(path)
