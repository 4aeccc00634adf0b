"""Decoded rows of one stream, in numpy, and the protocol that the rows of every encoding follow.

A stream has N rows: frames, lattice nodes or label positions. Rows of classes (:class:`Rows`) are
distributions over V classes and serve every temperature; rows of numbers (:class:`NumberRows`) are a layer's
activations. Log-probabilities are natural logarithms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptError, UsageError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Float = NDArray[np.float32]

# The log-probability of no mass. It is finite, so that p · log p is 0 and not NaN; its exponential is 0 in
# every floating-point type.
NOTHING = -1e4

TEMPERATURES = (1.0, 4 / 3, 2.0, 4.0, 8.0)  # where pruned rows store the mass of their tail


@dataclass(frozen=True)
class Tempered:
    """N rows of classes at one temperature.

    Attributes:
        classes: V.
        temperature: temperature of the probabilities.
        logp: (N, K) float32 log-probabilities; K = V where ``ids`` is None.
        ids: (N, K) int32 class of each entry; None where all V classes are present in order. A row with fewer
            than K entries repeats its first class with a log-probability of -1e4.
        tail: (N,) float32 log of the total mass of all other classes; -1e4 where there is none. Where ``ids``
            is None, the tail is the mass of teacher tokens that the student's token table lacks.
    """

    classes: int
    temperature: float
    logp: Float
    ids: NDArray[np.int32] | None
    tail: Float

    def has_tail(self) -> NDArray[np.bool_]:
        """Return (N,) bool, True where the tail has mass; rounding leaves others near -1e4."""
        return self.tail > NOTHING / 2

    def dense(self) -> Float:
        """Return (N, V) float32 log-probabilities; the probabilities of each row sum to one.

        The tail's mass is spread equally over the classes that were not kept. Where every class was kept, the
        tail belongs to no class of the student, and the row is normalised without it.
        """
        if self.ids is None:
            return _without_tail(self.logp, self.has_tail())
        kept = self.logp > NOTHING
        left = self.classes - kept.sum(axis=1)
        rest = self.tail - np.log(np.maximum(left, 1))
        out = np.broadcast_to(rest[:, None], (len(rest), self.classes)).astype(np.float32)
        # Written from last to first: of equal ids the first entry, the real one, is written last and stays.
        backwards = slice(None, None, -1)
        logp = np.where(kept, self.logp, rest[:, None])
        np.put_along_axis(out, self.ids[:, backwards].astype(np.int64), logp[:, backwards], axis=1)
        return _without_tail(out, self.has_tail() & (left == 0))


class ClassMap(Protocol):
    """A map from a teacher's classes to a student's (:class:`logitstore.targets.vocab_map.VocabMap`)."""

    @property
    def classes(self) -> int:
        """Number of the student's classes."""

    @property
    def teacher_blank(self) -> int:
        """Id of the blank among the teacher's classes."""

    @property
    def to(self) -> NDArray[np.int64]:
        """(V,) student class of each teacher class; -1 for the tail."""

    @property
    def order(self) -> NDArray[np.int64] | None:
        """(V,) teacher class of each student class where both tables hold the same tokens; else None."""

    def apply(self, rows: Tempered) -> Tempered:
        """Return rows of teacher classes as rows of student classes."""

    def same(self, other: Any) -> bool:
        """Tell whether another map gives every teacher class the same student class."""


@dataclass(frozen=True, eq=False)
class HeadInputs:
    """Rows of classes before their linear head: the head's input and the head.

    The logits of row t are ``h[t] @ weight.T + bias``; those of lattice node (t, u) are
    ``activation(h[t] + dec[u]) @ weight.T + bias``.

    Attributes:
        h: (T, D) numbers: each row's input; of a lattice, each frame's side of the joiner.
        weight: (V, D) float32.
        bias: (V,) float32.
        dec: (U+1, D) float32, each label position's side of the joiner; None where there is no lattice.
        activation: ``tanh`` or ``relu``, with ``dec``.
        map: map from the head's classes to a student's; None where they are the same.
    """

    h: NDArray[Any]
    weight: Float
    bias: Float
    dec: Float | None = None
    activation: str = ""
    map: ClassMap | None = None

    def same_head(self, other: HeadInputs) -> bool:
        """Tell whether other rows have the same head, kind of lattice and map; rows of two stores may not."""
        return (
            (self.dec is None) == (other.dec is None)
            and self.activation == other.activation
            and (self.weight is other.weight or np.array_equal(self.weight, other.weight))
            and (self.bias is other.bias or np.array_equal(self.bias, other.bias))
            and (self.map is other.map or (self.map is not None and self.map.same(other.map)))
        )


