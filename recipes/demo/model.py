"""The demo recogniser: a small joint CTC and RNN-T model with the names and shapes of an icefall `AsrModel`.

The names are icefall's (https://github.com/k2-fsa/icefall, zipformer recipe), so that what taps this model
taps those; the encoder is no zipformer but a stack of masked convolutions, small enough for two cores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model. All widths differ, so that no width can be mistaken for another."""

    bands: int = 64
    front: int = 96
    encoder: int = 128
    blocks: int = 4
    kernel: int = 15
    decoder: int = 96
    joiner: int = 112
    vocab: int = 150
    context: int = 2
    blank: int = 0
    dropout: float = 0.1

    def to_json(self) -> dict[str, int | float]:
        """Give the sizes as JSON."""
        return asdict(self)


def valid(lengths: Tensor, frames: int) -> Tensor:
    """Mark the frames that are not padding: (B,) lengths to (B, T, 1) bool."""
    return (torch.arange(frames, device=lengths.device)[None, :] < lengths[:, None])[:, :, None]


class Block(nn.Module):
    """A depthwise convolution over time and a feed-forward layer, added to the input (B, T, E)."""

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Run the block; where `mask` (B, T, 1) is false the convolution sees zeros, as past the ends."""
        y = self.conv((x * mask).transpose(1, 2)).transpose(1, 2)
        y = self.down(functional.silu(self.up(self.norm(y))))
        return x + self.dropout(y)


class Encoder(nn.Module):
    """Two strided convolutions, then the blocks: (B, T0, F) to (B, ceil(T0 / 4), E)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.first = nn.Conv1d(sizes.bands, sizes.front, 5, stride=2, padding=2)
        self.second = nn.Conv1d(sizes.front, sizes.encoder, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(
            Block(sizes.encoder, sizes.kernel, sizes.dropout) for _ in range(sizes.blocks)
        )
        self.norm = nn.LayerNorm(sizes.encoder)

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode; every convolution sees zeros past an utterance's own end, so padding changes nothing."""
        x = x * valid(x_lens, x.shape[1])
        for conv in (self.first, self.second):
            x = functional.silu(conv(x.transpose(1, 2))).transpose(1, 2)
            x_lens = (x_lens + 1) // 2
            x = x * valid(x_lens, x.shape[1])
        mask = valid(x_lens, x.shape[1])
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x), x_lens


class Decoder(nn.Module):
    """A prediction network without state: it sees the last `context` labels only (Ghodsi et al. 2020)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.context_size = sizes.context
        self.blank_id = sizes.blank
        self.embedding = nn.Embedding(sizes.vocab, sizes.decoder)
        self.conv = nn.Conv1d(
            sizes.decoder, sizes.decoder, sizes.context, groups=sizes.decoder // 4, bias=False
        )

    def forward(self, y: Tensor, need_pad: bool = True) -> Tensor:
        """Embed labels and their context.

        y: (B, U) int64, -1 for "nothing yet". With `need_pad` the context before the first label is nothing
        and (B, U, D) comes back; without it the first `context - 1` labels are context only and
        (B, U - context + 1, D) comes back.
        """
        x = (self.embedding(y.clamp(min=0)) * (y >= 0).unsqueeze(-1)).transpose(1, 2)
        if need_pad:
            x = functional.pad(x, (self.context_size - 1, 0))
        return functional.relu(self.conv(x).transpose(1, 2))


class Joiner(nn.Module):
    """Join encoder and decoder frames: output_linear(tanh(enc + dec)), broadcast over the axes they lack."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.encoder_proj = nn.Linear(sizes.encoder, sizes.joiner)
        self.decoder_proj = nn.Linear(sizes.decoder, sizes.joiner)
        self.output_linear = nn.Linear(sizes.joiner, sizes.vocab)

    def forward(self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True) -> Tensor:
        """Give logits (..., V) of (..., E) and (..., D), or of two (..., J) when projected already."""
        if project_input:
            encoder_out, decoder_out = self.encoder_proj(encoder_out), self.decoder_proj(decoder_out)
        logits: Tensor = self.output_linear(torch.tanh(encoder_out + decoder_out))
        return logits


class AsrModel(nn.Module):
    """Encoder, CTC head, stateless decoder and joiner."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes = sizes or Sizes()
        self.encoder = Encoder(sizes)
        self.ctc_output = nn.Sequential(
            nn.Dropout(sizes.dropout), nn.Linear(sizes.encoder, sizes.vocab), nn.LogSoftmax(dim=-1)
        )
        self.decoder = Decoder(sizes)
        self.joiner = Joiner(sizes)

    def forward_encoder(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (B, T0, F) features of x_lens (B,) valid frames: (B, T, E) and (B,) valid frames of it."""
        encoder_out, encoder_out_lens = self.encoder(x, x_lens)
        return encoder_out, encoder_out_lens

    def forward(self, x: Tensor, x_lens: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run both branches, as training does.

        y: (B, U) int64 labels, padded with any label. Returns CTC log-probabilities (B, T, V), the logits of
        the whole joint (B, T, U + 1, V) and the valid frames (B,).
        """
        encoder_out, lens = self.forward_encoder(x, x_lens)
        decoder_out = self.decoder(functional.pad(y, (1, 0), value=self.sizes.blank))
        joint = self.joiner(
            self.joiner.encoder_proj(encoder_out)[:, :, None],
            self.joiner.decoder_proj(decoder_out)[:, None],
            project_input=False,
        )
        return self.ctc_output(encoder_out), joint, lens
