"""Errors for misspelt keyword arguments that name the nearest known one."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from ..errors import UsageError
from ..registry import suggest

P = ParamSpec("P")
R = TypeVar("R")


def checked_keywords(
    elsewhere: Mapping[str, Callable[..., Any]] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that raises ``UsageError`` for keywords that a function does not have.

    The error names the nearest known keyword and lists all of them; Python's own ``TypeError`` names only the
    wrong one. The decorated function keeps its signature, for editors and type checkers.

    Args:
        elsewhere: functions with keywords that users may look for here, by the words that name each in
            "Did you mean 'frames' of ...?".
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = _keywords(function)

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in known:
                    owner = function.__qualname__.removesuffix(".__init__")
                    advice = _advice(name, known, elsewhere or {})
                    raise UsageError(f"{owner} has no argument {name!r}", do=advice)
            return function(*args, **kwargs)

        return checked

    return decorate


def _keywords(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def _advice(name: str, known: Sequence[str], elsewhere: Mapping[str, Callable[..., Any]]) -> str:
    """Return a sentence on the nearest keyword, here or elsewhere, and the known ones."""
    advice = suggest(name, known)
    if difflib.get_close_matches(name, known, n=1):
        return advice
    for words, function in elsewhere.items():
        if near := difflib.get_close_matches(name, _keywords(function), n=1):
            return f"Did you mean {near[0]!r} of {words}? {advice}"
    return advice