class DecodedRows(ABC):
    """N rows of one stream as an encoding decodes them: :class:`Rows` or :class:`NumberRows`.

    Attributes:
        numbers: True for the numbers of a layer, False for distributions over classes.
        needs_next_labels: True where rows name their classes only after :meth:`Rows.with_next_labels`.
    """

    numbers: ClassVar[bool]
    needs_next_labels: ClassVar[bool] = False

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers in a row: V of distributions, D of a layer."""

    @abstractmethod
    def __len__(self) -> int:
        """Return N."""

    @abstractmethod
    def take(self, index: NDArray[np.int64]) -> Self:
        """Return the rows at (M,) indices, in that order; an index may repeat."""

    @abstractmethod
    def mapped(self, to: ClassMap) -> DecodedRows:
        """Return the rows over a student's classes; numbers of a layer stay as they are."""

    @abstractmethod
    def check(self, stream: str) -> None:
        """Raise ``CorruptError`` where stored values of the stream cannot be right."""


class Rows(DecodedRows):
    """N distributions over V classes.

    A subclass has ``classes`` (V, a dataclass field or a property), ``__len__``, ``take`` and ``at``. All
    other methods follow from these; a subclass overrides them where its stored form allows something better.
    """

    numbers: ClassVar[bool] = False

    if TYPE_CHECKING:  # a property here would become the default of a dataclass field of the same name

        @property
        def classes(self) -> int:
            """V."""

    @property
    def width(self) -> int:
        return self.classes

    @abstractmethod
    def at(self, temperature: float = 1.0) -> Tempered:
        """Return the rows at a temperature; raises ``UsageError`` below 1."""

    def mix(
        self,
        low: NDArray[np.int64],
        high: NDArray[np.int64],
        weight: Float,
        temperature: float,
        *,
        logits: bool = False,
    ) -> Tempered:
        """Return S rows, each mixed from two: (1 - weight) · row ``low`` + weight · row ``high``.

        Args:
            low: (S,) row indices.
            high: (S,) row indices.
            weight: (S,) float32, from 0 to 1.
            temperature: temperature of the result; probabilities are mixed at it.
            logits: mix logits and not probabilities.

        Raises:
            UsageError: logits of rows that do not hold every class.
        """
        if not weight.any():
            return self.take(low).at(temperature)
        mixture = mix_logits if logits else mix
        return mixture(self.take(low).at(temperature), self.take(high).at(temperature), weight)

    def compose(self, index: NDArray[np.int64], blank: int, temperature: float) -> Tempered:
        """Return S rows, each composed of up to k rows that follow each other (:func:`compose`).

        Args:
            index: (S, k) row indices in the order of their frames; -1 for none.
            blank: id of the blank among the rows' classes.
            temperature: temperature of the result; probabilities are composed at it.
        """

        def column(number: int) -> Tempered:
            chosen = self.take(np.maximum(index[:, number], 0)).at(temperature)
            return _blank_where(index[:, number] < 0, chosen, blank)

        rows = column(0)
        for number in range(1, index.shape[1]):
            rows = compose(rows, column(number), blank)
        return rows

    def unmapped(self, blank: int) -> tuple[Rows, int]:
        """Return the rows over the teacher's own classes, and the id of the blank among these.

        Args:
            blank: id of the blank among the rows' classes.
        """
        return self, blank

    def head(self) -> HeadInputs | None:
        """Return the rows before their linear head; None where the stored form does not hold that."""
        return None

    def whole_rows(self) -> int | None:
        """Return how many rows hold every class, of a form that prunes as it needs to; None of any other."""
        return None

    def mapped(self, to: ClassMap) -> Rows:
        return MappedRows(self, to)

    def with_next_labels(self, blank: int, labels: NDArray[np.int64]) -> Rows:
        """Return the rows with their classes named by the labels of their lattice nodes.

        Called only where :attr:`needs_next_labels` is True.

        Args:
            blank: id of the blank.
            labels: (N,) next label of each node; the blank where there is none.
        """
        return self

    def check(self, stream: str) -> None:
        if not (self.at(1.0).logp <= 1e-3).all():
            raise CorruptError(f"a log-probability of {stream} is above 0 (SPEC E2)")


class NumberRows(DecodedRows):
    """N rows of D numbers, which are no distributions: a layer's activations. No temperature applies."""

    numbers: ClassVar[bool] = True

    @abstractmethod
    def values(self) -> Float:
        """Return (N, D) float32."""

    def mapped(self, to: ClassMap) -> Self:
        return self

    def check(self, stream: str) -> None:
        if not np.isfinite(self.values()).all():
            raise CorruptError(f"{stream} holds NaN or infinity (SPEC S14)")


