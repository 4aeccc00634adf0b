"""Maps from a teacher's token table to a student's, by the names of the tokens and never by their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import NOTHING, Float, Tempered
from ..errors import TokenError, UsageError, VocabError
from ..tokens.diff import compare
from ..tokens.table import TokenTable, require_same
from .target import Target

FILLERS = ("<filler>", "<FILLER>", "<GBG>", "<unk>", "<UNK>", "[UNK]")
NO_CLASS = -1
WHICH = ("the teacher", "the student")


@dataclass(frozen=True)
class Coverage:
    """Counts of the tokens of two tables that a map connects.

    Attributes:
        teacher: number of the teacher's tokens.
        mapped: number of the teacher's tokens that the student's table has by name, with the blank.
        student: number of the student's classes.
        fed: number of the student's classes that some token of the teacher maps to.
    """

    teacher: int
    mapped: int
    student: int
    fed: int

    @property
    def share(self) -> float:
        """Share of the teacher's tokens that are mapped, from 0 to 1."""
        return self.mapped / self.teacher


@dataclass(frozen=True, eq=False)
class VocabMap:
    """A map that gives every teacher token a class of the student, or none.

    Tempering and merging do not commute (the sum of two squares is not the square of the sum), so the map is
    always applied to rows at the training temperature, after resampling.

    Attributes:
        teacher: token table of the store.
        student: token table of the student.
        to: (V_teacher,) int64 student id of each teacher id; -1 where its mass goes to the tail.
        named: (V_teacher,) bool; True where the student has a token of that name, not only a filler.
    """

    teacher: TokenTable
    student: TokenTable
    to: NDArray[np.int64]
    named: NDArray[np.bool_]

    @classmethod
    def by_token(
        cls,
        teacher: TokenTable,
        student: TokenTable,
        *,
        missing: str = "tail",
        spell: Callable[[str], str] | None = None,
    ) -> Self:
        """Map tokens of the same name to each other, and blank to blank whatever their ids.

        Args:
            teacher: the store's table.
            student: the student's table; several teacher tokens may share one of its classes.
            missing: destination of the mass of tokens that the student lacks: ``tail`` (no class), or
                ``filler``, the student's ``<filler>``, ``<GBG>`` or ``<unk>``.
            spell: function from a teacher token to the student's spelling, e.g. ``str.lower``.

        Raises:
            VocabError: tables without common tokens, with common tokens only under another spelling, or of
                different units (characters against BPE); or a student without a filler.
            UsageError: another value of ``missing``.
        """
        if missing not in ("tail", "filler"):
            raise UsageError(f"missing={missing!r}", do="Known: tail, filler.")
        names = [t if spell is None or i == teacher.blank else spell(t) for i, t in enumerate(teacher.tokens)]
        _require_mappable(names, teacher, student)
        rest = NO_CLASS if missing == "tail" else _filler(student)
        to = np.full(len(teacher), rest, np.int64)
        named = np.zeros(len(teacher), bool)
        own_blank = student[student.blank]
        for i, name in enumerate(names):
            if i != teacher.blank and name in student and name != own_blank:
                to[i], named[i] = student.id(name), True
        to[teacher.blank], named[teacher.blank] = student.blank, True
        return cls(teacher, student, to, named)

    def __len__(self) -> int:
        return len(self.teacher)

    @property
    def classes(self) -> int:
        """Number of the student's classes."""
        return len(self.student)

    @property
    def teacher_blank(self) -> int:
        """Id of the blank in the teacher's table."""
        return self.teacher.blank

    def apply(self, rows: Tempered) -> Tempered:
        """Return N rows of teacher classes as N rows of student classes; every row still sums to one.

        Masses of tokens that share a class are added in log space, and the mass of tokens without a class
        goes to the tail. A dense row stays dense (``ids`` None), beside a finite tail. The kept entries of a
        pruned row are mapped and merged; the mass that it left out stays in the tail, except a filler's
        share, in proportion to the number of left-out classes that map to the filler.

        Raises ``VocabError`` for rows of another number of classes.
        """
        if rows.classes != len(self.teacher):
            raise VocabError(
                f"rows of {rows.classes} classes for a map from {len(self.teacher)} tokens",
                do="Make the map from the store's own table: VocabMap.by_token(store.tokens, table).",
            )
        if rows.ids is not None and rows.logp.shape[1] == rows.classes and not rows.has_tail().any():
            rows = replace(rows, ids=None, logp=rows.dense())  # pruned rows that hold every class
        if rows.ids is None:
            return regroup_dense(rows, self.to, len(self.student))
        return regroup_pruned(rows, self.to, len(self.student), self._filler_id)

    def labels(self, ids: NDArray[Any] | Sequence[int]) -> NDArray[np.int32]:
        """Return (U,) int32 label ids in the student's table.

        Raises ``TokenError`` naming the token of a label that the student lacks.
        """
        given = np.asarray(ids, np.int64)
        bad = (given < 0) | (given >= len(self))
        if bad.any():
            raise TokenError(
                f"label {given[bad][0]} is outside a table of {len(self)} tokens",
                do="Give ids of the teacher's table.",
            )
        mapped = self.to[given]
        if (mapped < 0).any():
            token = self.teacher[int(given[mapped < 0][0])]
            raise TokenError(
                f"the label {token!r} is not in the student's token table",
                why="A lattice over a label that the student cannot emit teaches it nothing.",
                do="Map with missing='filler', or leave the utterance out.",
            )
        return mapped.astype(np.int32)

    def target(self, target: Target) -> Target:
        """Return a target over the student's classes: streams, shapes and labels; layers stay as they are.

        Raises:
            TokenError: a label that the student lacks.
            UsageError: a target that is mapped already.
        """
        try:
            labels = self.labels(target.labels)
            driven = {name: self.labels(ids) for name, ids in target.driven.items()}
            streams = {name: rows.mapped(self) for name, rows in target.streams.items()}
        except (TokenError, UsageError) as e:
            raise type(e)(e.what, where=target.id, why=e.why, do=e.do) from None
        shapes = {name: (*shape[:-1], streams[name].width) for name, shape in target.shapes.items()}
        return replace(
            target, labels=labels, driven=driven, streams=streams, shapes=shapes, blank=self.student.blank
        )

    def require_teacher(self, table: TokenTable, where: str) -> None:
        """Raise ``VocabError`` unless the map starts at this table, the one of the store ``where``."""
        require_same(table, self.teacher, where=where, which=("the store", "the map's teacher"))

    def same(self, other: VocabMap | None) -> bool:
        """Tell whether another map gives every token the same class."""
        if other is None or len(self.student) != len(other.student):
            return False
        return np.array_equal(self.to, other.to)

    @property
    def order(self) -> NDArray[np.int64] | None:
        """(V,) teacher id of each student class where both tables hold the same tokens; else None."""
        order = np.argsort(self.to, kind="stable")
        only_order = len(self) == len(self.student) and bool((self.to[order] == np.arange(len(self))).all())
        return order if only_order else None

    @property
    def dropped(self) -> tuple[str, ...]:
        """Teacher tokens that the student lacks, by id."""
        return tuple(self.teacher[int(i)] for i in np.flatnonzero(~self.named))

    @property
    def unfed(self) -> tuple[str, ...]:
        """Student classes that no teacher token maps to and that get no mass, by id."""
        fed = self._fed
        return tuple(t for i, t in enumerate(self.student.tokens) if i not in fed)

    def coverage(self) -> Coverage:
        """Return counts of mapped tokens and fed classes."""
        return Coverage(len(self), int(self.named.sum()), len(self.student), len(self._fed))

    def explain(self) -> str:
        """Return a few lines of text: the difference, counts, dropped tokens and classes without mass."""
        c = self.coverage()
        lines = [
            compare(self.teacher, self.student, WHICH).what,
            f"{c.mapped} of {c.teacher} teacher tokens ({c.share:.1%}) become {c.fed} of {c.student} classes",
            f"blank {self.teacher[self.teacher.blank]!r} {self.teacher.blank} becomes "
            f"{self.student[self.student.blank]!r} {self.student.blank}",
        ]
        if self.dropped:
            rest = "the tail" if self._filler_id is None else repr(self.student[self._filler_id])
            lines.append(f"{len(self.dropped)} go to {rest}: {_some(self.dropped)}")
        if self.unfed:
            lines.append(f"{len(self.unfed)} classes of the student get no mass: {_some(self.unfed)}")
        return "\n".join(lines)

    @property
    def _fed(self) -> frozenset[int]:
        return frozenset(self.to[self.to >= 0].tolist())

    @property
    def _filler_id(self) -> int | None:
        """Class of dropped tokens; None where they go to the tail or none is dropped."""
        rest = self.to[~self.named]
        return int(rest[0]) if len(rest) and rest[0] >= 0 else None


