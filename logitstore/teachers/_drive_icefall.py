"""icefall: ``decoder(y)`` pads its context; ``joiner(enc, dec, project_input=False)``, or an older one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._icefall_joiner import joined
from .joiners import Shared, has, takes


def fits(owner: nn.Module, joint: nn.Module) -> bool:
    """An ``output_linear`` behind an encoder's and a decoder's output, and a ``decoder`` beside it."""
    named = has(joint, "output_linear") and has(owner, "decoder")
    return named and takes(joint, "encoder_out") and takes(joint, "decoder_out")


class Transducer(Shared):
    """A decoder with or without state, and its joiner; see ``_icefall_joiner``."""

    def __init__(self, owner: Any, name: str = "joiner", blank: int | None = None) -> None:
        super().__init__(owner, name, blank, "output_linear")
        self.classes = int(self.joint.output_linear.out_features)
        self.width = int(self.joint.encoder_proj.in_features) if has(self.joint, "encoder_proj") else 0

    def own_blank(self) -> int:
        return int(getattr(self.owner.decoder, "blank_id", 0))

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        return self.joint.encoder_proj(enc) if has(self.joint, "encoder_proj") else enc

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        said = self.owner.decoder(self.begun(labels, device))
        dec: torch.Tensor = (said[0] if isinstance(said, tuple) else said)[0]
        return self.joint.decoder_proj(dec) if has(self.joint, "decoder_proj") else dec

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        return joined(self.joint, enc, dec)
