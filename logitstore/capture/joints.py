"""What a joiner gave in one call, whatever its shape, as one lattice an utterance.

Whole (B, T, U+1, V); packed (N, V), N = Σ T·(U+1), utterance after utterance; pruned as k2 does, (B, T, S, V)
with its ranges (B, T, S); or in pieces along B, as joints that are fused with their loss run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import FormatError, LengthError
from ..schema.lattice import Form, Nodes, band_size, ranges, restored, stored
from ..teachers.tap import unpack

Labels = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Part:
    """One utterance's lattice.

    Attributes:
        logits: (T, U+1, V), or (T, W, V) where ``begin`` says which label positions these are.
        begin: (T,) first label position of each frame; None where all are there.
    """

    logits: torch.Tensor
    begin: np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None = None

    def nodes(self, form: Form, labels: int, where: str) -> Nodes | None:
        """The nodes that are there, where some are not, as a store keeps them.

        Raises ``LengthError`` where they are not the ranges that SPEC S11 wants, or not so many.
        """
        if self.begin is None:
            return None
        t, width = len(self.logits), self.logits.shape[1]
        kept = band_size(form.size, t, labels)
        try:
            if form.name != "banded" or form.occupancy or kept > width:
                raise FormatError(f"{width} label positions a frame of a pruned joint, for form {form}")
            begin = np.minimum(self.begin, labels + 1 - kept)
            if bool((begin != self.begin).any()):
                raise FormatError(f"ranges that reach beyond label {labels}")
            nodes = ranges(form, t, labels, begin, kept)
            return restored(form, t, labels, t * kept, stored(nodes), where)
        except FormatError as e:
            raise LengthError(
                e.what,
                where=where,
                why="Ranges lead from the first label position to the last and leave out none.",
                do=f"Store them as banded:{width}, and say where the ranges are: --ranges EXPR.",
            ) from None


def whole(output: torch.Tensor, frames: Sequence[int], labels: Labels) -> list[Part]:
    """(B, T, U+1, V), padding cut off."""
    return [Part(x[:t, : len(u) + 1]) for x, t, u in zip(output, frames, labels, strict=True)]


def packed(output: torch.Tensor, frames: Sequence[int], labels: Labels, where: str) -> list[Part]:
    """(N, V); raises ``LengthError`` where N is not what frames and labels come to."""
    try:
        return [Part(x) for x in unpack(output, frames, [len(u) + 1 for u in labels])]
    except LengthError as e:
        raise LengthError(
            e.what,
            where=where,
            why="Rows of one utterance would pass for another's.",
            do="Say where lengths and labels of the packed joint are: --lengths EXPR, --labels EXPR.",
        ) from None


def pruned(
    output: torch.Tensor, positions: torch.Tensor, frames: Sequence[int], labels: Labels, where: str
) -> list[Part]:
    """(B, T, S, V) and its ranges (B, T, S); of utterances with fewer than S positions those there are.

    Raises ``LengthError`` where ranges and joint differ, or a range has gaps.
    """
    at = positions.detach().cpu().numpy().astype(np.int64)
    if positions.shape != output.shape[:3] or bool((np.diff(at, axis=2) != 1).any()):
        raise LengthError(
            f"ranges of {tuple(positions.shape)} for a pruned joint of {tuple(output.shape)}",
            where=where,
            why="For each frame they name the label positions, one behind the other, that the joint has.",
            do="Say where its ranges (B, T, s_range) are: --ranges EXPR.",
        )
    return [
        Part(x[:t, : len(u) + 1], p[:t, 0]) for x, p, t, u in zip(output, at, frames, labels, strict=True)
    ]


class Pieces:
    """Calls that each gave some utterances of a batch, in their order, until all are there."""

    def __init__(self) -> None:
        self._got: list[torch.Tensor] = []

    def add(self, piece: torch.Tensor, count: int, where: str) -> list[torch.Tensor] | None:
        """All pieces once they add up to ``count`` utterances; raises ``LengthError`` beyond that."""
        self._got.append(piece.clone())
        have = sum(len(p) for p in self._got)
        if have < count:
            return None
        if have > count:
            raise LengthError(
                f"pieces of {', '.join(str(len(p)) for p in self._got)} utterances in a batch of {count}",
                where=where,
                why="Which of them are the answer cannot be guessed.",
            )
        got, self._got = self._got, []
        return got

    @property
    def missing(self) -> bool:
        """Whether a batch was begun and not ended."""
        return bool(self._got)
