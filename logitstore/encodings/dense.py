"""``dense``: every class in fp16, the reference others are measured against; ``dense:int8``: in a byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..schema.spec import Column
from .base import log_normaliser, no_setting
from .rows import Dense, logsumexp

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


DEEPEST = 256.0  # nats below the whole mass: at any temperature up to 16 such a class weighs nothing
STEPS = 255


@dataclass(frozen=True)
class DenseInt8:
    """(N, V) uint8 log-probabilities: square roots in equal steps, so that they are finest where the mass is.

    A log-probability of -d, d up to 256 nats, comes back within √(depth·d)/255 + depth/260100 nats before the
    row is normalised again, depth being that of the row's least probable class; below 256 nats it is clipped.
    """

    def __str__(self) -> str:
        return "dense:int8"

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (
            Column("root", "uint8", (classes,), "√(-logp / depth) · 255 of every class"),
            Column("depth", "float32", (), "nats from the whole mass down to the row's least probable class"),
            Column("logz", "float32", (), "log-normaliser: logp + logz are the teacher's logits"),
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
    """``dense`` or ``dense:int8``."""
    if setting == "int8":
        return DenseInt8()
    no_setting("dense", setting)
    return DenseEncoding()
