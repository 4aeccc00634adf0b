"""Small expressions in Python's syntax, evaluated without ``eval`` and within fixed bounds.

A :class:`Grammar` lists the constructs that an expression may use. Every other construct is refused when the
expression is read. While it is evaluated, each operation is checked before it runs: no integer grows beyond
``MAX_BITS`` bits, and all steps and all items that are made count towards ``MAX_WORK``. So neither a large
repetition (``[1] * 10**10``) nor nested comprehensions can exhaust memory or time.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from typing import Any

import numpy as np

MAX_CHARACTERS = 2000  # of an expression
MAX_DEPTH = 100  # of nested constructs
MAX_BITS = 256  # of an integer that an expression makes
MAX_WORK = 200_000  # evaluation steps, plus items of the lists, tuples and strings that are made
MAX_ARRAY_ITEMS = 1 << 22  # of an array that is larger than each of its operands (broadcasting)
ARRAY_ITEMS_PER_STEP = 100  # work of an array operation
NUMBERS_ONLY = "arithmetic works on numbers; strings and lists can only be compared"

Lookup = Callable[[str], Any]
Operation = Callable[[Any, Any], Any]
ARITHMETIC: Mapping[str, Operation] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}
COMPARISONS: Mapping[str, Operation] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "in": lambda a, b: a in b,
    "not in": lambda a, b: a not in b,
}
_ARITHMETIC_SYMBOLS: Mapping[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
}
_COMPARISON_SYMBOLS: Mapping[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.In: "in",
    ast.NotIn: "not in",
}


@dataclass(frozen=True)
class Grammar:
    """Constructs that an expression may use beside names, constants, tuples, lists and unary minus.

    Attributes:
        arithmetic: operations by symbol; a subset of the keys of ``ARITHMETIC``.
        comparisons: operations by symbol; a subset of the keys of ``COMPARISONS``.
        functions: callables by the name they are called by.
        methods: names of methods that may be called on any value.
        logic: allow ``and``, ``or`` and ``not``.
        access: allow attributes without a leading underscore, subscripts, slices and ``[… for x in …]``.
        dotted_names: read ``a.b`` as one name, which the lookup is asked for.
        numbers_only: allow arithmetic on numbers only, and not on strings and sequences.
        negate: the operation of unary minus.
    """

    arithmetic: Mapping[str, Operation] = field(default_factory=lambda: ARITHMETIC)
    comparisons: Mapping[str, Operation] = field(default_factory=dict)
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    methods: frozenset[str] = frozenset()
    logic: bool = False
    access: bool = False
    dotted_names: bool = False
    numbers_only: bool = False
    negate: Callable[[Any], Any] = operator.neg


class SafeExpression:
    """A checked expression.

    Args:
        text: the expression as the user wrote it.
        grammar: the constructs that it may use.

    Attributes:
        tree: its syntax tree.
        names: names that it looks up; variables of its comprehensions are not among them.

    Raises:
        ValueError: the text is no expression of the grammar, or a constant part of it is out of bounds.
    """

    def __init__(self, text: str, grammar: Grammar) -> None:
        self._grammar = grammar
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"it is longer than {MAX_CHARACTERS} characters")
        try:
            self.tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as e:
            raise ValueError(e.msg) from None
        except (RecursionError, MemoryError):
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
        self.names = frozenset(self._check(self.tree, frozenset(), 1))
        self._evaluate_constant_parts(self.tree)

    def value(self, lookup: Lookup) -> Any:
        """Return the value of the expression.

        Args:
            lookup: returns the value of a name.

        Raises:
            ValueError: a bound is exceeded.
            Exception: whatever the lookup, an operation, a function or a method raises.
        """
        return _Evaluation(self._grammar).value(self.tree, lookup)

    def _check(self, node: ast.AST, bound: frozenset[str], depth: int) -> Iterator[str]:
        """Yield the names that a node looks up; raise ``ValueError`` for a construct outside the grammar."""
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        for name, part, variables in self._parts(node, bound):
            if name is not None:
                yield name
            if part is not None:
                yield from self._check(part, variables, depth + 1)

    def _parts(
        self, node: ast.AST, bound: frozenset[str]
    ) -> Iterator[tuple[str | None, ast.AST | None, frozenset[str]]]:
        """Yield (name looked up here, or part to check, variables bound inside the part) of one node."""
        grammar = self._grammar
        parts: Sequence[ast.AST | None] = ()
        match node:
            case ast.Constant(value=str() | int() | float() | None as value):
                _require_bits(value)
            case ast.Name(id=name):
                if name not in bound:
                    yield name, None, bound
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if grammar.dotted_names:
                yield f"{owner}.{name}", None, bound
            case ast.Attribute(value=inner, attr=name) if grammar.access and not name.startswith("_"):
                parts = [inner]
            case ast.Subscript(value=inner, slice=key) if grammar.access:
                parts = [inner, key]
            case ast.Slice(lower=lower, upper=upper, step=step) if grammar.access:
                parts = [lower, upper, step]
            case ast.Tuple(elts=items) | ast.List(elts=items):
                parts = items
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                parts = [inner]
            case ast.UnaryOp(op=ast.Not(), operand=inner) if grammar.logic:
                parts = [inner]
            case ast.BoolOp(values=items) if grammar.logic:
                parts = items
            case ast.BinOp(left=left, op=op, right=right) if (
                _ARITHMETIC_SYMBOLS.get(type(op)) in grammar.arithmetic
            ):
                if grammar.numbers_only and (_is_sequence(left) or _is_sequence(right)):
                    raise ValueError(f"{ast.unparse(node)!r}: {NUMBERS_ONLY}")
                parts = [left, right]
            case ast.Compare(left=left, ops=ops, comparators=rest) if all(
                _COMPARISON_SYMBOLS.get(type(op)) in grammar.comparisons for op in ops
            ):
                parts = [left, *rest]
            case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in grammar.functions:
                parts = given
            case ast.Call(func=ast.Attribute(value=inner, attr=name), args=given, keywords=[]) if (
                name in grammar.methods
            ):
                parts = [inner, *given]
            case ast.ListComp(
                elt=each,
                generators=[ast.comprehension(target=ast.Name(id=name), iter=items, ifs=[], is_async=0)],
            ) if grammar.access:
                yield None, items, bound
                yield None, each, bound | {name}
            case _:
                raise ValueError(f"{ast.unparse(node)!r} is not allowed here")
        for part in parts:
            yield None, part, bound

    def _evaluate_constant_parts(self, node: ast.AST) -> None:
        """Evaluate operations without a name, so that one that fails does so before any value is known."""
        if isinstance(node, ast.BinOp) and not any(isinstance(n, ast.Name) for n in ast.walk(node)):
            try:
                _Evaluation(self._grammar).value(node, _no_name)
            except (ArithmeticError, TypeError, ValueError, LookupError) as e:
                raise ValueError(f"{ast.unparse(node)!r}: {e}") from None
            return
        for child in ast.iter_child_nodes(node):
            self._evaluate_constant_parts(child)


class _Evaluation:
    """One evaluation, with the work it has left."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._left = MAX_WORK

    def value(self, node: ast.AST | None, lookup: Lookup) -> Any:
        """Return the value of a node that :class:`SafeExpression` has checked."""
        if node is None:
            return None
        self._spend(1)
        grammar = self._grammar

        def value_of(part: ast.AST | None) -> Any:
            return self.value(part, lookup)

        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return lookup(name)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if grammar.dotted_names:
                return lookup(f"{owner}.{name}")
            case ast.Attribute(value=inner, attr=name):
                return getattr(value_of(inner), name)
            case ast.Subscript(value=inner, slice=key):
                return self._made(value_of(inner)[value_of(key)])
            case ast.Slice(lower=lower, upper=upper, step=step):
                return slice(value_of(lower), value_of(upper), value_of(step))
            case ast.Tuple(elts=items):
                return tuple(value_of(item) for item in items)
            case ast.List(elts=items):
                return [value_of(item) for item in items]
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return not value_of(inner)
            case ast.UnaryOp(operand=inner):
                return grammar.negate(value_of(inner))
            case ast.BoolOp(op=ast.And(), values=items):
                return all(value_of(item) for item in items)
            case ast.BoolOp(values=items):
                return any(value_of(item) for item in items)
            case ast.BinOp(left=left, op=op, right=right):
                return self._arithmetic(_ARITHMETIC_SYMBOLS[type(op)], value_of(left), value_of(right))
            case ast.Compare(left=left, ops=ops, comparators=rest):
                values = [value_of(part) for part in (left, *rest)]
                pairs = zip(ops, values[:-1], values[1:], strict=True)
                return all(self._compare(_COMPARISON_SYMBOLS[type(op)], a, b) for op, a, b in pairs)
            case ast.Call(func=ast.Name(id=name), args=given):
                return self._made(grammar.functions[name](*map(value_of, given)))
            case ast.Call(func=ast.Attribute(value=inner, attr=name), args=given):
                return self._made(getattr(value_of(inner), name)(*map(value_of, given)))
            case ast.ListComp(elt=each, generators=[ast.comprehension(target=ast.Name(id=name), iter=items)]):
                return self._comprehension(each, name, value_of(items), lookup)
        raise AssertionError(ast.dump(node))  # _check refuses all other nodes

    def _comprehension(self, each: ast.AST, name: str, items: Any, lookup: Lookup) -> list[Any]:
        if _length(items) > self._left:
            self._spend(_length(items))
        values = []
        for item in items:
            self._spend(1)
            values.append(self.value(each, _with(lookup, name, item)))
        return values

    def _arithmetic(self, symbol: str, a: Any, b: Any) -> Any:
        sequence_operands = [x for x in (a, b) if isinstance(x, Sequence)]
        if sequence_operands and (self._grammar.numbers_only or symbol == "%"):
            raise TypeError(NUMBERS_ONLY)
        if len(sequence_operands) == 2:
            self._spend(len(a) + len(b))
        elif sequence_operands and symbol == "*":
            count = operator.index(b if sequence_operands[0] is a else a)
            self._spend(len(sequence_operands[0]) * max(count, 0))
        elif isinstance(a, int) and isinstance(b, int):
            sizes = a.bit_length(), b.bit_length()
            _require_size(sum(sizes) if symbol == "*" else max(sizes) + 1)
        else:
            self._spend(_broadcast_items(a, b) // ARRAY_ITEMS_PER_STEP)
        return self._grammar.arithmetic[symbol](a, b)

    def _compare(self, symbol: str, a: Any, b: Any) -> bool:
        for operand in (a, b):
            if isinstance(operand, list | tuple):
                self._spend(_weight(operand, self._left + 1))
        return bool(self._grammar.comparisons[symbol](a, b))

    def _made(self, value: Any) -> Any:
        """Count a value that a function, a method or a subscript returned."""
        _require_bits(value)
        if isinstance(value, str | bytes | list | tuple):
            self._spend(len(value))
        return value

    def _spend(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise ValueError(
                f"it takes more than {MAX_WORK:,} steps, or makes lists and strings of more items than that"
            )


def bounded_list(values: Iterable[Any]) -> list[Any]:
    """Return a list of the values; raise ``ValueError`` for more than ``MAX_WORK``."""
    if _length(values) <= MAX_WORK:
        items = list(islice(values, MAX_WORK + 1))
        if len(items) <= MAX_WORK:
            return items
    raise ValueError(f"a list of more than {MAX_WORK:,} items")


def bounded_str(value: Any) -> str:
    """Return a value as text; raise ``ValueError`` for a container of more than ``MAX_WORK`` items."""
    if _weight(value, MAX_WORK + 1) > MAX_WORK:
        raise ValueError(f"the text of a value of more than {MAX_WORK:,} items")
    return str(value)


def bounded_round(value: Any, digits: int | None = None) -> Any:
    """Round a number; raise ``ValueError`` for more than 20 digits, which Python computes as 10**digits."""
    if digits is not None and abs(digits) > 20:
        raise ValueError(f"a number rounded to {digits} digits")
    return round(value) if digits is None else round(value, digits)


def bounded_min(*values: Any) -> Any:
    """Return the smallest of the arguments, or of the items of a single one."""
    return min(bounded_list(values[0]) if len(values) == 1 else values)


def bounded_max(*values: Any) -> Any:
    """Return the largest of the arguments, or of the items of a single one."""
    return max(bounded_list(values[0]) if len(values) == 1 else values)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "str": bounded_str,
    "int": int,
    "len": len,
    "list": bounded_list,
    "round": bounded_round,
    "min": bounded_min,
    "max": bounded_max,
}


def _require_bits(value: Any) -> None:
    if isinstance(value, int):
        _require_size(value.bit_length())


def _require_size(bits: int) -> None:
    if bits > MAX_BITS:
        raise ValueError(f"an integer of {bits} bits; {MAX_BITS} are allowed")


def _broadcast_items(a: Any, b: Any) -> int:
    """Return the number of items of an array operation's result; 0 where neither operand is an array."""
    shapes = [tuple(x.shape) for x in (a, b) if isinstance(getattr(x, "shape", None), tuple)]
    if not shapes:
        return 0
    items = prod(np.broadcast_shapes(*shapes))
    if items > max(MAX_ARRAY_ITEMS, *map(prod, shapes)):
        raise ValueError(f"an array of {items:,} items; {MAX_ARRAY_ITEMS:,} are allowed")
    return items


def _weight(value: Any, most: int) -> int:
    """Return the number of items and characters in nested containers, counted no further than ``most``."""
    weight, waiting = 0, [value]
    while waiting and weight < most:
        item = waiting.pop()
        if isinstance(item, str | bytes):
            weight += len(item)
        elif isinstance(item, Mapping):
            weight += len(item)
            waiting += islice((part for pair in item.items() for part in pair), most)
        elif isinstance(item, list | tuple | set | frozenset):
            weight += len(item)
            waiting += islice(item, most)
    return min(weight, most)


def _length(values: Any) -> int:
    """Return the number of items, 0 where it is not known before they are read."""
    try:
        return len(values)
    except Exception:  # a lazy container may have a length that it refuses to tell
        return 0


def _is_sequence(node: ast.AST) -> bool:
    """Return whether a node is a tuple, a list or a string constant."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.Tuple | ast.List)


def _with(lookup: Lookup, name: str, value: Any) -> Lookup:
    return lambda wanted: value if wanted == name else lookup(wanted)


def _no_name(name: str) -> Any:
    raise AssertionError(name)  # constant parts hold no name
