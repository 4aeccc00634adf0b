"""Train small heads on real spoken digits: few classes, five hundred, two thousand.

    python recipes/digits/train.py --fsdd DIR --out DIR --classes 40 500 2048

Forty classes are pieces of the digits' names ("▁se", "ven"); in the larger tables a class is a whole group of
digits said without a pause ("▁4", "▁29", "▁071"). All have a CTC head, that of five hundred an RNN-T branch
beside it. Each takes less than ten minutes of one core and prints its token error rate in takes that training
never heard. Then `recipes/digits/teacher.py:load` is a teacher for `logitstore dump`, and
`recipes/digits/corpus.py` writes a manifest to dump.
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
from torch import Tensor, nn
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[2]))

from recipes.demo.decode import Utterance, token_error
from recipes.demo.features import log_mel
from recipes.demo.model import AsrModel, Sizes
from recipes.demo.pieces import BLANK, START, Pieces, learn
from recipes.demo.rnnt_loss import rnnt_loss
from recipes.digits.data import Digits, DigitUtterance

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRANSDUCER = 500  # the table that an RNN-T branch is trained for
DRAWN, TESTED = 4000, 200  # utterances
BATCH, PEAK_RATE = 16, 3e-3
ALONE = 300  # steps in which single digits are all that is learnt


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
    wanted = [rng.choice(lengths) for _ in range(rng.randint(2, 4))]
    return [rng.choice([p for p in whole if len(p) == n]) for n in wanted]


def text_of(utterance: DigitUtterance, pieces: Pieces) -> str:
    """What was said, as the table spells it."""
    names = START + "0" not in pieces.pieces
    return " ".join(NAMES[int(d)] for d in utterance.text.split()) if names else utterance.text


class Composed(nn.Linear):
    """A head that begins as what the digits of each group add up to, and learns what each class has beside.

    Of thousands of groups each is heard a few times, but all that end in 9 share that. What is learnt is a
    plain linear layer: `composed()`.
    """

    def __init__(self, width: int, pieces: Pieces) -> None:
        super().__init__(width, len(pieces))
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        longest = max(map(len, pieces.pieces))
        made_of = torch.zeros(len(pieces), 2 + longest + 10 * longest)
        for n, piece in enumerate(pieces.pieces):
            group = piece.removeprefix(START)
            made_of[n, 0] = piece == BLANK
            if piece.startswith(START) and group.isdigit():
                made_of[n, 1] = made_of[n, 1 + len(group)] = 1
                for place, digit in enumerate(reversed(group)):
                    made_of[n, 2 + longest + 10 * place + int(digit)] = 1
        self.register_buffer("made_of", made_of)
        self.parts = nn.Linear(width, made_of.shape[1])

    def composed(self) -> tuple[Tensor, Tensor]:
        """Weight (V, D) and bias (V,)."""
        return self.made_of @ self.parts.weight + self.weight, self.made_of @ self.parts.bias + self.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to logits (..., V)."""
        return functional.linear(x, *self.composed())

    def plain(self) -> nn.Linear:
        """The same as one layer."""
        layer = nn.Linear(self.in_features, self.out_features)
        with torch.no_grad():
            for parameter, value in zip((layer.weight, layer.bias), self.composed(), strict=True):
                parameter.copy_(value)
        return layer


