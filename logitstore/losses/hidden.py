"""Distillation of hidden vectors."""

from __future__ import annotations

import torch

from ..errors import LengthError, UsageError
from ..targets.batch import VectorBatch
from .kd import reduce

KINDS = ("mse", "cosine")


def hidden_kd(
    student: torch.Tensor,
    teacher: torch.Tensor | VectorBatch,
    mask: torch.Tensor | None = None,
    *,
    kind: str = "mse",
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Distance between a student's hidden vectors and the teacher's (Romero et al. 2015, FitNets).

    Args:
        student: (B, T, D), projected to the teacher's D already.
        teacher: (B, T, D), at the student's frames; or the batch's own ``hidden`` stream, which has its mask.
        mask: (B, T) bool, True on valid frames; with a stream, further frames to leave out where False.
        kind: ``mse``, the mean over D of squared differences; or ``cosine``, 1 - the cosine of the angle.
        weights: (B, T) of rows, ≥ 0.
        reduction: ``mean`` over valid rows by their weights, ``sum`` or ``none``.

    Raises:
        LengthError: shapes that differ.
        UsageError: a kind that does not exist.
    """
    if kind not in KINDS:
        raise UsageError(f"kind={kind!r}", do=f"Known: {', '.join(KINDS)}.")
    if isinstance(teacher, VectorBatch):
        mask = teacher.mask if mask is None else teacher.mask & mask
        teacher = teacher.h
    if mask is None:
        raise UsageError("no mask: padding would be learnt", do="Give the batch's hidden stream, or mask=.")
    if student.shape != teacher.shape or student.shape[:-1] != mask.shape:
        raise LengthError(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, mask {tuple(mask.shape)}",
            do="Project the student to the teacher's D, and resample the teacher to the student's frames.",
        )
    with torch.autocast(student.device.type, enabled=False):
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        absent = ~mask[..., None]
        a, b = (x.to(dtype).masked_fill(absent, 0.0) for x in (student, teacher))
        if kind == "mse":
            far = (a - b).square().mean(-1)
        else:
            far = 1 - torch.nn.functional.cosine_similarity(a, b, dim=-1)
        return reduce(far.masked_fill(~mask, 0.0), mask, weights, reduction)
