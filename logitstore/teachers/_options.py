"""The text after ``FRAMEWORK:``, a path and perhaps options: ``DIR,epoch=30,avg=5``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .. import registry
from ..errors import UsageError


def read_where(text: str, first: str, known: Iterable[str] = (), free: str = "") -> dict[str, str]:
    """``PATH,key=value,…`` or ``first=PATH,key=value,…`` → the options by name.

    Args:
        text: what stands after ``FRAMEWORK:``.
        first: the option that a path alone means.
        known: the other options.
        free: options that begin so may have any name.

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
        raise UsageError(f"{text!r} does not say {first}=", where="--teacher")
    return found


def existing(path: str | Path, what: str) -> Path:
    """The path; raises ``UsageError`` where there is nothing."""
    if not Path(path).exists():
        raise UsageError(f"{path} does not exist", where="--teacher", do=f"Give the path of {what}.")
    return Path(path)
