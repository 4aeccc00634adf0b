"""icefall: ``decoder(y)`` pads its context, ``joiner(enc, dec, project_input=False)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .base import Shared, has, takes


def fits(owner: nn.Module, joint: nn.Module) -> bool:
    """``encoder_proj`` and ``decoder_proj`` beside ``output_linear``, and a ``decoder``."""
    projections = has(joint, "encoder_proj", "decoder_proj", "output_linear")
    return projections and takes(joint, "project_input") and has(owner, "decoder")


class Transducer(Shared):
    """A decoder with or without state, and its joiner."""

    def __init__(self, owner: Any, name: str = "joiner", blank: int | None = None) -> None:
        super().__init__(owner, name, blank, "output_linear")
        self.classes = int(self.joint.output_linear.out_features)
        self.width = int(self.joint.encoder_proj.in_features)

    def own_blank(self) -> int:
        return int(getattr(self.owner.decoder, "blank_id", 0))

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.joint.encoder_proj(enc)
        return value

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        said = self.owner.decoder(self.begun(labels, device))
        value: torch.Tensor = self.joint.decoder_proj((said[0] if isinstance(said, tuple) else said)[0])
        return value

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.joint(enc[None, :, None], dec[None, None], project_input=False)
        return logits[0]
