"""Conditions on rows, e.g. ``wer <= 0.1 and seconds < 20``: a few operators of Python's, read, never run.

Names are what a row says about itself (SPEC S3, S8): ``id``, ``T``, ``U``, ``seconds``, ``text``, ...;
``wer``, ``ter``, ``score`` and ``hyp`` are of the store's first stream that has transcripts, ``rnnt.wer`` of
the one named. ``hours`` is the audio of all rows chosen so far and this one. A comparison with something a
row does not have is false.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..registry import suggest

LONGEST = 2000  # characters of a condition
OF_A_BRANCH = ("wer", "ter", "score", "hyp")
NAMES = ("id", "T", "U", "seconds", "hours", "text", "labels_from", *OF_A_BRANCH)
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Where:
    """A condition, asked of one row after the other.

    Args:
        text: the condition; empty for every row.
        streams: of the store that transcripts can be had from, in order.

    Raises:
        UsageError: what is not a condition, or names what no row has.
    """

    def __init__(self, text: str, streams: Sequence[str]) -> None:
        self._text, self._streams = text, tuple(streams)
        self._first = next(iter(streams), "")
        self.seconds = 0.0
        try:
            if len(text) > LONGEST:
                raise SyntaxError(f"longer than {LONGEST} characters")
            self._tree = ast.parse(text.strip() or "True", mode="eval").body
            self._check(self._tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            raise self._error(str(e.msg if isinstance(e, SyntaxError) else e)) from None

    def __call__(self, meta: Mapping[str, Any]) -> bool:
        """Whether a row is chosen; its audio then counts towards ``hours``."""
        seconds = self.seconds + float(meta.get("seconds") or 0.0)
        try:
            chosen = bool(self._value(self._tree, {**meta, "hours": seconds / 3600}))
        except (TypeError, ZeroDivisionError, OverflowError) as e:
            raise self._error(f"of {meta.get('id')!r}: {e}") from None
        if chosen:
            self.seconds = seconds
        return chosen

    def _error(self, what: str) -> UsageError:
        return UsageError(
            f"{self._text!r} is no condition: {what}",
            do="E.g. 'wer <= 0.1 and seconds < 20', \"'rnnt' in hyp or not text\".",
        )

    def _check(self, node: ast.expr) -> None:
        """Raise unless every part is one of the few that are known."""
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return
            case ast.Name(id=name):
                if name not in NAMES:
                    raise ValueError(f"rows have no {name!r}. {suggest(name, NAMES)}")
            case ast.Attribute(value=ast.Name(id=stream), attr=name):
                if stream not in self._streams:
                    raise ValueError(f"no stream {stream!r}. {suggest(stream, self._streams)}")
                if name not in OF_A_BRANCH:
                    raise ValueError(f"a stream has no {name!r}. {suggest(name, OF_A_BRANCH)}")
            case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
                for part in parts:
                    self._check(part)
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=part):
                self._check(part)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                self._check(left)
                self._check(right)
            case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(o) in _COMPARE for o in ops):
                for part in (left, *rest):
                    self._check(part)
            case _:
                raise ValueError(f"{ast.unparse(node)!r} is not known here")

    def _value(self, node: ast.expr, meta: Mapping[str, Any]) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self._branch(meta, self._first, name) if name in OF_A_BRANCH else meta.get(name)
            case ast.Attribute(value=ast.Name(id=stream), attr=name):
                return self._branch(meta, stream, name)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return [self._value(p, meta) for p in parts]
            case ast.BoolOp(op=ast.And(), values=parts):
                return all(self._value(p, meta) for p in parts)
            case ast.BoolOp(values=parts):
                return any(self._value(p, meta) for p in parts)
            case ast.UnaryOp(op=op, operand=part):
                value = self._value(part, meta)
                return not value if isinstance(op, ast.Not) else None if value is None else -value
            case ast.BinOp(left=left, op=op, right=right):
                a, b = self._value(left, meta), self._value(right, meta)
                if a is None or b is None:
                    return None
                if isinstance(a, str) or isinstance(b, str):
                    raise TypeError("texts are compared, never reckoned with")
                return _ARITHMETIC[type(op)](a, b)
            case ast.Compare(left=left, ops=ops, comparators=rest):
                values = [self._value(p, meta) for p in (left, *rest)]
                return all(_compare(op, a, b) for op, a, b in zip(ops, values[:-1], values[1:], strict=True))
        raise AssertionError(ast.dump(node))

    def _branch(self, meta: Mapping[str, Any], stream: str, name: str) -> Any:
        said = (meta.get("hyp") or {}).get(stream) or {}
        return said.get("text" if name == "hyp" else name)


def _compare(op: ast.cmpop, a: Any, b: Any) -> bool:
    if isinstance(op, ast.Eq | ast.NotEq):
        return bool(_COMPARE[type(op)](a, b))
    return a is not None and b is not None and bool(_COMPARE[type(op)](a, b))
