"""Rows without a target in a batch, for utterances that a store does not hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from ..encodings.rows import NOTHING
from ..errors import UsageError
from .batch import TargetBatch
from .resample import follows_frames
from .stream_batch import FactoredBatch

MISSING = ("error", "mask", "skip")
PADDING = {"logp": NOTHING, "tail": NOTHING}  # of tensors that are not padded with 0
OF_THE_HEAD = frozenset({"weight", "bias", "to"})  # tensors of a FactoredBatch without the axis B


def check_missing(missing: str) -> None:
    """Raise ``UsageError`` for an unknown treatment of utterances without a target."""
    if missing not in MISSING:
        raise UsageError(f"missing={missing!r} is unknown", do=f"Known: {', '.join(MISSING)}.")


def with_masked_rows(
    batch: TargetBatch, utt_ids: Sequence[str], held: Sequence[int], frames: Sequence[int] | None
) -> TargetBatch:
    """Return a batch of all utterances, with the rows masked of those that have no target.

    Args:
        batch: targets of the utterances that have one; where none has, of any utterance, which is left out.
        utt_ids: B names, with and without a target.
        held: positions among ``utt_ids`` of the utterances that have a target, in order.
        frames: (B,) valid frames of the student; None at the teacher's frames.

    Returns:
        A batch of B rows. A row without a target has a length of 0, no labels, and a mask that is False. With
        ``frames``, T is the largest of them. A batch without any target has no label positions either.
    """
    count, rows = len(utt_ids), torch.tensor(held, dtype=torch.int64)
    width = max(frames) if frames is not None else batch.mask.shape[1]

    def spread(tensor: torch.Tensor, fill: float = 0, axes: dict[int, int] | None = None) -> torch.Tensor:
        """Return the tensor with B rows, and with other sizes of some axes."""
        shape = [count, *tensor.shape[1:]]
        for axis, size in (axes or {}).items():
            shape[axis] = size
        out = tensor.new_full(tuple(shape), fill)
        part = tensor[: len(rows)]
        for axis, size in (axes or {}).items():
            part = part.narrow(axis, 0, min(size, part.shape[axis]))
        inside: Any = (rows, *(slice(size) for size in part.shape[1:]))
        out[inside] = part
        return out

    def spread_stream(name: str, stream: Any) -> Any:
        tensors = {f.name: getattr(stream, f.name) for f in fields(stream)}
        of_the_head = OF_THE_HEAD if isinstance(stream, FactoredBatch) else ()
        one_a_frame = follows_frames(name) and tensors.get("frames") is None  # a path has nodes instead
        spread_tensors = {}
        for key, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor) or key in of_the_head:
                continue
            axes = {1: width} if one_a_frame and key != "dec" else {}
            if not held and stream.mask.dim() == 3:
                axes |= {1: 1} if key == "dec" else {}
                axes |= {2: 1} if key in ("logp", "ids", "tail", "mask", "positions", "occupancy") else {}
            spread_tensors[key] = spread(tensor, PADDING.get(key, 0), axes)
        return replace(stream, **spread_tensors)

    no_labels = {} if held else {1: 0}
    labels: dict[str, Any] = {
        name: spread(tensor, axes=no_labels)
        for name in ("labels", "label_mask")
        if (tensor := getattr(batch, name)) is not None
    }
    if batch.label_lengths is not None:
        labels["label_lengths"] = spread(batch.label_lengths)
    return replace(
        batch,
        utt_ids=tuple(utt_ids),
        lengths=spread(batch.lengths),
        mask=spread(batch.mask, axes={1: width}),
        streams={name: spread_stream(name, stream) for name, stream in batch.streams.items()},
        driven={name: spread(ids) for name, ids in batch.driven.items()},
        **labels,
    )
