"""ESPnet: ``decoder(labels)``, ``joint_network.{lin_enc,lin_dec,lin_out}`` and ``no_projection``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .joiners import Shared, has, takes


def fits(owner: nn.Module, joint: nn.Module) -> bool:
    """``lin_enc`` and ``lin_dec`` beside ``lin_out``, and a ``decoder``."""
    return (
        has(joint, "lin_enc", "lin_dec", "lin_out")
        and takes(joint, "no_projection")
        and has(owner, "decoder")
    )


class Transducer(Shared):
    """A transducer decoder and its joint network."""

    def __init__(self, owner: Any, name: str = "joint_network", blank: int | None = None) -> None:
        super().__init__(owner, name, blank, "lin_out")
        self.classes, self.width = int(self.joint.lin_out.out_features), int(self.joint.lin_enc.in_features)
        if getattr(owner, "postencoder", None) is not None:
            self.encoder = "postencoder"

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.joint.lin_enc(enc)
        return value

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        value: torch.Tensor = self.joint.lin_dec(predicted(self.owner.decoder, self.begun(labels, device)))
        return value

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.joint(enc[None, :, None], dec[None, None], no_projection=True)
        return logits[0]


def predicted(decoder: Any, ids: torch.Tensor) -> torch.Tensor:
    """What a prediction network says: (1, U+1) → (U+1, D).

    RWKV's forward is a CUDA kernel for training; like ESPnet's search, it is asked label by label instead.
    """
    decoder.set_device(ids.device)
    if not hasattr(decoder, "rwkv_blocks"):
        said: torch.Tensor = decoder(ids)[0]
        return said
    state, rows = decoder.init_state(1), []
    for label in ids[0]:
        row, state = decoder.inference(label[None, None], state)
        rows.append(row[0, 0])
    return torch.stack(rows)
