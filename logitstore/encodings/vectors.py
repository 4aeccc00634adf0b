"""``vectors``: the numbers of a layer in float16, for ``hidden`` streams; ``vectors:int8``: in a byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import NonFinite
from ..schema.spec import Column
from .base import Encoding, no_setting
from .rows import Float, NumberRows

if TYPE_CHECKING:
    import torch

STEPS = 127


@dataclass(frozen=True, eq=False)
class Vectors(NumberRows):
    """Rows of a layer's numbers.

    Attributes:
        h: (N, D) numbers.
    """

    h: NDArray[Any]

    @property
    def width(self) -> int:
        return int(self.h.shape[1])

    def __len__(self) -> int:
        return len(self.h)

    def take(self, index: NDArray[np.int64]) -> Vectors:
        return Vectors(self.h[index])

    def values(self) -> Float:
        return self.h.astype(np.float32)


@dataclass(frozen=True)
class Float16Vectors(Encoding):
    """(N, D) float16: a number is off by at most 1/2048 of itself, or by 3e-8."""

    numbers: ClassVar[bool] = True

    def __str__(self) -> str:
        return "vectors"

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (Column("h", "float16", (classes,), "what the layer gave"),)

    def encode(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode (N, D) float32 numbers; raises ``NonFinite`` beyond float16."""
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
class Int8Vectors(Encoding):
    """(N, D) int8 and a scale per row: a number is off by at most 1/254 of the row's largest."""

    numbers: ClassVar[bool] = True

    def __str__(self) -> str:
        return "vectors:int8"

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (
            Column("code", "int8", (classes,), "what the layer gave, over its scale"),
            Column("scale", "float32", (), "of each row: its largest number / 127"),
        )

    def encode(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode (N, D) float32 numbers."""
        scale = (rows.abs().amax(-1) / STEPS).clamp(min=1e-38)
        code = (rows / scale[:, None]).round_().clamp_(-STEPS, STEPS).char()
        return {"code": code, "scale": scale}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Vectors:
        return Vectors(arrays["code"].astype(np.float32) * arrays["scale"][:, None])


def parse(setting: str | None) -> Float16Vectors | Int8Vectors:
    """Return the encoding ``vectors`` or ``vectors:int8``."""
    if setting == "int8":
        return Int8Vectors()
    no_setting("vectors", setting)
    return Float16Vectors()
