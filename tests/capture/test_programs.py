"""Whole programs under capture: several ranks of torchrun, wrapped and compiled models."""

import sys

import pytest
import torch

from logitstore import open_store
from logitstore.store.verify import verify_store
from tests.support import demo, recipe

PROGRAM = """
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

sys.path[:0] = [{root!r}, {folder!r}]
from asr_datamodule import read_cuts
from decode import load_model
from recipes.demo.decode import read_audio
from recipes.demo.features import log_mel

torch.set_num_threads(1)
ROOT, said = Path({root!r}), sys.argv[1:]


class Cuts(Dataset):
    def __init__(self, cuts):
        self.cuts = cuts

    def __len__(self):
        return len(self.cuts)

    def __getitem__(self, i):
        return self.cuts[i]


class Whole(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = load_model(ROOT / "recipes" / "demo")

    def forward(self, x, n):
        encoder_out, encoder_out_lens = self.model.forward_encoder(x, n)
        return self.model.ctc_output(encoder_out), encoder_out_lens


def collate(cuts):
    feats = [torch.from_numpy(log_mel(read_audio(c.audio))) for c in cuts]
    x = torch.nn.utils.rnn.pad_sequence(feats, batch_first=True)
    return dict(x=x, n=torch.tensor([len(f) for f in feats]), id=[c.id for c in cuts])


data, model, sampler = Cuts(read_cuts(ROOT / "manifests" / "demo.jsonl")[:19]), Whole().eval(), None
if "ranks" in said:
    torch.distributed.init_process_group("gloo")
    sampler = DistributedSampler(data, shuffle=False)  # 19 of two ranks: one comes twice
    model = torch.nn.parallel.DistributedDataParallel(model).eval()
if "parallel" in said:
    model = torch.nn.DataParallel(model)
if "compile" in said:
    model = torch.compile(model, backend=said[-1])
with torch.no_grad():
    for batch in DataLoader(data, batch_size=4, sampler=sampler, collate_fn=collate):
        log_probs, n = model(batch["x"], batch["n"])
if "ranks" in said:
    torch.distributed.destroy_process_group()
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "x.py").write_text(PROGRAM.format(root=str(demo.ROOT), folder=str(recipe.FOLDER)))
    return tmp_path / "x.py"


def check(place, ran, *, atol=2e-2):
    assert ran.returncode == 0, ran.stderr
    opened, alone = open_store(place), recipe.own(size=1)
    assert sorted(opened) == sorted(line["id"] for line in demo.lines())[:19]
    assert not verify_store(place).findings
    for utt_id in opened:
        stored = torch.from_numpy(opened[utt_id]["ctc"].logits())
        assert stored.shape == alone[utt_id].shape
        torch.testing.assert_close(stored, alone[utt_id], atol=atol, rtol=1e-3)


def test_two_ranks_store_each_utterance_once(tmp_path, script):
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = ["--ctc", "model.ctc_output.1", "--tokens", demo.TOKENS]
    ran = recipe.capture(tmp_path / "s", *options, command=[*ranks, script, "ranks"])
    check(tmp_path / "s", ran)
    assert b"19 utterances sealed (1 were there already)" in ran.stderr
    assert len(list((tmp_path / "s" / "sealed").iterdir())) == 2


@pytest.mark.parametrize("said", ["parallel", "compile aot_eager"])
def test_wrapped_models(tmp_path, script, said):
    command = [sys.executable, script, *said.split()]
    ran = recipe.capture(tmp_path / "s", "--ctc", "model.ctc_output.1", command=command)
    check(tmp_path / "s", ran)
