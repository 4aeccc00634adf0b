"""``halves``: every class as a bfloat16 log-probability, the upper half of a float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from logitstore.encodings.base import Encoding, no_setting
from logitstore.encodings.dense import Dense
from logitstore.encodings.rows import logsumexp
from logitstore.schema.spec import Column

if TYPE_CHECKING:
    import torch

PLANNED = ("halves",)  # spellings that ``logitstore plan`` measures


@dataclass(frozen=True)
class Halves(Encoding):
    """(N, V) bfloat16 log-probabilities at temperature 1, each within one part in 256 of its value."""

    def __str__(self) -> str:
        return "halves"

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (
            Column("upper", "int16", (classes,), "upper half of the float32 log-probability of every class"),
            Column("logz", "float32", (), "log-normaliser: the log-probability + logz is the logit"),
        )

    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        import torch

        logz = logits.logsumexp(-1)
        upper = (logits - logz[:, None]).to(torch.bfloat16).view(torch.int16)
        return {"upper": upper, "logz": logz}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Dense:
        bits = np.ascontiguousarray(arrays["upper"]).view(np.uint16).astype(np.uint32) << 16
        logp = bits.view(np.float32)
        return Dense(logp - logsumexp(logp)[:, None].astype(np.float32), arrays["logz"])


def parse(setting: str | None) -> Halves:
    """Return the encoding; ``halves`` takes no setting."""
    no_setting("halves", setting)
    return Halves()
