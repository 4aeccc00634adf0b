"""Golden stores of rarer cases: what a dead writer left, pieces and chunks, labels that the teacher found itself."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from logitstore import TokenTable, open_store, verify_store
from logitstore.storage.entries import read_entry
from logitstore.store.writer import StoreWriter

GOLDEN = Path(__file__).parents[1] / "golden"
ABOUT = importlib.util.spec_from_file_location("make_more", GOLDEN / "make_more.py")
MADE = importlib.util.module_from_spec(ABOUT)
ABOUT.loader.exec_module(MADE)
NEAR = {"factored:0.001": 0.05}  # of a probability


@pytest.fixture(params=list(MADE.STORES))
def golden(request):
    """The opened store, and the numbers kept beside it."""
    with np.load(GOLDEN / f"v1.0-{request.param}.npz") as kept:
        return open_store(GOLDEN / f"v1.0-{request.param}"), dict(kept)


def test_numbers_are_those_of_the_day_they_were_written(golden):
    store, kept = golden
    assert len(store) == 2
    for utt, target in store.items():
        for spec in store.spec.streams:
            own = torch.from_numpy(kept[f"{utt} {spec.name} own"]).double().softmax(-1).numpy()
            got = np.exp(target.log_probs(spec.name))
            assert np.abs(got - own).max() < NEAR.get(spec.encoding, 5e-3)
            for t in MADE.TEMPERATURES:
                wanted = kept[f"{utt} {spec.name} {t:g}"]
                np.testing.assert_allclose(target.log_probs(spec.name, t), wanted, atol=2e-5, rtol=1e-5)
    assert not verify_store(store.place).findings


def test_a_relu_joiner_a_code_of_pieces_and_several_inner_chunks():
    store = open_store(GOLDEN / "v1.0-relu")
    assert store.spec.stream("rnnt").activation == "relu"
    record = store.record("a.1")
    code, pieces = record.arrays["ctc.coded"].tobytes(), []
    while code:
        pieces.append(int.from_bytes(code[:2], "little"))
        code = code[8 + 2 * int.from_bytes(code[4:8], "little") :]
    assert pieces == [5, 5, 3]
    assert (
        sum(a.nbytes for n, a in record.arrays.items() if n == "rnnt.dec") > 64
    )  # more than one inner chunk


def test_labels_that_the_teacher_found_and_several_packs():
    store = open_store(GOLDEN / "v1.0-own-labels")
    assert {store.record(i).meta["labels_from"] for i in store} == {"rnnt"}
    assert store.spec.stream("rnnt").form == "full+occupancy"
    tar = (GOLDEN / "v1.0-own-labels" / "shards" / "000000.tar").read_bytes()
    assert b"000000/000001.ctc.logp.npy" in tar  # the second pack


def test_what_a_dead_writer_left_is_read_and_finished(tmp_path):
    path = shutil.copytree(GOLDEN / "v1.0-sealed", tmp_path / "s")
    store = open_store(path)
    assert len(store) == len(list(store)) == MADE.RECORDS + 2
    assert store.shards == (f"{MADE.LONG}-000000", "one-000002-1", "skipped")
    assert read_entry(store.place, "one-000002-1").replaces == ("one-000002", "two-000003")
    assert read_entry(store.place, "skipped").skipped[0]["id"] == "lost"
    assert len(store.entry("skipped").ids) == 0
    said = [store[i].meta["hyp"]["text"]["text"] for i in ("utt-0599", "of one", "of two")]
    assert said == ["a b 599", "one", "two"]
    assert [f.where for f in verify_store(path).findings] == ["shards/leftover.tar"]
    StoreWriter(store.place, store.spec).begin(store.tokens).close()
    assert not read_entry(store.place, "one-000002-1").replaces
    assert sorted(p.name for p in (path / "sealed").iterdir()) == [
        f"{MADE.LONG}-000000.entry",
        "one-000002-1.entry",
        "skipped.entry",
    ]
    assert open_store(path).tokens == TokenTable(MADE.TOKENS.tokens, 0)
    assert len(open_store(path)) == MADE.RECORDS + 2
