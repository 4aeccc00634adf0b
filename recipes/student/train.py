"""Train a small student from a store, with labels only and with distillation, and print both error rates.

    python recipes/student/train.py STORE --manifest TRAIN [--test TEST] [--rate 1:2] [--out DIR]

The teacher does not run: its targets come from the store, the audio from the manifest. The lines after KD are
all that distillation adds to a plain training loop. A run that was stopped goes on from its checkpoint in DIR.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[2]))

from logitstore import Store, open_store, read_manifest
from logitstore.corpus.audio import load_audio
from logitstore.losses import joint_kd
from logitstore.report.student import file_name
from logitstore.tokens.tokenise import Tokeniser
from logitstore.tokens.transcript import edit_distance
from recipes.demo.features import BANDS, SAMPLE_RATE, log_mel
from recipes.demo.rnnt_loss import rnnt_loss

FRAME = 0.01  # seconds of a feature frame
DILATIONS = (1, 3, 8)  # of the convolutions: the student sees 1.5 s, since teachers emit tokens late or early
REPORT = 50  # steps between two lines of progress and two checkpoints
MOST_SYMBOLS = 8  # labels of one frame that the RNN-T search emits at most


@dataclass(frozen=True)
class Example:
    """One utterance of the student's data: (T0, 64) features and labels; unlabelled ones are for distillation."""

    id: str
    features: Tensor
    labels: tuple[int, ...]
    labelled: bool = True


@dataclass(frozen=True)
class Settings:
    """Settings of one run; rate (1, 2) is half the teacher's frames."""

    rate: tuple[int, int] = (1, 1)
    steps: int = 300
    batch: int = 8
    width: int = 96
    peak: float = 4e-3  # learning rate
    seed: int = 0
    ctc: float = 1.0  # λ of the losses on labels and on targets; 0 leaves a loss out
    rnnt: float = 1.0
    ctc_kd: float = 3.0
    rnnt_kd: float = 1.0
    temperature: float = 1.0


# --- the model


