"""Targets at a student's frame rate: rows of the teacher, taken or mixed, for an utterance's own lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import NOTHING, Factored, FactoredLattice, Float, Rows, Tempered, logsumexp
from ..errors import UsageError
from ..schema.kinds import KINDS, kind_of
from ..schema.lattice import Nodes
from . import frames
from .target import Target
from .vocab_map import Mapped, VocabMap


@dataclass(frozen=True)
class Resampled:
    """One stream of one utterance at a student's frames.

    Attributes:
        rows: N rows, N being the product of ``axes``.
        axes: (S,), (S, n) of stacked frames, (S, U+1) or (S, W) of a lattice, (N,) of a path.
        valid: (N,) bool, False where the teacher says nothing.
        position: (N,) label position of lattice nodes; None where all U + 1 of a frame are there.
        frame: (N,) frame of a path's nodes; None for the others.
        occupancy: (N,) float32; None where it is not stored.
    """

    rows: Tempered
    axes: tuple[int, ...]
    valid: NDArray[np.bool_]
    position: NDArray[np.int64] | None = None
    frame: NDArray[np.int64] | None = None
    occupancy: NDArray[np.float32] | None = None


def resample_stream(
    target: Target, stream: str, student: int | frames.Ramp, method: frames.Method, temperature: float
) -> Resampled:
    """One stream of a target at ``student`` frames instead of T, or where a ramp looks, at a temperature.

    Label positions of a lattice stay apart. A banded lattice's ranges follow the nearest frame; where only
    one of two frames holds a node, that one is taken. Raises ``UsageError`` for what a form has no answer to.
    """
    rows, nodes, axes = target[stream], target.nodes.get(stream), target.shapes[stream][:-1]
    if not follows_frames(stream):
        return Resampled(rows.at(temperature), axes, np.ones(axes[0], bool))
    lattice = is_lattice(target, stream, method)
    if nodes is not None and not nodes.width:
        return _path(target, nodes, rows, student, method, temperature)
    width = axes[1] if lattice else 1
    mass = None
    if method.name == "max-nonblank":
        mass = nonblank(rows, target.blank)
    plan = frames.plan(target.T, student, method, mass)
    low, high = (np.repeat(x.reshape(-1), width) for x in (plan.low, plan.high))
    weight = np.repeat(plan.weight.reshape(-1), width)
    offset = np.tile(np.arange(width), plan.low.size)
    position = None
    at_low, at_high = offset, offset
    if nodes is not None:
        table = nodes.position.reshape(-1, width)
        position = table[np.where(weight > 0.5, high, low), offset]
        if nodes.form.name == "banded":
            at_low, at_high = position - table[low, 0], position - table[high, 0]
    row_low, row_high = low * width + at_low, high * width + at_high
    row_low, row_high = (
        np.where((at_low >= 0) & (at_low < width), row_low, row_high),
        np.where((at_high >= 0) & (at_high < width), row_high, row_low),
    )
    occupied = None
    if nodes is not None and nodes.occupancy is not None:
        occupied = (1 - weight) * nodes.occupancy[row_low] + weight * nodes.occupancy[row_high]
    same = len(row_low) == target.T * width and bool((row_low == np.arange(len(row_low))).all())
    if same and not weight.any():
        mixed = rows.at(temperature)
    else:
        mixed = _rows(rows, row_low, row_high, weight, method, temperature)
    return Resampled(
        rows=mixed,
        axes=(*plan.low.shape, width) if lattice else plan.low.shape,
        valid=np.repeat(plan.valid.reshape(-1), width),
        position=position,
        occupancy=occupied,
    )


def follows_frames(stream: str) -> bool:
    """Whether a stream changes with a student's frames; an attention decoder's labels do not."""
    return stream.partition("_")[0] not in KINDS or kind_of(stream).frames


def resample_vectors(
    target: Target, stream: str, student: int | frames.Ramp, method: frames.Method
) -> tuple[Float, NDArray[np.bool_]]:
    """(S, D) or (S, n, D) numbers of a layer at ``student`` frames, and where it gave any.

    ``linear`` mixes the numbers themselves. Raises ``UsageError`` for methods that need classes.
    """
    if method.name in ("max-nonblank", "linear-logit"):
        raise UsageError(
            f"{method} of {stream!r}",
            where=target.id,
            why="A layer's numbers are no logits, and none of them is a blank.",
            do="Resample it with linear, nearest or stack:n; streams=[...] makes a batch of some streams.",
        )
    rows, plan = target.vectors(stream), frames.plan(target.T, student, method)
    weight = plan.weight[..., None]
    mixed = (1 - weight) * rows[plan.low] + weight * rows[plan.high] if weight.any() else rows[plan.low]
    return np.asarray(mixed, np.float32), plan.valid


def is_lattice(target: Target, stream: str, method: frames.Method) -> bool:
    """Whether a stream is one; raises ``UsageError`` for a method that has no answer to it."""
    lattice = target.grid(stream) is not None
    if lattice and method.name in ("max-nonblank", "stack"):
        raise UsageError(
            f"{method} of the lattice {stream!r}",
            where=target.id,
            why="Which label position a frame belongs to depends on the frames before it.",
            do="Resample lattices with linear, linear-logit or nearest.",
        )
    return lattice


def _path(
    target: Target,
    nodes: Nodes,
    rows: Rows,
    student: int | frames.Ramp,
    method: frames.Method,
    temperature: float,
) -> Resampled:
    if student not in (target.T, frames.Ramp.whole(target.T, target.T)) or method.shift:
        count = student.count if isinstance(student, frames.Ramp) else student
        raise UsageError(
            f"a path of {target.T} frames at {count} other frames{f', {method}' * bool(method.shift)}",
            where=target.id,
            why="Its T + U nodes are one alignment at the teacher's own frames; other frames have others.",
            do="Give the student the teacher's frame rate, or dump rnnt=ENCODING/banded:S.",
        )
    every = np.ones(len(nodes), bool)
    at = rows.at(temperature)
    return Resampled(at, nodes.axes, every, nodes.position, nodes.frame, nodes.occupancy)


def _rows(
    rows: Rows,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    weight: NDArray[np.float32],
    method: frames.Method,
    temperature: float,
) -> Tempered:
    """Rows mixed of two each. Mapped rows are mixed as the teacher's, and mapped then.

    Dense rows come out the same either way, and pruned rows mix while their entries are still the teacher's.
    """
    if isinstance(rows, Mapped):
        return rows.map.apply(_rows(rows.rows, low, high, weight, method, temperature))
    if not weight.any():
        return rows.take(low).at(temperature)
    a, b = rows.take(low).at(temperature), rows.take(high).at(temperature)
    return mix_logits(a, b, weight) if method.name == "linear-logit" else mix(a, b, weight)


def resample(
    rows: Rows, shape: tuple[int, ...], student: int, *, method: str, temperature: float
) -> Tempered:
    """Rows of a (T, V) or whole (T, U+1, V) stream at ``student`` frames instead of T, at a temperature."""
    target = Target("", shape[0], np.zeros(0, np.int32), {"": rows}, {"": shape})
    return resample_stream(target, "", student, frames.Method.parse(method), temperature).rows


def nonblank(rows: Rows, blank: int) -> Float:
    """(N,) mass, 0 to 1, of all classes but the blank at temperature 1, in the teacher's own table.

    A blank that a pruned row left out counts with an equal share of the tail.
    """
    if isinstance(rows, Mapped):
        return nonblank(rows.rows, rows.map.teacher.blank)
    at = rows.at(1.0)
    if at.ids is None:
        return np.asarray(-np.expm1(at.logp[:, blank]))
    kept = at.logp > NOTHING
    left = np.maximum(at.classes - kept.sum(axis=1), 1)
    share = at.tail - np.log(left)
    own = np.where((at.ids == blank) & kept, at.logp, -np.inf).max(axis=1)
    return np.asarray(-np.expm1(np.minimum(np.where(np.isfinite(own), own, share), 0)), np.float32)


def mix_logits(a: Tempered, b: Tempered, weight: NDArray[np.float32]) -> Tempered:
    """softmax((1 - weight)·a + weight·b) of dense rows' logits; raises ``UsageError`` for pruned ones."""
    if a.ids is not None or b.ids is not None:
        raise UsageError(
            "linear-logit of pruned rows",
            why="The logits of the classes that they left out are not known one by one.",
            do="Use linear, or a store that keeps every class.",
        )
    w = weight[:, None]
    logp = (1 - w) * a.logp + w * b.logp
    return replace(a, logp=(logp - logsumexp(logp)[:, None]).astype(np.float32))


