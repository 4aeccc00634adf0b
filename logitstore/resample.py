"""Targets at a student's frame rate: rows of the teacher, taken or mixed, for an utterance's own lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import frames
from .target import NOTHING, Rows, Tempered
from .vocabmap import Mapped


def resample(
    rows: Rows, shape: tuple[int, ...], student: int, *, method: str, temperature: float
) -> Tempered:
    """Rows of a (T, V) or (T, U+1, V) stream at ``student`` frames instead of T, at a temperature.

    ``nearest`` takes rows; ``linear`` mixes probabilities of two neighbouring frames (label positions of a
    lattice stay apart). Where pruned rows keep different classes, a class that one of them left out counts
    there with an equal share of its tail, so every mixture still sums to one. Rows mapped to a student's
    token table are resampled first and mapped then: dense rows come out the same either way, and pruned
    rows mix while their entries are still those of the teacher.
    """
    if isinstance(rows, Mapped):
        found = resample(rows.rows, shape, student, method=method, temperature=temperature)
        return rows.map.apply(found)
    frames.check_method(method)
    t, nodes = shape[0], shape[1] if len(shape) == 3 else 1
    if t == student:
        return rows.at(temperature)
    if method == "nearest":
        return rows.take(_nodes(frames.nearest(t, student), nodes)).at(temperature)
    low, high, weight = frames.linear(t, student)
    a = rows.take(_nodes(low, nodes)).at(temperature)
    b = rows.take(_nodes(high, nodes)).at(temperature)
    return mix(a, b, np.repeat(weight, nodes))


def _nodes(frame: NDArray[np.int64], nodes: int) -> NDArray[np.int64]:
    """Row numbers of whole frames of a lattice with so many nodes a frame."""
    return (frame[:, None] * nodes + np.arange(nodes)).reshape(-1)


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
