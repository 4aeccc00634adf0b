"""``topk:K``: the K best classes of every row, and the exact mass of all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, UsageError
from ..schema.spec import Column
from ._tail import ABOUT_ODDS, LOGP_FLOOR, POINTS, decode_odds, encode_odds, power_sums, pruned
from .base import Encoding
from .rows import TEMPERATURES, Float, Rows, Tempered

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sparse(Rows):
    """Rows of the K best classes and the mass of all others.

    Attributes:
        classes: V.
        ids: (N, K) classes, best first, ties by lower id.
        logp: (N, K) log-probabilities at temperature 1.
        odds: (N, 5) float32 log of (left-out mass / kept mass) at temperatures 1, 4/3, 2, 4, 8.
        logz: (N,) float32 log-normaliser at temperature 1.
    """

    classes: int
    ids: NDArray[Any]
    logp: NDArray[Any]
    odds: Float
    logz: Float

    def __len__(self) -> int:
        return len(self.logp)

    def take(self, index: NDArray[np.int64]) -> Sparse:
        return Sparse(self.classes, self.ids[index], self.logp[index], self.odds[index], self.logz[index])

    def at(self, temperature: float = 1.0) -> Tempered:
        return pruned(self.classes, self.ids, self.logp, self.odds, temperature)


@dataclass(frozen=True)
class TopK(Encoding):
    """K ids and float16 log-probabilities, best first, ties by lower id; tail odds at five temperatures.

    Attributes:
        k: classes to keep.
    """

    k: int

    def __str__(self) -> str:
        return f"topk:{self.k}"

    def columns(self, classes: int) -> tuple[Column, ...]:
        if self.k > classes:
            raise UsageError(
                f"topk:{self.k} of {classes} classes", do=f"K is at most {classes}; dense keeps them all."
            )
        ids = "uint16" if classes <= 1 << 16 else "uint32"
        return (
            Column("ids", ids, (self.k,), "class of each kept entry, best first, ties by lower id"),
            Column("logp", "float16", (self.k,), "log-probability (nats, temperature 1) of each kept entry"),
            Column("tail", "int16", (POINTS,), ABOUT_ODDS),
            Column("logz", "float32", (), "log-normaliser: logp + logz are the teacher's logits"),
        )

    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        top, ids = best(logits, self.k)
        peak = top[:, :1]
        powers = ((logits - peak) / TEMPERATURES[-1]).exp_()
        kept = power_sums(powers.gather(1, ids))
        rest = power_sums(powers.scatter_(1, ids, 0.0))
        logz = (kept[:, 0] + rest[:, 0]).log_() + peak[:, 0]
        return {
            "ids": ids,
            "logp": (top - logz[:, None]).clamp_(min=LOGP_FLOOR).half(),
            "tail": encode_odds((rest / kept).log_()),
            "logz": logz,
        }

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Sparse:
        if arrays["ids"].size and int(arrays["ids"].max()) >= classes:
            raise FormatError(f"an id of {int(arrays['ids'].max())} among {classes} classes (SPEC E5)")
        return Sparse(classes, arrays["ids"], arrays["logp"], decode_odds(arrays["tail"]), arrays["logz"])


def best(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N, K) values and ids of the K largest, descending, equal values by lower id, on any device."""
    ids = _best_on_cpu(logits, k) if logits.device.type == "cpu" else _best_on_device(logits, k)
    return logits.gather(1, ids), ids


def _best_on_cpu(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Sort integer keys that hold value and id: numpy's vectorised partition is six times ``torch.topk``."""
    import torch

    bits = (logits.numpy() + np.float32(0.0)).view(np.int32)  # + 0.0: the two zeros are equal
    keys = (~(bits ^ ((bits >> 31) & 0x7FFFFFFF))).astype(np.int64) << 32
    keys |= np.arange(logits.shape[1])
    if k < logits.shape[1]:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys = np.sort(keys, axis=1)
    return torch.from_numpy(keys & 0xFFFFFFFF)


def _best_on_device(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Sort rows with equal values stably instead: ``torch.topk`` leaves their order open."""
    top, ids = logits.topk(k, dim=-1, sorted=True)
    tied = (top[:, 1:] == top[:, :-1]).any(-1)
    tied |= (logits >= top[:, -1:]).sum(-1) > k
    if bool(tied.any()):
        ids[tied] = logits[tied].sort(dim=-1, descending=True, stable=True)[1][:, :k]
    return ids


def parse(setting: str | None) -> TopK:
    """Return the encoding ``topk:K``."""
    if setting is None or not setting.isascii() or not setting.isdigit() or int(setting) < 1:
        raise UsageError(f"topk:{setting or ''} keeps no class", do="Give the number of classes: topk:16.")
    return TopK(int(setting))
