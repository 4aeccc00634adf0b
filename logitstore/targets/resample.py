"""Streams of one utterance at a student's frames: rows of the teacher, taken or mixed.

:mod:`logitstore.targets.frames` plans which teacher frames each student frame needs; here their rows are put
together, per kind of stream: frames, lattices, paths, layers, and inputs of a linear head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import NOTHING, Float, HeadInputs, Rows, Tempered
from ..errors import UsageError
from ..schema.kinds import KINDS, kind_of
from ..schema.lattice import Nodes
from . import frames
from .decode import best_classes
from .target import Target


@dataclass(frozen=True)
class Resampled:
    """One stream of one utterance at a student's frames.

    Attributes:
        rows: N rows; N is the product of ``axes``.
        axes: (S,) of frames, (S, n) of stacked frames, (S, U+1) or (S, W) of a lattice, (N,) of a path, (U,)
            of an attention decoder.
        valid: (N,) bool; False where there is no target.
        position: (N,) int64 label position of lattice nodes; None where all U + 1 of each frame are present.
        frame: (N,) int64 frame of a path's nodes; None for other streams.
        occupancy: (N,) float32 probability that an alignment passes the node; None where it is not stored.
        tokens: tokens of the teacher's greedy decode, where the method counts them; else 0.
        lost: tokens among these that no student frame has.
    """

    rows: Tempered
    axes: tuple[int, ...]
    valid: NDArray[np.bool_]
    position: NDArray[np.int64] | None = None
    frame: NDArray[np.int64] | None = None
    occupancy: NDArray[np.float32] | None = None
    tokens: int = 0
    lost: int = 0


@dataclass(frozen=True)
class RowEvidence:
    """The teacher's rows of a stream of T frames, for methods that choose frames by what they hold.

    Attributes:
        rows: T rows over the teacher's own classes.
        blank: id of the blank among these.
    """

    rows: Rows
    blank: int

    @classmethod
    def of(cls, target: Target, stream: str) -> RowEvidence:
        """Return the evidence of a stream, without any map to a student's token table."""
        return cls(*target[stream].unmapped(target.blank))

    def nonblank(self) -> Float:
        """Return the (T,) probability of all classes but the blank."""
        return nonblank(self.rows, self.blank)

    def best(self) -> NDArray[np.int64]:
        """Return the (T,) most probable class."""
        return best_classes(self.rows)


def follows_frames(stream: str) -> bool:
    """Tell whether a stream changes with the student's frames; the labels of an attention decoder do not."""
    return stream.partition("_")[0] not in KINDS or kind_of(stream).frames


def is_lattice(target: Target, stream: str, method: frames.Method) -> bool:
    """Tell whether a stream is a lattice; raises ``UsageError`` where the method cannot resample it."""
    lattice = target.grid(stream) is not None
    if lattice and not method.rule.lattices:
        known = ", ".join(name for name, rule in frames.METHODS.items() if rule.lattices)
        raise UsageError(
            f"{method} of the lattice {stream!r}",
            where=target.id,
            why="The label position of a frame depends on the frames before it.",
            do=f"Resample lattices with {known}.",
        )
    return lattice


def resample_stream(
    target: Target, stream: str, student: int | frames.Ramp, method: frames.Method, temperature: float
) -> Resampled:
    """Return a stream of distributions at a student's frames and a temperature.

    Args:
        target: one utterance.
        stream: name of the stream.
        student: number of student frames S, or their positions in the utterance.
        method: resampling method.
        temperature: 1 or more.

    Raises:
        UsageError: a method that cannot resample the stream, or a path at other frames.
        LengthError: S and T that do not fit together.
    """
    rows, axes = target[stream], target.shapes[stream][:-1]
    if not follows_frames(stream):
        return Resampled(rows.at(temperature), axes, np.ones(axes[0], bool))
    lattice = is_lattice(target, stream, method)
    nodes = target.nodes.get(stream)
    if nodes is not None and not nodes.width:
        return _resample_path(target, rows, nodes, student, method, temperature)
    evidence = RowEvidence.of(target, stream) if method.rule.needs_evidence else None
    plan = frames.plan(target.T, student, method, evidence)
    if plan.groups is not None:
        width = axes[1] if lattice else 1
        return _compose_frames(rows, width, axes, nodes, plan, target.blank, temperature)
    if lattice:
        return _resample_lattice(rows, axes[1], nodes, plan, method, temperature)
    mixed = _mix(
        rows, plan.low.reshape(-1), plan.high.reshape(-1), plan.weight.reshape(-1), method, temperature
    )
    return Resampled(mixed, plan.low.shape, plan.valid.reshape(-1), tokens=plan.tokens, lost=plan.lost)


