"""Integers of 4, 6 or 8 bits in two's complement, packed: the first in the highest bits of the first byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def narrow(code: torch.Tensor, bits: int) -> torch.Tensor:
    """(N, D) whole numbers as (N, ⌈D · bits / 8⌉) uint8."""
    import torch

    raw = code.cpu().numpy().astype(np.int8).view(np.uint8)
    if bits < 8:
        each = np.unpackbits(raw[:, :, None], axis=2)[:, :, 8 - bits :]
        raw = np.packbits(each.reshape(len(raw), -1), axis=1)
    return torch.from_numpy(raw)


def widen(packed: NDArray[Any], bits: int, width: int) -> NDArray[np.int8]:
    """(N, D) int8 again."""
    if bits == 8:
        return np.ascontiguousarray(packed).view(np.int8)
    each = np.unpackbits(packed, axis=1)[:, : width * bits].reshape(len(packed), width, bits)
    value = np.packbits(each, axis=2)[:, :, 0].view(np.int8)  # in the highest bits of its byte
    return np.asarray(value >> (8 - bits), np.int8)
