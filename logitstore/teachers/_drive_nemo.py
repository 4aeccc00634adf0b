"""NeMo: ``decoder.predict``, ``joint.joint_after_projection``; RNN-T, TDT and HAT joints.

``joint()`` gives logits on a GPU and log-probabilities on a CPU: here its log_softmax is off while the joint
runs. The durations of a TDT joint are left out of V; a HAT joint has no logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .joiners import Shared, has, held


def fits(owner: nn.Module, joint: nn.Module) -> bool:
    """Both projections beside ``joint_after_projection``, and a ``decoder`` that predicts."""
    methods = has(joint, "project_encoder", "project_prednet", "joint_after_projection", "joint_net")
    return methods and has(getattr(owner, "decoder", None), "predict")


class Transducer(Shared):
    """A prediction network and its joint; the blank is the last class."""

    def __init__(self, owner: Any, name: str = "joint", blank: int | None = None) -> None:
        joint = getattr(owner, name)
        self.classes = int(joint.num_classes_with_blank - joint.num_extra_outputs)
        self.normalised = hasattr(joint, "blank_pred")
        self._plain = {"return_hat_ilm" if self.normalised else "log_softmax": False}
        head = "joint_after_projection()" if self.normalised else f"joint_net.{len(joint.joint_net) - 1}"
        super().__init__(owner, name, blank, head)
        self.width = int(getattr(joint.enc, "in_features", 0))

    def own_blank(self) -> int:
        return self.classes - 1

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.joint.project_encoder(enc[None])[0]
        return value

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        ids = torch.tensor([labels], dtype=torch.long, device=device)
        said = self.owner.decoder.predict(ids, add_sos=True)[0]
        value: torch.Tensor = self.joint.project_prednet(said)[0]
        return value

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        with held(self.joint, **self._plain):
            logits: torch.Tensor = self.joint.joint_after_projection(enc[None], dec[None])[0]
        return logits[..., : self.classes]

    def labels(self, text: str) -> list[int]:
        """Token ids of a text; raises ``ValueError`` for one that has none."""
        return labels_of(self.owner, text)


def labels_of(model: Any, text: str) -> list[int]:
    """Token ids by a NeMo model's own tokenizer; raises ``ValueError`` for a text that has none."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        owner = model.joint if hasattr(model, "joint") else model.decoder
        known = {str(t): i for i, t in enumerate(owner.vocabulary)}
        if unknown := [c for c in text if c not in known]:
            raise ValueError(f"{text!r} does not tokenise: {unknown[0]!r} is not in the vocabulary")
        return [known[c] for c in text]
    ids = [int(i) for i in tokenizer.text_to_ids(text)]
    if getattr(tokenizer, "unk_id", None) in ids:
        raise ValueError(f"{text!r} does not tokenise: it becomes {ids}")
    return ids