@dataclass(frozen=True, eq=False)
class Headed:
    """Rows of one utterance that still are what goes into a head.

    Attributes:
        rows: at the student's frames.
        map: to the student's table, where the head's classes are not its own.
        later: rows that probabilities are mixed with; None where frames are taken as they are.
        share: (S,) float32 of the later ones.
    """

    rows: Factored | FactoredLattice
    map: VocabMap | None = None
    later: Factored | FactoredLattice | None = None
    share: NDArray[np.float32] | None = None

    def shares(self, other: Headed) -> bool:
        """Whether both have the same head and map: rows of two stores may not."""
        a, b = self.rows, other.rows
        return (
            type(a) is type(b)
            and (a.weight is b.weight or np.array_equal(a.weight, b.weight))
            and (a.bias is b.bias or np.array_equal(a.bias, b.bias))
            and getattr(a, "activation", "") == getattr(b, "activation", "")
            and (self.map is other.map or (self.map is not None and self.map.same(other.map)))
        )


def headed(target: Target, stream: str, student: int, method: frames.Method) -> Headed | None:
    """Rows at ``student`` frames as their head sees them; None where they have none, or lag."""
    own = target[stream]
    rows, there = (own.rows, own.map) if isinstance(own, Mapped) else (own, None)
    if isinstance(rows, Factored) and not follows_frames(stream):
        return Headed(rows, there)
    if not isinstance(rows, Factored | FactoredLattice) or method.shift or method.size:
        return None
    if student == target.T:
        return Headed(rows, there)
    if method.name == "max-nonblank" or (method.name == "linear-logit" and isinstance(rows, FactoredLattice)):
        return None
    plan = frames.plan(target.T, student, method)
    low = _at_frames(rows, plan.low)
    if not plan.weight.any():
        return Headed(low, there)
    if isinstance(rows, FactoredLattice) or method.name == "linear":
        return Headed(low, there, _at_frames(rows, plan.high), plan.weight)
    share = plan.weight[:, None]
    # Logits are mixed where what makes them is.
    return Headed(replace(rows, h=(1 - share) * rows.h[plan.low] + share * rows.h[plan.high]), there)


