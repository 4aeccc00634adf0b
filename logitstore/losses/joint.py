"""The sum a student of two branches is trained with: soft and hard losses, each with its λ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UsageError
from ..schema.kinds import kind_of
from ..targets.batch import TargetBatch
from .kd import ctc_kd, hidden_kd, rnnt_kd, seq2seq_kd

Hard = torch.Tensor | Callable[[], torch.Tensor]
SOFT: dict[str, Callable[..., torch.Tensor]] = {
    "ctc": ctc_kd,
    "rnnt": rnnt_kd,
    "seq2seq": seq2seq_kd,
    "hidden": hidden_kd,
}


@dataclass(frozen=True)
class JointLoss:
    """What :func:`joint_kd` gives.

    Attributes:
        total: Σ λ·part, with gradients.
        parts: each part without its λ, detached, for a log: ``ctc_kd``, ``rnnt_kd``, ``seq2seq_kd``,
            ``hidden_kd``, ``ctc``, ``rnnt``.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]

    def backward(self) -> None:
        """Of the total."""
        self.total.backward()  # type: ignore[no-untyped-call]


def joint_kd(
    batch: TargetBatch,
    *,
    logits: Mapping[str, Any],
    hard: Mapping[str, Hard] | None = None,
    lambdas: Mapping[str, float] | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    **options: Any,
) -> JointLoss:
    """λ·KD of every branch plus the user's own CTC and RNN-T losses on hard labels.

    ::

        loss = joint_kd(
            batch,
            logits={"ctc": ctc_logits, "rnnt": joint_logits},
            hard={"ctc": ctc_loss, "rnnt": lambda: rnnt_loss(joint_logits, batch.labels, ...)},
            lambdas={"ctc_kd": 0.5, "rnnt_kd": 1.0, "ctc": 0.3, "rnnt": 1.0},
        )
        loss.total.backward()

    Args:
        batch: of :func:`logitstore.targets.batch.collate_targets`.
        logits: by stream: what :func:`ctc_kd`, :func:`rnnt_kd` and :func:`seq2seq_kd` take; of a ``hidden``
            stream the student's own (B, T, D), for :func:`hidden_kd`.
        hard: by any name: a scalar, or what computes it, called only where its λ is not 0.
        lambdas: by part, ``STREAM_kd`` for the soft ones; 1 where it is not named.
        weights: by stream, of rows.
        options: of soft losses over classes: ``temperature``, ``direction``, ``tail``, ``scale``.

    Raises:
        UsageError: a λ or weights of a part that is not given, or a stream that has no such loss.
    """
    hard, lambdas, weights = dict(hard or {}), dict(lambdas or {}), dict(weights or {})
    kinds = {stream: kind_of(stream).name for stream in logits}
    if unknown := [stream for stream, kind in kinds.items() if kind not in SOFT]:
        raise UsageError(f"no loss for {', '.join(sorted(unknown))}", do=f"Known: {', '.join(SOFT)}.")
    soft = {f"{stream}_kd": stream for stream in logits}
    if twice := soft.keys() & hard.keys():
        raise UsageError(
            f"{', '.join(sorted(twice))} names a soft loss", do="Give the hard one another name."
        )
    names = [*soft, *hard]
    for given, known in ((lambdas, names), (weights, list(logits))):
        if absent := sorted(set(given) - set(known)):
            raise UsageError(f"{', '.join(absent)}: no such part", do=f"There are: {', '.join(known)}.")
    if not names:
        raise UsageError("a joint loss of no parts")
    total: torch.Tensor | None = None
    parts: dict[str, torch.Tensor] = {}
    for name in names:
        scale = float(lambdas.get(name, 1.0))
        if scale == 0:
            continue
        if name in hard:
            value = hard[name]
            part = value if isinstance(value, torch.Tensor) else value()
        else:
            stream = soft[name]
            given = options if kind_of(stream).classes else {}
            part = SOFT[kinds[stream]](logits[stream], batch[stream], weights=weights.get(stream), **given)
        parts[name] = part.detach()
        total = scale * part if total is None else total + scale * part
    if total is None:
        raise UsageError("every λ is 0")
    return JointLoss(total, parts)
