"""Adds up the masses of classes that become one, in log space, for whole batches of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import NOTHING, Float, Tempered

BLOCK = 1 << 22  # numbers at a time


def regroup_dense(rows: Tempered, to: NDArray[np.int64], classes: int) -> Tempered:
    """(N, V) rows over ``classes`` groups.

    Args:
        rows: ``ids`` is None.
        to: (V,) group of each class; -1 for the tail.
        classes: number of groups. One that nothing becomes has a log-probability of -1e4.
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
        found = groups[several]
        logp[:, found[found >= 0]] = sums[:, found >= 0]
        if found[0] < 0:  # groups are sorted
            tail = _total(tail, sums[:, 0])
    return Tempered(classes, rows.temperature, logp, None, tail)


def regroup_pruned(rows: Tempered, to: NDArray[np.int64], classes: int, filler: int | None) -> Tempered:
    """(N, K) entries over ``classes`` groups: mapped, merged, best first, ties by lower id.

    Args:
        rows: ``ids`` is not None.
        to: (V,) group of each class; -1 for the tail.
        classes: number of groups.
        filler: group that takes its share of the tail, or None.
    """
    assert rows.ids is not None
    real = rows.logp > NOTHING
    ids = np.where(real, to[rows.ids], classes)  # what is not there, and what has no group, sorts last
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
    """(N, K') log-probabilities and ids, where equal ids of a row are one entry; id ``none`` is no entry."""
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
    """(N, G) log Σ exp over runs of columns that begin at ``starts``; no run is empty."""
    sizes = np.diff(starts, append=x.shape[1])
    out = np.empty((len(x), len(starts)))
    step = max(BLOCK // max(x.shape[1], 1), 1)
    for row in range(0, len(x), step):  # a lattice has too many nodes to hold all of it in float64
        part = x[row : row + step].astype(np.float64)
        peak = np.maximum.reduceat(part, starts, axis=1)
        e = np.exp(part - np.repeat(peak, sizes, axis=1))
        out[row : row + step] = np.log(np.add.reduceat(e, starts, axis=1)) + peak
    return out


def _total(a: NDArray[np.floating], b: NDArray[np.floating]) -> Float:
    """log(exp a + exp b), not below the log of no mass."""
    return np.asarray(np.maximum(np.logaddexp(a.astype(np.float64), b), NOTHING), np.float32)
