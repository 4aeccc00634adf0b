"""The last layer of a teacher as a weight and a bias, and checks that it is one."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..errors import TapError
from .base import FOR_LOGITS, LinearHead

SAME = 1e-3  # nats between a model's log-probabilities and those of its head's weight and bias


def linear_head(module: nn.Module, where: str) -> LinearHead:
    """Return weight (V, D) and bias (V,) of a Linear, or of a Conv1d over one frame.

    Args:
        module: the module that makes the logits.
        where: name of the module for error messages.

    Raises:
        TapError: another module, which it names.
    """
    kind = type(module).__name__
    if isinstance(module, nn.Conv1d):
        plain = (module.kernel_size, module.stride, module.padding, module.groups) == ((1,), (1,), (0,), 1)
        if not plain:
            raise _refusal(f"a {kind} over {module.kernel_size[0]} frames or in groups", where)
        weight = module.weight[:, :, 0]
    elif isinstance(module, nn.Linear):
        weight = module.weight
    else:
        raise _refusal(f"a {kind}", where)
    bias = module.bias if module.bias is not None else weight.new_zeros(len(weight))
    return LinearHead(_numpy(weight), _numpy(bias))


def gap(head: LinearHead, inputs: torch.Tensor, logits: torch.Tensor) -> float:
    """Return the largest error of a head's log-probabilities in nats, over classes above e^-30.

    Args:
        head: weight and bias.
        inputs: (N, D) inputs of the head.
        logits: (N, V) logits that the model made of them.
    """
    weight, bias = (inputs.new_tensor(x) for x in (head.weight, head.bias))
    ours = (inputs @ weight.T + bias).float().log_softmax(-1)
    own = logits.float().log_softmax(-1)
    return float(torch.where(own > -30, ours - own, 0).abs().max()) if ours.numel() else 0.0


def additive(parent: nn.Module | None, output: nn.Module) -> str:
    """Return a description of an additive joiner, logits = output(activation(enc + dec)), or an empty string.

    It has two Linears beside the output one, both as wide as its input: ``enc_proj 512 + dec_proj 320 ->
    640``.

    Args:
        parent: the module that holds the joiner's layers.
        output: the layer that makes the logits.
    """
    if parent is None or not isinstance(output, nn.Linear):
        return ""
    sides = [
        (name, m)
        for name, m in parent.named_children()
        if m is not output and isinstance(m, nn.Linear) and m.out_features == output.in_features
    ]
    if len(sides) != 2:
        return ""
    return f"{' + '.join(f'{n} {m.in_features}' for n, m in sides)} -> {output.in_features}"


def _refusal(what: str, where: str) -> TapError:
    """Return the error for a module that is no linear head."""
    return TapError(
        f"{what} is not one weight and one bias, so its rows do not factor",
        where=where,
        do=f"Tap the Linear that makes the logits, or store {FOR_LOGITS}.",
    )


def _numpy(x: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.ascontiguousarray(x.detach().float().cpu().numpy())
