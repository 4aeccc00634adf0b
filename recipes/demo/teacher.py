"""The trained demo recogniser as a logitstore teacher: `--teacher recipes/demo/teacher.py:load`."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from logitstore.teachers.protocol import Head, TeacherSpec
from logitstore.tokens.table import TokenTable

sys.path.append(str(Path(__file__).resolve().parents[2]))

from recipes.demo.features import DESCRIPTION, SAMPLE_RATE, SHIFT, log_mel
from recipes.demo.model import AsrModel, Sizes
from recipes.demo.pieces import Pieces

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "teacher.safetensors"
TOKENS = HERE.parents[1] / "manifests" / "demo.tokens.txt"
SUBSAMPLING = 4


@dataclass(frozen=True)
class Output:
    """One forward pass: encoder (B, T, E), its valid frames (B,) and CTC log-probabilities (B, T, V)."""

    encoder_out: Tensor
    lens: Tensor
    ctc: Tensor


class DemoTeacher:
    """The demo recogniser behind the calls a dump makes; `model` may be moved to any device."""

    def __init__(self, model: AsrModel, tokens: Path) -> None:
        self.model = model.eval()
        self._tokens = tokens
        self._pieces = Pieces.read(tokens)

    def describe(self) -> TeacherSpec:
        """Say the rates, the two heads and the features."""
        blank = self.model.sizes.blank
        return TeacherSpec(
            name="demo",
            sample_rate=SAMPLE_RATE,
            frame_shift=SUBSAMPLING * SHIFT,
            heads=(
                Head(stream="ctc", module="ctc_output.1", blank=blank),
                Head(stream="rnnt", module="joiner.output_linear", blank=blank),
            ),
            features=dict(DESCRIPTION),
            offset=SHIFT // 2,  # feature frame 0, which encoder frame 0 is centred on
        )

    def tokens(self) -> TokenTable:
        """Read the token table the heads speak."""
        return TokenTable.read(self._tokens, blank=self.model.sizes.blank)

    def features(self, audio: np.ndarray) -> Tensor:
        """Compute log-mel features: (samples,) float32 in [-1, 1] at 16 kHz to (T0, 64) float32."""
        return torch.from_numpy(log_mel(audio))

    @torch.no_grad()
    def forward(self, features: Tensor, lengths: Tensor) -> Output:
        """Run the encoder and the CTC head on padded features (B, T0, F) of lengths (B,) valid frames."""
        device = next(self.model.parameters()).device
        encoder_out, lens = self.model.forward_encoder(features.to(device), lengths.to(device))
        return Output(encoder_out, lens, self.model.ctc_output(encoder_out))

    def lengths(self, output: Output) -> Tensor:
        """Give the valid teacher frames of each utterance: (B,) int64."""
        return output.lens

    def log_probs(self, output: Output) -> dict[str, Tensor]:
        """Give what the model itself says of each class: CTC log-probabilities (B, T, V)."""
        return {"ctc": output.ctc}

    def labels(self, text: str) -> list[int]:
        """Split text into token ids; raises ValueError naming a character no token holds."""
        return self._pieces.encode(text)

    @torch.no_grad()
    def transducer(self, output: Output, b: int, labels: list[int]) -> tuple[Tensor, Tensor]:
        """Project both sides of utterance b's lattice: encoder (T, J), valid frames; decoder (U + 1, J)."""
        encoder_out = output.encoder_out[b, : int(output.lens[b])]
        said = torch.tensor([[self.model.sizes.blank, *labels]], device=encoder_out.device)
        joiner = self.model.joiner
        return joiner.encoder_proj(encoder_out), joiner.decoder_proj(self.model.decoder(said)[0])

    @torch.no_grad()
    def join(self, enc: Tensor, dec: Tensor) -> Tensor:
        """Join a slice of frames, (t, J), with all label positions, (U + 1, J): logits (t, U + 1, V)."""
        logits: Tensor = self.model.joiner(enc[:, None], dec[None], project_input=False)
        return logits


def load(weights: Path | str = WEIGHTS, tokens: Path | str = TOKENS) -> DemoTeacher:
    """Read the trained weights; raises ValueError when they were trained with another token table."""
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if hashlib.sha256(Path(tokens).read_bytes()).hexdigest() != metadata["tokens_sha256"]:
        raise ValueError(f"{tokens} is not the token table that {weights} was trained with; make both again")
    model = AsrModel(Sizes(**json.loads(metadata["sizes"])))
    model.load_state_dict(state)
    return DemoTeacher(model.requires_grad_(False), Path(tokens))
