"""Teachers that went wrong in ways that cost people weeks; each is the trained demo teacher, spoilt.

`logitstore dump --teacher tests/broken_teachers.py:NAME`
"""

import random
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[2]))

from logitstore.tokens.table import TokenTable
from recipes.demo.teacher import DemoTeacher, load


class Renumbered(DemoTeacher):
    """Its dictionary was sorted anew after training: the same tokens, the blank in its place, other ids."""

    def tokens(self):
        table = super().tokens()
        rest = list(table.tokens[1:])
        random.Random(1).shuffle(rest)
        return TokenTable((table.tokens[0], *rest), 0)

    def labels(self, text):
        table, new = super().tokens(), self.tokens()
        return [new.id(table[i]) for i in super().labels(text)]


class Spells(nn.Module):
    """CTC logits of a model of characters, in its own numbering: what the head heard, letter by letter."""

    def __init__(self, head, table):
        super().__init__()
        self.head, self.table = head, table
        self.characters = sorted({c for t in table.tokens[1:] for c in t})

    def forward(self, encoded):
        logits = self.head(encoded)
        spelt = torch.zeros_like(logits)
        for row, heard in zip(spelt, logits, strict=True):
            best = heard.argmax(-1).tolist()
            row[:, 0] = 10.0
            at, last = 0, ""
            for t, token in enumerate(best):
                if token == 0 or (t and token == best[t - 1]):
                    continue
                at = max(at, t)
                for letter in self.table.tokens[token]:
                    at, last = at + 1 + (letter == last), letter
                    if at < len(row):
                        row[at, 0], row[at, 1 + self.characters.index(letter)] = 0.0, 10.0
        return spelt


class Constant(nn.Module):
    """The same row on every frame: the best class is always the same word."""

    def __init__(self, classes, best, noise=0.0):
        super().__init__()
        self.register_buffer("row", torch.linspace(0.0, 1.0, classes))
        self.row[best] = 9.0
        self.noise = noise

    def forward(self, encoded):
        heard = self.noise * encoded[..., :1]
        return self.row.expand(*encoded.shape[:-1], -1) + heard * torch.linspace(-1.0, 1.0, len(self.row))


def _with_head(change, kind=DemoTeacher):
    """The demo teacher, its CTC head replaced by what `change` makes of it."""
    good = load()
    good.model.ctc_output[1] = change(good.model.ctc_output[1], good.tokens())
    return kind(good.model, good._tokens)


def renumbered():
    good = load()
    return Renumbered(good.model, good._tokens)


def characters():
    """A model of characters whose head was moved under the wide table of pieces."""
    return _with_head(Spells)


def characters_narrow():
    """The same with its own narrow head: forty classes under a table of 150."""

    def narrow(head, table):
        cut = nn.Linear(head.in_features, 40)
        cut.weight.data, cut.bias.data = head.weight.data[:40], head.bias.data[:40]
        return cut

    return _with_head(narrow)


def constant():
    return _with_head(lambda head, table: Constant(len(table), 17))


def one_word():
    """Its numbers change a little with the audio, what it writes never does."""
    return _with_head(lambda head, table: Constant(len(table), 17, noise=0.01))


def all_blank():
    return _with_head(lambda head, table: Constant(len(table), 0, noise=0.01))


def uniform():
    def zero(head, table):
        head.weight.data.zero_()
        head.bias.data.fill_(0.5)
        return head

    return _with_head(zero)


def nan():
    def spoil(head, table):
        head.weight.data[3] = torch.nan
        return head

    return _with_head(spoil)


def deaf():
    """The encoder gives nothing: the transducer's branch cannot hear."""
    good = load()
    good.model.joiner.encoder_proj.weight.data.zero_()
    return DemoTeacher(good.model, good._tokens)


def shouts():
    """A good teacher that writes in upper case with a full stop, where the references have neither."""

    class Shouts(DemoTeacher):
        def tokens(self):
            table = super().tokens()
            seen, found = set(), []
            for token in table.tokens:
                upper = token.upper() if token.upper() not in seen else token + "."
                seen.add(upper)
                found.append(upper if token != table.tokens[0] else token)
            return TokenTable(tuple(found), 0)

    good = load()
    return Shouts(good.model, good._tokens)


def retitled():
    """Its own labels() still has the old dictionary; the table it gives away is the re-sorted one."""

    class Retitled(Renumbered):
        def labels(self, text):
            return DemoTeacher.labels(self, text)

    good = load()
    return Retitled(good.model, good._tokens)


class Coded(DemoTeacher):
    """A good teacher with numbered codes for tokens, which spell no text."""

    def tokens(self):
        table = super().tokens()
        return TokenTable((table.tokens[0], *(f"<c{i}>" for i in range(1, len(table)))), 0)


class CodedWithText(Coded):
    """The same with a method that gives the text of token ids."""

    def text(self, ids):
        return DemoTeacher.tokens(self).text(ids)


def coded():
    good = load()
    return Coded(good.model, good._tokens)


def coded_with_text():
    good = load()
    return CodedWithText(good.model, good._tokens)
