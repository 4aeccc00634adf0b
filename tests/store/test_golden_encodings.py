"""Stores of every encoding and lattice form that an earlier version wrote: the numbers of then, and the model's own."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from logitstore import open_store
from logitstore.encodings.rows import NOTHING
from logitstore.schema.lattice import sample
from logitstore.store.lattice_nodes import occupancy
from logitstore.store.verify import verify_store
from tests.support.lattices import means

GOLDEN = Path(__file__).parents[1] / "golden"
ABOUT = importlib.util.spec_from_file_location("make_encodings", GOLDEN / "make_encodings.py")
MADE = importlib.util.module_from_spec(ABOUT)
ABOUT.loader.exec_module(MADE)
LABELS = {"a.1": [3, 1, 4], "b/2’": []}
COARSE = {"factored:0.001": 0.05, "factored:0.01": 0.2, "factored:0.1": 0.5}  # of a probability


@pytest.fixture(params=list(MADE.STORES))
def golden(request):
    """Name of a store, the opened store, and the numbers kept beside it."""
    with np.load(GOLDEN / f"v1.0-{request.param}.npz") as kept:
        return request.param, open_store(GOLDEN / f"v1.0-{request.param}"), dict(kept)


def test_the_descriptions(golden):
    name, store, _ = golden
    storage, ctc, rnnt = MADE.STORES[name]
    encoding, _, form = rnnt.partition("/")
    said = [(s.name, s.encoding, s.form) for s in store.spec.streams]
    assert said == [("ctc", ctc, ""), ("rnnt", encoding, form or "full")]
    assert store.spec.storage == {"name": storage}
    assert {u: t.labels.tolist() for u, t in store.items()} == LABELS
    assert not verify_store(GOLDEN / f"v1.0-{name}").findings


def test_numbers_are_those_of_the_day_they_were_written(golden):
    _, store, kept = golden
    assert len(kept) == 2 * 2 * (1 + len(MADE.TEMPERATURES))
    for utt, target in store.items():
        for stream in ("ctc", "rnnt"):
            for t in MADE.TEMPERATURES:
                wanted = kept[f"{utt} {stream} {t:g}"]
                np.testing.assert_allclose(target.log_probs(stream, t), wanted, atol=2e-5, rtol=1e-5)


def test_rows_are_the_models_distributions(golden):
    _, store, kept = golden
    for utt, target in store.items():
        for spec in store.spec.streams:
            own = torch.from_numpy(kept[f"{utt} {spec.name} own"])
            wanted = own.double().softmax(-1)
            if spec.form.startswith("mean-u"):
                wanted = means(own, LABELS[utt], spec.form)
            grid = target.grid(spec.name)
            if grid is not None:
                assert grid.shape == own.shape[:2]
                rows = torch.empty(int(grid.max()) + 1, own.shape[-1], dtype=torch.float64)
                rows[torch.from_numpy(grid[grid >= 0])] = wanted[torch.from_numpy(grid >= 0)]
                wanted = rows
            at = target[spec.name].at(1.0)
            ids = (
                torch.arange(own.shape[-1]).expand(at.logp.shape) if at.ids is None else torch.tensor(at.ids)
            )
            got, told = torch.from_numpy(at.logp), wanted.gather(1, ids.long())
            there = got > NOTHING
            assert int(there.any(1).sum()) == len(at.logp) == len(wanted)
            near = COARSE.get(spec.encoding, 5e-3)
            assert float((got.exp() - told)[there].abs().max()) < near


def test_nodes_are_those_of_the_rules():
    """Choose the nodes again by the model's own scores, and compare."""
    for name, form in (("nucleus", "banded"), ("path", "path"), ("sample", "sample")):
        store = open_store(GOLDEN / f"v1.0-{name}")
        nodes = store["a.1"].nodes["rnnt"]
        assert nodes.form.name == form
        with np.load(GOLDEN / f"v1.0-{name}.npz") as kept:
            logp = torch.from_numpy(kept["a.1 rnnt own"]).double().log_softmax(-1)
        label = torch.stack([logp[:, u, [*LABELS["a.1"], 0][u]] for u in range(4)], 1)
        if form == "sample":
            drawn = sample(nodes.form, len(logp), 3, "a.1")
            assert nodes.position.tolist() == drawn.position.tolist()
            continue
        occupied = occupancy(logp[..., 0].numpy(), label.numpy())[nodes.frame, nodes.position]
        np.testing.assert_allclose(nodes.occupancy, occupied, atol=1e-3)
        if form == "path":
            assert len(nodes) == len(logp) + 3
