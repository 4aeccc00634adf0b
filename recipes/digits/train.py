"""Train small CTC heads on real spoken digits: few classes, five hundred, two thousand.

    python recipes/digits/train.py --fsdd DIR --out DIR --classes 40 500 2048

Forty classes are pieces of the digits' names ("▁se", "ven"); in the larger tables a class is a whole group of
digits said without a pause ("▁4", "▁29", "▁071"). A few minutes each on one core. Then
`recipes/digits/teacher.py:load` is a teacher for `logitstore dump`, and `recipes/digits/corpus.py` writes a
manifest to dump.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[2]))

from recipes.demo.features import log_mel
from recipes.demo.model import AsrModel, Sizes
from recipes.demo.pieces import BLANK, START, Pieces, learn
from recipes.digits.data import Digits, Spoken

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WIDTH = {40: 96, 500: 144, 2048: 160}  # of the head's input, by classes
BATCH, PEAK_RATE = 16, 3e-3


def make_pieces(classes: int) -> Pieces:
    """A table of `classes` pieces: of the digits' names where it is small, whole groups of digits else."""
    if classes < 100:
        return learn(Counter(NAMES), sorted({c for name in NAMES for c in name}), classes)
    pieces, longest = [BLANK, START, *"0123456789"], [START]
    while len(pieces) < classes:
        longest = [group + digit for group in longest for digit in "0123456789"]
        pieces += longest[: classes - len(pieces)]
    return Pieces(pieces)


def draw_groups(rng: random.Random, pieces: Pieces) -> list[str]:
    """Draw groups of digits, each one piece of the table; single digits where it spells their names."""
    whole = [p.removeprefix(START) for p in pieces.pieces if p.startswith(START) and p[1:].isdigit()]
    if not whole:
        return [rng.choice("0123456789") for _ in range(rng.randint(3, 7))]
    lengths = sorted({len(p) for p in whole})
    wanted = [rng.choice(lengths) for _ in range(rng.randint(2, 5))]
    return [rng.choice([p for p in whole if len(p) == n]) for n in wanted]


def text_of(spoken: Spoken, pieces: Pieces) -> str:
    """What was said, as the table spells it."""
    names = START + "0" not in pieces.pieces
    return " ".join(NAMES[int(d)] for d in spoken.text.split()) if names else spoken.text


def batch_of(items: list[tuple[torch.Tensor, list[int]]]) -> tuple[torch.Tensor, ...]:
    """Padded features, their lengths, labels one after the other, their counts."""
    features = torch.nn.utils.rnn.pad_sequence([f for f, _ in items], batch_first=True)
    labels = [torch.tensor(y) for _, y in items]
    return (
        features,
        torch.tensor([len(f) for f, _ in items]),
        torch.cat(labels),
        torch.tensor([len(y) for y in labels]),
    )


def error(model: AsrModel, pieces: Pieces, items: list[tuple[torch.Tensor, str]]) -> float:
    """Share of utterances whose greedy decode is not what was said."""
    model.eval()
    wrong = 0
    for features, said in items:
        with torch.inference_mode():
            hidden, _ = model.forward_encoder(features[None], torch.tensor([len(features)]))
            best = torch.unique_consecutive(model.ctc_output(hidden)[0].argmax(-1)).tolist()
        wrong += pieces.decode(best) != said
    return wrong / len(items)


def train(fsdd: Path, classes: int, steps: int, seed: int) -> tuple[AsrModel, Pieces, float]:
    """Train one head and its encoder; gives them with the sentence error on takes that training never saw."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    pieces = make_pieces(classes)
    digits = {split: Digits(fsdd, split) for split in ("train", "test")}
    drawn = [digits["train"].draw(rng, draw_groups(rng, pieces)) for _ in range(2000)]
    kept = [(torch.from_numpy(log_mel(s.audio)), pieces.encode(text_of(s, pieces))) for s in drawn]
    singles = [[int(c) + 1 for c in s.text if c != " "] for s in drawn]
    model = AsrModel(Sizes(vocab=len(pieces), encoder=WIDTH.get(classes, 144), front=96, blocks=3))
    helper = torch.nn.Linear(model.sizes.encoder, 11)  # single digits: groups are learnt much faster beside
    parameters = [*model.parameters(), *helper.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.15)
    begin, total = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        model.train()
        chosen = rng.sample(range(len(kept)), BATCH)
        features, lengths, labels, counts = batch_of([kept[i] for i in chosen])
        features = features + rng.uniform(0, 0.3) * torch.randn_like(features)
        hidden, lens = model.forward_encoder(features, lengths)
        logp = model.ctc_output(hidden).transpose(0, 1)
        loss = functional.ctc_loss(logp, labels, lens, counts, reduction="sum", zero_infinity=True)
        loss = loss / counts.sum()
        single = torch.cat([torch.tensor(singles[i]) for i in chosen])
        of = torch.tensor([len(singles[i]) for i in chosen])
        logp = helper(hidden).log_softmax(-1).transpose(0, 1)
        aside = functional.ctc_loss(logp, single, lens, of, reduction="sum", zero_infinity=True) / of.sum()
        optimizer.zero_grad()
        (loss + aside).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            print(f"{classes}: step {step}, {total / 100:.3f} nats a label", flush=True)
            total = 0.0
    rng = random.Random(f"test {seed}")
    tried = [digits["test"].draw(rng, draw_groups(rng, pieces)) for _ in range(100)]
    said = [(torch.from_numpy(log_mel(s.audio)), text_of(s, pieces)) for s in tried]
    wrong = error(model, pieces, said)
    print(f"{classes}: {time.monotonic() - begin:.0f} s, {wrong:.0%} of test utterances have an error")
    return model, pieces, wrong


def main() -> None:
    """Read the command line, train the heads one after the other and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fsdd", type=Path, required=True, help="folder that holds recordings/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--classes", type=int, nargs="+", default=[40, 500, 2048])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    for classes in asked.classes:
        model, pieces, wrong = train(asked.fsdd, classes, asked.steps, asked.seed)
        pieces.write(asked.out / f"{classes}.tokens.txt")
        metadata = {"sizes": json.dumps(model.sizes.to_json()), "sentence_error": f"{wrong:.3f}"}
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, asked.out / f"{classes}.safetensors", metadata)


if __name__ == "__main__":
    main()
