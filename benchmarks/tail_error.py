"""How exact the mass that pruned rows left out is served, at any temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .encodings import Encoding
from .encodings.base import KeepsAlways
from .target import logsumexp

GRID = (1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.75, 1.9, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0)


@dataclass(frozen=True)
class TailError:
    """Errors of one temperature, over all rows that leave a class out.

    Attributes:
        temperature: of them.
        exact: (N,) mass of the classes left out, from the teacher's logits.
        served: (N,) the same from the stored row.
    """

    temperature: float
    exact: NDArray[np.float64]
    served: NDArray[np.float64]

    @property
    def relative(self) -> NDArray[np.float64]:
        """(N,) |served - exact| / exact."""
        return np.asarray(np.abs(self.served / self.exact - 1))

    @property
    def absolute(self) -> NDArray[np.float64]:
        """(N,) |served - exact|."""
        return np.asarray(np.abs(self.served - self.exact))


def tail_errors(
    encoding: Encoding, logits: NDArray[Any], blank: int = 0, grid: tuple[float, ...] = GRID
) -> list[TailError]:
    """What an encoding serves as the mass it left out, at each temperature of a grid.

    Args:
        encoding: ``topk`` or ``nucleus``.
        logits: (N, V) of the teacher.
        blank: kept always, where the encoding keeps some classes so.
        grid: temperatures.
    """
    rows = torch.from_numpy(np.ascontiguousarray(logits, np.float32))
    if isinstance(encoding, KeepsAlways):
        arrays = encoding.encode(rows, torch.full((len(rows), 1), blank))
    else:
        arrays = encoding.encode(rows)
    columns = encoding.columns(logits.shape[1])
    stored = encoding.decode(
        {c.name: arrays[c.name].numpy().astype(c.dtype, copy=False) for c in columns}, logits.shape[1]
    )
    at = stored.at(1.0)
    assert at.ids is not None
    left = np.ones(logits.shape, bool)
    np.put_along_axis(left, at.ids.astype(np.int64), False, axis=1)
    some = left.any(1)
    found = []
    for temperature in grid:
        own = logits[some].astype(np.float64) / temperature
        exact = np.exp(logsumexp(np.where(left[some], own, -np.inf)) - logsumexp(own))
        served = np.exp(stored.at(temperature).tail[some].astype(np.float64))
        found.append(TailError(temperature, exact, served))
    return found
