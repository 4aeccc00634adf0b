"""What the stored logits say: greedy decoding, and how far it is from the reference."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .target import Rows, Target

_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


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
    label that stands there; at the last position it moves on to the next frame.
    """
    t, u, nodes, tokens = 0, 0, [], []
    frames, positions = best.shape
    while t < frames:
        nodes.append((t, u))
        token = int(best[t, u])
        if token != blank:
            tokens.append(token)
        if token != blank and u + 1 < positions:
            u += 1
        else:
            t += 1
    return Path(tuple(nodes), tuple(tokens))


def decode(target: Target, stream: str, blank: int) -> list[int]:
    """Greedy token ids of one stream of a target; an ``rnnt`` stream is walked under teacher forcing."""
    best = best_classes(target[stream])
    shape = target.shapes[stream]
    if len(shape) == 3:
        return list(forced_rnnt(best.reshape(shape[:2]), blank).tokens)
    return greedy_ctc(best, blank)


def words(text: str) -> list[str]:
    """Words of a text; where a script writes none apart (Han, Hiragana, Katakana), its characters."""
    return _UNSPACED.sub(r" \g<0> ", text).split()


def plain(text: str) -> str:
    """A text without upper case and punctuation, by which no teacher is judged."""
    kept = (c for c in text.casefold() if unicodedata.category(c)[0] != "P")
    return "".join(kept)


def edit_distance(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """Fewest substitutions, insertions and deletions between two sequences (Levenshtein 1966).

    One column of the table is held as bits of two integers and updated at once (Myers 1999, Hyyrö 2003).
    """
    if not reference:
        return len(hypothesis)
    places: dict[Hashable, int] = {}
    for i, item in enumerate(reference):
        places[item] = places.get(item, 0) | 1 << i
    every, last = (1 << len(reference)) - 1, 1 << (len(reference) - 1)
    up, down, distance = every, 0, len(reference)  # where the column's steps are +1, and where -1
    for item in hypothesis:
        same = places.get(item, 0)
        across = same | down
        diagonal = (((same & up) + up) ^ up) | same
        more, less = down | (every & ~(diagonal | up)), up & diagonal
        distance += bool(more & last) - bool(less & last)
        more, less = (more << 1 | 1) & every, less << 1 & every
        up, down = less | (every & ~(across | more)), more & across
    return distance