class Heard:
    """Utterances of one split: features, labels, and their digits one by one as 1 to 10."""

    def __init__(self, digits: Digits, pieces: Pieces, count: int, rng: random.Random) -> None:
        drawn = [digits.draw(rng, draw_groups(rng, pieces)) for _ in range(count)]
        self.features = [torch.from_numpy(log_mel(s.audio)) for s in drawn]
        self.labels = [torch.tensor(pieces.encode(text_of(s, pieces))) for s in drawn]
        self.singles = [torch.tensor([int(c) + 1 for c in s.text if c != " "]) for s in drawn]

    def batch(self, rng: random.Random) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Padded features with some noise, their lengths, labels and digits of BATCH utterances."""
        chosen = rng.sample(range(len(self.features)), BATCH)
        features = nn.utils.rnn.pad_sequence([self.features[i] for i in chosen], batch_first=True)
        lengths = torch.tensor([len(self.features[i]) for i in chosen])
        noise = rng.uniform(0, 0.3) * torch.randn_like(features)
        return features + noise, lengths, [self.labels[i] for i in chosen], [self.singles[i] for i in chosen]


def ctc(log_probs: Tensor, lengths: Tensor, labels: list[Tensor]) -> Tensor:
    """The CTC loss of (B, T, V), in nats a label."""
    counts = torch.tensor([len(y) for y in labels])
    loss = functional.ctc_loss(
        log_probs.transpose(0, 1), torch.cat(labels), lengths, counts, reduction="sum", zero_infinity=True
    )
    return loss / counts.sum()


def rnnt(model: AsrModel, hidden: Tensor, lengths: Tensor, labels: list[Tensor]) -> Tensor:
    """The RNN-T loss of the whole lattice, in nats a label."""
    counts = torch.tensor([len(y) for y in labels])
    padded = nn.utils.rnn.pad_sequence(labels, batch_first=True)
    said = model.decoder(functional.pad(padded, (1, 0), value=model.sizes.blank))
    enc, dec = model.joiner.encoder_proj(hidden), model.joiner.decoder_proj(said)
    joint = model.joiner(enc[:, :, None], dec[:, None], project_input=False)
    return rnnt_loss(joint, padded, lengths, counts).sum() / counts.sum()


def train(fsdd: Path, classes: int, steps: int, seed: int) -> tuple[AsrModel, Pieces, dict[str, float]]:
    """Train one model; gives it with its token error rates in takes that training never heard."""
    torch.manual_seed(seed)
    rng, pieces, transducer = random.Random(seed), make_pieces(classes), classes == TRANSDUCER
    heard = Heard(Digits(fsdd, "train"), pieces, DRAWN, rng)
    model = AsrModel(Sizes(vocab=len(pieces), encoder=144, front=96, kernel=31, joiner=104))
    helper = nn.Linear(model.sizes.encoder, 11)  # single digits: groups are learnt much faster beside
    if classes > 100:
        model.ctc_output[1] = Composed(model.sizes.encoder, pieces)
        model.joiner.output_linear = Composed(model.sizes.joiner, pieces)
    parameters = [*model.parameters(), *helper.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.15)
    begin, total = time.process_time(), Counter[str]()
    for step in range(1, steps + 1):
        model.train()
        features, lengths, labels, singles = heard.batch(rng)
        hidden, lengths = model.forward_encoder(features, lengths)
        losses = {"digits": ctc(helper(hidden).log_softmax(-1), lengths, singles)}
        if step > ALONE or classes < 100:
            losses["ctc"] = ctc(model.ctc_output(hidden), lengths, labels)
            if transducer:
                losses["rnnt"] = rnnt(model, hidden, lengths, labels)
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        schedule.step()
        total.update({name: loss.item() for name, loss in losses.items()})
        if step % 100 == 0:
            said = ", ".join(f"{name} {nats / 100:.3f}" for name, nats in total.items())
            print(f"{classes}: step {step}, nats a label: {said}", flush=True)
            total.clear()
    for parent, name in ((model.ctc_output, "1"), (model.joiner, "output_linear")):
        if isinstance(head := getattr(parent, name), Composed):
            setattr(parent, name, head.plain())
    test = Heard(Digits(fsdd, "test"), pieces, TESTED, random.Random(f"test {seed}"))
    said_of = [Utterance("", y.tolist(), f) for y, f in zip(test.labels, test.features, strict=True)]
    error = token_error(model, said_of)
    if not transducer:
        del error["rnnt"]
    said = ", ".join(f"{branch} {rate:.1%}" for branch, rate in error.items())
    print(f"{classes}: {time.process_time() - begin:.0f} s of CPU, test token error: {said}")
    return model, pieces, error


def main() -> None:
    """Read the command line, train the heads one after the other and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fsdd", type=Path, required=True, help="folder that holds recordings/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--classes", type=int, nargs="+", default=[40, 500, 2048])
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    for classes in asked.classes:
        model, pieces, error = train(asked.fsdd, classes, asked.steps, asked.seed)
        pieces.write(asked.out / f"{classes}.tokens.txt")
        metadata = {"sizes": json.dumps(model.sizes.to_json()), "token_error": json.dumps(error)}
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, asked.out / f"{classes}.safetensors", metadata)


if __name__ == "__main__":
    main()
