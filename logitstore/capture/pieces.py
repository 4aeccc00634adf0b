"""Logits that a module gives in pieces: the next frames of a batch, or its next utterances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import LengthError, LogitStoreError, UsageError

SHORT = 0.1  # of the frames that came, which lengths may lack: right context, the rest of a last piece


@dataclass
class Pieces:
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
                why="Pieces that overlap, or that lack some, do not join into the utterance.",
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