def _compose_frames(
    rows: Rows,
    width: int,
    axes: tuple[int, ...],
    nodes: Nodes | None,
    plan: frames.FramePlan,
    blank: int,
    temperature: float,
) -> Resampled:
    """Return rows composed of the frames of each group, every label position on its own.

    The ranges of a banded lattice are those of the frame nearest to the student frame; frames of the group
    that do not hold one of its nodes are left out there. The occupancy is the largest of the composed nodes.

    Args:
        rows: T · W rows.
        width: rows per frame, W; 1 of a stream without label positions.
        axes: (T, W) or (T,) of the rows.
        nodes: lattice nodes of the rows; None where all are kept.
        plan: groups of teacher frames of the S student frames.
        blank: id of the blank among the rows' classes.
        temperature: 1 or more.
    """
    assert plan.groups is not None
    # One entry per node of the resampled lattice, frame after frame, and per frame of its group: (S · W, k).
    frame = np.repeat(plan.groups, width, axis=0)
    column = np.tile(np.arange(width), len(plan.low))[:, None]
    position, occupancy = None, None
    if nodes is not None:
        positions = nodes.position.reshape(-1, width)
        position = positions[plan.low].reshape(-1)
        if nodes.form.name == "banded":  # the same label position is in another column of another frame
            column = position[:, None] - positions[np.maximum(frame, 0), 0]
    held = (frame >= 0) & (column >= 0) & (column < width)
    index = np.where(held, frame * width + column, -1)
    if nodes is not None and nodes.occupancy is not None:
        occupancy = np.where(held, nodes.occupancy[index], np.float32(0)).max(axis=1)
    if index.shape[1] == 1 and np.array_equal(index[:, 0], np.arange(len(rows))):
        composed = rows.at(temperature)
    else:
        composed = rows.compose(index, blank, temperature)
    return Resampled(
        composed, (len(plan.low), *axes[1:]), np.repeat(plan.valid, width), position, occupancy=occupancy
    )


def _resample_lattice(
    rows: Rows,
    width: int,
    nodes: Nodes | None,
    plan: frames.FramePlan,
    method: frames.Method,
    temperature: float,
) -> Resampled:
    """Return a lattice at a student's frames; label positions are never mixed with each other.

    The ranges of a banded lattice are those of the frame with the larger weight. Where only one of the two
    mixed frames holds a node, that frame's row is taken.

    Args:
        rows: T · W rows.
        width: rows per frame, W.
        nodes: lattice nodes of the rows; None where all are kept.
        plan: teacher frames of the S student frames.
        method: resampling method.
        temperature: 1 or more.
    """
    # One entry per node of the resampled lattice, frame after frame: (S · W,).
    low, high = np.repeat(plan.low, width), np.repeat(plan.high, width)
    weight = np.repeat(plan.weight, width)
    column = np.tile(np.arange(width), len(plan.low))
    column_low, column_high = column, column
    position = None
    if nodes is not None:
        positions = nodes.position.reshape(-1, width)
        position = positions[np.where(weight > 0.5, high, low), column]
        if nodes.form.name == "banded":  # the same label position is in another column of another frame
            column_low, column_high = position - positions[low, 0], position - positions[high, 0]
    row_low, row_high = low * width + column_low, high * width + column_high
    row_low, row_high = (
        np.where((column_low >= 0) & (column_low < width), row_low, row_high),
        np.where((column_high >= 0) & (column_high < width), row_high, row_low),
    )
    occupancy = None
    if nodes is not None and nodes.occupancy is not None:
        occupancy = (1 - weight) * nodes.occupancy[row_low] + weight * nodes.occupancy[row_high]
    return Resampled(
        rows=_mix(rows, row_low, row_high, weight, method, temperature),
        axes=(len(plan.low), width),
        valid=np.repeat(plan.valid, width),
        position=position,
        occupancy=occupancy,
    )


def _resample_path(
    target: Target,
    rows: Rows,
    nodes: Nodes,
    student: int | frames.Ramp,
    method: frames.Method,
    temperature: float,
) -> Resampled:
    """Return the nodes of a path at the teacher's own frames; raises ``UsageError`` at others."""
    if student not in (target.T, frames.Ramp.whole(target.T, target.T)) or method.shift:
        count = student.count if isinstance(student, frames.Ramp) else student
        lag = f", {method}" if method.shift else ""
        raise UsageError(
            f"a path of {target.T} frames at {count} other frames{lag}",
            where=target.id,
            why="Its T + U nodes are one alignment at the teacher's own frames; other frames have others.",
            do="Give the student the teacher's frame rate, or dump the lattice as banded:S.",
        )
    every = np.ones(len(nodes), bool)
    return Resampled(rows.at(temperature), nodes.axes, every, nodes.position, nodes.frame, nodes.occupancy)


