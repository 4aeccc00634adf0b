"""Small expressions that say where something is in somebody else's program: ``batch["supervisions"]["cut"]``.

They are parsed, never evaluated by Python: names, attributes, subscripts, constants, the arithmetic of
lengths, one-variable comprehensions, and calls of the functions and methods listed here.
"""

from __future__ import annotations

import ast
import operator
import os
from collections.abc import Callable
from typing import Any

from ..errors import UsageError

Lookup = Callable[[str], Any]
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "str": str,
    "int": int,
    "len": len,
    "list": list,
    "round": round,
    "min": min,
    "max": max,
    "stem": lambda path: os.path.splitext(os.path.basename(str(path)))[0],
}
METHODS = {
    *("ceil", "cpu", "flatten", "float", "floor", "int", "keys", "long", "reshape"),
    *("round", "squeeze", "split", "strip", "sum", "tolist", "values"),
}
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}


class Expression:
    """A checked expression.

    Args:
        text: what the user wrote.
        option: where, for messages.

    Raises ``UsageError`` naming the part that is not allowed.
    """

    def __init__(self, text: str, option: str) -> None:
        self.text, self._option = text, option
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError) as e:
            raise UsageError(f"{text!r} is not an expression: {e}", where=option) from None
        self.names = frozenset(self._check(self._tree, frozenset()))
        self.modules = frozenset(_module_paths(self._tree))

    def __str__(self) -> str:
        return self.text

    def value(self, lookup: Lookup) -> Any:
        """What it stands for; ``lookup`` gives the value of a name, raising ``KeyError``.

        Raises ``UsageError`` naming the expression where it cannot be followed.
        """
        try:
            return self._value(self._tree, lookup)
        except UsageError:
            raise
        except Exception as e:
            raise UsageError(
                f"{self.text!r} cannot be followed here: {type(e).__name__}: {e}",
                where=self._option,
                do="logitstore probe prints an expression that can.",
            ) from e

    def _check(self, node: ast.AST, bound: frozenset[str]) -> set[str]:
        """Names an allowed expression needs from outside; raises ``UsageError``."""
        free: set[str] = set()
        match node:
            case ast.Constant(value=str() | int() | float() | None):
                return free
            case ast.Name(id=name):
                return set() if name in bound else {name}
            case ast.Attribute(value=inner, attr=name) if not name.startswith("_"):
                return self._check(inner, bound)
            case ast.Subscript(value=inner, slice=key):
                return self._check(inner, bound) | self._check(key, bound)
            case ast.Slice(lower=a, upper=b, step=c):
                parts: list[ast.AST] = [p for p in (a, b, c) if p is not None]
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                parts = [inner]
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                parts = list(elements)
            case ast.BinOp(left=a, op=op, right=b) if type(op) in OPERATORS:
                parts = [a, b]
            case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in FUNCTIONS:
                parts = list(given)
            case ast.Call(func=ast.Attribute(value=inner, attr=name), args=given, keywords=[]) if (
                name in METHODS
            ):
                parts = [inner, *given]
            case ast.ListComp(
                elt=each, generators=[ast.comprehension(target=ast.Name(id=name), iter=of, ifs=[])]
            ):
                return self._check(of, bound) | self._check(each, bound | {name})
            case _:
                raise UsageError(
                    f"{ast.unparse(node)!r} is not allowed in an expression",
                    where=f"{self._option} {self.text}",
                    why="It runs inside your program, so it may look but not act.",
                    do="Names, attributes without a leading underscore, subscripts, + - * / // %, "
                    f"[… for x in …], {', '.join(FUNCTIONS)}(), "
                    f"and the methods {', '.join(sorted(METHODS))}.",
                )
        return free.union(*(self._check(p, bound) for p in parts))

    def _value(self, node: ast.AST, lookup: Lookup) -> Any:
        def at(inner: ast.AST | None) -> Any:
            return None if inner is None else self._value(inner, lookup)

        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return lookup(name)
            case ast.Attribute(value=inner, attr=name):
                return getattr(at(inner), name)
            case ast.Subscript(value=inner, slice=key):
                return at(inner)[at(key)]
            case ast.Slice(lower=a, upper=b, step=c):
                return slice(at(a), at(b), at(c))
            case ast.UnaryOp(operand=inner):
                return -at(inner)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                return [at(e) for e in elements] if isinstance(node, ast.List) else tuple(map(at, elements))
            case ast.BinOp(left=a, op=op, right=b):
                return OPERATORS[type(op)](at(a), at(b))
            case ast.Call(func=ast.Name(id=name), args=given):
                return FUNCTIONS[name](*map(at, given))
            case ast.Call(func=ast.Attribute(value=inner, attr=name), args=given):
                return getattr(at(inner), name)(*map(at, given))
            case ast.ListComp(elt=each, generators=[ast.comprehension(target=ast.Name(id=name), iter=of)]):
                return [self._value(each, _with(lookup, name, item)) for item in at(of)]
        raise AssertionError(ast.dump(node))  # _check lets nothing else through


def _module_paths(tree: ast.AST) -> set[str]:
    """Paths in ``modules["PATH"]`` and ``inputs["PATH"]``: modules whose outputs or inputs are looked at."""
    return {
        node.slice.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("modules", "inputs")
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    }


def _with(lookup: Lookup, name: str, value: Any) -> Lookup:
    return lambda wanted: value if wanted == name else lookup(wanted)
