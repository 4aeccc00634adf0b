"""Losses over a re-sorted or reduced table equal those of the teacher's own table, restricted to it."""

import random

import numpy as np
import pytest
import torch

from logitstore import TokenTable, VocabMap, open_store
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.encodings.rows import NOTHING
from logitstore.losses import ctc_kd, rnnt_kd
from tests.support import demo

TEMPERATURE = 2.0
LOSSES = {"ctc": ctc_kd, "rnnt": rnnt_kd}
STREAMS = [
    {"ctc": "dense", "rnnt": "dense"},
    {"ctc": "topk:16", "rnnt": "topk:16"},
    {"ctc": "nucleus:1e-3", "rnnt": "nucleus:1e-3"},
    {"ctc": "factored", "rnnt": "factored"},
    {"ctc": "factored:int8", "rnnt": "collapsed"},
    {"ctc": "factored:1e-3", "rnnt": "topk:8/banded:4"},
    {"ctc": "dense:int8", "rnnt": "nucleus:1e-3/mean-u"},
]


@pytest.fixture(scope="module", params=STREAMS, ids=lambda s: "-".join(s.values()))
def store(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "s"
    dump_logits(demo.teacher(), demo.manifest(3), folder, DumpOptions(streams=request.param))
    return open_store(folder)


def table_of(store, dropped):
    """The store's tokens in another order; ``dropped`` of those that no label needs are left out."""
    rng, teacher = random.Random(dropped), store.tokens
    needed = {teacher.blank, *(int(i) for target in store.values() for i in target.labels)}
    spare = [i for i in range(len(teacher)) if i not in needed]
    gone = set(rng.sample(spare, dropped))
    left = [t for i, t in enumerate(teacher.tokens) if i not in gone]
    rng.shuffle(left)
    return TokenTable(tuple(left), left.index(teacher.tokens[teacher.blank]))


def both(store, student):
    """Batches of the store over its own classes and over the student's; the classes' ids there."""
    there = VocabMap.by_token(store.tokens, student)
    mapped, ids = open_store(store.place, vocab=there), list(store)
    own = store.batch(ids, temperature=TEMPERATURE)
    return own, mapped.batch(ids, temperature=TEMPERATURE), torch.from_numpy(there.to)


def logits_for(stream, classes, seed):
    shape = (*stream.mask.shape, classes)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def test_a_resorted_table(store):
    own, mapped, to = both(store, table_of(store, 0))
    for name, loss in LOSSES.items():
        logits = logits_for(mapped[name], len(to), 1)
        there = loss(logits, mapped[name])
        assert float(there) == pytest.approx(float(loss(logits[..., to], own[name])), abs=1e-5)
        assert float(there) > 0.5


def test_a_reduced_table(store):
    student = table_of(store, 40)
    own, mapped, to = both(store, student)
    for name, loss in LOSSES.items():
        logits = logits_for(mapped[name], len(student), 2)
        got = loss(logits, mapped[name], reduction="none", scale=False)
        wanted = restricted(own[name], to.numpy(), logits)
        np.testing.assert_allclose(got.numpy(), wanted, atol=1e-5, rtol=1e-5)


def restricted(stream, to, logits):
    """KL of each of the teacher's rows, its classes cut down to the student's, in the plainest way."""
    q = (logits / TEMPERATURE).softmax(-1).numpy()
    out = np.zeros(stream.mask.shape)
    logp, tail = stream.logp.double().numpy(), stream.tail.double().numpy()
    for at in zip(*np.nonzero(stream.mask.numpy()), strict=True):
        entries = range(stream.classes) if stream.ids is None else stream.ids[at].tolist()
        kept = {
            to[i]: np.exp(p) for i, p in zip(entries, logp[at], strict=True) if p > NOTHING and to[i] >= 0
        }
        mine = np.array([q[at][i] for i in kept])
        p = np.array([*kept.values()])
        if len(kept) == logits.shape[-1]:  # nothing is left that the rest could be
            p = p / p.sum()
        else:
            gone = sum(np.exp(x) for i, x in zip(entries, logp[at], strict=True) if x > NOTHING and to[i] < 0)
            p, mine = np.append(p, np.exp(tail[at]) + gone), np.append(mine, 1 - mine.sum())
        out[at] = (p * np.log(np.maximum(p, 1e-300) / mine)).sum()
    return out
