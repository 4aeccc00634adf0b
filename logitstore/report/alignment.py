"""Alignments of two sequences with the fewest edits, as pairs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item", bound=Hashable)
LONGEST = 1500  # items of a sequence that are aligned; the rest counts as unaligned


def align(reference: Sequence[Item], hypothesis: Sequence[Item]) -> list[tuple[Item | None, Item | None]]:
    """Return (reference item, hypothesis item) pairs of an alignment with the fewest edits (Levenshtein 1966).

    None stands for nothing: beside a reference item for a deletion, beside a hypothesis item for an insertion.
    Of equally good alignments the one with the latest insertions and deletions is taken. Items after the first
    ``LONGEST`` are left out.
    """
    reference, hypothesis = reference[:LONGEST], hypothesis[:LONGEST]
    n, m = len(reference), len(hypothesis)
    numbers = {item: i for i, item in enumerate({*reference, *hypothesis})}
    theirs = np.array([numbers[item] for item in hypothesis], np.int64)
    cost = np.zeros((n + 1, m + 1), np.int32)
    cost[0] = np.arange(m + 1)
    along = np.arange(m + 1, dtype=np.int32)
    for i, item in enumerate(reference, 1):
        row = np.empty(m + 1, np.int32)
        row[0] = i
        row[1:] = np.minimum(cost[i - 1, 1:] + 1, cost[i - 1, :-1] + (theirs != numbers[item]))
        cost[i] = np.minimum.accumulate(row - along) + along
    pairs: list[tuple[Item | None, Item | None]] = []
    i, j = n, m
    while i or j:
        different = bool(i and j and reference[i - 1] != hypothesis[j - 1])
        if i and j and cost[i, j] == cost[i - 1, j - 1] + different:
            i, j = i - 1, j - 1
            pairs.append((reference[i], hypothesis[j]))
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            pairs.append((reference[i], None))
        else:
            j -= 1
            pairs.append((None, hypothesis[j]))
    return pairs[::-1]


def edits(pairs: Sequence[tuple[Item | None, Item | None]]) -> int:
    """Return the number of pairs that differ."""
    return sum(a != b for a, b in pairs)
