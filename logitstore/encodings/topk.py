"""``topk:K``: the K best classes of every row, and the exact mass of all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, UsageError
from ..schema.spec import Column
from .rows import BETWEEN, TEMPERATURES, Sparse

if TYPE_CHECKING:
    import torch

ODDS_STEP, ODDS_OFFSET = 1 / 1024, -20.0  # int16 reaches from -52 to +12 nats, within 0.0005
LOGP_FLOOR = -65504.0
POINTS = len((*TEMPERATURES, BETWEEN))
TAIL_ABOUT = "log(left-out mass / kept mass) at temperatures 1, 2, 4, 8{}: value / 1024 - 20 nats"


@dataclass(frozen=True)
class TopK:
    """K ids and float16 log-probabilities, best first, ties by lower id; tail odds at five temperatures.

    The tail is summed over the left-out classes themselves, never as one minus the kept mass, and stored
    relative to the kept mass: that keeps both masses exact, whichever of the two is the tiny one.

    Attributes:
        k: classes to keep.
        tail_points: temperatures at which the tail is stored; 4 in older stores.
    """

    k: int
    tail_points: int = POINTS

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
            Column("tail", "int16", (self.tail_points,), tail_about(self.tail_points)),
            Column("logz", "float32", (), "log-normaliser: logp + logz are the teacher's logits"),
        )

    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        top, ids = best(logits, self.k)
        peak = top[:, :1]
        powers = ((logits - peak) / TEMPERATURES[-1]).exp_()
        kept = power_sums(powers.gather(1, ids), self.tail_points)
        rest = power_sums(powers.scatter_(1, ids, 0.0), self.tail_points)
        odds = (rest / kept).log_()
        logz = (kept[:, 0] + rest[:, 0]).log_() + peak[:, 0]
        tail = ((odds - ODDS_OFFSET) / ODDS_STEP).round_().clamp_(-32768, 32767)
        return {
            "ids": ids,
            "logp": (top - logz[:, None]).clamp_(min=LOGP_FLOOR).half(),
            "tail": tail.short(),
            "logz": logz,
        }

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Sparse:
        if arrays["ids"].size and int(arrays["ids"].max()) >= classes:
            raise FormatError(f"an id of {int(arrays['ids'].max())} among {classes} classes (SPEC E5)")
        odds = (arrays["tail"] * np.float32(ODDS_STEP) + np.float32(ODDS_OFFSET)).astype(np.float32)
        return Sparse(classes, arrays["ids"], arrays["logp"], odds, arrays["logz"])


def tail_about(points: int) -> str:
    """What the tail's column says of itself."""
    return TAIL_ABOUT.format(", 4/3" if points == POINTS else "")


def power_sums(e: torch.Tensor, points: int = len(TEMPERATURES)) -> torch.Tensor:
    """(N, 4 or 5) Σ exp(x/τ) at τ = 1, 2, 4, 8, 4/3 from e = exp(x/8), which it overwrites.

    No more exponentials: squares of squares, and x · 3/4 = x/4 + x/2.
    """
    sums = e.new_empty(len(e), points)
    quarter = e
    for column in reversed(range(len(TEMPERATURES))):
        sums[:, column] = e.sum(-1)
        if points == POINTS and TEMPERATURES[column] == 4:
            quarter = e.clone()
        if points == POINTS and TEMPERATURES[column] == 2:
            sums[:, -1] = quarter.mul_(e).sum(-1)
        if column:
            e.square_()
    return sums


def best(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, K) values and ids of the K largest, descending, equal values by lower id, on any device."""
    ids = _best_on_cpu(logits, k) if logits.device.type == "cpu" else _best_on_device(logits, k)
    return logits.gather(1, ids), ids


def _best_on_cpu(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Value and id packed into one integer key: numpy's vectorised partition is six times ``torch.topk``."""
    import torch

    bits = (logits.numpy() + np.float32(0.0)).view(np.int32)  # + 0.0: the two zeros are equal
    keys = (~(bits ^ ((bits >> 31) & 0x7FFFFFFF))).astype(np.int64) << 32
    keys |= np.arange(logits.shape[1])
    if k < logits.shape[1]:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys = np.sort(keys, axis=1)
    return torch.from_numpy(keys & 0xFFFFFFFF)


def _best_on_device(logits: torch.Tensor, k: int) -> torch.Tensor:
    """``torch.topk`` leaves the order of equal values open: rows that have any are sorted stably instead."""
    top, ids = logits.topk(k, dim=-1, sorted=True)
    tied = (top[:, 1:] == top[:, :-1]).any(-1)
    tied |= (logits >= top[:, -1:]).sum(-1) > k
    if bool(tied.any()):
        ids[tied] = logits[tied].sort(dim=-1, descending=True, stable=True)[1][:, :k]
    return ids


def parse(setting: str | None) -> TopK:
    """``topk:K``."""
    if setting is None or not setting.isascii() or not setting.isdigit() or int(setting) < 1:
        raise UsageError(f"topk:{setting or ''} keeps nothing", do="Say how many, e.g. topk:16.")
    return TopK(int(setting))
