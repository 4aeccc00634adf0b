"""Forms of an RNN-T lattice: which nodes of (T, U+1) a stream keeps. So far ``full``: all of them."""

from __future__ import annotations

from .errors import LengthError, UsageError

FORMS = ("full",)


def check_form(form: str) -> str:
    """Raises ``UsageError`` for an unknown form."""
    if form not in FORMS:
        raise UsageError(f"no lattice form {form!r}", do=f"Known: {', '.join(FORMS)}.")
    return form


def check_nodes(rows: int, t: int, u: int, where: str) -> None:
    """A full lattice has T · (U+1) nodes; raises ``LengthError`` otherwise."""
    if rows != t * (u + 1):
        raise LengthError(
            f"{rows} lattice nodes for T = {t} and U = {u}, where there are T·(U+1) = {t * (u + 1)}",
            where=where,
        )
