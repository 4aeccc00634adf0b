"""Any layer of a teacher as a ``hidden`` stream: named by the user, cut into utterances."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..errors import LengthError, UsageError
from ..registry import suggest
from ..schema.kinds import kind_of
from ..schema.spec import Head, TeacherSpec
from .protocol import Teacher
from .tap import LAYOUTS

FEW = 6  # frames from which padding is no more than half of them


def parse_layer(text: str, blank: int) -> Head:
    """``[NAME=]PATH[:LAYOUT]``, e.g. ``encoder.3``, ``hidden_3=encoder:BVT``; raises ``UsageError``."""
    found = re.fullmatch(r"(?:([a-z0-9_]+)=)?([^=:]+)(?::([A-Z]{3}))?", text)
    if not found:
        raise UsageError(f"--hidden {text!r}", do="Say [NAME=]PATH[:LAYOUT], e.g. hidden_3=encoder.layers.3.")
    name, layout = found[1] or "hidden", found[3] or "BTV"
    if kind_of(name).name != "hidden":
        raise UsageError(
            f"--hidden {text!r}: {name} is no layer's stream", do="Call it hidden or hidden_NAME."
        )
    if layout not in LAYOUTS:
        raise UsageError(f"--hidden {text!r}: no layout {layout!r}", do=suggest(layout, LAYOUTS))
    return Head(name, found[2], blank, layout)


class Layered:
    """A teacher that names further layers; all else is its own.

    Args:
        teacher: any.
        layers: to add to the heads that it describes; they win over its own of the same stream.
    """

    def __init__(self, teacher: Teacher, layers: Sequence[Head]) -> None:
        names = [layer.stream for layer in layers]
        if twice := {n for n in names if names.count(n) > 1}:
            raise UsageError(
                f"{', '.join(sorted(twice))} names two layers", do="Name each: --hidden hidden_3=PATH."
            )
        self._teacher, self._layers = teacher, tuple(layers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)

    def describe(self) -> TeacherSpec:
        """The teacher's own, and the layers."""
        spec, names = self._teacher.describe(), {layer.stream for layer in self._layers}
        own = tuple(h for h in spec.heads if h.stream not in names)
        return replace(spec, heads=(*own, *self._layers))


def layered(teacher: Teacher, layers: Sequence[Head]) -> Teacher:
    """The teacher with these layers; itself where there are none."""
    found: Any = Layered(teacher, layers) if layers else teacher
    checked: Teacher = found
    return checked


def by_utterance(
    stream: str, calls: Sequence[torch.Tensor], lengths: Sequence[int], padded: int
) -> list[torch.Tensor]:
    """(T, D) of every utterance, of what a layer gave in one batch: at once, or utterance by utterance.

    Args:
        stream: its name.
        calls: (B, T, D); or B of (1, T, D), where the teacher encodes each utterance alone.
        lengths: valid frames.
        padded: frames of the batch at the teacher's rate.

    Raises ``LengthError`` for another layout, and for a layer of another frame rate.
    """
    b, shapes = len(lengths), [tuple(c.shape) for c in calls]
    alone = len(calls) == b > 1 and all(c.dim() == 3 and len(c) == 1 for c in calls)
    if not alone and not (len(calls) == 1 and calls[0].dim() == 3 and len(calls[0]) == b):
        raise LengthError(
            f"{stream} gives {', '.join(map(str, shapes[:4]))} for a batch of {b}, not (B, T, D)",
            why="Which numbers are whose would be a guess.",
            do="Name its layout, PATH:BVT or PATH:TBV; or another layer, that runs once a batch.",
        )
    each = [c[0] for c in calls] if alone else list(calls[0])
    for x, t in zip(each, lengths, strict=True):
        frames, own = len(x), t if alone else padded
        if frames < t or (own >= FEW and not own / 1.5 < frames < own * 1.5):
            raise LengthError(
                f"{stream} gives {frames} frames where the teacher has {own}",
                why="A layer before subsampling, or inside it, runs at another rate than the targets.",
                do="Name a layer at the rate of the teacher's output.",
            )
    return [x[:t] for x, t in zip(each, lengths, strict=True)]