class Student(nn.Module):
    """A convolutional encoder with a CTC head and an RNN-T joiner; ``stride`` feature frames make one of its own."""

    def __init__(self, classes: int, blank: int, stride: int, width: int) -> None:
        super().__init__()
        self.blank, self.stride = blank, stride
        self.front = nn.Conv1d(BANDS, width, 2 * stride + 1, stride=stride, padding=stride)
        self.blocks = nn.ModuleList(
            nn.Conv1d(width, width, 7, padding=3 * step, dilation=step) for step in DILATIONS
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in DILATIONS)
        self.ctc_head = nn.Linear(width, classes)
        self.embedding = nn.Embedding(classes, width)  # the prediction network sees one label
        self.joiner = nn.Linear(width, classes)

    def lengths(self, frames: Tensor) -> Tensor:
        """Return the student's frames of so many feature frames."""
        return (frames + self.stride - 1) // self.stride

    def encode(self, features: Tensor, frames: Tensor) -> Tensor:
        """Return (B, T, width) of padded (B, T0, 64) features and (B,) valid feature frames."""
        lengths = self.lengths(frames)
        x = functional.gelu(self.front(features.transpose(1, 2)))[..., : int(lengths.max())]
        mask = (torch.arange(x.shape[2]) < lengths[:, None])[:, None]
        for conv, norm in zip(self.blocks, self.norms, strict=True):
            x = x + functional.gelu(norm(conv(x * mask).transpose(1, 2)).transpose(1, 2))
        return x.transpose(1, 2)

    def join(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return (B, T, U+1, V) logits of all lattice nodes of (B, U) labels."""
        context = functional.pad(labels, (1, 0), value=self.blank)
        return self.joiner(torch.tanh(hidden[:, :, None] + self.embedding(context)[:, None]))


# --- data


def read_examples(manifest: str, labels_of: Tokeniser) -> list[Example]:
    """Read the audio and the reference of every utterance of a manifest."""
    examples = []
    for u in read_manifest(manifest):
        labels = u.tokens or labels_of.labels(u.text or "")
        features = torch.from_numpy(log_mel(load_audio(u, SAMPLE_RATE)))
        examples.append(Example(u.id, features, tuple(labels)))
    return examples


def pad(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return padded features and labels of some examples, and the valid lengths of both."""
    features = nn.utils.rnn.pad_sequence([e.features for e in examples], batch_first=True)
    labels = nn.utils.rnn.pad_sequence([torch.tensor(e.labels) for e in examples], batch_first=True)
    frames = torch.tensor([len(e.features) for e in examples])
    return features, frames, labels, torch.tensor([len(e.labels) for e in examples])


# --- training


def loss_of(model: Student, examples: Sequence[Example], store: Store | None, settings: Settings) -> Tensor:
    """Return the loss of a batch: on labels where there are some, and on the teacher's targets with a store."""
    features, frames, labels, counts = pad(examples)
    hidden, lengths = model.encode(features, frames), model.lengths(frames)
    logits = {"ctc": model.ctc_head(hidden)}
    if settings.rnnt or settings.rnnt_kd:
        logits["rnnt"] = model.join(hidden, labels)
    chosen = torch.tensor([e.labelled for e in examples]).nonzero()[:, 0]
    total = counts[chosen].sum().clamp(min=1)

    def hard_ctc() -> Tensor:
        own, to = logits["ctc"][chosen].log_softmax(-1).transpose(0, 1), labels[chosen]
        sizes = lengths[chosen], counts[chosen]
        return functional.ctc_loss(own, to, *sizes, model.blank, "sum", zero_infinity=True) / total

    def hard_rnnt() -> Tensor:
        nats = rnnt_loss(logits["rnnt"][chosen], labels[chosen], lengths[chosen], counts[chosen], model.blank)
        return nats.sum() / total

    lambdas = {"ctc": settings.ctc, "rnnt": settings.rnnt} if len(chosen) else {}
    both = {"ctc": hard_ctc, "rnnt": hard_rnnt}
    hard = {name: both[name] for name, factor in lambdas.items() if factor}
    if store is None:
        return torch.stack([lambdas[name] * loss() for name, loss in hard.items()]).sum()
    soft = {"ctc": settings.ctc_kd, "rnnt": settings.rnnt_kd}  # KD, here and below: λ · KL of each stream
    names = [s.name for s in store.spec.streams if soft.get(s.name)]
    ids, tau = [e.id for e in examples], settings.temperature
    batch = store.batch(ids, frames=lengths, ratio=settings.rate, temperature=tau, streams=names)
    given = {name: logits[name] for name in names}
    factors = {name: lambdas[name] for name in hard} | {f"{name}_kd": soft[name] for name in names}
    return joint_kd(batch, logits=given, hard=hard, lambdas=factors).total


def train(
    examples: Sequence[Example],
    store: Store,
    settings: Settings,
    *,
    distil: bool,
    checkpoint: Path | None = None,
    name: str = "",
) -> Student:
    """Train a student on some examples; with ``distil`` also on the store's targets. Returns it in eval mode."""
    torch.manual_seed(settings.seed)
    teacher = store.spec.teacher
    p, q = settings.rate
    stride = round(teacher.frame_shift / teacher.sample_rate / FRAME * q / p)
    model = Student(len(store.tokens), store.tokens.blank, stride, settings.width)
    optimiser = torch.optim.AdamW(model.parameters(), settings.peak, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.peak, total_steps=settings.steps, pct_start=0.15
    )
    step, began = 0, time.monotonic()
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["settings"] != repr(settings):
            raise SystemExit(f"{checkpoint} was made with other settings: choose another --out")
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        step = saved["step"]
    model.train()
    while step < settings.steps:
        batch = choose(examples, settings, step)
        noise = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)  # the same on resuming
        batch = [replace(e, features=augment(e.features, noise)) for e in batch]
        loss = loss_of(model, batch, store if distil else None, settings)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimiser.step()
        schedule.step()
        step += 1
        if step % REPORT == 0 or step == settings.steps:
            seconds = time.monotonic() - began
            print(
                f"{name}: step {step} of {settings.steps}, loss {loss.item():.3f}, {seconds:.0f} s",
                file=sys.stderr,
            )
            if checkpoint is not None:
                state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
                state |= {"schedule": schedule.state_dict(), "settings": repr(settings)}
                torch.save(state, checkpoint.with_suffix(".partial"))
                checkpoint.with_suffix(".partial").replace(checkpoint)
    return model.eval()


