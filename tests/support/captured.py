"""A program captured in this process: the trained demo model, going the ways that frameworks take."""

import contextlib
import copy
import fcntl
import gc
import json
import os
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, dataloader

from logitstore import open_store
from logitstore.capture.job import CaptureJob, CaptureOptions
from logitstore.capture.recorder import CaptureRecorder
from logitstore.storage import parse_storage
from logitstore.storage.commit import publish
from logitstore.storage.entries import parse_entry
from logitstore.storage.places import open_place
from logitstore.storage.spec_file import read_spec
from logitstore.store.layout import columns_of
from recipes.demo.decode import collate, read_manifest
from recipes.demo.pieces import Pieces
from tests.support import demo


def some_utterances():
    return read_manifest(demo.MANIFEST, Pieces.read(demo.TOKENS))[:6]


def a_model():
    return copy.deepcopy(demo.teacher().model)


class Program(nn.Module):
    """A recogniser whose head goes the ways that frameworks take; only it is seen from outside."""

    def __init__(self, model, way):
        super().__init__()
        self.model, self.way = model, way
        self.headed = nn.ModuleDict({"lo": Way(model.ctc_output[1], way)})

    def forward(self, x, lens):
        hidden, lens = self.model.encoder(x, lens)
        if self.way == "thrice":  # as InterCTC: the right one in the middle
            for scale in (0.5, 1.0, 2.0):
                out = self.headed["lo"](hidden * scale)
            return out, lens
        out = self.headed["lo"](hidden)
        if self.way == "edited":  # as decoders with a blank penalty
            out[:, :, 0] -= 9
        return out, lens


class Way(nn.Module):
    """The demo's head, its output turned."""

    def __init__(self, linear, way):
        super().__init__()
        self.linear, self.way = linear, way

    def forward(self, x):
        logits = self.linear(x)
        return {"BVT": logits.transpose(1, 2), "TBV": logits.transpose(0, 1)}.get(self.way, logits)


class Session:
    """A captured process, as far as it is one: undone at its end."""

    def __init__(self, folder, monkeypatch, **options):
        self.place = folder / "store"
        (folder / "reports").mkdir()
        self._owner = open(folder / "owner", "w")
        fcntl.flock(self._owner, fcntl.LOCK_EX)
        options = {"ctc": "headed.lo", "tokens": str(demo.TOKENS), **options}
        self.job = CaptureJob(
            out=str(self.place), session="x", handover="handover-x", options=CaptureOptions(**options)
        )
        kind = dataloader._BaseDataLoaderIter
        for name in ("__next__", "_next_index", "_reset"):
            monkeypatch.setattr(kind, name, getattr(kind, name))  # put back at the end
        monkeypatch.setattr(torch, "compile", torch.compile)
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        self.inside = CaptureRecorder(self.job, folder)
        self.folder = folder

    def close(self):
        self.inside._close(os.getpid())
        self.inside.stop()
        self.inside._refused = True
        self._owner.close()

    def store(self):
        self.close()
        place = open_place(self.place)
        for path in (self.folder / "reports").glob("*.json"):
            said = json.loads(path.read_text("utf-8"))
            if "entry" in said:
                entry = parse_entry(said["entry"].encode("utf-8"), said["shard"], "")
                staged = place.stage(self.job.handover) / entry.shard
                columns = columns_of(read_spec(place))
                publish(place, parse_storage(self.job.options.storage), staged, entry, columns)
        return open_store(self.place)


@contextlib.contextmanager
def sessions(tmp_path, monkeypatch):
    with contextlib.ExitStack() as stack:

        def begin(**options):
            gc.collect()  # models of earlier tests, which a capture would find
            made = Session(tmp_path, monkeypatch, **options)
            stack.callback(made.close)
            return made

        yield begin


def loader(utterances, size=3, **extra):
    """Batches as Kaldi-style recipes make them."""

    def together(part):
        features, lengths = collate(part)
        return {"utt_ids": [u.id for u in part], "feats": features, "feats_lengths": lengths, **extra}

    return DataLoader(utterances, batch_size=size, collate_fn=together)


@torch.no_grad()
def decode(program, batches):
    for batch in batches:
        program(batch["feats"], batch["feats_lengths"])


def own(model, utterances):
    with torch.no_grad():
        hidden, lens = model.forward_encoder(*collate(utterances))
        logits = model.ctc_output[1](hidden)
    return {u.id: logits[b, : lens[b]] for b, u in enumerate(utterances)}


def check(store, model, utterances):
    wanted = own(model, utterances)
    assert set(store) == set(wanted)
    for utt_id, logits in wanted.items():
        torch.testing.assert_close(
            torch.from_numpy(store[utt_id]["ctc"].logits()), logits, atol=2e-2, rtol=1e-3
        )
