"""Kullback-Leibler divergence of rows, on the teacher's stored form: kept classes and one tail."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ..encodings.rows import NOTHING
from ..errors import LengthError, UsageError, VocabError
from ..targets.batch import StreamBatch, VectorBatch

DIRECTIONS = ("forward", "reverse")
TAILS = ("class", "spread", "ignore")
REDUCTIONS = ("mean", "sum", "none")
FAR = -1e30  # log of no mass where sums of exponentials are taken: finite, so gradients are 0 and not NaN
FLOOR = -100.0  # what a class counts as that the teacher gives no mass at all, where its logarithm is needed


class Viewed(Protocol):
    """A batched stream of another form than :class:`StreamBatch`; one of ``sparse`` and ``dense`` will do.

    ``sparse()`` gives a ``StreamBatch``; ``dense()`` gives (B, T[, U+1], V) log-probabilities.
    """

    @property
    def classes(self) -> int:
        """V."""

    @property
    def temperature(self) -> float:
        """That probabilities were taken at."""

    @property
    def mask(self) -> torch.Tensor:
        """(B, T[, U+1]) bool, True where there is a teacher's row."""


def view(target: StreamBatch | Viewed) -> StreamBatch:
    """The rows of any batched stream as a ``StreamBatch``."""
    if isinstance(target, StreamBatch):
        return target
    form: Any = target
    if hasattr(form, "sparse"):
        found: StreamBatch = form.sparse()
        return found
    logp: torch.Tensor = form.dense()
    tail = torch.full(logp.shape[:-1], NOTHING, device=logp.device)
    return StreamBatch(form.classes, logp, None, tail, form.mask, form.temperature)


def blank_weights(target: StreamBatch | Viewed, blank: int, weight: float) -> torch.Tensor:
    """(B, T[, U+1]) float32 weights of rows: ``weight`` where the teacher's best class is blank, else 1.

    Most frames of a CTC model are certain blanks, which teach little; 0 leaves them out of the mean.
    """
    rows = view(target)
    best = rows.logp.argmax(-1, keepdim=True)
    if rows.ids is not None:
        best = rows.ids.gather(-1, best)
    share = rows.logp.amax(-1)
    is_blank = (best[..., 0] == blank) & (share > NOTHING)
    return torch.where(is_blank, torch.full_like(share, float(weight)), torch.ones_like(share))