def choose(examples: Sequence[Example], settings: Settings, step: int) -> list[Example]:
    """Return the batch of a step; every epoch has another order, which follows from the seed alone."""
    each = -(-len(examples) // settings.batch)
    epoch, number = divmod(step, each)
    order = random.Random(f"{settings.seed} {epoch}").sample(range(len(examples)), len(examples))
    return [examples[i] for i in order[number * settings.batch : (number + 1) * settings.batch]]


def augment(features: Tensor, noise: torch.Generator) -> Tensor:
    """Return (T0, 64) features with noise and with a span of bands set to 0 (SpecAugment, Park et al. 2019)."""
    features = features + 0.2 * torch.randn(features.shape, generator=noise)
    band = int(torch.randint(0, BANDS - 10, (1,), generator=noise))
    features[:, band : band + 10] = 0
    return features


# --- decoding


@torch.no_grad()
def decode(model: Student, example: Example) -> dict[str, list[int]]:
    """Return the greedy token ids of both branches."""
    hidden = model.encode(example.features[None], torch.tensor([len(example.features)]))
    best = model.ctc_head(hidden)[0].argmax(-1).unique_consecutive().tolist()
    tokens: list[int] = []
    last = model.blank
    for frame in hidden[0]:
        for _ in range(MOST_SYMBOLS):
            label = int(model.joiner(torch.tanh(frame + model.embedding.weight[last])).argmax())
            if label == model.blank:
                break
            tokens.append(label)
            last = label
    return {"ctc": [i for i in best if i != model.blank], "rnnt": tokens}


def score(model: Student, examples: Iterable[Example]) -> dict[str, float]:
    """Return the token error rate in percent of each branch."""
    errors, total = {"ctc": 0, "rnnt": 0}, 0
    for example in examples:
        total += len(example.labels)
        for branch, tokens in decode(model, example).items():
            errors[branch] += edit_distance(list(example.labels), tokens)
    return {branch: 100 * count / total for branch, count in errors.items()}


@torch.no_grad()
def write_posteriors(model: Student, examples: Iterable[Example], folder: Path) -> None:
    """Write the (S, V) log-probabilities of the CTC head of each example, as `logitstore report --student` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for example in examples:
        hidden = model.encode(example.features[None], torch.tensor([len(example.features)]))
        logp = model.ctc_head(hidden)[0].log_softmax(-1)
        numpy.save(folder / f"{file_name(example.id)}.npy", logp.numpy().astype(numpy.float16))


def main() -> None:
    """Train both students and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("store", help="store of the teacher's targets")
    add("--manifest", required=True, help="utterances to train on; the store holds all of them")
    add("--test", help="utterances to test on; without them, every fifth of --manifest is kept out")
    add("--rate", default="1:1", metavar="P:Q", help="student frames for frames of the teacher")
    add("--steps", type=int, default=Settings.steps, help="steps of either run")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="folder of the checkpoints; a stopped run goes on from them")
    add("--posteriors", type=Path, metavar="DIR", help="write the distilled student's, for logitstore report")
    given = parser.parse_args()
    store = open_store(given.store)
    labels_of = Tokeniser(store.tokens)
    examples = read_examples(given.manifest, labels_of)
    test = read_examples(given.test, labels_of) if given.test else examples[::5]
    if not given.test:
        examples = [e for i, e in enumerate(examples) if i % 5]
    p, q = map(int, given.rate.split(":"))
    settings = Settings(rate=(p, q), steps=given.steps, seed=given.seed)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, distil in (("labels only", False), ("labels + distillation", True)):
        checkpoint = given.out / f"{name.replace(' ', '-')}.pt" if given.out else None
        model = train(examples, store, settings, distil=distil, checkpoint=checkpoint, name=name)
        rows.append((name, score(model, examples), score(model, test)))
    if given.posteriors:
        write_posteriors(model, [*examples, *test], given.posteriors)
    print(f"token errors in percent after {given.steps} steps, seed {given.seed}, rate {given.rate}")
    print(f"{'':<22} {len(examples):>7} trained on {len(test):>8} others")
    print(f"{'student':<22}{'CTC':>8} {'RNN-T':>8}{'CTC':>9} {'RNN-T':>8}")
    for name, own, other in rows:
        print(f"{name:<22}{own['ctc']:8.1f} {own['rnnt']:8.1f}{other['ctc']:9.1f} {other['rnnt']:8.1f}")


if __name__ == "__main__":
    main()