def _require_mappable(names: Sequence[str], teacher: TokenTable, student: TokenTable) -> None:
    """Raise ``VocabError`` unless the student's table has enough of the teacher's tokens as spelt."""
    spelt = tuple(dict.fromkeys(names))
    members = (*student.tokens, *(t for t, i in student.also if i >= 0))
    difference = compare(
        _Names(spelt, spelt.index(names[teacher.blank])), _Names(members, student.blank), WHICH
    )
    if not difference.mappable:
        raise VocabError(
            difference.what,
            why="A map by name would drop nearly all of the teacher's mass.",
            do=difference.do,
        )


@dataclass(frozen=True)
class _Names:
    """Names of tokens and the id of the blank, which is all that two tables are compared by."""

    tokens: tuple[str, ...]
    blank: int


def _filler(student: TokenTable) -> int:
    """Return the id of the student's filler; raises ``VocabError`` where it has none."""
    for name in FILLERS:
        if name in student and student.id(name) != student.blank:
            return student.id(name)
    raise VocabError(
        "the student's token table has no filler",
        do=f"Add one of {', '.join(FILLERS)}, or map with missing='tail'.",
    )


def _some(tokens: Sequence[str], most: int = 8) -> str:
    """Return the first tokens, quoted."""
    text = ", ".join(map(repr, tokens[:most]))
    return f"{text}, ..." if len(tokens) > most else text


