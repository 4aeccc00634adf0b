"""Greedy decoding of stored rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import Rows
from ..schema.kinds import kind_of
from .target import Target


@dataclass(frozen=True)
class LatticeWalk:
    """A walk through an RNN-T lattice.

    Attributes:
        nodes: (t, u) of every step.
        tokens: token ids emitted on the way.
    """

    nodes: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]


def best_classes(rows: Rows) -> NDArray[np.int64]:
    """Return the (N,) most probable class of every row."""
    at = rows.at(1.0)
    best = at.logp.argmax(axis=1)
    if at.ids is not None:
        best = np.take_along_axis(at.ids, best[:, None], axis=1)[:, 0]
    return np.asarray(best, np.int64)


def greedy_ctc(best: NDArray[np.int64], blank: int) -> list[int]:
    """Return the token ids of the best path: repeats merged, blanks dropped (Graves et al. 2006).

    Args:
        best: (T,) most probable class of every frame.
        blank: id of the blank.
    """
    change = np.ones(len(best), bool)
    change[1:] = best[1:] != best[:-1]
    return [int(i) for i in best[change] if i != blank]


def forced_rnnt(best: NDArray[np.int64], blank: int) -> LatticeWalk:
    """Return the greedy walk through a lattice under teacher forcing: its label context is the reference's.

    A token other than the blank is emitted and leads to the next label position, whether or not it is the
    label at that position; at the last position it leads to the next frame. At a node that is not kept, the
    walk goes to the next label position where a kept node of the frame is above it, else to the next frame,
    and emits nothing.

    Args:
        best: (T, U+1) most probable class of every node; -1 where the node is not kept.
        blank: id of the blank.
    """
    t, u, nodes, tokens = 0, 0, [], []
    frames, positions = best.shape
    while t < frames:
        token = int(best[t, u])
        if token < 0:
            kept_above = bool((best[t, u:] >= 0).any())
            t, u = (t, u + 1) if kept_above else (t + 1, u)
            continue
        nodes.append((t, u))
        if token != blank:
            tokens.append(token)
        if token != blank and u + 1 < positions:
            u += 1
        else:
            t += 1
    return LatticeWalk(tuple(nodes), tuple(tokens))


def decode(target: Target, stream: str, blank: int) -> list[int]:
    """Return the greedy token ids of a stream; ``rnnt`` and ``seq2seq`` streams under teacher forcing."""
    best = best_classes(target[stream])
    if kind_of(stream).axes == ("U", "V"):
        return [int(i) for i in best]
    grid = target.grid(stream)
    if grid is None:
        return greedy_ctc(best, blank)
    return list(forced_rnnt(on_grid(best, grid), blank).tokens)


def on_grid(values: NDArray[np.int64], grid: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (N,) values of rows on the (T, U+1) grid of their indices; -1 where the grid is -1."""
    return np.where(grid < 0, -1, values[grid])
