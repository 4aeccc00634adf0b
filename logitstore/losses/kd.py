"""Distillation losses of each kind of stream: CTC frames, lattices, attention decoders and layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from ..encodings.rows import NOTHING
from ..errors import LengthError, UsageError
from ..targets.batch import StreamBatch, VectorBatch
from ..targets.keywords import checked_keywords
from .divergence import FAR, BatchedRows, Divergence, as_stream_batch, reduce

DISTANCES = ("mse", "cosine")


@checked_keywords()
def ctc_kd(
    logits: torch.Tensor,
    target: StreamBatch | BatchedRows,
    *,
    temperature: float | None = None,
    direction: str = "forward",
    tail: str = "class",
    scale: bool = True,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return the frame-wise KL divergence between a student's CTC head and stored targets.

    Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network".

    Args:
        logits: (B, T, V) of the student, of any float type; log-probabilities do as well.
        target: stream of :func:`logitstore.targets.batch.collate_targets`, at the student's frames.
        temperature: temperature that the target must have; None for any.
        direction: ``forward``, KL(teacher ‖ student), or ``reverse``, KL(student ‖ teacher).
        tail: ``class``, ``spread`` or ``ignore``; see :class:`logitstore.losses.divergence.Divergence`.
        scale: True to multiply by the square of the temperature.
        weights: (B, T) weights of rows, 0 or more; :func:`blank_weights` makes some.
        reduction: ``mean`` over valid rows by their weights, ``sum``, or ``none``: (B, T), 0 in padding.

    Returns:
        Nats: a scalar, or (B, T) without reduction; float64 where the logits are, else float32.

    Raises:
        VocabError: another number of classes than the target's.
        LengthError: another shape than the target's, or weights of another shape.
        UsageError: an unknown setting or argument, or another temperature than the target's.
    """
    rows = as_stream_batch(target)
    kl = Divergence(temperature, direction, tail, scale)(logits, rows)
    return reduce(kl, rows.mask, weights, reduction)


