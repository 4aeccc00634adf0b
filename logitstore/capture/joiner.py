"""The joiner of a recipe as capture meets it: taken as the recipe runs it, or driven here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import LengthError, TapError
from .expression import Expression
from .inject.program import ranges_of
from .lattices import LAYOUTS, Driven, resolve
from .pieces import UtterancePieces, packed, pruned, whole
from .writer import Heard, Shape

Lookup = Callable[[str, torch.Tensor], Any]


class Joiner:
    """Where its logits come from, and what they look like.

    Args:
        job: see ``logitstore.capture.run``.
        lookup: gives the value of a name in the user's program, and of B, T, output.
        say: writes into this process's report.
    """

    def __init__(self, job: dict[str, Any], lookup: Lookup, say: Callable[..., None]) -> None:
        self._job, self._lookup, self._say = job, lookup, say
        self._labels = Expression(job["labels"], "--labels") if job["labels"] else None
        self._ranges = Expression(job["ranges"], "--ranges") if job["ranges"] else None
        self._pieces, self._layout = UtterancePieces(), ""
        self._met: list[tuple[nn.Module, Driven]] = []  # root and transducer of every model, until one runs
        self.driven: Driven | None = None

    def place(self, root: nn.Module, target: nn.Module) -> tuple[nn.Module, str]:
        """What to hook: the module itself, or the encoder that its lattice is driven from."""
        if not self._job["driven"]:
            return target, "output"
        met = resolve(root, self._job)
        if self.driven is None:
            self._met.append((root, met))
        return met.encoder, met.side

    def runs(self, root: nn.Module) -> None:
        """A model runs: its joiner is the one to drive, whatever others there are."""
        found = next((met for top, met in self._met if top is root), None)
        if self.driven is None and found is not None:
            self.driven = found
            self._met.clear()
            self._say(encoder=found.where.removeprefix("--encoder "))

    def logits(self, output: Any, where: str, has_ids: Callable[[torch.Tensor], bool]) -> torch.Tensor:
        """(B, T, U+1, V) or (N, V) of what it gave; or (B, T, D) of the encoder; raises ``TapError``.

        ``has_ids`` tells whether a tensor's first axis is as long as the batch.
        """
        if self.driven is not None:
            return self._encoded(self.driven, output, has_ids)
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
        if len(shape) not in (2, 4) or shape[1:3] == (1, 1):
            raise TapError(
                f"gives {shape or type(output).__name__}, no lattice (B, T, U+1, V)",
                where=where,
                why="A decoding loop runs the joiner once a step, on the way of its own hypothesis; "
                "the lattice of the references is never made.",
                do="Let it be driven: leave out --labels, or name the module that gives the encoder's output "
                "(--encoder PATH).",
            )
        logits = torch.as_tensor(output).detach()
        return logits[..., : logits.shape[-1] - self._job["durations"]]

    def _encoded(self, driven: Driven, output: Any, has_ids: Callable[[torch.Tensor], bool]) -> torch.Tensor:
        """By the width that the joiner takes, and by the ids of the batch."""
        enc = driven.encoded(output)
        fits = [self._layout] if self._layout else driven.layouts(enc, self._job["encoder_layout"])
        turned = [(layout, enc.permute(LAYOUTS[layout])) for layout in fits]
        if len(turned) > 1:
            turned = [(layout, x) for layout, x in turned if has_ids(x)] or turned[:1]
        if len(turned) > 1:
            raise LengthError(
                f"an output of {tuple(enc.shape)} could be {' or '.join(x for x, _ in turned)}",
                where=driven.where,
                do="Say which: --encoder-layout.",
            )
        self._layout, value = turned[0]
        return value

    def gathered(self, logits: torch.Tensor, count: int, where: str) -> list[torch.Tensor] | None:
        """What there is of a batch of ``count``; None while pieces of it are still to come."""
        if self.driven is not None or not self._job["accumulate"]:
            return [logits]
        return self._pieces.add(logits, count, where)

    def parted(self, logits: torch.Tensor) -> bool:
        """Whether its first axis is not the batch."""
        return logits.dim() == 2 or (self.driven is None and bool(self._job["accumulate"]))

    def shape(self, module: nn.Module, logits: torch.Tensor) -> Shape:
        """What the store will say of the heads, as far as a first output (of any of them) shows it."""
        classes, band = int(logits.shape[-1]), 0
        if self.driven is not None:
            drive = self.driven.drive
            normalised = drive.normalised
            if module is self.driven.encoder:
                classes = self.driven.classes(logits) - self._job["durations"]
        else:
            normalised = getattr(module, "blank_pred", None) is not None
            if logits.dim() == 4:
                band = self._band(logits)
        if normalised:
            self._say(rnnt="log-probabilities: a HAT joint has no logits")
        return Shape(classes, self.driven, normalised, band)

    def _band(self, logits: torch.Tensor) -> int:
        """Label positions a frame of a pruned joint, whose ranges are known or stand beside it; 0: whole."""
        beside = not (self._ranges or self._job["accumulate"])
        if beside and (name := ranges_of(logits.shape[:3])):
            self._ranges = Expression(name, "ranges")
            self._say(ranges=name)
        return int(logits.shape[2]) if self._ranges else 0

    def keep(self, heard: Heard, got: list[torch.Tensor], blank: int, where: str) -> None:
        """Put copies of it into a batch: decoders edit logits in place after the layer returns them."""
        first = got[0]
        if self._labels is not None:
            whole_ = first.dim() == 4 and not self._ranges
            most = max(x.shape[2] for x in got) if whole_ else None
            heard.labels = self._rows(self._labels, first, len(heard.ids), most, blank, where)
        if self.driven is not None:
            heard.encoded = first.clone() if heard.wanted else first[:0]
            return
        assert heard.labels is not None
        heard.lattices = []
        for piece in got if heard.wanted else ():
            copy, at = piece.clone(), len(heard.lattices)
            here = slice(at, None if piece.dim() == 2 else at + len(piece))
            frames, labels = heard.lengths[here], heard.labels[here]
            if piece.dim() == 2:
                heard.lattices += packed(copy, frames, labels, where)
            elif self._ranges is not None:
                value = self._ranges.value(lambda name: self._lookup(name, first))
                heard.lattices += pruned(copy, torch.as_tensor(value), frames, labels, where)
            else:
                heard.lattices += whole(copy, frames, labels)

    def _rows(
        self, labels: Expression, logits: torch.Tensor, count: int, most: int | None, blank: int, where: str
    ) -> tuple[tuple[int, ...], ...]:
        """Labels of every utterance: rows of ids, padded with the blank or negative ids."""
        value = labels.value(lambda name: self._lookup(name, logits))
        rows = [list(map(int, row)) for row in (value.tolist() if hasattr(value, "tolist") else value)]
        for row in rows:
            while row and (row[-1] < 0 or row[-1] == blank):
                row.pop()
        longest = max(map(len, rows), default=0)
        if len(rows) != count or (most is not None and longest + 1 > most):
            raise LengthError(
                f"labels of {len(rows)} utterances, at most {longest} each, for a lattice of "
                f"{tuple(logits.shape)}",
                where=where,
                why="A k2-pruned joint (B, T, s_range, V) holds some label positions of each frame only: "
                "which, its ranges say.",
                do="Say where the reference labels are: --labels EXPR; and the ranges of a pruned joint: "
                "--ranges EXPR.",
            )
        return tuple(map(tuple, rows))
