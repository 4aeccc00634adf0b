"""Hidden layers of a teacher as ``hidden`` streams: named by the user, split into utterances."""

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

LEAST_FRAMES = 6  # fewer frames than these may be mostly padding, so the frame rate is not checked by them
RATE_TOLERANCE = 1.5  # factor by which a layer's frames may differ from the teacher's


def parse_layer(text: str, blank: int) -> Head:
    """Parse ``[NAME=]PATH[:LAYOUT]``, e.g. ``hidden_3=encoder:BVT``; raises ``UsageError``."""
    found = re.fullmatch(r"(?:([a-z0-9_]+)=)?([^=:]+)(?::([A-Z]{3}))?", text)
    if not found:
        raise UsageError(
            f"--hidden {text!r}", do="Write [NAME=]PATH[:LAYOUT], e.g. hidden_3=encoder.layers.3."
        )
    name, layout = found[1] or "hidden", found[3] or "BTV"
    if kind_of(name).name != "hidden":
        raise UsageError(
            f"--hidden {text!r}: {name} is not the name of a hidden stream",
            do="Call it hidden or hidden_NAME.",
        )
    if layout not in LAYOUTS:
        raise UsageError(f"--hidden {text!r}: no layout {layout!r}", do=suggest(layout, LAYOUTS))
    return Head(name, found[2], blank, layout)


def with_layers(teacher: Teacher, layers: Sequence[Head]) -> Teacher:
    """Return the teacher with these layers among its heads; the teacher itself where there are none."""
    found: Any = TeacherWithLayers(teacher, layers) if layers else teacher
    checked: Teacher = found
    return checked


class TeacherWithLayers:
    """Teacher that describes further layers; all other methods are the given teacher's.

    Args:
        teacher: any teacher.
        layers: heads to add; they replace the teacher's own heads of the same stream.
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
        """Return the teacher's description with the layers added."""
        spec, names = self._teacher.describe(), {layer.stream for layer in self._layers}
        own = tuple(h for h in spec.heads if h.stream not in names)
        return replace(spec, heads=(*own, *self._layers))


def split_layer(
    stream: str, calls: Sequence[torch.Tensor], lengths: Sequence[int], padded: int
) -> list[torch.Tensor]:
    """Split a layer's output of one batch into (T, D) of every utterance.

    Args:
        stream: name of the stream, for errors.
        calls: outputs of the layer's calls: one of (B, T, D), or B of (1, T, D) where the teacher encodes
            each utterance alone.
        lengths: valid frames of every utterance.
        padded: frames of the batch at the teacher's rate.

    Raises ``LengthError`` for another layout and for a layer of another frame rate.
    """
    b, shapes = len(lengths), [tuple(c.shape) for c in calls]
    alone = len(calls) == b > 1 and all(c.dim() == 3 and len(c) == 1 for c in calls)
    together = len(calls) == 1 and calls[0].dim() == 3 and len(calls[0]) == b
    if not alone and not together:
        raise LengthError(
            f"{stream} gives {', '.join(map(str, shapes[:4]))} for a batch of {b}, not (B, T, D)",
            why="The utterance that each number belongs to would be a guess.",
            do="Name its layout, PATH:BVT or PATH:TBV; or choose another layer, which runs once a batch.",
        )
    each = [c[0] for c in calls] if alone else list(calls[0])
    for x, valid in zip(each, lengths, strict=True):
        frames, expected = len(x), valid if alone else padded
        same_rate = expected / RATE_TOLERANCE < frames < expected * RATE_TOLERANCE
        if frames < valid or (expected >= LEAST_FRAMES and not same_rate):
            raise LengthError(
                f"{stream} gives {frames} frames where the teacher has {expected}",
                why="A layer before or inside the subsampling runs at another rate than the targets.",
                do="Name a layer at the rate of the teacher's output.",
            )
    return [x[:valid] for x, valid in zip(each, lengths, strict=True)]
