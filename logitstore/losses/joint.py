"""The weighted sum of distillation losses and the user's own losses on labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UsageError
from ..schema.kinds import kind_of
from ..targets.batch import TargetBatch
from ..targets.keywords import checked_keywords
from .kd import ctc_kd, hidden_kd, rnnt_kd, seq2seq_kd

HardLoss = torch.Tensor | Callable[[], torch.Tensor]
SOFT_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "ctc": ctc_kd,
    "rnnt": rnnt_kd,
    "seq2seq": seq2seq_kd,
    "hidden": hidden_kd,
}


@dataclass(frozen=True)
class JointLoss:
    """The result of :func:`joint_kd`.

    Attributes:
        total: scalar Σ λ · part, with gradients.
        parts: scalar of each part without its λ, detached, for a log: ``ctc_kd``, ``rnnt_kd``,
            ``seq2seq_kd``, ``hidden_kd``, and the hard losses by their names.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]

    def backward(self) -> None:
        """Compute the gradients of the total."""
        self.total.backward()  # type: ignore[no-untyped-call]


@checked_keywords()
def joint_kd(
    batch: TargetBatch,
    *,
    logits: Mapping[str, Any],
    hard: Mapping[str, HardLoss] | None = None,
    lambdas: Mapping[str, float] | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    temperature: float | None = None,
    direction: str = "forward",
    tail: str = "class",
    scale: bool = True,
) -> JointLoss:
    """Return the sum of λ · distillation loss of every stream and λ · the user's own losses on labels.

    ::

        loss = joint_kd(
            batch,
            logits={"ctc": ctc_logits, "rnnt": joint_logits},
            hard={"ctc": ctc_loss, "rnnt": lambda: rnnt_loss(joint_logits, batch.labels, ...)},
            lambdas={"ctc_kd": 0.5, "rnnt_kd": 1.0, "ctc": 0.3, "rnnt": 1.0},
        )
        loss.total.backward()

    Args:
        batch: targets of :func:`logitstore.targets.batch.collate_targets`.
        logits: student logits by stream, as :func:`ctc_kd`, :func:`rnnt_kd` and :func:`seq2seq_kd` take them;
            for a ``hidden`` stream the student's (B, T, D), as :func:`hidden_kd` takes them.
        hard: losses on labels by name: a scalar, or a function that returns one and is called only where its
            λ is not 0.
        lambdas: factors by part; distillation losses are named ``STREAM_kd``. 1 for parts without one.
        weights: weights of rows, by stream.
        temperature: temperature that the targets must have; None for any.
        direction: ``forward`` or ``reverse``, of all distillation losses over classes; as the next two.
        tail: ``class``, ``spread`` or ``ignore``.
        scale: True to multiply by the square of the temperature.

    Raises:
        UsageError: a λ or weights of a part that is not given, a stream without a loss, no part at all, or
            only parts with a λ of 0.
        VocabError, LengthError: as the losses of the streams.
    """
    hard, lambdas, weights = dict(hard or {}), dict(lambdas or {}), dict(weights or {})
    _check_parts(list(logits), list(hard), list(lambdas), list(weights))
    losses: dict[str, Callable[[], torch.Tensor]] = {}
    settings = {"temperature": temperature, "direction": direction, "tail": tail, "scale": scale}
    for stream, given in logits.items():
        losses[f"{stream}_kd"] = _soft_loss(stream, given, batch, weights.get(stream), settings)
    losses |= {name: _hard_loss(value) for name, value in hard.items()}

    total: torch.Tensor | None = None
    parts: dict[str, torch.Tensor] = {}
    for name, loss in losses.items():
        factor = float(lambdas.get(name, 1.0))
        if factor == 0:
            continue
        part = loss()
        parts[name] = part.detach()
        total = factor * part if total is None else total + factor * part
    if total is None:
        raise UsageError("every λ is 0", do="Give one of the parts a λ above 0.")
    return JointLoss(total, parts)


def _soft_loss(
    stream: str, logits: Any, batch: TargetBatch, weights: torch.Tensor | None, settings: Mapping[str, Any]
) -> Callable[[], torch.Tensor]:
    """Return a function that computes the distillation loss of one stream."""
    kind = kind_of(stream)
    loss, options = SOFT_LOSSES[kind.name], settings if kind.classes else {}
    return lambda: loss(logits, batch[stream], weights=weights, **options)


def _hard_loss(value: HardLoss) -> Callable[[], torch.Tensor]:
    """Return a function that computes a loss on labels."""
    return (lambda: value) if isinstance(value, torch.Tensor) else value


def _check_parts(streams: list[str], hard: list[str], lambdas: list[str], weights: list[str]) -> None:
    """Raise ``UsageError`` for streams without a loss, names that are used twice, and unknown parts."""
    if unknown := [stream for stream in streams if kind_of(stream).name not in SOFT_LOSSES]:
        raise UsageError(f"no loss for {', '.join(sorted(unknown))}", do=f"Known: {', '.join(SOFT_LOSSES)}.")
    soft = [f"{stream}_kd" for stream in streams]
    if twice := set(soft) & set(hard):
        raise UsageError(
            f"{', '.join(sorted(twice))} names a distillation loss", do="Give the hard one another name."
        )
    parts = [*soft, *hard]
    if not parts:
        raise UsageError(
            "a joint loss of no parts",
            do="Give logits by stream, e.g. logits={'ctc': ctc_logits}, or hard losses.",
        )
    for given, known in ((lambdas, parts), (weights, streams)):
        if absent := sorted(set(given) - set(known)):
            raise UsageError(f"no such part: {', '.join(absent)}", do=f"There are: {', '.join(known)}.")
