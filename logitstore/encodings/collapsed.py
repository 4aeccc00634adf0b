"""``collapsed``: of every lattice node the blank, the next label, and all other classes together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..schema.spec import Column
from .base import no_setting
from .rows import Tempered, pruned, stored_at
from .topk import LOGP_FLOOR, ODDS_OFFSET, ODDS_STEP, POINTS, tail_about

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Collapsed:
    """Rows of two classes and a rest; which two follows from the labels.

    Attributes:
        classes: V.
        ids: (N, 2) the blank and the next label; the blank twice where there is none.
        logp: (N, 2) log-probabilities at temperature 1.
        odds: (N, 4) or (N, 5) float32 log of (left-out mass / kept mass) at temperatures 1, 2, 4, 8, 4/3.
    """

    classes: int
    ids: NDArray[Any]
    logp: NDArray[Any]
    odds: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.logp)

    def take(self, index: NDArray[np.int64]) -> Collapsed:
        return Collapsed(self.classes, self.ids[index], self.logp[index], self.odds[index])

    def between(self, blank: int, following: NDArray[np.int64]) -> Collapsed:
        """The same rows with their classes named: the blank and (N,) next labels."""
        return replace(self, ids=np.stack([np.full_like(following, blank), following], 1))

    def at(self, temperature: float = 1.0) -> Tempered:
        """As any pruned rows; a node without a next label keeps one class."""
        real = np.ones(self.ids.shape, bool)
        real[:, 1] = self.ids[:, 0] != self.ids[:, 1]
        return pruned(self.classes, self.ids, self.logp, self.odds, temperature, real)


@dataclass(frozen=True)
class CollapsedEncoding:
    """Two float16 log-probabilities and tail odds at five temperatures (Panchapagesan et al. 2021).

    The rest is summed over the other classes themselves. Training against blank, next label and rest is what
    "Efficient knowledge distillation for RNN-transducer models" proposes; it is exact, at 14 bytes a node.

    Attributes:
        tail_points: temperatures at which the tail is stored; 4 in older stores.
    """

    tail_points: int = POINTS

    keeps_always = True

    def __str__(self) -> str:
        return "collapsed"

    def columns(self, classes: int) -> tuple[Column, ...]:
        if classes < 2:
            raise UsageError(f"collapsed of {classes} classes")
        return (
            Column("logp", "float16", (2,), "log-probability (nats, temperature 1): blank, next label"),
            Column("tail", "int16", (self.tail_points,), tail_about(self.tail_points)),
        )

    def encode(self, logits: torch.Tensor, always: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """``always`` (N, 2): the blank and the next label, the blank twice where there is none."""
        if always is None or always.shape[1] != 2:
            raise UsageError("collapsed keeps nodes of a lattice, and needs their next labels")
        import torch

        last = always[:, :1] == always[:, 1:]
        twice = torch.cat([torch.zeros_like(last), last], 1)
        got = logits.gather(1, always).masked_fill(twice, -torch.inf)
        rest = logits.scatter(1, always, -torch.inf)
        odds = [(rest / t).logsumexp(1) - (got / t).logsumexp(1) for t in stored_at(self.tail_points)]
        tail = ((torch.stack(odds, 1) - ODDS_OFFSET) / ODDS_STEP).round().clamp(-32768, 32767)
        logz = torch.logaddexp(got.logsumexp(1), rest.logsumexp(1))
        logp = (got - logz[:, None]).clamp(min=LOGP_FLOOR).half()
        return {"logp": logp, "tail": tail.short()}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Collapsed:
        """Rows whose classes the caller names, with :meth:`Collapsed.between`."""
        odds = (arrays["tail"] * np.float32(ODDS_STEP) + np.float32(ODDS_OFFSET)).astype(np.float32)
        return Collapsed(classes, np.zeros((len(odds), 2), np.int64), arrays["logp"], odds)


def parse(setting: str | None) -> CollapsedEncoding:
    """``collapsed``."""
    no_setting("collapsed", setting)
    return CollapsedEncoding()
