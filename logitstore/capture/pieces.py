"""Logits that arrive in pieces, and lattices that arrive packed or pruned, as one tensor per utterance.

A module may run several times for one batch: on the next frames of all its utterances (``FramePieces``) or on
the next utterances (``UtterancePieces``). A joiner's output may be padded (B, T, U+1, V), packed (N, V) or
pruned (B, T, S, V); each is split into one :class:`UtteranceLattice` per utterance.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import FormatError, LengthError, LogitStoreError, UsageError
from ..schema.lattice import Form, Nodes, band_size, ranges, restored, stored
from ..teachers.tap import unpack

SHORT = 0.1  # share of the frames by which lengths may be shorter: right context, the rest of a last piece


@dataclass
class BatchPieces:
    """CTC logits of one batch that arrive in several calls.

    Attributes:
        batch: key that tells this batch from the next one.
        ids: ids of all its utterances.
        texts: reference texts of all its utterances; None where there are none.
        where: location for messages.
        parts: (B, t, V) logits of the calls so far, where each call gives the next frames.
        done: number of utterances so far, where each call gives the next utterances.
    """

    batch: Hashable
    ids: tuple[str, ...]
    texts: tuple[str, ...] | None
    where: str
    parts: list[torch.Tensor] = field(default_factory=list)
    done: int = 0
    _lengths: list[int] | LogitStoreError | None = None

    def add_frames(self, logits: torch.Tensor, find_lengths: Callable[[torch.Tensor], list[int]]) -> None:
        """Keep a copy of the next frames (B, t, V) of all utterances.

        Args:
            logits: logits of this call.
            find_lengths: function that returns the valid lengths of all frames so far, given a tensor of
                their shape. Its error is kept, since the lengths matter only after the last call of the
                batch.

        Raises ``LengthError`` where the shape does not fit the pieces before.
        """
        if len(logits) != len(self.ids):
            raise LengthError(
                f"{len(self.ids)} ids for a piece of {tuple(logits.shape)}",
                where=self.where,
                do="Where each call has other utterances, join them with accumulate 'b' (--accumulate b).",
            )
        if self.parts and logits.shape[2:] != self.parts[0].shape[2:]:
            raise LengthError(
                f"a piece of {tuple(logits.shape)} follows one of {tuple(self.parts[0].shape)}",
                where=f"{self.where}, {self.ids[0]}",
            )
        self.parts.append(logits.clone())
        joined = logits[:, :1].expand(-1, sum(p.shape[1] for p in self.parts), *logits.shape[2:])
        try:
            self._lengths = find_lengths(joined)
        except LogitStoreError as e:
            self._lengths = e

    def joined_frames(self) -> tuple[torch.Tensor, list[int]]:
        """Return (B, T, V) logits and B valid lengths; raise ``LengthError`` where these do not fit T."""
        logits = torch.cat(self.parts, 1)
        if isinstance(self._lengths, LogitStoreError):
            raise self._lengths
        assert self._lengths is not None
        longest, t = max(self._lengths), logits.shape[1]
        if not (1 - SHORT) * t <= longest <= t:
            raise LengthError(
                f"{len(self.parts)} pieces have {t} frames, but the longest utterance has {longest}",
                where=f"{self.where}, {self.ids[0]}",
                why="Pieces that overlap, or that leave frames out, do not join into the utterance.",
                do="Let the program decode whole utterances, or say where the lengths are: --lengths EXPR.",
            )
        return logits, self._lengths

    def next_utterances(
        self, count: int, lengths: Sequence[int]
    ) -> tuple[list[str], list[int], tuple[str, ...] | None]:
        """Return ids, lengths and texts of the next ``count`` utterances.

        Args:
            count: number of utterances of this call.
            lengths: valid lengths of these utterances, or of all utterances of the batch.

        Raises ``LengthError`` where the batch has fewer utterances.
        """
        now = slice(self.done, self.done + count)
        ids = list(self.ids[now])
        if len(ids) != count:
            raise LengthError(
                f"{self.done + count} utterances in the pieces of a batch of {len(self.ids)}",
                where=f"{self.where}, {self.ids[0]}",
            )
        own_lengths = list(lengths)[now] if len(lengths) == len(self.ids) else list(lengths)
        self.done += count
        return ids, own_lengths, self.texts[now] if self.texts else None

    def check_complete(self, axis: str) -> None:
        """Raise ``UsageError`` where utterances of the batch are still missing."""
        if axis == "b" and self.done != len(self.ids):
            raise UsageError(
                f"{self.done} of {len(self.ids)} utterances of a batch arrived",
                where=f"{self.where}, {self.ids[0]}",
                why="The pieces do not add up to the batch, so which ids belong to them is not certain.",
                do="Run logitstore probe to see how often the module runs.",
            )


class UtterancePieces:
    """Joiner outputs of one batch that arrive in several calls, some utterances per call, in their order."""

    def __init__(self) -> None:
        self._pieces: list[torch.Tensor] = []

    def add(self, piece: torch.Tensor, count: int, where: str) -> list[torch.Tensor] | None:
        """Keep a copy of a piece; return all pieces once they have ``count`` utterances, else None.

        Raises ``LengthError`` where they have more.
        """
        self._pieces.append(piece.clone())
        total = sum(len(p) for p in self._pieces)
        if total < count:
            return None
        if total > count:
            raise LengthError(
                f"pieces of {', '.join(str(len(p)) for p in self._pieces)} utterances in a batch of {count}",
                where=where,
                why="Which of them belong to the batch's utterances is not certain.",
            )
        pieces, self._pieces = self._pieces, []
        return pieces


Labels = Sequence[Sequence[int]]


@dataclass(frozen=True)
class UtteranceLattice:
    """Logits of one utterance's lattice.

    Attributes:
        logits: (T, U+1, V), or (T, W, V) where only W label positions per frame are there.
        begin: (T,) first label position of each frame; None where all positions are there.
    """

    logits: torch.Tensor
    begin: np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None = None

    def nodes(self, form: Form, labels: int, where: str) -> Nodes | None:
        """Return the nodes that are there, in the order in which a store keeps them; None where all are.

        Args:
            form: lattice form of the stream.
            labels: U.
            where: utterance id, for messages.

        Raises ``LengthError`` where the ranges break rule S11 of the specification.
        """
        if self.begin is None:
            return None
        t, width = len(self.logits), self.logits.shape[1]
        kept = band_size(form.size, t, labels)
        try:
            if form.name != "banded" or form.occupancy or kept > width:
                raise FormatError(
                    f"a pruned lattice has {width} label positions per frame, which form {form} cannot store"
                )
            begin = np.minimum(self.begin, labels + 1 - kept)
            if bool((begin != self.begin).any()):
                raise FormatError(f"the ranges of a pruned lattice reach beyond label {labels}")
            nodes = ranges(form, t, labels, begin, kept)
            return restored(form, t, labels, t * kept, stored(nodes), where)
        except FormatError as e:
            raise LengthError(
                e.what,
                where=where,
                why="Ranges lead from the first label position to the last and leave out none.",
                do=f"Store them as banded:{width}, and say where the ranges are: --ranges EXPR.",
            ) from None


def split_padded(output: torch.Tensor, frames: Sequence[int], labels: Labels) -> list[UtteranceLattice]:
    """Split a padded lattice (B, T, U+1, V) into utterances; padding is cut off."""
    return [UtteranceLattice(x[:t, : len(u) + 1]) for x, t, u in zip(output, frames, labels, strict=True)]


def split_packed(
    output: torch.Tensor, frames: Sequence[int], labels: Labels, where: str
) -> list[UtteranceLattice]:
    """Split a packed lattice (N, V); raise ``LengthError`` unless N is the sum of T · (U+1)."""
    try:
        return [UtteranceLattice(x) for x in unpack(output, frames, [len(u) + 1 for u in labels])]
    except LengthError as e:
        raise LengthError(
            e.what,
            where=where,
            why="Rows of one utterance would be stored under the id of another.",
            do="Say where lengths and labels of the packed lattice are: --lengths EXPR, --labels EXPR.",
        ) from None


def split_pruned(
    output: torch.Tensor, positions: torch.Tensor, frames: Sequence[int], labels: Labels, where: str
) -> list[UtteranceLattice]:
    """Split a pruned lattice (B, T, S, V) into utterances.

    Args:
        output: logits.
        positions: (B, T, S) label positions of the logits, consecutive along S.
        frames: T of each utterance.
        labels: label ids of each utterance; an utterance with fewer than S positions keeps those that exist.
        where: location for messages.

    Raises ``LengthError`` where the shapes differ or the positions of a frame have gaps.
    """
    first = positions.detach().cpu().numpy().astype(np.int64)
    if positions.shape != output.shape[:3] or bool((np.diff(first, axis=2) != 1).any()):
        raise LengthError(
            f"ranges of {tuple(positions.shape)} for a pruned lattice of {tuple(output.shape)}",
            where=where,
            why="For each frame they name the label positions of the logits, one behind the other.",
            do="Say where the ranges (B, T, s_range) are: --ranges EXPR.",
        )
    return [
        UtteranceLattice(x[:t, : len(u) + 1], p[:t, 0])
        for x, p, t, u in zip(output, first, frames, labels, strict=True)
    ]