@dataclass(frozen=True)
class Divergence:
    """How far a student's row is from the teacher's.

    Attributes:
        temperature: the student's, and the one the batch was made at; None takes the batch's.
        direction: ``forward``, KL(teacher ‖ student), or ``reverse``, KL(student ‖ teacher).
        tail: classes that a pruned row left out are one ``class`` (its mass is exact), or get an equal
            ``spread`` of it, or are ``ignore``\\ d: both sides are normalised over the kept classes.
        scale: multiply by the temperature's square, which keeps gradients of equal size (Hinton et al. 2015).
    """

    temperature: float | None = None
    direction: str = "forward"
    tail: str = "class"
    scale: bool = True

    def __post_init__(self) -> None:
        for value, known in ((self.direction, DIRECTIONS), (self.tail, TAILS)):
            if value not in known:
                raise UsageError(f"{value!r} is not among {', '.join(known)}")

    def __call__(self, logits: torch.Tensor, target: StreamBatch) -> torch.Tensor:
        """(B, T[, U+1]) divergence in nats of (B, T[, U+1], V) logits; 0 in padding, never negative.

        float32 inside whatever comes in, or float64 where logits are. No tensor of V classes is made of the
        teacher unless it is dense.

        Raises:
            VocabError: another number of classes than the teacher's.
            LengthError: other frames or label positions than the target's.
            UsageError: a temperature that is not the batch's.
        """
        self._check(logits, target)
        with torch.autocast(logits.device.type, enabled=False):
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            z = logits.to(dtype)
            if target.temperature != 1:
                z = z / target.temperature
            logp, tail = target.logp.to(dtype), target.tail.to(dtype)
            if target.ids is None:
                kl = self._dense(z, logp, tail, target.mask)
            else:
                kl = self._sparse(z, logp, tail, target)
            kl = torch.where(target.mask, kl, torch.zeros_like(kl))
            kl = kl + (-kl).clamp(min=0).detach()  # rounding may miss 0 by 1e-7; its gradient stays
            return kl * target.temperature**2 if self.scale else kl

    def _dense(
        self, z: torch.Tensor, logp: torch.Tensor, tail: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Every class; mass that belongs to no class of the student is normalised away."""
        lost = (tail > NOTHING / 2)[..., None]
        logp = torch.where(lost, logp.log_softmax(-1), logp)
        s = z.masked_fill(~mask[..., None], 0.0).log_softmax(-1)  # whatever stands in padding, NaN too
        return self._terms(logp, s).sum(-1)

    def _sparse(
        self, z: torch.Tensor, logp: torch.Tensor, tail: torch.Tensor, target: StreamBatch
    ) -> torch.Tensor:
        """Kept classes and one tail; the student's tail is summed over the other classes themselves."""
        assert target.ids is not None
        kept = target.logp > NOTHING  # padding keeps nothing
        left = target.classes - kept.sum(-1)
        index = torch.where(kept, target.ids, target.ids[..., :1])
        got = z.gather(-1, index).masked_fill(~kept, FAR)
        got_sum = got.logsumexp(-1)
        if self.tail == "ignore":
            p = _normalised(logp.masked_fill(~kept, FAR))
            return self._terms(p, got - got_sum[..., None], kept).sum(-1)
        lost = (left == 0) & (tail > NOTHING / 2)  # tokens that only the teacher has
        logp = torch.where(lost[..., None], _normalised(logp), logp)
        # Entries a row does not have repeat its first class, so equal ids are given equal marks.
        mine = kept | kept[..., :1]
        taken = torch.zeros_like(z, dtype=torch.bool).scatter_(-1, index, mine)
        taken |= ~target.mask[..., None]
        rest = z.masked_fill(taken, FAR)
        rest_sum = rest.logsumexp(-1)
        total = torch.logaddexp(got_sum, rest_sum)
        kl = self._terms(logp, got - total[..., None], kept).sum(-1)
        if self.tail == "class":
            return kl + self._terms(tail, rest_sum - total, left > 0)
        share = (tail - left.clamp(min=1).log())[..., None]
        others = torch.where(taken, torch.zeros_like(z), z - total[..., None])
        if self.direction == "forward":
            mean = others.sum(-1) / left.clamp(min=1)
            return kl + torch.where(left > 0, tail.exp() * (share[..., 0] - mean), 0.0)
        q = others.exp().masked_fill(taken, 0.0)
        return kl + (q * (others - share.clamp(min=FLOOR))).sum(-1)

    def _terms(self, p: torch.Tensor, s: torch.Tensor, where: torch.Tensor | None = None) -> torch.Tensor:
        """p·log(p/s) or s·log(s/p) of log-masses p of the teacher and s of the student; 0 elsewhere."""
        if where is not None:
            p, s = p.masked_fill(~where, 0.0), s.masked_fill(~where, 0.0)
        if self.direction == "forward":
            return p.exp() * (p - s)
        return s.exp() * (s - torch.where(p > NOTHING / 2, p, torch.full_like(p, FLOOR)))

    def _check(self, logits: torch.Tensor, target: StreamBatch) -> None:
        asked = self.temperature
        if asked is not None and asked != target.temperature:
            raise UsageError(
                f"a loss at temperature {asked:g} on targets made at {target.temperature:g}",
                why="The teacher's rows are tempered already, with their exact tails.",
                do="Give the temperature to collate_targets; the loss takes it from there.",
            )
        if logits.shape[-1] != target.classes:
            raise VocabError(
                f"the student gives {logits.shape[-1]} classes, the teacher {target.classes}",
                do="Open the store with the student's own table: vocab=VocabMap.by_token(...).",
            )
        if logits.shape[:-1] != target.mask.shape:
            raise LengthError(
                f"student logits {tuple(logits.shape)} for targets of {tuple(target.mask.shape)} rows",
                why="Row by row they would not be about the same moment.",
                do="Give collate_targets the student's own valid lengths: frames=lengths.",
            )


def _normalised(logp: torch.Tensor) -> torch.Tensor:
    return logp - logp.logsumexp(-1, keepdim=True)


def reduce(
    kl: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor | None, reduction: str
) -> torch.Tensor:
    """Weigh rows, then ``none``, ``sum``, or ``mean``: by the sum of weights over valid rows.

    Raises ``UsageError`` for another reduction, ``LengthError`` for weights of another shape.
    """
    if reduction not in REDUCTIONS:
        raise UsageError(f"reduction={reduction!r}", do=f"Known: {', '.join(REDUCTIONS)}.")
    if weights is not None:
        if weights.shape != mask.shape:
            raise LengthError(f"weights {tuple(weights.shape)} for {tuple(mask.shape)} rows")
        weights = torch.where(mask, weights.to(kl), 0.0)
        kl = kl * weights
    if reduction == "none":
        return kl
    if reduction == "sum":
        return kl.sum()
    count = mask.sum().to(kl) if weights is None else weights.sum()
    return kl.sum() / torch.where(count > 0, count, torch.ones_like(count))


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
