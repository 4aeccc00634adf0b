"""The tail of pruned rows is right within a hundredth at any temperature, on real logits."""

from functools import cache

import numpy as np
import pytest
import torch

from benchmarks.tail import tail_errors
from logitstore import open_store
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.encodings import parse_encoding
from logitstore.encodings.topk import TopK
from logitstore.errors import FormatError
from logitstore.runner.driver import TeacherDriver
from logitstore.runner.loader import load
from logitstore.schema.spec import StoreSpec, TeacherSpec
from logitstore.storage.places import open_place
from logitstore.store.layout import make_spec
from logitstore.store.writer import StoreWriter
from logitstore.tokens.table import TokenTable
from tests.support.demo import manifest, teacher
from tests.support.sealed import forge_description


@cache
def logits(stream):
    """(N, V) of five utterances, from the teacher alone."""
    driver = TeacherDriver(teacher(), teacher().tokens(), ["ctc", "rnnt"], "cpu")
    said = driver.run([load(utt, teacher(), driver.table, True) for utt in manifest(5)])
    if stream == "ctc":
        return torch.cat([s.rows["ctc"] for s in said]).numpy()
    return torch.cat([piece.flatten(0, 1) for s in said for piece in driver.lattice(s)]).numpy()


@pytest.mark.parametrize("stream", ["ctc", "rnnt"])
@pytest.mark.parametrize("encoding", ["topk:8", "topk:16", "topk:32"])
def test_the_mass_left_out_is_right_within_a_hundredth_at_any_temperature(stream, encoding):
    for error in tail_errors(parse_encoding(encoding), logits(stream)):
        assert len(error.relative) == len(logits(stream))
        assert np.quantile(error.relative, 0.99) < 0.005, error.temperature
        assert error.relative.mean() < 0.002, error.temperature


def test_the_tail_of_a_nucleus_is_right_within_a_hundredth_of_the_row():
    for error in tail_errors(parse_encoding("nucleus:1e-3"), logits("ctc")):
        assert np.quantile(error.absolute, 0.99) < 0.005, error.temperature


def test_four_stored_points_miss_between_temperatures_one_and_two():
    """Why there are five."""
    four = {e.temperature: np.quantile(e.relative, 0.99) for e in tail_errors(TopK(8, 4), logits("ctc"))}
    assert four[1.2] > 0.05
    assert max(four[t] for t in (1.0, 2.0, 4.0, 8.0)) < 0.001


def table(size=12):
    return TokenTable(("<blk>", *(f"t{i}" for i in range(1, size))), 0)


def older(streams):
    """The spec of a store made when tails had four points."""
    spec = make_spec(TeacherSpec("unnamed", 16000, 640), table(), streams).to_json()
    for stream in spec["streams"]:
        stream.pop("tail_points", None)
    return StoreSpec.from_json(spec)


def test_a_store_of_four_points_is_read_and_continued_with_four(tmp_path):
    rows = {i: 3 * np.random.default_rng(i).standard_normal((4, 12)).astype(np.float32) for i in range(3)}
    with_four = older({"ctc": "topk:3"})
    with StoreWriter(open_place(tmp_path), with_four).begin(table()) as writer:
        writer.add("0", ctc=rows[0])
    assert open_store(tmp_path)["0"]["ctc"].odds.shape == (4, 4)
    with StoreWriter.open(tmp_path, tokens=table(), streams={"ctc": "topk:3"}) as writer:
        writer.add("1", ctc=rows[1])
    store = open_store(tmp_path)
    assert store["1"]["ctc"].odds.shape == (4, 4)
    with StoreWriter.open(tmp_path / "new", tokens=table(), streams={"ctc": "topk:3"}) as writer:
        writer.add("1", ctc=rows[1])
    new = open_store(tmp_path / "new")
    assert new.spec.stream("ctc").tail_points == 5
    np.testing.assert_array_equal(new["1"]["ctc"].odds[:, :4], store["1"]["ctc"].odds)


@pytest.mark.parametrize("encoding", ["topk:4", "collapsed"])
def test_the_fifth_point_is_the_mass_at_four_thirds(tmp_path, encoding):
    dump_logits(teacher(), manifest(1), tmp_path, DumpOptions(streams={"rnnt": encoding}))
    store = open_store(tmp_path)
    rows = store["demo-00"]["rnnt"]
    driver = TeacherDriver(teacher(), teacher().tokens(), ["rnnt"], "cpu")
    said = driver.run([load(next(iter(manifest(1))), teacher(), driver.table, True)])[0]
    own = torch.cat([p.flatten(0, 1) for p in driver.lattice(said)]).double() * 0.75
    kept = torch.zeros(own.shape, dtype=torch.bool).scatter_(
        1, torch.from_numpy(rows.ids.astype(np.int64)), True
    )
    exact = own.masked_fill(kept, -torch.inf).logsumexp(1) - own.masked_fill(~kept, -torch.inf).logsumexp(1)
    assert rows.odds.shape == (len(own), 5)
    np.testing.assert_allclose(rows.odds[:, 4], exact.numpy(), atol=0.001)
    tail = rows.at(4 / 3).tail
    np.testing.assert_allclose(tail, (exact - torch.logaddexp(exact, torch.zeros(()))).numpy(), atol=0.02)


def test_no_other_number_of_points_is_read(tmp_path):
    with StoreWriter.open(tmp_path, tokens=table(), streams={"ctc": "topk:3"}) as writer:
        writer.add("1", ctc=np.ones((2, 12), np.float32))
    forge_description(tmp_path, lambda spec: spec["streams"][0].update(tail_points=6))
    with pytest.raises(FormatError, match="at 6 temperatures"):
        open_store(tmp_path)
