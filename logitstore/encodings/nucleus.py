"""``nucleus:KL``: the fewest best classes of every row that keep its loss within a budget in nats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, UsageError
from ..schema.spec import Column
from ._tail import LOGP_FLOOR, decode_odds, describe, encode_odds, power_sums, pruned
from .base import LOSS, Encoding
from .rows import TEMPERATURES, Float, Rows, Tempered
from .topk import best

if TYPE_CHECKING:
    import torch

SMALLEST, LARGEST = 1e-5, 10.0  # nats; below, the rounding of float16 costs as much as the left-out classes
HOTTEST = 16.0


@dataclass(frozen=True)
class Ragged(Rows):
    """Rows of their best classes, as many as each needs, and the mass of all others.

    Attributes:
        classes: V.
        start: (N+1,) int64 index of each row's first entry; the last is M.
        ids: (M,) classes, row after row, best first, ties by lower id; no row is empty.
        logp: (M,) log-probabilities at temperature 1.
        odds: (N, 4) float32 log of (left-out mass / kept mass) at temperatures 1, 2, 4, 8.
    """

    classes: int
    start: NDArray[np.int64]
    ids: NDArray[Any]
    logp: NDArray[Any]
    odds: Float

    def __len__(self) -> int:
        return len(self.odds)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(N,) entries of each row."""
        return np.diff(self.start)

    def take(self, index: NDArray[np.int64]) -> Ragged:
        counts = self.counts[index]
        start = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        shift = self.start[:-1][index] - start[:-1]  # from an entry's new place to its old one
        entries = np.arange(start[-1]) + np.repeat(shift, counts)
        return Ragged(self.classes, start, self.ids[entries], self.logp[entries], self.odds[index])

    def at(self, temperature: float = 1.0) -> Tempered:
        """Return the rows at a temperature; K is that of the widest row."""
        counts = self.counts
        place = np.arange(int(counts.max(initial=1)))
        real = place < counts[:, None]
        entries = self.start[:-1, None] + np.where(real, place, 0)  # a missing entry repeats the first
        return pruned(self.classes, self.ids[entries], self.logp[entries], self.odds, temperature, real)


@dataclass(frozen=True)
class Nucleus(Encoding):
    """As many entries as each row needs, one after the other, with their count; tail odds as in ``topk``.

    A row is served as its kept classes and the mass of all others, spread equally over them. Classes are kept
    best first until the Kullback-Leibler divergence of the teacher's row from the served row is within the
    budget. The best class and the classes that are always kept (the blank; in a lattice the next label) are
    kept in any case. The name comes from nucleus sampling (Holtzman et al. 2020), which bounds mass instead.

    Attributes:
        budget: nats that a row may lose.
        temperature: temperature at which the budget holds.
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
            Column("tail", "int16", (len(TEMPERATURES),), describe(len(TEMPERATURES))),
        )

    def encode(self, logits: torch.Tensor, always: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Encode rows: sort each once, then take cumulative sums.

        Args:
            logits: (N, V) float32.
            always: (N, F) int64 classes to keep in any case; None for none.
        """
        top, ids = best(logits, logits.shape[1])
        forced = ids < 0
        if always is not None:
            forced = (ids[:, :, None] == always[:, None]).any(2)
        lost = self._lost(top, forced)
        need = (lost > self.budget).sum(1).clamp_(min=1)  # the loss never grows with the entries kept
        place = need.new_ones(top.shape[1]).cumsum(0) - 1
        keep = (place < need[:, None]) | forced
        # exp(x/8) of kept and of left-out classes: four masses of each by squaring
        powers = ((top - top[:, :1]) / TEMPERATURES[-1]).exp_()
        kept = power_sums(powers.masked_fill(~keep, 0.0))
        rest = power_sums(powers.masked_fill(keep, 0.0))
        below = (top - top[:, :1]).clamp_(min=LOGP_FLOOR).half()
        return {
            "count": keep.sum(1),
            "ids": ids[keep],
            "below": below[keep & (place > 0)],
            "tail": encode_odds((rest / kept).log_()),
            LOSS: lost.gather(1, need[:, None])[:, 0],
        }

    def _lost(self, top: torch.Tensor, forced: torch.Tensor) -> torch.Tensor:
        """Return (N, V+1) nats that a row loses when its 0, 1, ..., V best classes and the forced are kept.

        For n left-out classes with probabilities p and a total of L the loss is Σ p ln p - L ln(L / n): the
        divergence of the teacher's row from equal shares of L.
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
                f"{len(arrays['ids'])} ids and {len(below)} log-probabilities for {start[-1]} entries "
                f"of {len(counts)} rows (SPEC E10)"
            )
        if arrays["ids"].size and int(arrays["ids"].max()) >= classes:
            raise FormatError(f"an id of {int(arrays['ids'].max())} among {classes} classes (SPEC E5)")
        odds = decode_odds(arrays["tail"])
        # The kept classes have a mass of 1 / (1 + odds); the best entry's share follows from the other
        # entries.
        row = np.repeat(np.arange(len(counts)), counts - 1)
        best_share = -np.log1p(np.bincount(row, np.exp(below), len(counts)))
        first = (best_share - np.logaddexp(0.0, odds[:, 0])).astype(np.float32)
        logp = np.repeat(first, counts)
        rest = np.ones(len(logp), bool)
        rest[start[:-1]] = False
        logp[rest] += below
        return Ragged(classes, start, arrays["ids"], logp, odds)


def _sums_of_rest(x: torch.Tensor) -> torch.Tensor:
    """Return (N, V+1) sums of x[:, 0:], x[:, 1:], ..., x[:, V:], added up from the smallest."""
    sums = x.new_zeros(len(x), x.shape[1] + 1)
    sums[:, :-1] = x.flip(1).cumsum(1).flip(1)
    return sums


def parse(setting: str | None) -> Nucleus:
    """Return the encoding ``nucleus:KL`` or ``nucleus:KL@TEMPERATURE``."""
    kl, found, at = (setting or "").partition("@")
    try:
        budget, temperature = float(kl), float(at) if found else 1.0
    except ValueError:
        raise UsageError(
            f"nucleus:{setting or ''} has no budget",
            do="Give the nats that a row may lose: nucleus:1e-3.",
        ) from None
    if not SMALLEST <= budget <= LARGEST:
        raise UsageError(
            f"a budget of {budget:g} nats a row",
            do=f"Give {SMALLEST:g} to {LARGEST:g}; for a smaller loss store dense.",
        )
    if not 1 <= temperature <= HOTTEST:
        raise UsageError(f"a temperature of {temperature:g}", do=f"Give 1 to {HOTTEST:g}.")
    return Nucleus(budget, temperature)
