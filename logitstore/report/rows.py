"""Numbers of an utterance's rows that pictures are drawn from: entropy, tails, blank, classes in play, lattices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import NOTHING, Rows, Tempered
from ..schema.lattice import Form
from ..schema.spec import StreamSpec
from ..store.lattice_nodes import best_path, occupancy
from ..targets.decode import forced_rnnt, on_grid
from ..targets.resample import Resampled, nonblank
from ..targets.target import Target

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)  # at which the mass left out is shown
CHUNK = 4_000_000  # numbers that are decoded at a time
LARGEST = 400_000_000  # numbers of a stream beyond which its lattice is not decoded
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of N rows.

    Attributes:
        entropy: (N,) nats.
        top1: (N,) probability of the most probable class.
        blank: (N,) probability of the blank.
        tails: (N, 4) probability of all classes that are not stored one by one, at each of the temperatures
            1, 2, 4 and 8.
    """

    entropy: Numbers
    top1: Numbers
    blank: Numbers
    tails: Numbers


def statistics(rows: Rows, blank: int) -> RowStatistics:
    """Return the statistics of rows; a tail's mass counts as spread evenly over the classes left out."""
    at = rows.at(1.0)
    tails = [np.exp(rows.at(temperature).tail.astype(np.float64)) for temperature in TEMPERATURES]
    return RowStatistics(
        entropy=entropy(at),
        top1=np.exp(at.logp.max(axis=1).astype(np.float64)),
        blank=1.0 - nonblank(rows, blank).astype(np.float64),
        tails=np.stack(tails, axis=1),
    )


def entropy(at: Tempered) -> Numbers:
    """Return the (N,) entropy of rows in nats."""
    logp, tail = at.logp.astype(np.float64), at.tail.astype(np.float64)
    left = np.maximum(at.classes - (at.logp > NOTHING).sum(axis=1), 1)
    of_tail = np.exp(tail) * (np.maximum(tail, NOTHING) - np.log(left))
    return np.asarray(np.maximum(-(np.exp(logp) * logp).sum(axis=1) - of_tail, 0.0))


@dataclass(frozen=True)
class Lattice:
    """A transducer's lattice of one utterance, as far as its nodes are stored.

    Attributes:
        kept: (T, U+1) bool, True for stored nodes.
        occupancy: (T, U+1) probability that an alignment passes a node; 0 where it is not stored.
        begin: (T,) label position at which the most probable alignment enters each frame; None where the
            stored nodes do not hold an alignment.
        computed: True where occupancies follow from the stored rows, False where the store holds them.
    """

    kept: NDArray[np.bool_]
    occupancy: Numbers
    begin: NDArray[np.int32] | None
    computed: bool

    def alignment(self) -> list[tuple[float, float]]:
        """Return the points (t, u) of the most probable alignment, through the middle of its nodes."""
        if self.begin is None:
            return []
        positions = self.kept.shape[1]
        ends = [*(int(u) for u in self.begin[1:]), positions - 1]
        points: list[tuple[float, float]] = []
        for t, (begin, end) in enumerate(zip(self.begin, ends, strict=True)):
            points.append((t + 0.5, int(begin) + 0.5))
            if end != begin:
                points.append((t + 0.5, end + 0.5))
        return points


def lattice_of(target: Target, spec: StreamSpec) -> Lattice | None:
    """Return the lattice of a stream; None for means over label positions, and for lattices too large."""
    grid = target.grid(spec.name)
    if grid is None or len(target[spec.name]) * spec.classes > LARGEST:
        return None
    form, nodes = Form.parse(spec.form), target.nodes.get(spec.name)
    kept = grid >= 0
    if form.name == "sample":
        held = None if nodes is None else nodes.occupancy
        shown = np.zeros(grid.shape) if held is None else np.where(kept, held[grid], 0.0)
        return Lattice(kept, shown, None, computed=False)
    labels = target.driven.get(spec.name, target.labels)
    blank, label = _scores(target[spec.name], grid, labels, spec.blank)
    computed = occupancy(blank, label)
    stored = None if nodes is None else nodes.occupancy
    shown = computed if stored is None else np.where(kept, stored[np.maximum(grid, 0)], 0.0)
    return Lattice(kept, np.where(kept, shown, 0.0), best_path(blank, label), computed=stored is None)


