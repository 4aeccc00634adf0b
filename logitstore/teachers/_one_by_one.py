"""Utterances encoded one by one, and the frame shift measured by doing so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..errors import UsageError

BATCHES = ("alone", "together")


def read_alone(asked: Mapping[str, str], default: str = "alone") -> bool:
    """The option ``batch=alone`` or ``batch=together``; raises ``UsageError`` for anything else."""
    said = asked.get("batch", default)
    if said not in BATCHES:
        raise UsageError(f"batch={said} is neither {' nor '.join(BATCHES)}", where="--teacher")
    return said == "alone"


def one_by_one(
    encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    lengths: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode each utterance without padding: (B, T0, F) and (B,) → (B, T, D), zero-padded, and frames (B,).

    Args:
        encode: (1, n, F) and (1,) → (1, T, D).
        features: of the batch; whatever follows (B, T0) is passed on.
        lengths: (B,).
    """
    rows = [encode(f[None, :n], n[None])[0] for f, n in zip(features, lengths, strict=True)]
    frames = torch.tensor([len(row) for row in rows], device=features.device)
    return pad_sequence(rows, batch_first=True), frames


def measured_shift(teacher: Any, rate: int) -> int:
    """Samples between two teacher frames, measured on 4 and 16 s of noise.

    No two frameworks name all their strides the same, and some name none. The 12 s between are a multiple of
    the usual ones, that of three or six features too.
    """
    noise = np.random.default_rng(0).standard_normal(16 * rate).astype(np.float32) * np.float32(0.1)
    device = next(teacher.model.parameters()).device
    frames = []
    with torch.inference_mode():
        for seconds in (4, 16):
            x = teacher.features(noise[: seconds * rate])
            output = teacher.forward(x[None].to(device), torch.tensor([len(x)], device=device))
            frames.append(int(teacher.lengths(output)[0]))
    return round(12 * rate / (frames[1] - frames[0]))
