"""Where a teacher's own alignment runs through an RNN-T lattice: forward-backward, the best band, one path.

Scores are two (T, U+1) arrays of log-probabilities: ``blank[t, u]``, which moves on to frame t + 1, and
``label[t, u]``, the next label's, which moves on to position u + 1 (Graves 2012, "Sequence transduction with
recurrent neural networks"). The last blank leaves (T - 1, U); labels of position U are not read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def _ladder(label: Scores) -> Scores:
    """(T, U+1) log-probability of climbing from position 0 to u within a frame."""
    up = np.zeros(label.shape)
    np.cumsum(label[:, :-1], axis=1, out=up[:, 1:])
    return up


def forward(blank: Scores, label: Scores) -> Scores:
    """(T, U+1) log-probability of all ways from (0, 0) to a node.

    Within a frame, ways enter at any lower position and climb: one running log-sum a frame.
    """
    up = _ladder(label)
    alpha = np.empty(blank.shape)
    alpha[0] = up[0]
    for t in range(1, len(blank)):
        entered = alpha[t - 1] + blank[t - 1] - up[t]
        alpha[t] = np.logaddexp.accumulate(entered) + up[t]
    return alpha


def occupancy(blank: Scores, label: Scores) -> Scores:
    """(T, U+1) probability, 0 to 1, that an alignment passes a node; over all nodes they sum to T + U."""
    alpha = forward(blank, label)
    # Backward is forward of the mirrored lattice: a node's own blank belongs to what comes after it.
    mirrored = np.zeros(blank.shape)
    mirrored[:-1] = blank[:-1][::-1, ::-1]
    climbs = np.zeros(label.shape)
    climbs[:, :-1] = label[::-1, :-1][:, ::-1]
    beta = _mirror(mirrored, climbs)
    return np.asarray(np.exp(alpha + beta - alpha[-1, -1]))


def _mirror(blank: Scores, label: Scores) -> Scores:
    """Log-probability of all ways from a node to (T - 1, U), from mirrored scores.

    In the mirrored lattice blank[t, u] leads into frame t + 1 and label[t, u] into position u + 1.
    """
    return forward(blank, label)[::-1, ::-1]


def band(occupied: Scores, size: int) -> NDArray[np.int32]:
    """(T,) first label position of each frame's range, so that the ranges hold most of the occupancy.

    Ranges of one size begin at 0, end at U, never go back and never leave out a position between two frames,
    as those of k2's pruned loss do (Kuang et al. 2022, arXiv 2206.13236, section 3.2). k2 repairs each
    frame's best range; here the best sequence of ranges is found exactly.

    Args:
        occupied: (T, U+1) of :func:`occupancy`.
        size: positions a range; see :func:`logitstore.schema.lattice.band_size`.
    """
    frames, positions = occupied.shape
    starts = positions - size + 1
    ahead = np.concatenate([np.zeros((frames, 1)), np.cumsum(occupied, axis=1)], axis=1)
    held = ahead[:, size:] - ahead[:, :starts]  # (T, starts) occupancy of each range
    best = np.full(starts, -np.inf)
    best[0] = held[0, 0]
    step = np.zeros((frames, starts), np.int32)
    for t in range(1, frames):
        reach = np.full((min(size, starts), starts), -np.inf)
        for k in range(len(reach)):  # how far the range moves on
            reach[k, k:] = best[: starts - k]
        step[t] = reach.argmax(axis=0)  # of equal ones the shortest step
        best = reach.max(axis=0) + held[t]
    begin = np.empty(frames, np.int32)
    at = starts - 1
    for t in range(frames - 1, -1, -1):
        begin[t] = at
        at -= int(step[t, at])
    return begin


def best_path(blank: Scores, label: Scores) -> NDArray[np.int32]:
    """(T,) label position at which the most probable alignment enters each frame.

    Frame t holds positions begin[t] to begin[t + 1], the last frame those to U: T + U nodes in all. Of
    equally probable alignments the one that emits later.
    """
    up = _ladder(label)
    frames, positions = blank.shape
    entered = np.empty(
        blank.shape
    )  # log-probability of the best way that enters frame t at u, less the ladder
    entered[0] = -np.inf
    entered[0, 0] = 0.0
    for t in range(1, frames):
        best = np.maximum.accumulate(entered[t - 1]) + up[t - 1]
        entered[t] = best + blank[t - 1] - up[t]
    begin = np.empty(frames, np.int32)
    at = positions - 1
    for t in range(frames - 1, -1, -1):
        at = int(entered[t, : at + 1].argmax())
        begin[t] = at
    return begin
