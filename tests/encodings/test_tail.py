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
from logitstore.encodings.rows import logsumexp
from logitstore.runner.driver import TeacherDriver
from logitstore.runner.loader import load
from tests.support.demo import manifest, teacher


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


def test_every_stored_point_is_needed_between_temperatures_one_and_two():
    """A polynomial that skips 4/3 misses the mass there; so does one in 1/τ."""
    own = logits("ctc")
    found = next(e for e in tail_errors(parse_encoding("topk:8"), own) if e.temperature == 1.2)
    assert np.quantile(found.relative, 0.99) < 0.005
    y = np.log1p(4 / np.array([1, 2, 4, 8, np.inf]))
    left = np.sort(own.astype(np.float64), 1)[:, :-8]
    at = [logsumexp(left / t) for t in (1, 2, 4, 8)] + [np.full(len(left), np.log(left.shape[1]))]
    weights = [np.prod([(np.log1p(4 / 1.2) - b) / (a - b) for b in y if b != a]) for a in y]
    missed = np.abs(np.expm1(np.stack(at, 1) @ weights - logsumexp(left / 1.2)))
    assert np.quantile(missed, 0.99) > 0.01


@pytest.mark.parametrize("encoding", ["topk:4", "collapsed"])
def test_the_second_point_is_the_mass_at_four_thirds(tmp_path, encoding):
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
    np.testing.assert_allclose(rows.odds[:, 1], exact.numpy(), atol=0.001)
    tail = rows.at(4 / 3).tail
    np.testing.assert_allclose(tail, (exact - torch.logaddexp(exact, torch.zeros(()))).numpy(), atol=0.02)
