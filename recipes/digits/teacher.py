"""A trained digits head as a logitstore teacher: `DIGITS_HEAD=DIR/500 logitstore dump --teacher …:load`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open

from logitstore.teachers.protocol import TeacherSpec

sys.path.append(str(Path(__file__).resolve().parents[2]))

from recipes.demo.model import AsrModel, Sizes
from recipes.demo.teacher import DemoTeacher


class DigitsTeacher(DemoTeacher):
    """The demo recogniser's model, trained on digits; `branches` says which of its two are."""

    def __init__(self, model: AsrModel, tokens: Path, branches: frozenset[str]) -> None:
        super().__init__(model, tokens)
        self._branches = branches

    def describe(self) -> TeacherSpec:
        """Say the rates, the heads that were trained and the features."""
        spec = super().describe()
        heads = tuple(h for h in spec.heads if h.stream in self._branches)
        return replace(spec, name="digits", heads=heads)


def load(head: Path | str = "") -> DigitsTeacher:
    """Read what `train.py` wrote: `head` (or DIGITS_HEAD) is its folder and number of classes, `DIR/500`."""
    head = str(head or os.environ["DIGITS_HEAD"])
    with safe_open(f"{head}.safetensors", framework="pt") as file:
        sizes = Sizes(**json.loads(file.metadata()["sizes"]))
        branches = frozenset(json.loads(file.metadata()["token_error"]))
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    model = AsrModel(sizes)
    model.load_state_dict(state)
    return DigitsTeacher(model.requires_grad_(False), Path(f"{head}.tokens.txt"), branches)
