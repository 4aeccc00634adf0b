"""``vectors``: a layer's own numbers, for ``hidden`` streams, in float16; ``vectors:int8``: in a byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NonFinite
from ..schema.spec import Column
from .base import no_setting
from .rows import Vectors

if TYPE_CHECKING:
    import torch

STEPS = 127


@dataclass(frozen=True)
class Half:
    """(N, D) float16: a number is off by 1/2048 of itself at most, or by 3e-8."""

    of_numbers = True

    def __str__(self) -> str:
        return "vectors"

    def columns(self, classes: int) -> tuple[Column, ...]:
        """Of D numbers a row."""
        return (Column("h", "float16", (classes,), "what the layer gave"),)

    def encode(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Raises ``NonFinite`` beyond float16."""
        h = rows.half()
        if not bool(h.isfinite().all()):
            raise NonFinite(
                f"the layer gives {float(rows.abs().max()):g}, beyond float16",
                do="Use vectors:int8, which has a scale for every row.",
            )
        return {"h": h}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Vectors:
        return Vectors(arrays["h"])


@dataclass(frozen=True)
class Int8:
    """(N, D) int8 and a scale a row: a number is off by 1/254 of its row's largest at most."""

    of_numbers = True

    def __str__(self) -> str:
        return "vectors:int8"

    def columns(self, classes: int) -> tuple[Column, ...]:
        """Of D numbers a row."""
        return (
            Column("code", "int8", (classes,), "what the layer gave, over its scale"),
            Column("scale", "float32", (), "of each row: its largest number / 127"),
        )

    def encode(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = (rows.abs().amax(-1) / STEPS).clamp(min=1e-38)
        code = (rows / scale[:, None]).round_().clamp_(-STEPS, STEPS).char()
        return {"code": code, "scale": scale}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Vectors:
        return Vectors(arrays["code"].astype(np.float32) * arrays["scale"][:, None])


def parse(setting: str | None) -> Half | Int8:
    """``vectors`` or ``vectors:int8``."""
    if setting == "int8":
        return Int8()
    no_setting("vectors", setting)
    return Half()
