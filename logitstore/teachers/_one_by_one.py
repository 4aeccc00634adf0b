"""Base of the framework teachers: batches encoded one by one or padded, and the frame shift measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..errors import UsageError

BATCHES = ("alone", "together")


def read_alone(options: Mapping[str, str], default: str = "alone") -> bool:
    """Read the option ``batch``: true for ``alone``, false for ``together``; raises ``UsageError``."""
    batch = options.get("batch", default)
    if batch not in BATCHES:
        raise UsageError(f"batch={batch} is neither {' nor '.join(BATCHES)}", where="--teacher")
    return batch == "alone"


class EncoderTeacher:
    """Base of teachers with a ``forward`` that gives a dict with ``lengths`` (B,), the valid frames.

    Attributes:
        model: the framework's model in eval mode.
        alone: encode each utterance without padding. Convolutions at the edge of a recording see the padding
            behind it, so the same utterance gives other numbers in another batch.
    """

    model: Any
    alone: bool

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the encoder on a padded batch: (B, T, D) and valid frames (B,)."""
        raise NotImplementedError

    def encode_one(self, features: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Run the encoder on one utterance (1, T0, F) of length (1,): (1, T, D)."""
        return self.encode(features, length)[0]

    def encode_batch(
        self, features: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a batch utterance by utterance or at once, as ``alone`` says; see :meth:`encode`."""
        if not self.alone:
            return self.encode(features, lengths)
        rows = [self.encode_one(f[None, :n], n[None])[0] for f, n in zip(features, lengths, strict=True)]
        frames = torch.tensor([len(row) for row in rows], device=features.device)
        return pad_sequence(rows, batch_first=True), frames

    def lengths(self, output: Any) -> torch.Tensor:
        lengths: torch.Tensor = output["lengths"]
        return lengths


def measured_shift(teacher: Any, rate: int) -> int:
    """Measure the samples between two teacher frames on 4 s and 16 s of noise.

    Frameworks name their strides differently or not at all. The 12 s between the two are a whole number of
    frames for the usual strides, those of three or six feature frames included.
    """
    noise = np.random.default_rng(0).standard_normal(16 * rate).astype(np.float32) * np.float32(0.1)
    device = next(teacher.model.parameters()).device
    frames = []
    with torch.inference_mode():
        for seconds in (4, 16):
            features = teacher.features(noise[: seconds * rate])
            length = torch.tensor([len(features)], device=device)
            output = teacher.forward(features[None].to(device), length)
            frames.append(int(teacher.lengths(output)[0]))
    return round(12 * rate / (frames[1] - frames[0]))