@dataclass(frozen=True)
class MappedRows(Rows):
    """Rows over a student's classes.

    Tempering, mixing and merging classes do not commute, so the map is always applied last.

    Attributes:
        rows: stored rows, over the teacher's classes.
        map: map from the teacher's classes to the student's.
    """

    rows: Rows
    map: ClassMap

    @property
    def classes(self) -> int:
        return self.map.classes

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: NDArray[np.int64]) -> MappedRows:
        return MappedRows(self.rows.take(index), self.map)

    def at(self, temperature: float = 1.0) -> Tempered:
        return self.map.apply(self.rows.at(temperature))

    def mix(
        self,
        low: NDArray[np.int64],
        high: NDArray[np.int64],
        weight: Float,
        temperature: float,
        *,
        logits: bool = False,
    ) -> Tempered:
        return self.map.apply(self.rows.mix(low, high, weight, temperature, logits=logits))

    def compose(self, index: NDArray[np.int64], blank: int, temperature: float) -> Tempered:
        return self.map.apply(self.rows.compose(index, self.map.teacher_blank, temperature))

    def unmapped(self, blank: int) -> tuple[Rows, int]:
        return self.rows, self.map.teacher_blank

    def head(self) -> HeadInputs | None:
        inputs = self.rows.head()
        return None if inputs is None else replace(inputs, map=self.map)

    def mapped(self, to: ClassMap) -> Rows:
        raise UsageError(
            "these rows are already mapped to a student's token table",
            why="A second map would read the student's classes as the teacher's.",
            do="Map once: when the store is opened, or when the batch is made.",
        )


def has_classes(rows: DecodedRows) -> TypeIs[Rows]:
    """Tell whether rows are distributions over classes."""
    return not rows.numbers


def has_numbers(rows: DecodedRows) -> TypeIs[NumberRows]:
    """Tell whether rows are the numbers of a layer."""
    return rows.numbers


def every_class(logits: Float, temperature: float) -> Tempered:
    """Return (N, V) logits as rows of all classes at a temperature; raises ``UsageError`` below 1."""
    check_temperature(temperature)
    logp = logits / np.float32(temperature)
    logp = (logp - logsumexp(logp)[:, None]).astype(np.float32)
    return Tempered(logp.shape[1], temperature, logp, None, np.full(len(logp), NOTHING, np.float32))


def check_temperature(temperature: float) -> None:
    """Raise ``UsageError`` for a temperature below 1, where the tail of a pruned row is not known."""
    if not (np.isfinite(temperature) and temperature >= 1):
        raise UsageError(f"a temperature of {temperature}", do="Give a finite temperature of 1 or more.")


def logsumexp(x: NDArray[Any], axis: int = -1) -> NDArray[Any]:
    """Return log Σ exp along an axis; rows of -inf give -inf."""
    top = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    safe = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(x - safe).sum(axis=axis)) + np.squeeze(safe, axis))


def mix(a: Tempered, b: Tempered, weight: Float) -> Tempered:
    """Return the probabilities (1 - weight) · a + weight · b, row by row.

    Args:
        a: N rows, with (N, Ka) entries where they are pruned.
        b: N rows at the same temperature, pruned if and only if ``a`` is.
        weight: (N,) share of ``b``, from 0 to 1.

    Returns:
        N rows; pruned rows hold the union of the classes, at most Ka + Kb. A class that only one side kept
        gets its equal share of the other side's tail, and the masses still sum to one.
    """
    w = weight.astype(np.float64)[:, None]
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log1p(-w), np.log(w)
    if a.ids is None or b.ids is None:
        logp = np.logaddexp(log_a + a.logp, log_b + b.logp).astype(np.float32)
        tail = np.logaddexp(log_a[:, 0] + a.tail, log_b[:, 0] + b.tail)
        return Tempered(a.classes, a.temperature, logp, None, np.maximum(tail, NOTHING).astype(np.float32))
    return _mix_pruned(a, b, log_a, log_b)


def _mix_pruned(a: Tempered, b: Tempered, log_a: NDArray[np.float64], log_b: NDArray[np.float64]) -> Tempered:
    """Return the mixture of pruned rows; ``log_a`` and ``log_b`` are the (N, 1) logs of the two shares."""
    both = _Union.of(a, b)
    logp = np.logaddexp(log_a + both.from_a, log_b + both.from_b)
    return both.rows(logp, np.logaddexp(log_a[:, 0] + both.each_a, log_b[:, 0] + both.each_b))