@checked_keywords()
def seq2seq_kd(
    logits: torch.Tensor,
    target: StreamBatch | BatchedRows,
    *,
    temperature: float | None = None,
    direction: str = "forward",
    tail: str = "class",
    scale: bool = True,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return the label-wise KL divergence of an attention decoder under teacher forcing.

    Takes (B, U, V) logits; all else is as in :func:`ctc_kd`.
    """
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


@checked_keywords()
def rnnt_kd(
    logits: torch.Tensor | Iterable[torch.Tensor],
    target: StreamBatch | BatchedRows,
    *,
    temperature: float | None = None,
    direction: str = "forward",
    tail: str = "class",
    scale: bool = True,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return the node-wise KL divergence over an RNN-T lattice, or over its stored nodes.

    Source: Panchapagesan et al. 2021, "Efficient knowledge distillation for RNN-transducer models".

    Args:
        logits: (B, T, U+1, V) of the student's joiner, or an iterable of its slices along T, (B, t, U+1, V)
            each. For stored nodes also the logits at these alone: (B, T, S, V) at ``target.positions``, which
            are ranges of k2's pruned loss; (B, N, V) at a path's ``target.frames`` and ``target.positions``;
            (B, T, V) of :func:`mean_u` for ``mean-u``.
        target: lattice of :func:`logitstore.targets.batch.collate_targets`, at the student's frames. For
            ``collapsed`` rows, ``tail="class"`` compares blank, next label and the rest as in the source.
        temperature: temperature that the target must have; None for any.
        direction: ``forward`` or ``reverse``.
        tail: ``class``, ``spread`` or ``ignore``.
        scale: True to multiply by the square of the temperature.
        weights: weights of nodes, 0 or more, as ``target.mask``: e.g. ``target.occupancy``.
        reduction: ``mean`` over valid nodes by their weights, ``sum``, or ``none``.

    Raises:
        VocabError, LengthError, UsageError: as :func:`ctc_kd`; also slices that are not T frames in all, and
        slices for a path.
    """
    rows = as_stream_batch(target)
    divergence = Divergence(temperature, direction, tail, scale)
    if isinstance(logits, torch.Tensor):
        return reduce(divergence(_at_nodes(logits, rows), rows), rows.mask, weights, reduction)
    if rows.frames is not None:
        raise UsageError(
            "slices along T for a path",
            why="Its nodes are not ordered frame by frame.",
            do="Give the student's logits at its nodes: (B, N, V) at target.frames and target.positions.",
        )
    losses, t = [], 0
    for piece in logits:
        part = _slice_frames(rows, t, t + piece.shape[1])
        losses.append(divergence(_at_nodes(piece, part), part))
        t += piece.shape[1]
    if t != rows.mask.shape[1]:
        raise LengthError(
            f"slices of {t} frames in all for a target of {rows.mask.shape[1]}",
            do="Give slices of all frames, in order.",
        )
    return reduce(torch.cat(losses, 1), rows.mask, weights, reduction)


def _slice_frames(rows: StreamBatch, start: int, stop: int) -> StreamBatch:
    """Return frames ``start`` to ``stop`` of every utterance."""

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


def _at_nodes(logits: torch.Tensor, rows: StreamBatch) -> torch.Tensor:
    """Return the student's logits at the target's nodes.

    Logits of a whole lattice, (B, T, U+1, V), are picked at the nodes that the target keeps. Logits of
    another shape are returned as they are; the divergence checks them.
    """
    if logits.dim() == 4 and rows.mask.dim() == 2 and rows.frames is None:
        raise LengthError(
            f"a lattice {tuple(logits.shape)} for rows that are means over label positions",
            do="Give the student's mean: rnnt_kd(mean_u(joint_logits, batch.label_mask), batch['rnnt']).",
        )
    if rows.positions is None or logits.shape[:-1] == rows.mask.shape:
        return logits
    if logits.dim() != 4 or len(logits) != len(rows.mask):
        return logits
    _, frames, positions = logits.shape[:3]
    if int(torch.where(rows.mask, rows.positions, 0).max()) >= positions:
        raise LengthError(
            f"{positions} label positions of the student, fewer than the target's",
            do="Run the student's joiner on all labels of the batch.",
        )
    batch = torch.arange(len(logits), device=logits.device)
    position = rows.positions.clamp(max=positions - 1)
    if rows.frames is not None:
        if int(rows.frames.max()) >= frames:
            raise LengthError(
                f"{frames} frames of the student, fewer than the target's path has",
                do="A path needs a student with the teacher's frames.",
            )
        return logits[batch[:, None], rows.frames, position]
    if frames != rows.mask.shape[1]:
        return logits
    frame = torch.arange(frames, device=logits.device)
    return logits[batch[:, None, None], frame[None, :, None], position]


def mean_u(
    logits: torch.Tensor, label_mask: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean of a student's distributions over label positions, for targets of the form ``mean-u``::

        rnnt_kd(mean_u(joint_logits, batch.label_mask), batch["rnnt"])

    Args:
        logits: (B, T, U+1, V) of the student's joiner.
        label_mask: (B, U) bool of the batch.
        weights: (B, T, U+1) weights of label positions, 0 or more: e.g. the student's own occupancy for
            ``mean-u+occupancy``; None for equal ones.

    Returns:
        (B, T, V) log-probabilities at temperature 1, float32 at least.

    Raises:
        LengthError: logits that are no lattice of these labels.
    """
    if logits.dim() != 4 or logits.shape[2] != label_mask.shape[1] + 1:
        raise LengthError(
            f"a lattice {tuple(logits.shape)} of {label_mask.shape[1]} labels, not (B, T, U+1, V)",
            do="Give the joiner's logits and the batch's own label_mask.",
        )
    there = torch.nn.functional.pad(label_mask, (1, 0), value=True)[:, None]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits.masked_fill(~there[..., None], 0.0)  # padding may hold anything, even NaN
    share = there.to(logits).log() if weights is None else torch.where(there, weights, 0.0).to(logits).log()
    share = share.clamp(min=FAR)
    share = share - share.logsumexp(-1, keepdim=True)
    return (logits.log_softmax(-1) + share[..., None]).logsumexp(2)


def blank_weights(target: StreamBatch | BatchedRows, blank: int, weight: float) -> torch.Tensor:
    """Return float32 weights of rows: ``weight`` where the teacher's best class is the blank, else 1.

    Most frames of a CTC model are blank with near certainty and teach little; a weight of 0 leaves them out
    of the mean.

    Args:
        target: stream of a batch.
        blank: id of the blank among the student's classes.
        weight: weight of blank rows, 0 or more.

    Returns:
        Weights of the shape of ``target.mask``.
    """
    rows = as_stream_batch(target)
    best = rows.logp.argmax(-1, keepdim=True)
    if rows.ids is not None:
        best = rows.ids.gather(-1, best)
    log_mass = rows.logp.amax(-1)
    is_blank = (best[..., 0] == blank) & (log_mass > NOTHING)
    return torch.where(is_blank, torch.full_like(log_mass, float(weight)), torch.ones_like(log_mass))


@checked_keywords()
def hidden_kd(
    student: torch.Tensor,
    teacher: torch.Tensor | VectorBatch,
    mask: torch.Tensor | None = None,
    *,
    kind: str = "mse",
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return the distance between a student's hidden vectors and stored ones.

    Source: Romero et al. 2015, "FitNets: hints for thin deep nets".

    Args:
        student: (B, T, D), projected to the teacher's D already.
        teacher: ``hidden`` stream of a batch, at the student's frames, with its mask; or a (B, T, D) tensor.
        mask: (B, T) bool, True on valid frames; beside a stream, False leaves out further frames.
        kind: ``mse``, the mean over D of squared differences; or ``cosine``, one minus the cosine of the
            angle.
        weights: (B, T) weights of rows, 0 or more.
        reduction: ``mean`` over valid rows by their weights, ``sum``, or ``none``: (B, T), 0 in padding.

    Raises:
        LengthError: shapes that differ.
        UsageError: an unknown kind, reduction or argument, or a tensor without a mask.
    """
    if kind not in DISTANCES:
        raise UsageError(f"kind={kind!r}", do=f"Known: {', '.join(DISTANCES)}.")
    if isinstance(teacher, VectorBatch):
        mask = teacher.mask if mask is None else teacher.mask & mask
        teacher = teacher.h
    if mask is None:
        raise UsageError(
            "no mask for the teacher's vectors",
            why="The student would learn padding.",
            do="Give the batch's hidden stream, or mask=.",
        )
    if student.shape != teacher.shape or student.shape[:-1] != mask.shape:
        raise LengthError(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, mask {tuple(mask.shape)}",
            do="Project the student to the teacher's D, and resample the teacher to the student's frames.",
        )
    with torch.autocast(student.device.type, enabled=False):
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        padding = ~mask[..., None]
        a, b = (x.to(dtype).masked_fill(padding, 0.0) for x in (student, teacher))
        if kind == "mse":
            distance = (a - b).square().mean(-1)
        else:
            distance = 1 - torch.nn.functional.cosine_similarity(a, b, dim=-1)
        return reduce(distance.masked_fill(~mask, 0.0), mask, weights, reduction)
