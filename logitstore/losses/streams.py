"""Distillation losses of the streams: CTC frames, RNN-T lattices, label positions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from ..batch import StreamBatch
from ..errors import LengthError
from .rows import Divergence, Viewed, reduce, view


def ctc_kd(
    logits: torch.Tensor,
    target: StreamBatch | Viewed,
    *,
    temperature: float | None = None,
    direction: str = "forward",
    tail: str = "class",
    scale: bool = True,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Frame-wise KL between a student's CTC head and the stored teacher's (Hinton et al. 2015).

    Args:
        logits: (B, T, V) before any softmax, of any float type; log-probabilities do as well.
        target: of :func:`logitstore.batch.collate_targets`, at the student's frames.
        temperature: None takes the target's; another one is refused.
        direction: ``forward`` or ``reverse``; see :class:`logitstore.losses.rows.Divergence`.
        tail: ``class``, ``spread`` or ``ignore``.
        scale: multiply by the temperature's square.
        weights: (B, T) of rows, ≥ 0; :func:`logitstore.losses.blank_weights` makes some.
        reduction: ``mean`` over valid rows by their weights, ``sum``, or ``none``: (B, T), 0 in padding.

    Raises:
        VocabError, LengthError, UsageError: the two do not belong together.
    """
    rows = view(target)
    kl = Divergence(temperature, direction, tail, scale)(logits, rows)
    return reduce(kl, rows.mask, weights, reduction)


def seq2seq_kd(
    logits: torch.Tensor,
    target: StreamBatch | Viewed,
    *,
    temperature: float | None = None,
    direction: str = "forward",
    tail: str = "class",
    scale: bool = True,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Label by label KL of an attention decoder under teacher forcing, (B, U, V); see :func:`ctc_kd`."""
    rows = view(target)
    kl = Divergence(temperature, direction, tail, scale)(logits, rows)
    return reduce(kl, rows.mask, weights, reduction)


def rnnt_kd(
    logits: torch.Tensor | Iterable[torch.Tensor],
    target: StreamBatch | Viewed,
    *,
    temperature: float | None = None,
    direction: str = "forward",
    tail: str = "class",
    scale: bool = True,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Node-wise KL over an RNN-T lattice (Panchapagesan et al. 2021, all classes or the kept ones).

    Args:
        logits: (B, T, U+1, V) of the student's joiner, or its slices along T one after the other, each
            (B, t, U+1, V): with those, no more than one slice's teacher rows are looked at at a time.
        target: the lattice, at the student's frames.
        temperature, direction, tail, scale, reduction: as in :func:`ctc_kd`.
        weights: (B, T, U+1) of nodes, ≥ 0.

    Raises:
        VocabError, LengthError, UsageError: the two do not belong together.
    """
    rows = view(target)
    divergence = Divergence(temperature, direction, tail, scale)
    if isinstance(logits, torch.Tensor):
        return reduce(divergence(logits, rows), rows.mask, weights, reduction)
    pieces, t = [], 0
    for piece in logits:
        pieces.append(divergence(piece, frames_of(rows, t, t + piece.shape[1])))
        t += piece.shape[1]
    if t != rows.mask.shape[1]:
        raise LengthError(f"slices of {t} frames in all for a target of {rows.mask.shape[1]}")
    return reduce(torch.cat(pieces, 1), rows.mask, weights, reduction)


def frames_of(rows: StreamBatch, start: int, stop: int) -> StreamBatch:
    """Some frames of every utterance."""
    return replace(
        rows,
        logp=rows.logp[:, start:stop],
        ids=None if rows.ids is None else rows.ids[:, start:stop],
        tail=rows.tail[:, start:stop],
        mask=rows.mask[:, start:stop],
    )