def compose(a: Tempered, b: Tempered, blank: int) -> Tempered:
    """Return the distributions of two frames of a transducer at one label position, joined into one frame.

    The joined frame emits nothing where both emit nothing, and else the first label that is emitted: blank' =
    a(blank) · b(blank), label' = a(label) + a(blank) · b(label). Probabilities still sum to one, and joining
    is associative.

    Args:
        a: N rows, with (N, Ka) entries where they are pruned.
        b: N rows of the frames after them, at the same temperature, pruned if and only if ``a`` is.
        blank: id of the blank.

    Returns:
        N rows; pruned rows hold the union of the classes and the blank, at most Ka + Kb + 1. A class that
        only one side kept gets its equal share of the other side's tail.
    """
    if a.ids is None or b.ids is None:
        waits = a.logp[:, blank].astype(np.float64)
        logp = np.logaddexp(a.logp, waits[:, None] + b.logp)
        logp[:, blank] = waits + b.logp[:, blank]
        tail = np.maximum(np.logaddexp(a.tail, waits + b.tail), NOTHING)
        return Tempered(
            a.classes,
            a.temperature,
            np.maximum(logp, NOTHING).astype(np.float32),
            None,
            tail.astype(np.float32),
        )
    a = _with_blank(a, blank)
    both = _Union.of(a, b)
    assert a.ids is not None
    waits = np.where((a.ids == blank) & (a.logp > NOTHING), a.logp, -np.inf).max(axis=1).astype(np.float64)
    logp = np.where(
        both.ids == blank,
        both.from_a + both.from_b,
        np.logaddexp(both.from_a, waits[:, None] + both.from_b),
    )
    return both.rows(logp, np.logaddexp(both.each_a, waits + both.each_b))


def _with_blank(rows: Tempered, blank: int) -> Tempered:
    """Return pruned rows that all have an entry of the blank; a row that left it out gives it its equal share."""
    assert rows.ids is not None
    kept = rows.logp > NOTHING
    lacks = ~((rows.ids == blank) & kept).any(axis=1)
    if not lacks.any():
        return rows
    left = np.maximum(rows.classes - kept.sum(axis=1), 1)
    share = np.maximum(rows.tail - np.log(left), 2 * NOTHING)
    with np.errstate(divide="ignore"):
        tail = np.where(lacks, np.maximum(rows.tail + np.log1p(-1 / left), NOTHING), rows.tail)
    # The blank comes first where it was left out; elsewhere the added entry is one that the row does not have.
    first = np.where(lacks, blank, rows.ids[:, 0])
    logp = np.where(lacks, share, rows.logp[:, 0])
    second = np.where(lacks, rows.logp[:, 0], NOTHING)
    return replace(
        rows,
        logp=np.column_stack([logp, second, rows.logp[:, 1:]]).astype(np.float32),
        ids=np.column_stack([first, rows.ids]).astype(np.int32),
        tail=tail.astype(np.float32),
    )


def _blank_where(which: NDArray[np.bool_], rows: Tempered, blank: int) -> Tempered:
    """Return rows, with certain blanks in place of those that ``which`` names."""
    if not which.any():
        return rows
    certain = np.full(rows.logp.shape[1], NOTHING, np.float32)
    certain[blank if rows.ids is None else 0] = 0.0
    return replace(
        rows,
        logp=np.where(which[:, None], certain, rows.logp),
        ids=None if rows.ids is None else np.where(which[:, None], np.int32(blank), rows.ids),
        tail=np.where(which, np.float32(NOTHING), rows.tail),
    )


