"""Conformance suites for authors of components: each check raises ``AssertionError`` with the reason."""

from __future__ import annotations


def expect(good: bool, why: str) -> None:
    """Raise ``AssertionError`` unless ``good``; unlike ``assert`` it also works under ``python -O``."""
    if not good:
        raise AssertionError(why)