def served_lattice(target: Target, spec: StreamSpec, served: Resampled) -> tuple[Lattice, list[int]]:
    """Return a lattice at a student's frames, and its greedy decode under teacher forcing.

    Args:
        target: the utterance.
        spec: its ``rnnt`` stream.
        served: its rows at the student's frames, of axes (S, U+1) or (S, W).
    """
    labels = target.driven.get(spec.name, target.labels)
    frames, width = served.axes
    position = np.tile(np.arange(width), frames) if served.position is None else served.position
    grid = np.full((frames, len(labels) + 1), -1, np.int64)
    grid[np.repeat(np.arange(frames), width), position] = np.arange(frames * width)
    logp = served.rows.dense()
    following = np.append(labels.astype(np.int64), spec.blank)
    scores = np.full((2, *grid.shape), NOTHING, np.float64)
    t, u = np.nonzero(grid >= 0)
    scores[0, t, u] = logp[grid[t, u], spec.blank]
    scores[1, t, u] = logp[grid[t, u], following[u]]
    kept, occupied = grid >= 0, occupancy(scores[0], scores[1])
    lattice = Lattice(kept, np.where(kept, occupied, 0.0), best_path(scores[0], scores[1]), computed=True)
    best = logp.argmax(axis=1).astype(np.int64)
    return lattice, list(forced_rnnt(on_grid(best, grid), spec.blank).tokens)


def _scores(
    rows: Rows, grid: NDArray[np.int64], labels: NDArray[np.int32], blank: int
) -> tuple[Numbers, Numbers]:
    """Return (T, U+1) log-probabilities of the blank and of the next label; -1e4 at nodes not stored."""
    following = np.append(labels.astype(np.int64), blank)
    wanted = np.zeros((len(rows), 2), np.int64)
    frames, positions = np.nonzero(grid >= 0)
    numbers = grid[frames, positions]
    wanted[numbers, 0] = blank
    wanted[numbers, 1] = following[positions]
    found = log_probs_of(rows, wanted)
    scores = np.full((2, *grid.shape), NOTHING, np.float64)
    scores[:, frames, positions] = found[numbers].T
    return scores[0], scores[1]


def log_probs_of(rows: Rows, wanted: NDArray[np.int64]) -> Numbers:
    """Return the (N, k) log-probabilities of given classes of each row.

    Args:
        rows: N rows.
        wanted: (N, k) classes.
    """
    found = np.empty(wanted.shape, np.float64)
    each = max(1, CHUNK // rows.width)
    for begin in range(0, len(rows), each):
        index = np.arange(begin, min(begin + each, len(rows)))
        found[index] = np.take_along_axis(rows.take(index).at(1.0).dense(), wanted[index], axis=1)
    return found


def kl(p: NDArray[np.floating], q: NDArray[np.floating]) -> Numbers:
    """Return the KL(p ‖ q) in nats of each row of (N, V) log-probabilities."""
    first, second = p.astype(np.float64), q.astype(np.float64)
    return np.asarray(np.maximum((np.exp(first) * (first - second)).sum(axis=1), 0.0))


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of the indices 0 to ``count`` - 1, spread evenly."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64))


def token_runs(best: Sequence[int], blank: int) -> list[tuple[int, int]]:
    """Return (frame, class) of every token that the best path of a CTC stream emits, at its first frame."""
    found, last = [], -1
    for t, token in enumerate(best):
        if token not in (last, blank):
            found.append((t, int(token)))
        last = token
    return found
