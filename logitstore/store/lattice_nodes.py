"""Lattice nodes that a form keeps, taken from a lattice that is driven slice by slice; and its alignments.

[T, U+1, V] never exists in memory: a form that follows the teacher's own alignment drives the joiner twice, once
for (T, U+1) scores of the blank and of the next label, once for the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..encodings import parse_encoding
from ..schema.lattice import Form, Nodes, band_size, full, path, ranges, sample
from ..schema.spec import StreamSpec
from .record_encoder import require_finite

Slices = Iterable[torch.Tensor]
Scores = NDArray[np.float64]


class NodePicker:
    """Rows of one utterance's lattice that a form keeps, or the mean over each frame's nodes.

    Args:
        stream: description of the ``rnnt`` stream.
        labels: (U,) label ids that drive the lattice.
        utt_id: id of the utterance.

    Attributes:
        nodes: the nodes kept, once ``rows`` was read; None for a whole lattice and for means.
    """

    def __init__(self, stream: StreamSpec, labels: Sequence[int], utt_id: str) -> None:
        self.form = Form.parse(stream.form)
        self.nodes: Nodes | None = None
        self._stream, self._labels, self._id = stream, list(labels), utt_id
        self._keeps_always = _keeps_always(stream)

    def rows(
        self, drive: Callable[[], Slices], frames: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield (n, V) logits of kept nodes, or whole slices; and the (n, 2) classes that each row keeps always.

        Args:
            drive: function that gives (t, U+1, V) slices along T; called twice where scores are needed first.
            frames: T.

        Raises ``NonFinite``.
        """
        if self.form.framewise:
            yield from self._means(drive)
        elif self.form.whole:
            for piece in drive():
                yield piece, None
        else:
            yield from self._kept(drive, frames)

    def _kept(
        self, drive: Callable[[], Slices], frames: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        u = len(self._labels)
        nodes = self.nodes = self._choose(drive, frames, u)
        always = _blank_and_next(self._stream, nodes, self._labels)
        t = 0
        for piece in drive():
            low, high = np.searchsorted(nodes.frame, [t, t + len(piece)])
            flat = (nodes.frame[low:high] - t) * (u + 1) + nodes.position[low:high]
            rows = piece.reshape(-1, piece.shape[-1])[_beside(piece, flat)]
            yield rows, _beside(piece, always[low:high]) if self._keeps_always else None
            t += len(piece)

    def _means(self, drive: Callable[[], Slices]) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield (t, V) logarithms of the mean softmax over each frame's label positions (SPEC S12)."""
        share = None
        if self.form.occupancy:
            occupied = occupancy(*scores(drive(), self._stream, self._labels, self._id))
            with np.errstate(divide="ignore"):
                share = np.log(occupied / occupied.sum(1, keepdims=True)).astype(np.float32)
        t = 0
        for piece in drive():
            require_finite(piece.reshape(-1, piece.shape[-1]), self._stream.name, self._id)
            logp = piece.float().log_softmax(-1)
            if share is None:
                mean = logp.logsumexp(1) - math.log(piece.shape[1])
            else:
                mean = (logp + _beside(piece, share[t : t + len(piece)])[..., None]).logsumexp(1)
            blank = torch.full_like(mean[:, :1], self._stream.blank, dtype=torch.int64)
            yield mean, blank if self._keeps_always else None
            t += len(piece)

    def _choose(self, drive: Callable[[], Slices], t: int, u: int) -> Nodes:
        form = self.form
        if not form.aligned:
            return sample(form, t, u, self._id) if form.name == "sample" else full(t, u, form)
        blank, label = scores(drive(), self._stream, self._labels, self._id)
        occupied = occupancy(blank, label) if form.occupancy or form.name == "banded" else None
        if form.name == "banded":
            assert occupied is not None
            width = band_size(form.size, t, u)
            nodes = ranges(form, t, u, band(occupied, width), width)
        elif form.name == "path":
            nodes = path(form, t, u, best_path(blank, label))
        elif form.name == "sample":
            nodes = sample(form, t, u, self._id)
        else:
            nodes = full(t, u, form)
        if not form.occupancy or occupied is None:
            return nodes
        kept = occupied[nodes.frame, nodes.position].astype(np.float32)
        return Nodes(form, t, u, nodes.frame, nodes.position, kept)


def scores(slices: Slices, stream: StreamSpec, labels: Sequence[int], where: str) -> tuple[Scores, Scores]:
    """Return (T, U+1) log-probabilities of the blank and of the next label; raises ``NonFinite``."""
    blanks, following = [], []
    for piece in slices:
        require_finite(piece.reshape(-1, piece.shape[-1]), stream.name, where)
        logp = piece.float().log_softmax(-1)
        next_label = _beside(piece, np.array([*labels, stream.blank], np.int64))
        index = next_label.expand(len(piece), -1)[..., None]
        blanks.append(logp[..., stream.blank].cpu().numpy())
        following.append(logp.gather(-1, index)[..., 0].cpu().numpy())
    return np.concatenate(blanks).astype(np.float64), np.concatenate(following).astype(np.float64)


def picked_by_caller(
    stream: StreamSpec, logits: torch.Tensor, nodes: Nodes, labels: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (T, W, V) logits of given nodes as (N, V) rows, and the (N, 2) classes that each keeps always."""
    rows = logits[:, : nodes.width].reshape(len(nodes), -1)
    always = _beside(rows, _blank_and_next(stream, nodes, labels)) if _keeps_always(stream) else None
    return rows, always


def _keeps_always(stream: StreamSpec) -> bool:
    return parse_encoding(stream.encoding).keeps_always


def _blank_and_next(stream: StreamSpec, nodes: Nodes, labels: Sequence[int]) -> NDArray[np.int64]:
    """Return (N, 2): the blank, and the label that comes next (the blank where none does)."""
    following = nodes.next_labels(np.asarray(labels, np.int64), stream.blank)
    return np.stack([np.full_like(following, stream.blank), following], 1)


def _beside(like: torch.Tensor, index: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(index).to(like.device)


def _label_prefix(label: Scores) -> Scores:
    """Return (T, U+1) log-probabilities of emitting the first u labels within a frame."""
    up = np.zeros(label.shape)
    np.cumsum(label[:, :-1], axis=1, out=up[:, 1:])
    return up


def forward(blank: Scores, label: Scores) -> Scores:
    """Return (T, U+1) log-probabilities of all partial alignments from (0, 0) to each node (Graves 2012).

    Within a frame, alignments enter at any lower position and emit labels: one running log-sum a frame.
    """
    up = _label_prefix(label)
    alpha = np.empty(blank.shape)
    alpha[0] = up[0]
    for t in range(1, len(blank)):
        entered = alpha[t - 1] + blank[t - 1] - up[t]
        alpha[t] = np.logaddexp.accumulate(entered) + up[t]
    return alpha


def occupancy(blank: Scores, label: Scores) -> Scores:
    """Return (T, U+1) probabilities, 0 to 1, that an alignment passes a node; their sum is T + U."""
    alpha = forward(blank, label)
    # The backward pass is the forward pass of the mirrored lattice, where a node's own blank leads on from it.
    mirrored = np.zeros(blank.shape)
    mirrored[:-1] = blank[:-1][::-1, ::-1]
    climbs = np.zeros(label.shape)
    climbs[:, :-1] = label[::-1, :-1][:, ::-1]
    beta = _mirror(mirrored, climbs)
    return np.asarray(np.exp(alpha + beta - alpha[-1, -1]))


def _mirror(blank: Scores, label: Scores) -> Scores:
    """Return log-probabilities of all partial alignments from a node to (T - 1, U), from mirrored scores.

    In the mirrored lattice blank[t, u] leads into frame t + 1 and label[t, u] into position u + 1.
    """
    return forward(blank, label)[::-1, ::-1]


def band(occupied: Scores, size: int) -> NDArray[np.int32]:
    """Return the (T,) first label position of each frame's range, so that the ranges hold most occupancy.

    Ranges of one size begin at 0, end at U, never go back and leave out no position between two frames, as in
    k2's pruned loss (Kuang et al. 2022, arXiv 2206.13236, section 3.2). k2 repairs each frame's best range;
    here dynamic programming finds the best sequence of ranges.

    Args:
        occupied: (T, U+1) probabilities from :func:`occupancy`.
        size: label positions of a range, from :func:`logitstore.schema.lattice.band_size`.
    """
    frames, positions = occupied.shape
    starts = positions - size + 1
    ahead = np.concatenate([np.zeros((frames, 1)), np.cumsum(occupied, axis=1)], axis=1)
    held = ahead[:, size:] - ahead[:, :starts]  # (T, starts): occupancy within each range
    best = np.full(starts, -np.inf)
    best[0] = held[0, 0]
    step = np.zeros((frames, starts), np.int32)
    for t in range(1, frames):
        reach = np.full((min(size, starts), starts), -np.inf)
        for k in range(len(reach)):  # label positions by which the range moves
            reach[k, k:] = best[: starts - k]
        step[t] = reach.argmax(axis=0)  # of equal sums the shortest step
        best = reach.max(axis=0) + held[t]
    begin = np.empty(frames, np.int32)
    at = starts - 1
    for t in range(frames - 1, -1, -1):
        begin[t] = at
        at -= int(step[t, at])
    return begin


def best_path(blank: Scores, label: Scores) -> NDArray[np.int32]:
    """Return the (T,) label position at which the most probable alignment enters each frame.

    Frame t holds positions begin[t] to begin[t + 1], the last frame those to U: T + U nodes in all. Of equally
    probable alignments, the one that emits later wins.
    """
    up = _label_prefix(label)
    frames, positions = blank.shape
    # Log-probability of the best partial alignment that enters frame t at u, less that of the labels before u.
    entered = np.empty(blank.shape)
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
