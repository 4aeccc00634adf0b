"""Greedy decoding of both branches, and the token error rate they are judged by."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from recipes.demo.features import SAMPLE_RATE, log_mel, resample
from recipes.demo.model import AsrModel
from recipes.demo.pieces import Pieces

SYMBOLS_A_FRAME = 4  # the most labels the transducer may say in one 40 ms frame


@dataclass(frozen=True)
class Utterance:
    """One manifest line made ready: its labels and its (T0, F) float32 features."""

    id: str
    labels: list[int]
    features: Tensor


def read_audio(path: Path) -> np.ndarray:
    """Read one channel at 16 kHz, resampled if need be: (samples,) float32 in [-1, 1]."""
    audio, rate = soundfile.read(path, dtype="float32")
    return resample(audio, rate, SAMPLE_RATE)


def read_manifest(path: Path, pieces: Pieces) -> list[Utterance]:
    """Read a manifest and all the audio it names."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Utterance(
            row["id"],
            pieces.encode(row["text"]),
            torch.from_numpy(log_mel(read_audio(path.parent / row["audio"]))),
        )
        for row in rows
    ]


def collate(batch: list[Utterance]) -> tuple[Tensor, Tensor]:
    """Pad features with zeros: (B, T0, F) float32 and (B,) int64 valid frames."""
    features = torch.nn.utils.rnn.pad_sequence([u.features for u in batch], batch_first=True)
    return features, torch.tensor([len(u.features) for u in batch])


def ctc_greedy(log_probs: Tensor, blank: int = 0) -> list[int]:
    """Take the best class of each frame of (T, V), then drop repeats and blanks."""
    best = torch.unique_consecutive(log_probs.argmax(dim=-1)).tolist()
    return [label for label in best if label != blank]


def rnnt_greedy(model: AsrModel, encoder_out: Tensor) -> list[int]:
    """Walk the lattice of one utterance, (T, E) valid frames, always by the best class."""
    blank, context = model.sizes.blank, model.sizes.context
    said: list[int] = []
    history = [-1] * (context - 1) + [blank]

    def predict() -> Tensor:
        last = torch.tensor([(history + said)[-context:]], device=encoder_out.device)
        projected: Tensor = model.joiner.decoder_proj(model.decoder(last, need_pad=False))[0, 0]
        return projected

    predicted = predict()
    for frame in model.joiner.encoder_proj(encoder_out):
        for _ in range(SYMBOLS_A_FRAME):
            label = int(model.joiner(frame, predicted, project_input=False).argmax())
            if label == blank:
                break
            said.append(label)
            predicted = predict()
    return said


def edits(have: list[int], want: list[int]) -> int:
    """Count the insertions, deletions and substitutions between two label sequences (Levenshtein)."""
    row = list(range(len(want) + 1))
    for i, label in enumerate(have, 1):
        before, row[0] = row[0], i
        for j, wanted in enumerate(want, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (label != wanted))
    return row[-1]


@torch.inference_mode()
def token_error(model: AsrModel, utterances: list[Utterance], batch: int = 32) -> dict[str, float]:
    """Give the token error rate, 0 to 1, of greedy decoding by each branch."""
    model.eval()
    wrong = {"ctc": 0, "rnnt": 0}
    for start in range(0, len(utterances), batch):
        part = utterances[start : start + batch]
        encoder_out, lens = model.forward_encoder(*collate(part))
        ctc = model.ctc_output(encoder_out)
        for b, utterance in enumerate(part):
            frames = int(lens[b])
            wrong["ctc"] += edits(ctc_greedy(ctc[b, :frames], model.sizes.blank), utterance.labels)
            wrong["rnnt"] += edits(rnnt_greedy(model, encoder_out[b, :frames]), utterance.labels)
    total = sum(len(utterance.labels) for utterance in utterances)
    return {branch: count / total for branch, count in wrong.items()}
