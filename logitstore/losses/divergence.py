"""Kullback-Leibler divergence between a student's logits and stored rows: kept classes and one tail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..encodings.rows import NOTHING
from ..errors import LengthError, UsageError, VocabError
from ..targets.batch import StreamBatch

DIRECTIONS = ("forward", "reverse")
TAILS = ("class", "spread", "ignore")
REDUCTIONS = ("mean", "sum", "none")
FAR = -1e30  # log of no mass in sums of exponentials: finite, so that gradients are 0 and not NaN
FLOOR = -100.0  # log-probability of a class without any mass of the teacher, where the logarithm is needed


class BatchedRows(Protocol):
    """A batched stream of classes in another form than :class:`StreamBatch`.

    It has ``sparse()``, which returns a ``StreamBatch``, or ``dense()``, which returns (B, T[, U+1], V)
    log-probabilities; e.g. :class:`logitstore.targets.stream_batch.FactoredBatch`.
    """

    @property
    def classes(self) -> int:
        """V."""

    @property
    def temperature(self) -> float:
        """Temperature of the probabilities."""

    @property
    def mask(self) -> torch.Tensor:
        """(B, T[, U+1]) bool, True where there is a target."""


def as_stream_batch(target: StreamBatch | BatchedRows) -> StreamBatch:
    """Return the rows of any batched stream as a ``StreamBatch``."""
    if isinstance(target, StreamBatch):
        return target
    form: Any = target
    if hasattr(form, "sparse"):
        rows: StreamBatch = form.sparse()
        return rows
    logp: torch.Tensor = form.dense()
    tail = torch.full(logp.shape[:-1], NOTHING, device=logp.device)
    return StreamBatch(form.classes, logp, None, tail, form.mask, form.temperature)


@dataclass(frozen=True)
class Divergence:
    """KL divergence of rows, with its settings.

    Attributes:
        temperature: expected temperature of the batch; None for any.
        direction: ``forward``, KL(teacher ‖ student), or ``reverse``, KL(student ‖ teacher).
        tail: treatment of the classes that a pruned row left out. ``class``: one class with their exact mass.
            ``spread``: an equal share of the mass for each. ``ignore``: both sides are normalised over the
            kept classes.
        scale: True to multiply by the square of the temperature, which keeps gradients of equal size (Hinton,
            Vinyals and Dean 2015, "Distilling the knowledge in a neural network").
    """

    temperature: float | None = None
    direction: str = "forward"
    tail: str = "class"
    scale: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (("direction", self.direction, DIRECTIONS), ("tail", self.tail, TAILS)):
            if value not in known:
                raise UsageError(f"{name}={value!r}", do=f"Known: {', '.join(known)}.")

    def __call__(self, logits: torch.Tensor, target: StreamBatch) -> torch.Tensor:
        """Return the (B, T[, U+1]) divergence in nats; 0 in padding, never negative.

        The result is float64 where the logits are, else float32. No tensor of V classes is made of the
        teacher unless its rows are dense.

        Args:
            logits: (B, T[, U+1], V) of the student.
            target: rows of the teacher at the student's frames.

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
                kl = self._pruned(z, logp, tail, target)
            kl = torch.where(target.mask, kl, torch.zeros_like(kl))
            kl = kl + (-kl).clamp(min=0).detach()  # rounding may give -1e-7; the gradient stays
            return kl * target.temperature**2 if self.scale else kl

    def _check(self, logits: torch.Tensor, target: StreamBatch) -> None:
        wanted = self.temperature
        if wanted is not None and wanted != target.temperature:
            raise UsageError(
                f"a loss at temperature {wanted:g} on targets made at {target.temperature:g}",
                why="The teacher's rows are tempered already, with their exact tails.",
                do="Give the temperature to collate_targets; the loss takes it from there.",
            )
        if logits.shape[-1] != target.classes:
            raise VocabError(
                f"the student gives {logits.shape[-1]} classes, the teacher {target.classes}",
                do="Open the store with the student's own table: vocab=VocabMap.by_token(...).",
            )
        if logits.shape[:-1] != target.mask.shape:
            raise _other_shape(tuple(logits.shape[:-1]), tuple(target.mask.shape))

    def _dense(
        self, z: torch.Tensor, logp: torch.Tensor, tail: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the divergence of rows of every class.

        Mass of tokens that the student's table lacks is normalised away.
        """
        has_tail = (tail > NOTHING / 2)[..., None]
        logp = torch.where(has_tail, logp.log_softmax(-1), logp)
        student = z.masked_fill(~mask[..., None], 0.0).log_softmax(-1)  # padding may hold anything, even NaN
        return self._terms(logp, student).sum(-1)

    def _pruned(
        self, z: torch.Tensor, logp: torch.Tensor, tail: torch.Tensor, target: StreamBatch
    ) -> torch.Tensor:
        """Return the divergence of kept classes and one tail.

        The student's tail is summed over the left-out classes themselves, never as one minus the kept mass.
        """
        assert target.ids is not None
        kept = target.logp > NOTHING  # padding keeps no class
        left = target.classes - kept.sum(-1)
        index = torch.where(kept, target.ids, target.ids[..., :1])
        z_kept = z.gather(-1, index).masked_fill(~kept, FAR)
        log_kept = z_kept.logsumexp(-1)
        if self.tail == "ignore":
            p = _normalised(logp.masked_fill(~kept, FAR))
            return self._terms(p, z_kept - log_kept[..., None], kept).sum(-1)

        # Where every class is kept, the tail is the mass of tokens that only the teacher has.
        foreign_tail = (left == 0) & (tail > NOTHING / 2)
        logp = torch.where(foreign_tail[..., None], _normalised(logp), logp)

        # Entries that a row does not have repeat its first class: equal ids must be given equal marks.
        marks = kept | kept[..., :1]
        taken = torch.zeros_like(z, dtype=torch.bool).scatter_(-1, index, marks)
        taken |= ~target.mask[..., None]
        log_rest = z.masked_fill(taken, FAR).logsumexp(-1)
        total = torch.logaddexp(log_kept, log_rest)
        kl = self._terms(logp, z_kept - total[..., None], kept).sum(-1)
        if self.tail == "class":
            return kl + self._terms(tail, log_rest - total, left > 0)
        return kl + self._spread_tail(z, tail, left, taken, total)

    def _spread_tail(
        self,
        z: torch.Tensor,
        tail: torch.Tensor,
        left: torch.Tensor,
        taken: torch.Tensor,
        total: torch.Tensor,
    ) -> torch.Tensor:
        """Return the divergence over the left-out classes, each with an equal share of the tail's mass."""
        share = tail - left.clamp(min=1).log()  # log-mass of each class
        student = torch.where(taken, torch.zeros_like(z), z - total[..., None])
        if self.direction == "forward":
            mean = student.sum(-1) / left.clamp(min=1)
            return torch.where(left > 0, tail.exp() * (share - mean), 0.0)
        q = student.exp().masked_fill(taken, 0.0)
        return (q * (student - share[..., None].clamp(min=FLOOR))).sum(-1)

    def _terms(
        self, teacher: torch.Tensor, student: torch.Tensor, where: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return p · log(p / q) or q · log(q / p) of log-masses of teacher p and student q; 0 elsewhere."""
        if where is not None:
            teacher, student = teacher.masked_fill(~where, 0.0), student.masked_fill(~where, 0.0)
        if self.direction == "forward":
            return teacher.exp() * (teacher - student)
        known = torch.where(teacher > NOTHING / 2, teacher, torch.full_like(teacher, FLOOR))
        return student.exp() * (student - known)


def _normalised(logp: torch.Tensor) -> torch.Tensor:
    return logp - logp.logsumexp(-1, keepdim=True)


def _other_shape(student: tuple[int, ...], target: tuple[int, ...]) -> LengthError:
    """Return the error for a student's rows of another shape than the target's, with the axis that differs."""
    what = f"student logits of {student} rows, without V, for targets of {target}"
    if len(student) != len(target):
        return LengthError(
            what,
            why="The number of axes differs: frames are (B, T), a lattice is (B, T, U+1), a path is (B, N).",
            do="Give the logits of this stream, in the target's axes.",
        )
    if sorted(student) == sorted(target):
        return LengthError(
            what,
            why="The sizes are the same in another order: axes are B, T, U, V.",
            do="Transpose the student's logits into the target's axes.",
        )
    if student[0] != target[0]:
        return LengthError(
            what,
            why=f"The student has {student[0]} utterances, the batch {target[0]}.",
            do="Give logits and targets of the same utterances, in one order.",
        )
    if student[1] != target[1]:
        return LengthError(
            what,
            why="Rows of different moments would be compared.",
            do="Give collate_targets the student's own valid lengths: frames=lengths.",
        )
    return LengthError(
        what,
        why=f"The student has {student[2]} label positions, the target U + 1 = {target[2]}.",
        do="Run the student's joiner on the batch's own labels, with the start in front: batch.labels.",
    )


def reduce(
    values: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor | None, reduction: str
) -> torch.Tensor:
    """Weigh rows and reduce them.

    Args:
        values: losses of rows, 0 in padding.
        mask: bool, as ``values``, True on valid rows.
        weights: weights of rows, 0 or more, as ``values``; None for equal ones.
        reduction: ``mean`` over valid rows by their weights, ``sum``, or ``none``.

    Raises:
        UsageError: another reduction.
        LengthError: weights of another shape.
    """
    if reduction not in REDUCTIONS:
        raise UsageError(f"reduction={reduction!r}", do=f"Known: {', '.join(REDUCTIONS)}.")
    if weights is not None:
        if weights.shape != mask.shape:
            raise LengthError(
                f"weights {tuple(weights.shape)} for {tuple(mask.shape)} rows",
                do="Give one weight per row of the target's mask.",
            )
        weights = torch.where(mask, weights.to(values), 0.0)
        values = values * weights
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    count = mask.sum().to(values) if weights is None else weights.sum()
    return values.sum() / torch.where(count > 0, count, torch.ones_like(count))
