"""``dense``: every class in fp16. The reference the others are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..spec import Column
from ..target import Dense
from .base import log_normaliser, no_setting

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DenseEncoding:
    """(N, V) float16 log-probabilities at temperature 1, and the log-normaliser that gives logits back.

    Log-probabilities are near 0 where the mass is, and there fp16 is finest; below -65504 they are clipped.
    """

    def __str__(self) -> str:
        return "dense"

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (
            Column("logp", "float16", (classes,), "log-probability (nats, temperature 1) of every class"),
            Column("logz", "float32", (), "log-normaliser: logp + logz are the teacher's logits"),
        )

    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        logz = log_normaliser(logits)
        logp = (logits - logz[:, None]).clamp_(min=-65504).half()
        return {"logp": logp, "logz": logz}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Dense:
        return Dense(arrays["logp"], arrays["logz"])


def parse(setting: str | None) -> DenseEncoding:
    """``dense``."""
    no_setting("dense", setting)
    return DenseEncoding()
