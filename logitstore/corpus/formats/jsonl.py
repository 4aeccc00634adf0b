"""JSON lines of logitstore: ``id``, ``audio``, ``offset``, ``duration``, ``text``, ``tokens``, ..."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import json_lines as lines

__all__ = ["BESIDE", "files", "lines", "recognises"]

BESIDE = True


def recognises(path: Path, first: dict[str, Any] | None) -> bool:
    """Return whether the first object has an id and a recording."""
    return first is not None and "id" in first and ("audio" in first or "pipe" in first)


def files(path: Path) -> Sequence[Path]:
    """Return the file itself."""
    return [path]
