"""Capture of a joiner: its own output, or the encoder output that capture runs it on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import LengthError, TapError
from .expression import Expression
from .inject.program import variable_of_shape
from .job import CaptureOptions
from .lattices import TO_BTD, RecipeTransducer, find_transducer
from .locate import BatchLocator
from .pieces import UtterancePieces, split_packed, split_padded, split_pruned
from .writer import CapturedBatch, HeadShape


class JoinerCapture:
    """Source of a capture's lattices.

    Args:
        options: settings of the capture.
        locator: answers about the batch at work.
        note: function that tells the user a finding, by name and text.

    Attributes:
        transducer: transducer whose joiner capture runs; None until its model has run, and where the joiner's
            own output is stored.
    """

    def __init__(
        self, options: CaptureOptions, locator: BatchLocator, note: Callable[[str, str], None]
    ) -> None:
        self._options, self._lookup, self._note = options, locator.lookup, note
        self._require_model_order = locator.require_model_order
        self._labels = Expression(options.labels, "--labels") if options.labels else None
        self._ranges = Expression(options.ranges, "--ranges") if options.ranges else None
        self._pieces, self._layout = UtterancePieces(), ""
        self._candidates: list[tuple[nn.Module, RecipeTransducer]] = []  # with the root of its model
        self.transducer: RecipeTransducer | None = None

    def hook_at(self, root: nn.Module, joiner: nn.Module) -> tuple[nn.Module, str]:
        """Return the module to hook, and ``output`` or ``input``: the joiner itself, or the encoder."""
        if not self._options.runs_joiner:
            return joiner, "output"
        found = find_transducer(root, self._options)
        if self.transducer is None:
            self._candidates.append((root, found))
        return found.encoder, found.side

    def model_runs(self, root: nn.Module) -> None:
        """Choose the transducer of the model that runs first; models that never run are ignored."""
        found = next((transducer for top, transducer in self._candidates if top is root), None)
        if self.transducer is None and found is not None:
            self.transducer = found
            self._candidates.clear()
            self._note("encoder", found.where.removeprefix("--encoder "))

    def take(self, output: Any, where: str, has_ids: Callable[[torch.Tensor], bool]) -> torch.Tensor:
        """Return (B, T, U+1, V) or (N, V) logits of the joiner, or (B, T, D) encoder frames.

        Args:
            output: output of the hooked module.
            where: location for messages.
            has_ids: function that tells whether a tensor's first axis is as long as the batch.

        Raises ``TapError`` or ``LengthError`` where the output is neither.
        """
        if self.transducer is not None:
            return self._encoder_frames(self.transducer, output, has_ids)
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
        if len(shape) not in (2, 4) or shape[1:3] == (1, 1):
            raise TapError(
                f"gives {shape or type(output).__name__}, no lattice (B, T, U+1, V)",
                where=where,
                why="A decoding loop runs the joiner once a step, along its own hypothesis; it never "
                "computes the lattice of the references.",
                do="Let capture run the joiner: leave out --labels, or name the module that gives the "
                "encoder's output (--encoder PATH).",
            )
        logits = torch.as_tensor(output).detach()
        return logits[..., : logits.shape[-1] - self._options.durations]

    def _encoder_frames(
        self, transducer: RecipeTransducer, output: Any, has_ids: Callable[[torch.Tensor], bool]
    ) -> torch.Tensor:
        """Return (B, T, D); the axes are found by the joiner's input width and the number of ids."""
        frames = transducer.encoder_frames(output)
        if self._layout:
            return frames.permute(TO_BTD[self._layout])
        layouts = transducer.possible_layouts(frames, self._options.encoder_layout)
        if len(layouts) > 1:
            layouts = [x for x in layouts if has_ids(frames.permute(TO_BTD[x]))] or layouts[:1]
        if len(layouts) > 1:
            raise LengthError(
                f"an output of {tuple(frames.shape)} could be {' or '.join(layouts)}",
                where=transducer.where,
                do="Say which: --encoder-layout.",
            )
        self._layout = layouts[0]
        return frames.permute(TO_BTD[self._layout])

    def complete(self, logits: torch.Tensor, count: int, where: str) -> list[torch.Tensor] | None:
        """Return the pieces of a batch of ``count`` utterances; None while some are still to come."""
        if self.transducer is not None or not self._options.accumulate:
            return [logits]
        return self._pieces.add(logits, count, where)

    def is_partial(self, logits: torch.Tensor) -> bool:
        """Return whether an output's first axis is not the batch: packed, or one of several pieces."""
        return logits.dim() == 2 or (self.transducer is None and bool(self._options.accumulate))

    def head_shape(self, module: nn.Module, logits: torch.Tensor) -> HeadShape:
        """Return what the store records of the heads, by the first output of any of them."""
        classes, band = int(logits.shape[-1]), 0
        if self.transducer is not None:
            normalised = self.transducer.adapter.normalised
            if module is self.transducer.encoder:
                classes = self.transducer.classes(logits) - self._options.durations
        else:
            normalised = getattr(module, "blank_pred", None) is not None  # WeNet's HAT joiner
            if logits.dim() == 4:
                band = self._band(logits)
        if normalised:
            self._note("rnnt", "log-probabilities: a HAT joiner has no logits")
        return HeadShape(classes, self.transducer, normalised, band)

    def _band(self, logits: torch.Tensor) -> int:
        """Return the label positions per frame of a pruned lattice; 0 for a whole one.

        A lattice is pruned where its ranges are given, or where a variable of their shape stands beside it.
        """
        may_be_found = not self._ranges and not self._options.accumulate
        if may_be_found and (name := variable_of_shape(logits.shape[:3])):
            self._ranges = Expression(name, "ranges")
            self._note("ranges", name)
        return int(logits.shape[2]) if self._ranges else 0

    def add_to(self, batch: CapturedBatch, pieces: list[torch.Tensor], blank: int, where: str) -> None:
        """Put copies of the joiner's or encoder's output into a batch.

        Copies, because decoders edit logits in place after the module has returned them.
        """
        first = pieces[0]
        if self._labels is not None:
            most: int | None = None
            if first.dim() == 4 and not self._ranges:
                most = max(x.shape[2] for x in pieces)
            batch.labels = self._label_rows(self._labels, first, len(batch.ids), most, blank, where)
        if self.transducer is not None:
            batch.encoded = first.clone() if batch.wanted else first[:0]
            return
        assert batch.labels is not None
        batch.lattices = []
        for piece in pieces if batch.wanted else ():
            copy = piece.clone()
            begin = len(batch.lattices)
            if piece.dim() == 2:  # packed: of all utterances that remain
                lengths, labels = batch.lengths[begin:], batch.labels[begin:]
                batch.lattices += split_packed(copy, lengths, labels, where)
                continue
            end = begin + len(piece)
            lengths, labels = batch.lengths[begin:end], batch.labels[begin:end]
            if self._ranges is not None:
                positions = self._ranges.value(lambda name: self._lookup(name, first))
                batch.lattices += split_pruned(copy, torch.as_tensor(positions), lengths, labels, where)
            else:
                batch.lattices += split_padded(copy, lengths, labels)

    def _label_rows(
        self, labels: Expression, logits: torch.Tensor, count: int, most: int | None, blank: int, where: str
    ) -> tuple[tuple[int, ...], ...]:
        """Return the label ids of each utterance, padding (the blank, or negative ids) removed.

        Args:
            labels: expression for the padded rows.
            logits: joiner output of the batch.
            count: B.
            most: U+1 of a padded lattice; None where it cannot be known.
            blank: id of the blank.
            where: location for messages.
        """
        self._require_model_order(labels, "--labels")
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
                why="A pruned lattice (B, T, s_range, V) holds only some label positions of each frame, "
                "which its ranges name.",
                do="Say where the reference labels are: --labels EXPR; and the ranges of a pruned lattice: "
                "--ranges EXPR.",
            )
        return tuple(map(tuple, rows))
