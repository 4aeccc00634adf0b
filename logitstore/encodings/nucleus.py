"""``nucleus:KL``: of every row the fewest best classes that keep what is lost within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, UsageError
from ..schema.spec import Column
from .base import LOSS
from .rows import TEMPERATURES, Ragged
from .topk import LOGP_FLOOR, ODDS_OFFSET, ODDS_STEP, best, power_sums, tail_about

if TYPE_CHECKING:
    import torch

SMALLEST, HOTTEST = 1e-5, 16.0  # below it float16's own rounding costs as much as what is left out


@dataclass(frozen=True)
class Nucleus:
    """As many entries as a row needs, one after the other, and how many; tail odds as ``topk`` has them.

    A row is served as its kept classes and, spread equally over all others, what they weigh together. Classes
    are kept best first until the Kullback-Leibler divergence of the teacher's row from that is within the
    budget. The best class and those that are always kept (the blank; in a lattice the next label) are kept
    in any case. The name is that of nucleus sampling (Holtzman et al. 2020), which bounds mass instead.

    Attributes:
        budget: nats that a row may lose.
        temperature: at which that holds.
    """

    budget: float
    temperature: float = 1.0

    ragged = frozenset({"ids", "below"})
    keeps_always = True

    def __str__(self) -> str:
        at = "" if self.temperature == 1 else f"@{self.temperature:g}"
        return f"nucleus:{self.budget:g}{at}"

    def columns(self, classes: int) -> tuple[Column, ...]:
        small, wide = classes <= 1 << 8, classes <= 1 << 16
        ids = "uint8" if small else "uint16" if wide else "uint32"
        count = "uint8" if classes < 1 << 8 else "uint16" if classes < 1 << 16 else "uint32"
        return (
            Column("count", count, (), "entries of each row"),
            Column("ids", ids, (), "class of each entry, row after row, best first, ties by lower id"),
            Column("below", "float16", (), "logit of each entry but a row's best, less that of its best"),
            Column("tail", "int16", (len(TEMPERATURES),), tail_about(len(TEMPERATURES))),
        )

    def encode(self, logits: torch.Tensor, always: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Sort once, then everything is a cumulative sum.

        Args:
            logits: (N, V) float32.
            always: (N, F) int64 classes to keep in any case; None for none.
        """
        top, ids = best(logits, logits.shape[1])
        forced = ids < 0
        if always is not None:
            forced = (ids[:, :, None] == always[:, None]).any(2)
        lost = self._lost(top, forced)
        need = (lost > self.budget).sum(1).clamp_(min=1)  # it never grows with the entries kept
        place = need.new_ones(top.shape[1]).cumsum(0) - 1
        keep = (place < need[:, None]) | forced
        # exp(x/8) of what is kept, and of what is not: four masses of each by squaring
        powers = ((top - top[:, :1]) / TEMPERATURES[-1]).exp_()
        kept = power_sums(powers.masked_fill(~keep, 0.0))
        rest = power_sums(powers.masked_fill(keep, 0.0))
        odds = (rest / kept).log_()
        below = (top - top[:, :1]).clamp_(min=LOGP_FLOOR).half()
        return {
            "count": keep.sum(1),
            "ids": ids[keep],
            "below": below[keep & (place > 0)],
            "tail": ((odds - ODDS_OFFSET) / ODDS_STEP).round_().clamp_(-32768, 32767).short(),
            LOSS: lost.gather(1, need[:, None])[:, 0],
        }

    def _lost(self, top: torch.Tensor, forced: torch.Tensor) -> torch.Tensor:
        """(N, V+1) what a row loses, in nats, when its 0, 1, ..., V best classes and the forced are kept.

        Of classes left out with probabilities p, of which there are n with a sum of L, that is
        Σ p ln p - L ln(L / n): the teacher's row against equal shares of L.
        """
        logp = (top.double() / self.temperature).log_softmax(-1).masked_fill_(forced, -float("inf"))
        p = logp.exp()
        mass = _sums_of_rest(p)
        within = _sums_of_rest((p * logp).nan_to_num_(0.0))
        count = _sums_of_rest((~forced).double())
        lost = within - mass * (mass / count.clamp(min=1)).clamp(min=1e-300).log()
        return lost.clamp_(min=0.0)

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Ragged:
        counts, below = arrays["count"].astype(np.int64), arrays["below"].astype(np.float32)
        start = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        if (counts < 1).any() or (len(arrays["ids"]), len(below)) != (start[-1], start[-1] - len(counts)):
            raise FormatError(
                f"{len(arrays['ids'])} ids and {len(below)} log-probabilities, "
                f"where {len(counts)} rows count {start[-1]} entries (SPEC E10)"
            )
        odds = (arrays["tail"] * np.float32(ODDS_STEP) + np.float32(ODDS_OFFSET)).astype(np.float32)
        # What is kept weighs 1 / (1 + odds) in all; the best entry's share of it follows from the others.
        row = np.repeat(np.arange(len(counts)), counts - 1)
        best_share = -np.log1p(np.bincount(row, np.exp(below), len(counts)))
        first = (best_share - np.logaddexp(0.0, odds[:, 0])).astype(np.float32)
        logp = np.repeat(first, counts)
        rest = np.ones(len(logp), bool)
        rest[start[:-1]] = False
        logp[rest] += below
        return Ragged(classes, start, arrays["ids"], logp, odds)


def _sums_of_rest(x: torch.Tensor) -> torch.Tensor:
    """(N, V+1) sums of x[:, 0:], x[:, 1:], ..., x[:, V:]: added up from the smallest."""
    sums = x.new_zeros(len(x), x.shape[1] + 1)
    sums[:, :-1] = x.flip(1).cumsum(1).flip(1)
    return sums


def parse(setting: str | None) -> Nucleus:
    """``nucleus:KL`` or ``nucleus:KL@TEMPERATURE``."""
    kl, found, at = (setting or "").partition("@")
    try:
        budget, temperature = float(kl), float(at) if found else 1.0
    except ValueError:
        raise UsageError(
            f"nucleus:{setting or ''} has no budget",
            do="Say how many nats a row may lose, e.g. nucleus:1e-3.",
        ) from None
    if not SMALLEST <= budget <= 10:
        raise UsageError(
            f"a budget of {budget:g} nats a row",
            do=f"From {SMALLEST:g} to 10; below, what is kept is rounded more coarsely: dense.",
        )
    if not 1 <= temperature <= HOTTEST:
        raise UsageError(f"a temperature of {temperature:g}", do=f"From 1 to {HOTTEST:g}.")
    return Nucleus(budget, temperature)
