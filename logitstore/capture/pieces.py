"""Logits that a module gives in pieces: the next frames of a batch, or its next utterances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..errors import FormatError, LengthError, LogitStoreError, UsageError
from ..schema.lattice import Form, Nodes, band_size, ranges, restored, stored
from ..teachers.tap import unpack

SHORT = 0.1  # of the frames that came, which lengths may lack: right context, the rest of a last piece


@dataclass
class BatchPieces:
    """The pieces of one batch.

    Attributes:
        batch: what tells it from the next one.
        ids: of all its utterances; ``texts``: where there are any.
        where: for messages.
        parts: (B, t, V) pieces, where they are frames.
        done: utterances that were whole already, where they are utterances.
    """

    batch: Any
    ids: tuple[str, ...]
    texts: tuple[str, ...] | None
    where: str
    parts: list[torch.Tensor] = field(default_factory=list)
    done: int = 0
    _lengths: list[int] | LogitStoreError | None = None

    def add(self, logits: torch.Tensor, lengths: Any) -> None:
        """The next frames; ``lengths(logits)`` gives the valid ones of all, once all have come."""
        if len(logits) != len(self.ids):
            raise LengthError(
                f"{len(self.ids)} ids for a piece of {tuple(logits.shape)}",
                where=self.where,
                do="Where a piece has other utterances, they are joined by --accumulate b.",
            )
        if self.parts and logits.shape[2:] != self.parts[0].shape[2:]:
            raise LengthError(
                f"a piece of {tuple(logits.shape)} behind one of {tuple(self.parts[0].shape)}",
                where=f"{self.where}, {self.ids[0]}",
            )
        self.parts.append(logits.clone())
        joined = logits[:, :1].expand(-1, sum(p.shape[1] for p in self.parts), *logits.shape[2:])
        try:  # which piece is the last, the next batch says: what they are now may be wanted then
            self._lengths = lengths(joined)
        except LogitStoreError as e:
            self._lengths = e

    def whole(self) -> tuple[torch.Tensor, list[int]]:
        """(B, T, V) and its lengths; raises ``LengthError`` where these say another number of frames."""
        logits = torch.cat(self.parts, 1)
        if isinstance(self._lengths, LogitStoreError):
            raise self._lengths
        assert self._lengths is not None
        longest, t = max(self._lengths), logits.shape[1]
        if not (1 - SHORT) * t <= longest <= t:
            raise LengthError(
                f"{len(self.parts)} pieces have {t} frames, and the longest utterance {longest}",
                where=f"{self.where}, {self.ids[0]}",
                why="BatchPieces that overlap, or that lack some, do not join into the utterance.",
                do="Let the program decode whole utterances, or say where their lengths are: --lengths EXPR.",
            )
        return logits, self._lengths

    def next(self, count: int, lengths: Sequence[int]) -> tuple[list[str], list[int], tuple[str, ...] | None]:
        """Ids, lengths and texts of the next utterances; ``lengths`` are theirs, or those of all."""
        now = slice(self.done, self.done + count)
        ids = list(self.ids[now])
        if len(ids) != count:
            raise LengthError(
                f"{self.done + count} utterances in the pieces of a batch of {len(self.ids)}",
                where=f"{self.where}, {self.ids[0]}",
            )
        of = list(lengths)[now] if len(lengths) == len(self.ids) else list(lengths)
        self.done += count
        return ids, of, self.texts[now] if self.texts else None

    def check(self, axis: str) -> None:
        """Raise ``UsageError`` where utterances of the batch are still missing."""
        if axis == "b" and self.done != len(self.ids):
            raise UsageError(
                f"{self.done} of {len(self.ids)} utterances of a batch came",
                where=f"{self.where}, {self.ids[0]}",
                why="Their pieces do not make the batch.",
                do="Look at it with logitstore probe.",
            )


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


class UtterancePieces:
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
