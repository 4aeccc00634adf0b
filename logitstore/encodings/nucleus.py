"""``nucleus:KL``: the fewest best classes of every row that keep its loss within a budget in nats.

A row in which so many classes are kept that they cost more than all of them costs is stored whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, UsageError
from ..schema.spec import Column
from ._tail import (
    ABOUT_BENDS,
    ABOUT_ENDS,
    LOGP_FLOOR,
    POINTS,
    decode_bends,
    decode_odds,
    encode_bends,
    power_sums,
    pruned,
)
from .base import LOSS, Encoding, row_loss
from .dense import DenseEncoding, DenseInt8
from .rows import TEMPERATURES, Float, Rows, Tempered
from .topk import best

if TYPE_CHECKING:
    import torch

SMALLEST, LARGEST = 1e-5, 10.0  # nats; below, the rounding of float16 costs as much as the left-out classes
HOTTEST = 16.0
COARSE = 1e-3  # least budget that bears whole rows of one byte a class, which lose some 1e-5 nats


@dataclass(frozen=True)
class Ragged(Rows):
    """Rows of their best classes, as many as each needs, and the mass of all others.

    Attributes:
        classes: V.
        start: (N+1,) int64 index of each row's first entry; the last is M.
        ids: (M,) classes, row after row, best first, ties by lower id; no row is empty.
        logp: (M,) log-probabilities at temperature 1.
        odds: (N, 5) float32 log of (left-out mass / kept mass) at temperatures 1, 4/3, 2, 4, 8.
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

    def whole_rows(self) -> int:
        return int((self.counts == self.classes).sum())

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
    """As many entries as each row needs, one after the other, with their count, and the mass of the rest.

    A row is served as its kept classes and the mass of all others, spread equally over them. Classes are kept
    best first until the Kullback-Leibler divergence of the teacher's row from the served row is within the
    budget. The best class and the classes that are always kept (the blank; in a lattice the next label) are
    kept in any case. The name comes from nucleus sampling (Holtzman et al. 2020), which bounds mass instead.

    A row with so many entries that every class costs fewer bytes is stored whole, and so is one whose tail bends
    too much for three bytes: as ``dense:int8`` does from
    a budget of 1e-3 up, unless that loses more than the budget, and as ``dense`` does below.

    Attributes:
        budget: nats that a row may lose.
        temperature: temperature at which the budget holds.
    """

    budget: float
    temperature: float = 1.0

    ragged = frozenset({"ids", "below", "tail", "bend", "root", "depth", "logp"})
    keeps_always = True

    def __str__(self) -> str:
        at = "" if self.temperature == 1 else f"@{self.temperature:g}"
        return f"nucleus:{self.budget:g}{at}"

    @property
    def coarse(self) -> bool:
        """True where the budget bears whole rows of one byte a class."""
        return self.budget >= COARSE

    def columns(self, classes: int) -> tuple[Column, ...]:
        small, wide = classes <= 1 << 8, classes <= 1 << 16
        ids = "uint8" if small else "uint16" if wide else "uint32"
        count = "uint8" if classes < 1 << 8 else "uint16" if classes < 1 << 16 else "uint32"
        whole = (
            (
                Column("root", "uint8", (classes,), "√(-logp / depth) · 255 of every class of a whole row"),
                Column(
                    "depth", "float32", (), "nats from a whole row's mass down to its least probable class"
                ),
            )
            if self.coarse
            else (Column("logp", "float16", (classes,), "log-probability of every class of a whole row"),)
        )
        return (
            Column("count", count, (), "entries of each row; 0 for a row that is stored whole"),
            Column("ids", ids, (), "class of each entry, row after row, best first, ties by lower id"),
            Column("below", "float16", (), "logit of each entry but a row's best, less that of its best"),
            Column("tail", "int16", (2,), ABOUT_ENDS),
            Column("bend", "int8", (3,), ABOUT_BENDS),
            *whole,
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
        nats = lost.gather(1, need[:, None])[:, 0]
        # exp(x/8) of kept and of left-out classes: five masses of each by squaring
        powers = ((top - top[:, :1]) / TEMPERATURES[-1]).exp_()
        kept = power_sums(powers.masked_fill(~keep, 0.0))
        rest = power_sums(powers.masked_fill_(keep, 0.0))
        ends, bend, fits = encode_bends((rest / kept).log_(), kept.log(), (~keep).sum(1).to(rest.dtype))
        whole, arrays = self._whole(logits, keep.sum(1), fits, nats)
        keep &= ~whole[:, None]
        below = (top - top[:, :1]).clamp_(min=LOGP_FLOOR).half()
        return {
            "count": keep.sum(1),
            "ids": ids[keep],
            "below": below[keep & (place > 0)],
            "tail": ends[~whole],
            "bend": bend[~whole],
            **arrays,
            LOSS: nats,
        }

    def _whole(
        self, logits: torch.Tensor, count: torch.Tensor, fits: torch.Tensor, nats: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return (N,) bool, True for rows to store whole, and the arrays of these; their ``nats`` are replaced.

        Args:
            logits: (N, V) float32.
            count: (N,) entries that each row would have.
            fits: (N,) bool, True where a row's tail fits its columns.
            nats: (N,) float64 nats that each row would lose.
        """
        bytes_of = {
            c.name: np.dtype(c.dtype).itemsize * int(np.prod(c.shape)) for c in self.columns(logits.shape[1])
        }
        names = ("root", "depth") if self.coarse else ("logp",)
        pruned_bytes = count * bytes_of["ids"] + (count - 1) * bytes_of["below"]
        pruned_bytes += bytes_of["tail"] + bytes_of["bend"]
        whole = (pruned_bytes > sum(bytes_of[n] for n in names)) | ~fits
        stored = (DenseInt8() if self.coarse else DenseEncoding()).encode(logits[whole])
        if self.coarse:
            served = -stored["depth"][:, None] * (stored["root"] / 255).square()
        else:
            served = stored["logp"].float()
        lost = row_loss(logits[whole] / self.temperature, served / self.temperature)
        good = lost <= self.budget
        whole[whole.clone()] = good
        nats[whole] = lost[good]
        return whole, {n: stored[n][good] for n in names}

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
        whole, entries = counts == 0, int(counts.sum())
        given = tuple(len(arrays[c.name]) for c in self.columns(classes)[1:])
        few, many = int((~whole).sum()), int(whole.sum())
        if given != (entries, entries - few, few, few, *(many,) * (len(given) - 4)):
            raise FormatError(
                f"{len(arrays['ids'])} ids and {len(below)} log-probabilities for {entries} entries "
                f"of {len(counts)} rows, {many} of them whole (SPEC E10)"
            )
        if arrays["ids"].size and int(arrays["ids"].max()) >= classes:
            raise FormatError(f"an id of {int(arrays['ids'].max())} among {classes} classes (SPEC E5)")
        ends = decode_odds(arrays["tail"])
        # The kept classes have a mass of 1 / (1 + odds); the best entry's share follows from the other
        # entries.
        kept = counts[~whole]
        row, start = np.repeat(np.arange(few), kept), np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
        best = np.zeros(entries, bool)
        best[start[:-1]] = True
        best_share = -np.log1p(np.bincount(row[~best], np.exp(below), few))
        logp = (best_share - np.logaddexp(0.0, ends[:, 0])).astype(np.float32)[row]
        logp[~best] += below
        of_kept = [np.log(np.bincount(row, np.exp(logp / t), few)) for t in TEMPERATURES]
        odds = decode_bends(ends, arrays["bend"], np.stack(of_kept, 1), classes - kept)
        rows = Ragged(classes, start, arrays["ids"], logp, odds)
        return rows if not many else _with_whole_rows(rows, whole, self._whole_rows(arrays))

    def _whole_rows(self, arrays: Mapping[str, NDArray[Any]]) -> Float:
        """Return (M, V) log-probabilities of the rows that are stored whole."""
        none = np.zeros(0, np.float32)
        if self.coarse:
            stored = {**arrays, "logz": none}
            return DenseInt8().decode(stored, 0).at(1.0).logp
        return DenseEncoding().decode({**arrays, "logz": none}, 0).at(1.0).logp


def _with_whole_rows(rows: Ragged, whole: NDArray[np.bool_], logp: Float) -> Ragged:
    """Return all rows of an utterance.

    Args:
        rows: rows that are not stored whole.
        whole: (N,) bool, True for rows that are.
        logp: (M, V) log-probabilities of these.
    """
    ids = np.argsort(-logp, axis=1, kind="stable")
    counts = np.full(len(whole), rows.classes)
    counts[~whole] = rows.counts
    start = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    of_whole = np.repeat(whole, counts)
    every = Ragged(
        rows.classes,
        start,
        np.empty(start[-1], np.int64),
        np.empty(start[-1], np.float32),
        np.zeros((len(whole), POINTS), np.float32),  # no class is left out of a whole row
    )
    every.ids[of_whole], every.logp[of_whole] = ids.reshape(-1), np.take_along_axis(logp, ids, 1).reshape(-1)
    every.ids[~of_whole], every.logp[~of_whole] = rows.ids, rows.logp
    every.odds[~whole] = rows.odds
    return every


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
