"""transformers: ``decoder(ids)`` and ``joint(…)`` of both sides by name, projected already.

The projection of the encoder stands outside the joint: ``encoder_projector``. The durations of a TDT joint
are left out of V.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .joiners import Shared, has, takes


def fits(owner: nn.Module, joint: nn.Module) -> bool:
    """A ``joint`` with a ``head``, told its sides by their names, and a ``decoder``."""
    sides = ("encoder_hidden_states", "decoder_hidden_states")
    return has(joint, "head") and has(owner, "decoder", "config") and all(takes(joint, s) for s in sides)


class Transducer(Shared):
    """A prediction network and its joint (Parakeet, Nemotron)."""

    encoder = "encoder_projector"

    def __init__(self, owner: Any, name: str = "joint", blank: int | None = None) -> None:
        super().__init__(owner, name, blank, "head")
        self.classes, self.width = int(owner.config.vocab_size), int(self.joint.head.in_features)

    def own_blank(self) -> int:
        config = self.owner.config
        blank: int | None = getattr(config, "blank_token_id", None)
        return int(config.pad_token_id) if blank is None else blank

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        return enc

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        value: torch.Tensor = self.owner.decoder(self.begun(labels, device))[0]
        return value

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.joint(encoder_hidden_states=enc[:, None], decoder_hidden_states=dec[None])
        return logits[..., : self.classes]