BLOCK = 1 << 22  # float64 numbers held at a time


def regroup_dense(rows: Tempered, to: NDArray[np.int64], classes: int) -> Tempered:
    """Return (N, V) rows with their classes merged into groups, as (N, G) rows.

    Args:
        rows: rows of every class (``ids`` None).
        to: (V,) group of each class; -1 for the tail.
        classes: number of groups, G. A group without classes gets a log-probability of -1e4.
    """
    n = len(rows.logp)
    logp = np.full((n, classes), NOTHING, np.float32)
    tail = rows.tail
    order = np.argsort(to, kind="stable")
    groups, starts, sizes = np.unique(to[order], return_index=True, return_counts=True)
    alone = (sizes == 1) & (groups >= 0)
    logp[:, groups[alone]] = rows.logp[:, order[starts[alone]]]
    several = ~alone
    if several.any():
        members = np.concatenate(
            [order[s : s + k] for s, k in zip(starts[several], sizes[several], strict=True)]
        )
        ends = np.cumsum(sizes[several])
        sums = _log_sums(rows.logp[:, members], ends - sizes[several])
        merged = groups[several]
        logp[:, merged[merged >= 0]] = sums[:, merged >= 0]
        if merged[0] < 0:  # groups are sorted: the tail comes first
            tail = _total(tail, sums[:, 0])
    return Tempered(classes, rows.temperature, logp, None, tail)