def _at_frames(rows: Factored | FactoredLattice, chosen: NDArray[np.int64]) -> Factored | FactoredLattice:
    return rows.take(chosen) if isinstance(rows, Factored) else replace(rows, enc=rows.enc[chosen])


def mix(a: Tempered, b: Tempered, weight: NDArray[np.float32]) -> Tempered:
    """(1 - weight)·a + weight·b, row by row, in probability; K becomes that of the union, at most 2K."""
    w = weight.astype(np.float64)[:, None]
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log1p(-w), np.log(w)
    if a.ids is None or b.ids is None:
        logp = np.logaddexp(log_a + a.logp, log_b + b.logp).astype(np.float32)
        tail = np.logaddexp(log_a[:, 0] + a.tail, log_b[:, 0] + b.tail)
        return Tempered(a.classes, a.temperature, logp, None, np.maximum(tail, NOTHING).astype(np.float32))
    n, k = a.ids.shape[0], (a.ids.shape[1], b.ids.shape[1])
    real = np.concatenate([a.logp > NOTHING, b.logp > NOTHING], axis=1)
    left = [np.maximum(a.classes - r.sum(axis=1), 1) for r in (real[:, : k[0]], real[:, k[0] :])]
    ids = np.where(real, np.concatenate([a.ids, b.ids], axis=1), a.classes)  # what is not there sorts last
    order = np.argsort(ids, axis=1, kind="stable")
    # What each side says about each class of the union, in the order of ids; a share of its tail at least.
    each_a, each_b = a.tail - np.log(left[0]), b.tail - np.log(left[1])
    share_a = np.broadcast_to(each_a[:, None], (n, k[1]))
    share_b = np.broadcast_to(each_b[:, None], (n, k[0]))
    ids, from_a, from_b = (
        np.take_along_axis(x, order, axis=1)
        for x in (
            ids,
            np.concatenate([a.logp, share_a], axis=1, dtype=np.float64),
            np.concatenate([share_b, b.logp], axis=1, dtype=np.float64),
        )
    )
    twin = np.zeros(ids.shape, bool)
    twin[:, 1:] = ids[:, 1:] == ids[:, :-1]  # the second of two equal ids is b's own
    from_b[:, :-1] = np.where(twin[:, 1:], from_b[:, 1:], from_b[:, :-1])
    gone = twin | (ids == a.classes)
    logp = np.where(gone, NOTHING, np.logaddexp(log_a + from_a, log_b + from_b))
    union = (~gone).sum(axis=1)
    best = np.argsort(-logp, axis=1, kind="stable")[:, : int(union.max(initial=1))]
    logp, ids = np.take_along_axis(logp, best, axis=1), np.take_along_axis(ids, best, axis=1)
    ids = np.where(logp > NOTHING, ids, ids[:, :1])
    with np.errstate(divide="ignore"):
        rest = np.log(np.maximum(a.classes - union, 0))
    tail = np.logaddexp(log_a[:, 0] + each_a, log_b[:, 0] + each_b) + rest
    return Tempered(
        a.classes,
        a.temperature,
        logp.astype(np.float32),
        ids.astype(np.int32),
        np.maximum(tail, NOTHING).astype(np.float32),
    )
