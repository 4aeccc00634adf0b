"""The demo teacher with an attention decoder on its encoder, trained on the demo's utterances in seconds.

`logitstore dump --teacher tests/attention_teacher.py:load --stream seq2seq=dense`; a hybrid: `ctc` and `rnnt`
are the demo's own heads, widened by a class for the token that begins and ends a text, which they never say.
"""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[2]))

from logitstore.corpus.audio import load_audio
from logitstore.corpus.manifest import read_manifest
from logitstore.teachers.protocol import Head
from logitstore.tokens.table import TokenTable
from recipes.demo.teacher import DemoTeacher
from recipes.demo.teacher import load as load_demo

MANIFEST = Path(__file__).parents[2] / "manifests" / "demo.jsonl"
END_TOKEN = "<sos/eos>"
NEVER = -30.0  # the bias of a class that a head never says
STEPS, WIDTH, LONGEST = 80, 64, 64


class Decoder(nn.Module):
    """One layer that looks back at labels and over at the encoder: (1, n) ids and (1, T, E) → (1, n, V)."""

    def __init__(self, classes, encoder):
        super().__init__()
        self.embed = nn.Embedding(classes, WIDTH)
        self.place = nn.Embedding(LONGEST, WIDTH)
        self.layer = nn.TransformerDecoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.1, batch_first=True)
        self.layer.multihead_attn = nn.MultiheadAttention(
            WIDTH, 4, kdim=encoder, vdim=encoder, batch_first=True
        )
        self.output_layer = nn.Linear(WIDTH, classes)

    def forward(self, ids, memory, padding=None):
        n = ids.shape[1]
        x = self.embed(ids) + self.place(torch.arange(n))
        ahead = torch.ones(n, n, dtype=torch.bool).triu(1)
        x = self.layer(x, memory, tgt_mask=ahead, memory_key_padding_mask=padding)
        return self.output_layer(x)


class Widened(nn.Linear):
    """A trained Linear with one class more."""

    @classmethod
    def of(cls, linear):
        wide = cls(linear.in_features, linear.out_features + 1)
        with torch.no_grad():
            wide.weight.copy_(torch.cat([linear.weight, torch.zeros(1, linear.in_features)]))
            wide.bias.copy_(torch.cat([linear.bias, torch.tensor([NEVER])]))
        return wide


class AttentionTeacher(DemoTeacher):
    """A hybrid: its decoder is told to begin (two tokens) and sees all labels but the last."""

    def __init__(self, demo):
        super().__init__(demo.model, demo._tokens)
        table = super().tokens()
        self.end = len(table)
        self.prompt = [self.end, table.blank]
        self.most_labels = LONGEST - 2
        self.model.ctc_output[1] = Widened.of(self.model.ctc_output[1])
        self.model.joiner.output_linear = Widened.of(self.model.joiner.output_linear)
        self.model.attention = Decoder(self.end + 1, demo.model.sizes.encoder)

    def describe(self):
        spec = super().describe()
        head = Head("seq2seq", "attention.output_layer", spec.heads[0].blank, end=self.end)
        return replace(spec, name="hybrid", heads=(*spec.heads, head))

    def tokens(self):
        table = super().tokens()
        return TokenTable((*table.tokens, END_TOKEN), table.blank)

    def decode(self, output, b, labels):
        memory = output.encoder_out[b : b + 1, : int(output.lens[b])]
        return self.model.attention(torch.tensor([[*self.prompt, *labels[:-1]]]), memory)


def train(teacher):
    """Teacher forcing on the demo's twenty utterances, all in one batch."""
    said, features = [], []
    for utt in read_manifest(MANIFEST):
        said.append([*teacher.labels(utt.text), teacher.end])
        features.append(teacher.features(load_audio(utt, 16000)))
    lengths = torch.tensor([len(f) for f in features])
    output = teacher.forward(nn.utils.rnn.pad_sequence(features, batch_first=True), lengths)
    padding = torch.arange(output.encoder_out.shape[1])[None] >= output.lens[:, None]
    pad = nn.utils.rnn.pad_sequence
    ids = pad([torch.tensor([*teacher.prompt, *labels[:-1]]) for labels in said], batch_first=True)
    wanted = pad([torch.tensor([-1, *labels]) for labels in said], batch_first=True, padding_value=-1)
    decoder = teacher.model.attention.requires_grad_(True).train()
    memory = output.encoder_out.clone()  # made without gradients: only the decoder learns
    optimiser = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    for _ in range(STEPS):
        logits = decoder(ids, memory, padding)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    decoder.requires_grad_(False).eval()


@cache
def load():
    """Trained once a process; the same numbers every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            teacher = AttentionTeacher(load_demo())
            train(teacher)
        return teacher
    finally:
        torch.set_num_threads(threads)
