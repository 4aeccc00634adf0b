"""The RNN-T loss in plain PyTorch (Graves 2012, "Sequence transduction with recurrent neural networks").

A lattice node (t, u) is reached from (t - 1, u) by a blank and from (t, u - 1) by label u. All nodes with the
same t + u depend only on those with one less, so the sum goes diagonal by diagonal, a batch at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

NEVER = -1e30  # log of no probability; finite, so that gradients of impossible nodes are zero and not NaN


def rnnt_loss(logits: Tensor, labels: Tensor, frames: Tensor, counts: Tensor, blank: int = 0) -> Tensor:
    """Give minus the log-probability of each utterance's labels, summed over all alignments.

    logits: (B, T, U + 1, V), not normalised. labels: (B, U) int64, padded with any label. frames: (B,) valid
    T, at least 1. counts: (B,) valid U. Returns (B,) in nats, in float32 at least.
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    norm = logits.logsumexp(dim=-1)
    blanks = logits[..., blank] - norm
    steps = functional.pad(labels, (0, 1))[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
    emits = logits.gather(-1, steps).squeeze(-1) - norm
    blanks, emits = _skew(blanks), _skew(emits)

    batch, diagonals, width = blanks.shape
    alpha = blanks.new_full((batch, width), NEVER)
    alpha[:, 0] = 0.0
    alphas = [alpha]
    for n in range(diagonals - 1):
        by_blank = alpha + blanks[:, n]
        by_label = functional.pad((alpha + emits[:, n])[:, :-1], (1, 0), value=NEVER)
        alpha = torch.logaddexp(by_blank, by_label).clamp(min=NEVER)
        alphas.append(alpha)
    which = torch.arange(batch, device=logits.device)
    last = frames + counts - 1
    return -(torch.stack(alphas, dim=1)[which, last, counts] + blanks[which, last, counts])


def _skew(nodes: Tensor) -> Tensor:
    """Lay diagonals out as rows: (B, T, U + 1) to (B, T + U, U + 1); row n, column u is node (n - u, u)."""
    batch, frames, width = nodes.shape
    rows = torch.arange(frames + width - 1, device=nodes.device)[:, None]
    time = rows - torch.arange(width, device=nodes.device)[None, :]
    inside = (time >= 0) & (time < frames)
    index = time.clamp(0, frames - 1).expand(batch, -1, -1)
    return nodes.gather(1, index).masked_fill(~inside, NEVER)
