"""WeNet: ``predictor(ys)``, ``joint.{enc_ffn,pred_ffn,ffn_out}`` and ``pre_project``; HAT too."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .joiners import Shared, has, takes


def fits(owner: nn.Module, joint: nn.Module) -> bool:
    """A ``joint`` that can be told not to project, and a ``predictor``."""
    return has(owner, "predictor") and takes(joint, "pre_project")


class Transducer(Shared):
    """A predictor and its joint."""

    def __init__(self, owner: Any, name: str = "joint", blank: int | None = None) -> None:
        joint = getattr(owner, name)
        self.normalised = getattr(joint, "ffn_out", None) is None
        super().__init__(owner, name, blank, "" if self.normalised else "ffn_out")
        linears = [m for m in joint.modules() if isinstance(m, nn.Linear)]  # of HAT, the tokens' comes last
        self.classes = linears[-1].out_features + 1 if self.normalised else int(joint.ffn_out.out_features)
        self.width = int(joint.enc_ffn.in_features) if has(joint, "enc_ffn") else 0

    def own_blank(self) -> int:
        return int(getattr(self.owner, "blank", 0))

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.joint.enc_ffn(enc) if has(self.joint, "enc_ffn") else enc
        return value

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        dec: torch.Tensor = self.owner.predictor(self.begun(labels, device))[0]
        return self.joint.pred_ffn(dec) if has(self.joint, "enc_ffn") else dec

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.joint(enc[None], dec[None], pre_project=False)
        return logits[0]
