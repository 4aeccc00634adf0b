"""SpeechBrain: a transducer searcher and what its lists hold; the encoder's output is its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import TeacherError
from .joiners import has


def fits(owner: nn.Module, joint: nn.Module) -> bool:
    """A searcher, by what it has: its class has moved before."""
    return joint is getattr(owner, "tjoint", None) and has(owner, "decode_network_lst", "classifier_network")


class Transducer:
    """The lists of a searcher; of its classifier what stands before the softmax."""

    normalised, encoder, side, width = False, "", "input", 0

    def __init__(self, owner: Any, name: str = "tjoint", blank: int | None = None) -> None:
        layers = list(owner.classifier_network)
        linear = [i for i, m in enumerate(layers) if isinstance(getattr(m, "w", m), nn.Linear)]
        if not linear:
            raise TeacherError("its classifier_network has no Linear layer")
        last = layers[linear[-1]]
        self.prediction = nn.ModuleList(owner.decode_network_lst)
        self.classifier = nn.ModuleList(layers[: linear[-1] + 1])
        parts = {"prediction": self.prediction, "tjoint": owner.tjoint, "classifier": self.classifier}
        self.model: nn.Module = nn.ModuleDict(parts)
        for container in (self.model, self.prediction, self.classifier):
            container.training = owner.training  # not train(): what they hold is the recipe's
        self.head = f"classifier.{linear[-1]}{'.w' if hasattr(last, 'w') else ''}"
        self.classes = int(getattr(last, "w", last).out_features)
        self.blank = int(owner.blank_id) if blank is None else blank
        self._join: Any = owner.tjoint

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        return enc

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        said: Any = torch.tensor([[self.blank, *labels]], device=device)
        for layer in self.prediction:
            said = layer(said)
            said = said[0] if isinstance(said, tuple) else said
        value: torch.Tensor = said[0]
        return value

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        joint: torch.Tensor = self._join(enc[None, :, None], dec[None, None])
        for layer in self.classifier:
            joint = layer(joint)
        return joint[0]