@dataclass(frozen=True)
class _Union:
    """The classes that either of two pruned rows kept, with the log-probability that each side gives them.

    Attributes:
        classes: V.
        temperature: temperature of both sides.
        ids: (N, Ka + Kb) class of each column, V in columns of none.
        from_a: (N, Ka + Kb) log-probability by the first side, with its share of the tail where it left the
            class out.
        from_b: the same of the second side.
        gone: (N, Ka + Kb) bool, True in columns without a class of their own.
        each_a: (N,) log-probability of one class that the first side left out.
        each_b: the same of the second side.
    """

    classes: int
    temperature: float
    ids: NDArray[np.int64]
    from_a: NDArray[np.float64]
    from_b: NDArray[np.float64]
    gone: NDArray[np.bool_]
    each_a: NDArray[np.float64]
    each_b: NDArray[np.float64]

    @classmethod
    def of(cls, a: Tempered, b: Tempered) -> Self:
        """Return the union of two pruned rows, each."""
        assert a.ids is not None
        assert b.ids is not None
        none = a.classes  # stands for an entry that a row does not have: sorts behind every class
        real_a, real_b = a.logp > NOTHING, b.logp > NOTHING
        each_a = a.tail - np.log(np.maximum(a.classes - real_a.sum(axis=1), 1))
        each_b = b.tail - np.log(np.maximum(b.classes - real_b.sum(axis=1), 1))

        # One column for every entry of either side, with the log-probability that each side gives its class.
        ids = np.concatenate([np.where(real_a, a.ids, none), np.where(real_b, b.ids, none)], axis=1)
        from_a = np.concatenate([a.logp, np.broadcast_to(each_a[:, None], b.ids.shape)], 1, dtype=np.float64)
        from_b = np.concatenate([np.broadcast_to(each_b[:, None], a.ids.shape), b.logp], 1, dtype=np.float64)
        order = np.argsort(ids, axis=1, kind="stable")
        ids, from_a, from_b = (np.take_along_axis(x, order, axis=1) for x in (ids, from_a, from_b))

        # A class that both sides kept has two neighbouring columns: a's, then b's. The first takes b's value.
        twin = np.zeros(ids.shape, bool)
        twin[:, 1:] = ids[:, 1:] == ids[:, :-1]
        from_b[:, :-1] = np.where(twin[:, 1:], from_b[:, 1:], from_b[:, :-1])
        return cls(a.classes, a.temperature, ids, from_a, from_b, twin | (ids == none), each_a, each_b)

    def rows(self, logp: NDArray[np.float64], each: NDArray[np.float64]) -> Tempered:
        """Return pruned rows, best class first.

        Args:
            logp: (N, Ka + Kb) log-probabilities of the columns.
            each: (N,) log-probability of one class that both sides left out.
        """
        logp = np.where(self.gone, NOTHING, np.maximum(logp, NOTHING))
        union = (~self.gone).sum(axis=1)
        best = np.argsort(-logp, axis=1, kind="stable")[:, : int(union.max(initial=1))]
        logp, ids = np.take_along_axis(logp, best, axis=1), np.take_along_axis(self.ids, best, axis=1)
        ids = np.where(logp > NOTHING, ids, ids[:, :1])
        with np.errstate(divide="ignore"):
            log_left = np.log(np.maximum(self.classes - union, 0))
        return Tempered(
            self.classes,
            self.temperature,
            logp.astype(np.float32),
            ids.astype(np.int32),
            np.maximum(each + log_left, NOTHING).astype(np.float32),
        )


def mix_logits(a: Tempered, b: Tempered, weight: Float) -> Tempered:
    """Return softmax((1 - weight) · logits of a + weight · logits of b), row by row.

    Raises ``UsageError`` for pruned rows, whose left-out logits are not known one by one.
    """
    if a.ids is not None or b.ids is not None:
        raise UsageError(
            "linear-logit of pruned rows",
            why="The logits of the classes that they left out are not known one by one.",
            do="Use linear, or a store that keeps every class.",
        )
    w = weight[:, None]
    logp = (1 - w) * a.logp + w * b.logp
    return replace(a, logp=(logp - logsumexp(logp)[:, None]).astype(np.float32))


def concatenate(parts: Sequence[Tempered]) -> Tempered:
    """Return rows one after the other, at the same temperature; K becomes the largest.

    All parts are pruned, or none is.
    """
    k = max(part.logp.shape[1] for part in parts)
    ids = None
    if parts[0].ids is not None:
        ids = np.concatenate([_widened(part.ids, k, None) for part in parts if part.ids is not None])
    return replace(
        parts[0],
        logp=np.concatenate([_widened(part.logp, k, NOTHING) for part in parts]),
        ids=ids,
        tail=np.concatenate([part.tail for part in parts]),
    )


def _widened(values: NDArray[Any], k: int, fill: float | None) -> NDArray[Any]:
    """Return (N, K) values as (N, k), filled with a number, or with each row's first value."""
    missing = k - values.shape[1]
    if not missing:
        return values
    last = values[:, :1] if fill is None else np.full((len(values), 1), fill, values.dtype)
    return np.concatenate([values, np.repeat(last, missing, axis=1)], axis=1)


def _without_tail(logp: Float, which: NDArray[np.bool_]) -> Float:
    """Return (N, V) log-probabilities, normalised again in the rows that ``which`` names."""
    if not which.any():
        return logp
    return np.where(which[:, None], logp - logsumexp(logp)[:, None], logp).astype(np.float32)
