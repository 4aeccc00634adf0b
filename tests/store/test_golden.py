"""Stores that an earlier version wrote, read by this one; the expected numbers are written here by hand."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import logitstore
from logitstore import open_store
from logitstore.storage.base import check_file
from logitstore.storage.entries import read_entry

GOLDEN = Path(__file__).parents[1] / "golden"
SPEC = (Path(logitstore.__file__).parent / "schema" / "SPEC.md").read_text("utf-8")
STORES = ["v1.0-zarr", "v1.0-webdataset"]
BLOCKS = re.findall(r"^```(hex|text) (v\S+)\n(.*?)^```$", SPEC, re.M | re.S)

# log-softmax of the integer logits that SPEC.md's worked example names, in float64, by temperature
A = {1: [-6.3636, -3.3636, -0.3636, -4.3636, -1.3636], 2: [-3.7005, -2.2005, -0.7005, -2.7005, -1.2005]}
B = {1: [-3.3665, -0.3665, -4.3665, -1.3665, -5.3665], 2: [-2.2164, -0.7164, -2.7164, -1.2164, -3.2164]}
TAIL = {  # of the four nodes of a.1: what the three classes left out weigh together
    1: [-3.0142, -3.0077, -2.9586, -2.9586],
    2: [-1.5965, -1.5794, -1.5363, -1.5363],
    3: [-1.1754, -1.1591, -1.1295, -1.1295],
}


@pytest.fixture(params=STORES)
def store(request):
    return open_store(GOLDEN / request.param)


def test_the_description(store):
    assert list(store) == ["a.1", "b/2’"]
    assert store.tokens.tokens == ("<blk>", "a", "b", "▁c", "d")
    assert store.spec.version == "1.0"
    assert store.spec.teacher.features == {"window": [25, 10]}
    assert [(s.name, s.encoding, s.form) for s in store.spec.streams] == [
        ("ctc", "dense", ""),
        ("rnnt", "topk:2", "full"),
    ]


def test_rows(store):
    a, b = store["a.1"], store["b/2’"]
    assert (a.T, a.U, a.labels.tolist(), a.text) == (2, 1, [2], "b")
    assert (b.T, b.U, b.labels.tolist(), b.text) == (1, 0, [], None)
    assert a.meta["seconds"] == 0.08
    assert a.shapes == {"ctc": (2, 5), "rnnt": (2, 2, 5)}
    assert b.shapes == {"ctc": (1, 5), "rnnt": (1, 1, 5)}


@pytest.mark.parametrize("temperature", [1, 2])
def test_ctc(store, temperature):
    np.testing.assert_allclose(
        store["a.1"].log_probs("ctc", temperature), [A[temperature], B[temperature]], atol=2e-3
    )
    np.testing.assert_allclose(store["b/2’"].log_probs("ctc", temperature), [A[temperature]], atol=2e-3)
    np.testing.assert_allclose(store["a.1"]["ctc"].logits()[0], [0, 3, 6, 2, 5], atol=2e-3)


@pytest.mark.parametrize("temperature", [1, 2, 3])
def test_rnnt(store, temperature):
    at = store["a.1"]["rnnt"].at(temperature)
    assert at.ids.tolist() == [[2, 4], [4, 1], [1, 3], [1, 3]]
    np.testing.assert_allclose(at.tail, TAIL[temperature], atol=2e-3)
    if temperature in A:
        kept = [[A[temperature][2], A[temperature][4]], [B[temperature][1], B[temperature][3]]]
        np.testing.assert_allclose(at.logp[[0, 2]], kept, atol=2e-3)
    lattice = store["a.1"].log_probs("rnnt", temperature)
    np.testing.assert_allclose(np.exp(lattice).sum(-1), np.ones((2, 2)), atol=1e-5)
    assert lattice[0].argmax(-1).tolist() == [2, 4]


def test_every_file_is_as_sealed(store):
    for shard in store.shards:
        for file in read_entry(store.place, shard).contents.files:
            check_file(store.place.read(file.path), file)


@pytest.mark.parametrize("name", STORES)
def test_the_shipped_index_is_used(name, monkeypatch):
    monkeypatch.setattr("logitstore.storage.catalog.build_run", None)  # it need not be made anew
    assert "a.1" in open_store(GOLDEN / name)


def test_the_specification_shows_the_files_bytes():
    assert len(BLOCKS) >= 14
    for kind, path, body in BLOCKS:
        (file,) = GOLDEN.glob(path)
        data = file.read_bytes()
        if kind == "text":
            assert body.rstrip("\n").encode() in data, path
            continue
        lines = body.splitlines()
        for line in lines:
            found = re.match(r"([0-9a-f]{4})  ((?:[0-9a-f]{2}(?: |$))+)", line)
            assert found, f"{path}: {line!r} is not a line of bytes"
            at, shown = int(found[1], 16), bytes.fromhex(found[2])
            assert data[at : at + len(shown)] == shown, f"{path} at {found[1]}"


def test_every_rule_cited_is_a_rule():
    rules = set(re.findall(r"^\*\*([A-Z]\d+)\*\*", SPEC, re.M))
    cited = {}
    for path in Path(logitstore.__file__).parent.rglob("*.py"):
        for found in re.findall(r"SPEC ([A-Z]\d+)(?:-([A-Z]\d+))?", path.read_text("utf-8")):
            cited |= {rule: path.name for rule in found if rule}
    assert not {r: p for r, p in cited.items() if r not in rules}
    assert len(rules) > 30


def test_the_core_of_the_specification_is_short():
    assert SPEC[: SPEC.index("# Annexes")].count("\n") <= 200


PROGRAM = re.search(r"^```python\n(.*?)^```$", SPEC, re.M | re.S)[1]


@pytest.mark.parametrize("name", [*STORES, "v1.0-own-labels", "v1.0-nucleus"])
def test_the_program_of_the_specification_reads_a_record(name, monkeypatch):
    assert len(PROGRAM.splitlines()) <= 16
    monkeypatch.chdir(GOLDEN / name)
    printed = {}
    exec(PROGRAM, {"print": lambda name, items: printed.update({name: items})})
    wanted = open_store(GOLDEN / name).record("a.1").arrays
    assert set(printed) == set(wanted)
    for column, items in wanted.items():
        np.testing.assert_array_equal(printed[column], items)


def test_the_test_vectors_are_those_of_the_golden_stores(monkeypatch):
    monkeypatch.syspath_prepend(str(GOLDEN))
    shown = re.search(r"^```vectors\n(.*?)^```$", SPEC, re.M | re.S)[1]
    assert shown == importlib.import_module("vectors").text()