def _mix(
    rows: Rows,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    weight: NDArray[np.float32],
    method: frames.Method,
    temperature: float,
) -> Tempered:
    """Return rows mixed from two each, (N,) indices and weights; all rows in order are not copied."""
    if not weight.any() and np.array_equal(low, np.arange(len(rows))):
        return rows.at(temperature)
    return rows.mix(low, high, weight, temperature, logits=method.rule.mixes_logits)


def resample_vectors(
    target: Target, stream: str, student: int | frames.Ramp, method: frames.Method
) -> tuple[Float, NDArray[np.bool_]]:
    """Return the numbers of a layer at a student's frames; ``linear`` mixes the numbers themselves.

    Returns:
        (S, D) or (S, n, D) float32 numbers, and (S,) or (S, n) bool, True where there is a target.

    Raises:
        UsageError: a method that needs classes.
        LengthError: S and T that do not fit together.
    """
    if not method.rule.numbers:
        known = ", ".join(frames.written(name) for name, rule in frames.METHODS.items() if rule.numbers)
        raise UsageError(
            f"{method} of {stream!r}",
            where=target.id,
            why="The numbers of a layer are not logits, and none of them is a blank.",
            do=f"Resample it with {known}; streams=[...] makes a batch of some streams.",
        )
    rows, plan = target.vectors(stream), frames.plan(target.T, student, method)
    weight = plan.weight[..., None]
    mixed = (1 - weight) * rows[plan.low] + weight * rows[plan.high] if weight.any() else rows[plan.low]
    return np.asarray(mixed, np.float32), plan.valid


@dataclass(frozen=True, eq=False)
class ResampledHead:
    """Rows of one utterance at a student's frames, before their linear head.

    Attributes:
        inputs: (S, D) inputs and the head.
        later: (S, D) inputs of the frames to mix probabilities with; None where nothing is mixed.
        share: (S,) float32 share of ``later`` in the mixture, with ``later``.
        tokens: tokens of the teacher's greedy decode, where the method counts them; else 0.
        lost: tokens among these that no student frame has.
    """

    inputs: HeadInputs
    later: NDArray[Any] | None = None
    share: NDArray[np.float32] | None = None
    tokens: int = 0
    lost: int = 0


def resample_head(target: Target, stream: str, student: int, method: frames.Method) -> ResampledHead | None:
    """Return rows at S student frames before their linear head; None where that is not possible."""
    inputs = target[stream].head()
    if inputs is None:
        return None
    if not follows_frames(stream):
        return ResampledHead(inputs)
    if method.shift or method.size:
        return None
    if student == target.T:
        return ResampledHead(inputs)
    if method.rule.composes:
        return None  # composed rows are no product with the head any more
    if method.rule.needs_evidence and target.grid(stream) is not None:
        return None  # refused where the lattice itself is resampled
    if method.rule.mixes_logits and inputs.dec is not None:
        return None  # an activation stands between the sides of a lattice and its logits
    evidence = RowEvidence.of(target, stream) if method.rule.needs_evidence else None
    plan = frames.plan(target.T, student, method, evidence)
    low = replace(inputs, h=inputs.h[plan.low])
    if not plan.weight.any():
        return ResampledHead(low, tokens=plan.tokens, lost=plan.lost)
    later = inputs.h[plan.high]
    if not method.rule.mixes_logits:
        return ResampledHead(low, later, plan.weight)
    share = plan.weight[:, None]
    return ResampledHead(replace(inputs, h=(1 - share) * low.h + share * later))  # logits are linear in h


def resample(
    rows: Rows, shape: tuple[int, ...], student: int, *, method: str, temperature: float
) -> Tempered:
    """Return rows of a (T, V) or whole (T, U+1, V) stream at S student frames and a temperature."""
    target = Target("", shape[0], np.zeros(0, np.int32), {"": rows}, {"": shape})
    return resample_stream(target, "", student, frames.Method.parse(method), temperature).rows


def nonblank(rows: Rows, blank: int) -> Float:
    """Return the (N,) probability, at temperature 1, of all classes but the blank.

    A blank that a pruned row left out counts as an equal share of the tail.
    """
    at = rows.at(1.0)
    if at.ids is None:
        return np.asarray(-np.expm1(at.logp[:, blank]))
    kept = at.logp > NOTHING
    left = np.maximum(at.classes - kept.sum(axis=1), 1)
    stored = np.where((at.ids == blank) & kept, at.logp, -np.inf).max(axis=1)
    log_blank = np.where(np.isfinite(stored), stored, at.tail - np.log(left))
    return np.asarray(-np.expm1(np.minimum(log_blank, 0)), np.float32)
