"""``dense``: every class in float16, the reference for all others; ``dense:int8``: every class in a byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..schema.spec import Column
from .base import Encoding, log_normaliser, no_setting
from .rows import Float, Rows, Tempered, every_class, logsumexp

if TYPE_CHECKING:
    import torch

LOGZ = Column("logz", "float32", (), "log-normaliser: logp + logz are the teacher's logits")


@dataclass(frozen=True)
class Dense(Rows):
    """Rows of every class.

    Attributes:
        logp: (N, V) log-probabilities at temperature 1.
        logz: (N,) float32 log-normaliser: ``logp + logz`` are the teacher's logits.
    """

    logp: NDArray[Any]
    logz: Float

    @property
    def classes(self) -> int:
        return int(self.logp.shape[1])

    def __len__(self) -> int:
        return len(self.logp)

    def take(self, index: NDArray[np.int64]) -> Dense:
        return Dense(self.logp[index], self.logz[index])

    def at(self, temperature: float = 1.0) -> Tempered:
        return every_class(self.logp.astype(np.float32), temperature)

    def logits(self) -> Float:
        """Return the (N, V) float32 logits of the teacher."""
        return (self.logp.astype(np.float32) + self.logz[:, None]).astype(np.float32)


@dataclass(frozen=True)
class DenseEncoding(Encoding):
    """(N, V) float16 log-probabilities at temperature 1, and the log-normaliser that gives logits back.

    Log-probabilities are near 0 where the mass is, and there float16 is finest; they are clipped at -65504.
    """

    def __str__(self) -> str:
        return "dense"

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (
            Column("logp", "float16", (classes,), "log-probability (nats, temperature 1) of every class"),
            LOGZ,
        )

    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        logz = log_normaliser(logits)
        logp = (logits - logz[:, None]).clamp_(min=-65504).half()
        return {"logp": logp, "logz": logz}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Dense:
        return Dense(arrays["logp"], arrays["logz"])


DEEPEST = 256.0  # nats below the total mass: such a class weighs nothing at any temperature up to 16
STEPS = 255


@dataclass(frozen=True)
class DenseInt8(Encoding):
    """(N, V) uint8 log-probabilities: square roots in equal steps, so that they are finest where the mass is.

    A log-probability of -d, with d up to 256 nats, is off by at most √(depth · d) / 255 + depth / 260100 nats
    before the row is normalised again; depth is that of the row's least probable class. Lower ones are
    clipped at -256 nats.
    """

    def __str__(self) -> str:
        return "dense:int8"

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (
            Column("root", "uint8", (classes,), "√(-logp / depth) · 255 of every class"),
            Column("depth", "float32", (), "nats from the whole mass down to the row's least probable class"),
            LOGZ,
        )

    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        logz = log_normaliser(logits)
        below = (logz[:, None] - logits).clamp_(0.0, DEEPEST)
        depth = below.amax(-1)
        root = (below / depth.clamp(min=1e-30)[:, None]).sqrt_().mul_(STEPS).round_()
        return {"root": root, "depth": depth, "logz": logz}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Dense:
        root = arrays["root"].astype(np.float32) / np.float32(STEPS)
        logp = np.square(root, out=root)
        logp *= -arrays["depth"][:, None]
        logp -= logsumexp(logp)[:, None].astype(np.float32)
        return Dense(logp, arrays["logz"])


def parse(setting: str | None) -> DenseEncoding | DenseInt8:
    """Return the encoding ``dense`` or ``dense:int8``."""
    if setting == "int8":
        return DenseInt8()
    no_setting("dense", setting)
    return DenseEncoding()
