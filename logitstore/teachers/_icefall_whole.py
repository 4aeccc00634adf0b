"""icefall's CTC models of a single forward, made to look like those of an encoder and a ``ctc_output``.

``conformer_ctc``, ``conformer_ctc2`` and ``streaming_conformer_ctc`` give log-probabilities, the encoder's
output and its mask, and their ``ctc_output`` is a method; ``tdnn_lstm_ctc`` takes (N, C, T) and gives
log-probabilities alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .protocol import twin
from .tap import Tap


def as_encoder_and_head(model: nn.Module) -> nn.Module:
    """The model itself where it has an encoder and a head already, else one around it that has."""
    if isinstance(getattr(model, "ctc_output", None), nn.Module) or hasattr(model, "joiner"):
        return model
    layers = getattr(model, "encoder_output_layer", None)
    if isinstance(layers, nn.Module):
        found = [n for n, m in layers.named_modules() if isinstance(m, nn.Linear)]
        return Conformer(model, f"encoder_output_layer.{found[0]}") if len(found) == 1 else model
    if isinstance(getattr(model, "tdnn", None), nn.Module):
        return Tdnn(model, "linear")
    return model


class _Whole(nn.Module):
    """A model whose head runs inside its forward: once an utterance. Its twin says the answer once a batch.

    Args:
        model: the recipe's.
        head: path of the Linear in front of its softmax.
    """

    layout = "BTV"

    def __init__(self, model: nn.Module, head: str) -> None:
        super().__init__()
        self.asr: Any = model
        self.ctc_output = nn.Sequential(twin(model.get_submodule(head)))
        self._head = head

    def encoder(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, T0, F) and (N,) → what goes into the head, (N, T, C), and valid frames (N,)."""
        with Tap(self.asr, {"in": self._head}, layouts={"in": self.layout}, side="input") as tap:
            said = self.call(x.clone(), lengths)  # some scale their input in place
            hidden = tap.take("in")
        return hidden, self.frames(said, lengths)

    def call(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        raise NotImplementedError

    def frames(self, said: Any, lengths: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Conformer(_Whole):
    """``model(x, supervision)`` → log-probabilities (N, T, V), encoder (T, N, C), padding (N, T)."""

    layout = "TBV"

    def call(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        order = torch.arange(len(lengths))
        segments = {"sequence_idx": order, "start_frame": 0 * order, "num_frames": lengths.cpu()}
        return self.asr(x, segments)

    def frames(self, said: Any, lengths: torch.Tensor) -> torch.Tensor:
        padding: torch.Tensor = said[2]
        return (~padding).sum(1)


class Tdnn(_Whole):
    """``model(x)`` with x (N, F, T0) → log-probabilities (N, T, V); its last convolution strides."""

    def call(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        return self.asr(x.transpose(1, 2))

    def frames(self, said: Any, lengths: torch.Tensor) -> torch.Tensor:
        return (lengths - 1).div(self.asr.subsampling_factor, rounding_mode="floor") + 1