def regroup_pruned(rows: Tempered, to: NDArray[np.int64], classes: int, filler: int | None) -> Tempered:
    """Return (N, K) entries with their classes merged into groups, best first, ties by lower id.

    Args:
        rows: pruned rows (``ids`` not None).
        to: (V,) group of each class; -1 for the tail.
        classes: number of groups, G.
        filler: group that takes its share of the tail; None for no group.
    """
    assert rows.ids is not None
    real = rows.logp > NOTHING
    ids = np.where(real, to[rows.ids], classes)  # the id ``classes``, no group, sorts last
    tail = rows.tail
    logp = rows.logp.astype(np.float64)
    lost = np.where(real & (ids < 0), logp, NOTHING)
    tail = _total(tail, _log_sums(lost, np.zeros(1, np.int64))[:, 0])
    logp = np.where(real, logp, NOTHING)
    if filler is not None:
        left = len(to) - real.sum(axis=1)
        unnamed = (to == filler).sum() - (real & (ids == filler)).sum(axis=1)
        share = np.where(left > 0, unnamed / np.maximum(left, 1), 0.0)
        with np.errstate(divide="ignore"):
            moved, stays = np.log(share) + tail, np.log1p(-share) + tail
        ids = np.concatenate([ids, np.where(moved > NOTHING, filler, classes)[:, None]], axis=1)
        logp = np.concatenate([logp, np.maximum(moved, NOTHING)[:, None]], axis=1)
        tail = np.maximum(stays, NOTHING).astype(np.float32)
    ids = np.where(ids < 0, classes, ids)
    return Tempered(classes, rows.temperature, *_merge(ids, logp, classes), tail)


def _merge(ids: NDArray[np.int64], logp: NDArray[np.float64], none: int) -> tuple[Float, NDArray[np.int32]]:
    """Return (N, K') log-probabilities and ids with equal ids of a row added up; id ``none`` is no entry."""
    n, k = ids.shape
    order = np.argsort(ids, axis=1, kind="stable")
    ids, logp = np.take_along_axis(ids, order, axis=1), np.take_along_axis(logp, order, axis=1)
    first = np.ones((n, k), bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = np.flatnonzero(first)
    sums = np.full((n, k), NOTHING)
    sums[first] = _log_sums(logp.reshape(1, -1), starts)[0] if n else 0.0
    sums[ids == none] = NOTHING
    width = max(int((sums > NOTHING).sum(axis=1).max(initial=1)), 1)
    best = np.argsort(-sums, axis=1, kind="stable")[:, :width]
    ids, sums = np.take_along_axis(ids, best, axis=1), np.take_along_axis(sums, best, axis=1)
    ids = np.where(ids[:, :1] == none, 0, ids)  # a row without any entry
    ids = np.where(sums > NOTHING, ids, ids[:, :1])
    return sums.astype(np.float32), ids.astype(np.int32)


def _log_sums(x: NDArray[np.floating], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (N, G) log Σ exp over runs of columns that begin at ``starts``; no run is empty."""
    sizes = np.diff(starts, append=x.shape[1])
    out = np.empty((len(x), len(starts)))
    step = max(BLOCK // max(x.shape[1], 1), 1)
    for row in range(0, len(x), step):  # a whole lattice in float64 would not fit in memory
        part = x[row : row + step].astype(np.float64)
        peak = np.maximum.reduceat(part, starts, axis=1)
        e = np.exp(part - np.repeat(peak, sizes, axis=1))
        out[row : row + step] = np.log(np.add.reduceat(e, starts, axis=1)) + peak
    return out


def _total(a: NDArray[np.floating], b: NDArray[np.floating]) -> Float:
    """Return log(exp a + exp b), at least -1e4."""
    return np.asarray(np.maximum(np.logaddexp(a.astype(np.float64), b), NOTHING), np.float32)
