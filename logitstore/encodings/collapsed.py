"""``collapsed``: the blank, the next label, and all other classes together, for every lattice node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..schema.kinds import StreamKind
from ..schema.lattice import Form
from ..schema.spec import Column
from ._tail import ABOUT_ODDS, LOGP_FLOOR, POINTS, decode_odds, encode_odds, pruned
from .base import FOR_LOGITS, Encoding, no_setting
from .rows import TEMPERATURES, Rows, Tempered

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Collapsed(Rows):
    """Rows of two classes and a rest; the labels of the lattice name the classes.

    Attributes:
        classes: V.
        ids: (N, 2) the blank and the next label; the blank twice where there is none.
        logp: (N, 2) log-probabilities at temperature 1.
        odds: (N, 5) float32 log of (left-out mass / kept mass) at temperatures 1, 4/3, 2, 4, 8.
    """

    classes: int
    ids: NDArray[Any]
    logp: NDArray[Any]
    odds: NDArray[np.float32]

    needs_next_labels: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.logp)

    def take(self, index: NDArray[np.int64]) -> Collapsed:
        return Collapsed(self.classes, self.ids[index], self.logp[index], self.odds[index])

    def with_next_labels(self, blank: int, labels: NDArray[np.int64]) -> Collapsed:
        return replace(self, ids=np.stack([np.full_like(labels, blank), labels], 1))

    def at(self, temperature: float = 1.0) -> Tempered:
        """Return the rows at a temperature; a node without a next label keeps one class."""
        real = np.ones(self.ids.shape, bool)
        real[:, 1] = self.ids[:, 0] != self.ids[:, 1]
        return pruned(self.classes, self.ids, self.logp, self.odds, temperature, real)


@dataclass(frozen=True)
class CollapsedEncoding(Encoding):
    """Two float16 log-probabilities and tail odds at five temperatures: 14 bytes a node.

    The rest is summed over the other classes themselves, so that its mass is exact. Training against blank,
    next label and rest is proposed by Panchapagesan et al., "Efficient knowledge distillation for
    RNN-transducer models" (ICASSP 2021).
    """

    keeps_always: ClassVar[bool] = True

    def __str__(self) -> str:
        return "collapsed"

    def check_stream(self, kind: StreamKind, form: Form | None) -> None:
        super().check_stream(kind, form)
        if form is None:
            raise UsageError("only an rnnt stream has lattice nodes, which collapsed stores")
        if form.framewise:
            raise UsageError(
                "the mean over label positions has no next label, which collapsed stores",
                do=f"Use {FOR_LOGITS} for {form}.",
            )

    def columns(self, classes: int) -> tuple[Column, ...]:
        if classes < 2:
            raise UsageError(f"collapsed of {classes} classes", do="It keeps two: the blank and a label.")
        return (
            Column("logp", "float16", (2,), "log-probability (nats, temperature 1): blank, next label"),
            Column("tail", "int16", (POINTS,), ABOUT_ODDS),
        )

    def encode(self, logits: torch.Tensor, always: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Encode (N, V) logits of lattice nodes.

        Args:
            logits: (N, V) float32.
            always: (N, 2) int64 blank and next label; the blank twice where there is none.
        """
        if always is None or always.shape[1] != 2:
            raise UsageError("collapsed keeps nodes of a lattice, and needs their next labels")
        import torch

        last = always[:, :1] == always[:, 1:]
        twice = torch.cat([torch.zeros_like(last), last], 1)
        kept = logits.gather(1, always).masked_fill(twice, -torch.inf)
        rest = logits.scatter(1, always, -torch.inf)
        odds = [(rest / t).logsumexp(1) - (kept / t).logsumexp(1) for t in TEMPERATURES]
        logz = torch.logaddexp(kept.logsumexp(1), rest.logsumexp(1))
        logp = (kept - logz[:, None]).clamp(min=LOGP_FLOOR).half()
        return {"logp": logp, "tail": encode_odds(torch.stack(odds, 1))}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Collapsed:
        """Decode rows without names of their classes; :meth:`Collapsed.with_next_labels` adds these."""
        ids = np.zeros((len(arrays["tail"]), 2), np.int64)
        return Collapsed(classes, ids, arrays["logp"], decode_odds(arrays["tail"]))


def parse(setting: str | None) -> CollapsedEncoding:
    """Return the encoding ``collapsed``."""
    no_setting("collapsed", setting)
    return CollapsedEncoding()
