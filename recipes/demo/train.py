"""Train the demo teacher: CTC and RNN-T together, on two cores in about a quarter of an hour.

python recipes/demo/corpus.py train --out DIR --hours 5
python recipes/demo/train.py --corpus DIR --out recipes/demo/teacher.safetensors
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[2]))

from recipes.demo.decode import Utterance, collate, read_manifest, token_error
from recipes.demo.model import AsrModel, Sizes
from recipes.demo.pieces import Pieces
from recipes.demo.rnnt_loss import rnnt_loss

ROOT = Path(__file__).resolve().parents[2]

CTC_SHARE = 0.4  # of the joint loss
FRAMES_A_BATCH = 4000  # feature frames, about 40 s of audio
TIME_MASKS, TIME_MASK_FRAMES = 2, 20
BAND_MASKS, BAND_MASK_BANDS = 2, 10
PEAK_RATE, WARM_UP = 3e-3, 0.1  # AdamW's highest learning rate, and the part of training before it


def batches(utterances: list[Utterance], rng: random.Random) -> list[list[Utterance]]:
    """Put utterances of similar length together, FRAMES_A_BATCH at most when padded, in random order."""
    out: list[list[Utterance]] = [[]]
    for utterance in sorted(utterances, key=lambda u: len(u.features) + rng.uniform(-10, 10)):
        if (len(out[-1]) + 1) * (len(utterance.features) + 10) > FRAMES_A_BATCH:
            out.append([])
        out[-1].append(utterance)
    rng.shuffle(out)
    return out


def augment(features: Tensor, lengths: Tensor, rng: random.Random) -> Tensor:
    """Blank out spans of time and bands (SpecAugment, Park et al. 2019) and add some noise: (B, T0, F)."""
    features = features + rng.uniform(0.0, 0.3) * torch.randn_like(features)
    for b, frames in enumerate(lengths.tolist()):
        for _ in range(TIME_MASKS):
            width = rng.randint(0, min(TIME_MASK_FRAMES, frames // 8))
            start = rng.randint(0, frames - width)
            features[b, start : start + width] = 0.0
        for _ in range(BAND_MASKS):
            width = rng.randint(0, BAND_MASK_BANDS)
            start = rng.randint(0, features.shape[2] - width)
            features[b, :, start : start + width] = 0.0
    return features


def joint_loss(model: AsrModel, batch: list[Utterance], rng: random.Random) -> tuple[Tensor, Tensor]:
    """Give the CTC and the RNN-T loss of a batch, in nats a label."""
    features, lengths = collate(batch)
    counts = torch.tensor([len(u.labels) for u in batch])
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(u.labels) for u in batch], batch_first=True)
    log_probs, joint, lens = model(augment(features, lengths, rng), lengths, labels)
    total = counts.sum()
    blank = model.sizes.blank
    ctc = functional.ctc_loss(
        log_probs.transpose(0, 1), labels, lens, counts, blank=blank, reduction="sum", zero_infinity=True
    )
    return ctc / total, rnnt_loss(joint, labels, lens, counts, blank=blank).sum() / total


def save(model: AsrModel, path: Path, tokens: Path, error: dict[str, float]) -> None:
    """Write float32 safetensors; the metadata says the sizes, the token table and the error rates."""
    metadata = {
        "model": "logitstore demo teacher",
        "sizes": json.dumps(model.sizes.to_json(), sort_keys=True),
        "tokens_sha256": hashlib.sha256(tokens.read_bytes()).hexdigest(),
        "token_error": json.dumps({branch: round(rate, 5) for branch, rate in error.items()}),
    }
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path, metadata)


def main() -> None:
    """Read the command line, train, and print token error rates on what training never saw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="what `corpus.py train` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(asked.seed)
    rng = random.Random(asked.seed)
    tokens = ROOT / "manifests" / "demo.tokens.txt"
    pieces = Pieces.read(tokens)
    train, dev = (read_manifest(asked.corpus / f"{split}.jsonl", pieces) for split in ("train", "dev"))
    model = AsrModel(Sizes(vocab=len(pieces)))
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(train)} utterances", flush=True)

    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    steps = asked.epochs * (len(batches(train, rng)) + 2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=WARM_UP)
    start = time.monotonic()
    for epoch in range(1, asked.epochs + 1):
        model.train()
        sums = torch.zeros(2)
        todo = batches(train, rng)
        for batch in todo:
            ctc, rnnt = joint_loss(model, batch, rng)
            optimizer.zero_grad()
            (CTC_SHARE * ctc + (1 - CTC_SHARE) * rnnt).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            sums += torch.stack([ctc, rnnt]).detach()
        ctc_mean, rnnt_mean = (sums / len(todo)).tolist()
        error = token_error(model, dev)
        print(
            f"epoch {epoch}: {time.monotonic() - start:.0f} s, "
            f"nats a label: ctc {ctc_mean:.3f} rnnt {rnnt_mean:.3f}, "
            f"dev token error: ctc {error['ctc']:.2%} rnnt {error['rnnt']:.2%}",
            flush=True,
        )
    error = token_error(model, read_manifest(ROOT / "manifests" / "demo.jsonl", pieces))
    save(model, asked.out, tokens, error)
    print(f"demo token error: ctc {error['ctc']:.2%} rnnt {error['rnnt']:.2%}, weights in {asked.out}")


if __name__ == "__main__":
    main()
