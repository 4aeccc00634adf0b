"""Distillation losses of the streams: CTC frames, RNN-T lattices, label positions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from ..errors import LengthError, UsageError
from ..targets.batch import StreamBatch
from .kd import FAR, Divergence, Viewed, reduce, view


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
        target: of :func:`logitstore.targets.batch.collate_targets`, at the student's frames.
        temperature: None takes the target's; another one is refused.
        direction: ``forward`` or ``reverse``; see :class:`logitstore.losses.kd.Divergence`.
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
    return ctc_kd(
        logits,
        target,
        temperature=temperature,
        direction=direction,
        tail=tail,
        scale=scale,
        weights=weights,
        reduction=reduction,
    )


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
    """Node-wise KL over an RNN-T lattice, or the nodes of it that were kept (Panchapagesan et al. 2021).

    Args:
        logits: (B, T, U+1, V) of the student's joiner; or its slices along T one after the other, each
            (B, t, U+1, V). Of kept nodes also those alone: (B, T, S, V) at ``target.positions``, ranges of
            k2's pruned loss, (B, N, V) at a path's ``target.frames`` and ``target.positions``, or
            :func:`mean_u` of the whole for ``mean-u``.
        target: the lattice, at the student's frames. What ``collapsed`` keeps is compared as it should be,
            blank, next label and the rest, with ``tail="class"``.
        temperature, direction, tail, scale, reduction: as in :func:`ctc_kd`.
        weights: of nodes, ≥ 0, as ``target.mask``: e.g. ``target.occupancy``.

    Raises:
        VocabError, LengthError, UsageError: the two do not belong together.
    """
    rows = view(target)
    divergence = Divergence(temperature, direction, tail, scale)
    if isinstance(logits, torch.Tensor):
        return reduce(divergence(at_nodes(logits, rows), rows), rows.mask, weights, reduction)
    if rows.frames is not None:
        raise UsageError(
            "slices along T for a path",
            why="Its nodes are not frame by frame.",
            do="Give the student's logits at its nodes: (B, N, V) at target.frames and target.positions.",
        )
    pieces, t = [], 0
    for piece in logits:
        part = frames_of(rows, t, t + piece.shape[1])
        pieces.append(divergence(at_nodes(piece, part), part))
        t += piece.shape[1]
    if t != rows.mask.shape[1]:
        raise LengthError(f"slices of {t} frames in all for a target of {rows.mask.shape[1]}")
    return reduce(torch.cat(pieces, 1), rows.mask, weights, reduction)


def mean_u(
    logits: torch.Tensor, label_mask: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """What a student says in each frame, its mean over label positions, for rows of the form ``mean-u``.

    ``rnnt_kd(mean_u(joint_logits, batch.label_mask), batch["rnnt"])``.

    Args:
        logits: (B, T, U+1, V) of the student's joiner.
        label_mask: (B, U) of the batch.
        weights: (B, T, U+1) of positions, ≥ 0, e.g. the student's own occupancy beside ``mean-u+occupancy``;
            None for all alike.

    Returns:
        (B, T, V) log-probabilities at temperature 1, float32 at least.
    """
    if logits.dim() != 4 or logits.shape[2] != label_mask.shape[1] + 1:
        raise LengthError(
            f"a lattice {tuple(logits.shape)} of {label_mask.shape[1]} labels, not (B, T, U+1, V)"
        )
    there = torch.nn.functional.pad(label_mask, (1, 0), value=True)[:, None]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits.masked_fill(~there[..., None], 0.0)  # whatever stands in padding, NaN too
    share = there.to(logits).log() if weights is None else torch.where(there, weights, 0.0).to(logits).log()
    share = share.clamp(min=FAR)
    share = share - share.logsumexp(-1, keepdim=True)
    return (logits.log_softmax(-1) + share[..., None]).logsumexp(2)


def at_nodes(logits: torch.Tensor, rows: StreamBatch) -> torch.Tensor:
    """The student's logits at the target's nodes, where it gives those of the whole lattice."""
    if logits.dim() == 4 and rows.mask.dim() == 2 and rows.frames is None:
        raise LengthError(
            f"a lattice {tuple(logits.shape)} for rows that are means over label positions",
            do="Give the student's mean: rnnt_kd(mean_u(joint_logits, batch.label_mask), batch['rnnt']).",
        )
    if rows.positions is None or logits.shape[:-1] == rows.mask.shape:
        return logits
    if logits.dim() != 4 or len(logits) != len(rows.mask):
        return logits  # refused as of another shape
    b, t, u = logits.shape[:3]
    if int(torch.where(rows.mask, rows.positions, 0).max()) >= u:
        raise LengthError(f"{u} label positions of the student, where the teacher's go beyond")
    batch = torch.arange(b, device=logits.device)
    position = rows.positions.clamp(max=u - 1)
    if rows.frames is not None:
        if int(rows.frames.max()) >= t:
            raise LengthError(f"{t} frames of the student, where the teacher's path goes beyond")
        return logits[batch[:, None], rows.frames, position]
    if t != rows.mask.shape[1]:
        return logits
    frame = torch.arange(t, device=logits.device)
    return logits[batch[:, None, None], frame[None, :, None], position]


def frames_of(rows: StreamBatch, start: int, stop: int) -> StreamBatch:
    """Some frames of every utterance."""

    def cut(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[:, start:stop]

    return replace(
        rows,
        logp=rows.logp[:, start:stop],
        ids=cut(rows.ids),
        tail=rows.tail[:, start:stop],
        mask=rows.mask[:, start:stop],
        positions=cut(rows.positions),
        occupancy=cut(rows.occupancy),
    )
