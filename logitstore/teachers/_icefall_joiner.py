"""The joiners of icefall's recipes, from the first to today's: one slice of frames against all labels.

| recipes | ``joiner(…)`` |
|---|---|
| ``pruned_transducer_stateless2`` to ``8``, ``zipformer``, ``lstm_…``, ``tiny_…`` | 4-D, ``project_input`` |
| ``pruned_transducer_stateless`` | 4-D of the same shape on both sides, a layer more behind the tanh |
| ``transducer_stateless`` | 3-D and their lengths; rows packed, (ΣTU, V) |
| ``transducer_stateless2`` | 3-D; in eval mode axes of one are squeezed away |
| ``transducer``, ``transducer_lstm`` | 3-D |
"""

from __future__ import annotations

import inspect
from typing import Any

import torch


def joined(joiner: Any, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
    """(t, J) and (U+1, J), projected where the joiner projects → (t, U+1, V)."""
    t, u = len(enc), len(dec)
    if hasattr(joiner, "encoder_proj"):
        said = joiner(enc[None, :, None], dec[None, None], project_input=False)
    elif hasattr(joiner, "inner_linear"):
        said = joiner(enc[None, :, None].expand(1, t, u, -1), dec[None, None].expand(1, t, u, -1))
    elif len(inspect.signature(joiner.forward).parameters) > 2:
        said = joiner(enc[None], dec[None], torch.tensor([t]), torch.tensor([u]))
    else:
        said = joiner(enc[None], dec[None])
    logits: torch.Tensor = said.reshape(t, u, -1)
    return logits
