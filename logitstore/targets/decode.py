"""What logits say: greedy decoding, and how far it is from the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import Rows
from ..schema.kinds import kind_of
from .target import Target


def best_classes(rows: Rows) -> NDArray[np.int64]:
    """(N,) the most probable class of every row."""
    at = rows.at(1.0)
    best = at.logp.argmax(axis=1)
    if at.ids is not None:
        best = np.take_along_axis(at.ids, best[:, None], axis=1)[:, 0]
    return np.asarray(best, np.int64)


def greedy_ctc(best: NDArray[np.int64], blank: int) -> list[int]:
    """Best path: repeats merged, blanks dropped (Graves et al. 2006)."""
    change = np.ones(len(best), bool)
    change[1:] = best[1:] != best[:-1]
    return [int(i) for i in best[change] if i != blank]


@dataclass(frozen=True)
class Path:
    """A walk through a lattice.

    Attributes:
        nodes: (t, u) of every step.
        tokens: emitted on the way.
    """

    nodes: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]


def forced_rnnt(best: NDArray[np.int64], blank: int) -> Path:
    """Greedy walk through a (T, U+1) lattice whose label context is the reference's own (teacher forcing).

    A token other than the blank is emitted and moves on to the next label position, whether or not it is the
    label that stands there; at the last position it moves on to the next frame. Nodes that are not kept are
    -1: below a frame's nodes it moves up, above them to the next frame, and nothing is emitted.
    """
    t, u, nodes, tokens = 0, 0, [], []
    frames, positions = best.shape
    while t < frames:
        token = int(best[t, u])
        if token < 0:
            up = bool((best[t, u:] >= 0).any())
            t, u = (t, u + 1) if up else (t + 1, u)
            continue
        nodes.append((t, u))
        if token != blank:
            tokens.append(token)
        if token != blank and u + 1 < positions:
            u += 1
        else:
            t += 1
    return Path(tuple(nodes), tuple(tokens))


def decode(target: Target, stream: str, blank: int) -> list[int]:
    """Greedy token ids of one stream of a target; ``rnnt`` and ``seq2seq`` streams under teacher forcing."""
    best = best_classes(target[stream])
    if kind_of(stream).axes == ("U", "V"):
        return [int(i) for i in best]
    grid = target.grid(stream)
    if grid is None:
        return greedy_ctc(best, blank)
    return list(forced_rnnt(on_grid(best, grid), blank).tokens)


def on_grid(values: NDArray[np.int64], grid: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) values of rows on the (T, U+1) grid that names them; -1 where there is none."""
    return np.where(grid < 0, -1, values[grid])
