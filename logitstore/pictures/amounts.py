"""Amounts for people to read."""

from __future__ import annotations


def size(count: float) -> str:
    """Return a number of bytes with a decimal unit: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
