"""Expressions over the variables of a user's program, e.g. ``batch["supervisions"]["cut"]``.

They say where utterance ids, lengths, labels and ranges are. The grammar has names, attributes, subscripts,
constants, the arithmetic of lengths, one-variable comprehensions, and calls of the functions and methods that
are listed here; :mod:`logitstore.schema.expression` evaluates them within fixed bounds.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from typing import Any

from ..errors import UsageError
from ..schema.expression import FUNCTIONS, Grammar, SafeExpression

Lookup = Callable[[str], Any]


def _stem(path: Any) -> str:
    """Return a file's name without folder and ending."""
    return os.path.splitext(os.path.basename(str(path)))[0]


METHODS = frozenset(
    {
        *("ceil", "cpu", "flatten", "float", "floor", "int", "keys", "long", "reshape"),
        *("round", "squeeze", "split", "strip", "sum", "tolist", "values"),
    }
)
GRAMMAR = Grammar(functions={**FUNCTIONS, "stem": _stem}, methods=METHODS, access=True)


class Expression:
    """A checked expression.

    Args:
        text: the expression as the user wrote it.
        option: name of the option or setting that holds it, for messages.

    Attributes:
        names: names of the program's variables that it reads.
        modules: paths of the modules whose outputs or inputs it reads.

    Raises:
        UsageError: a part of it is not allowed.
    """

    def __init__(self, text: str, option: str) -> None:
        self.text, self._option = text, option
        try:
            self._expression = SafeExpression(text, GRAMMAR)
        except ValueError as e:
            raise UsageError(
                f"{text!r} is not an expression: {e}",
                where=option,
                why="The expression is evaluated inside your program, so it may only read values.",
                do="Use names, attributes without a leading underscore, subscripts, + - * / // %, "
                f"[… for x in …], {', '.join(GRAMMAR.functions)}(), "
                f"and the methods {', '.join(sorted(METHODS))}.",
            ) from None
        self.names = self._expression.names
        self.modules = frozenset(_module_paths(self._expression.tree))

    def __str__(self) -> str:
        return self.text

    def value(self, lookup: Lookup) -> Any:
        """Return the value of the expression.

        Args:
            lookup: returns the value of a name; raises ``KeyError`` for an unknown one.

        Raises:
            UsageError: the expression cannot be evaluated with these values.
        """
        try:
            return self._expression.value(lookup)
        except UsageError:
            raise
        except Exception as e:
            raise UsageError(
                f"{self.text!r} cannot be evaluated here: {type(e).__name__}: {e}",
                where=self._option,
                do="logitstore probe prints an expression that can be.",
            ) from e


def _module_paths(tree: ast.AST) -> set[str]:
    """Return the paths in ``modules["PATH"]`` and ``inputs["PATH"]``."""
    return {
        node.slice.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("modules", "inputs")
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    }
