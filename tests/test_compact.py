"""The compact encodings through the whole flow, on the trained demo teacher."""

import filecmp
import json
import os

import demo
import numpy as np
import pytest
import torch

from logitstore import open_store
from logitstore.convert import convert
from logitstore.dump import DumpOptions, dump
from logitstore.report import summary
from logitstore.verify import verify
from logitstore.vocab import TokenTable
from logitstore.vocabmap import VocabMap
from logitstore.world import Part

UTTERANCES = 8


def run(out, streams, limit=UTTERANCES, teacher=None, **options):
    options = {"shard_size": "3", "batch_seconds": 10.0, **options}
    dump(teacher or demo.teacher(), demo.manifest(limit), out, DumpOptions(streams=dict(streams), **options))
    return open_store(out)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return run(tmp_path_factory.mktemp("compact") / "dense", {"ctc": "dense", "rnnt": "dense"})


@pytest.fixture(scope="module")
def nucleus(tmp_path_factory):
    streams = {"ctc": "nucleus:1e-3", "rnnt": "nucleus:1e-2@2"}
    return run(tmp_path_factory.mktemp("compact") / "nucleus", streams)


def divergence(exact, served):
    """(N,) KL(exact || served) of log-probabilities."""
    exact = exact.astype(np.float64).reshape(-1, exact.shape[-1])
    return (np.exp(exact) * (exact - served.reshape(exact.shape))).sum(1)


def same_tree(a, b):
    names = [
        sorted(os.path.relpath(os.path.join(p, f), x) for p, _, fs in os.walk(x) for f in fs) for x in (a, b)
    ]
    return names[0] == names[1] and filecmp.cmpfiles(a, b, names[0], shallow=False)[1:] == ([], [])


@pytest.mark.parametrize(("stream", "budget", "temperature"), [("ctc", 1e-3, 1.0), ("rnnt", 1e-2, 2.0)])
def test_nucleus_keeps_its_budget_and_says_what_it_lost(dense, nucleus, stream, budget, temperature):
    everything = []
    for utt_id in nucleus:
        exact = dense[utt_id].log_probs(stream, temperature)
        found = divergence(exact, nucleus[utt_id].log_probs(stream, temperature))
        assert found.max() < budget + 2e-5
        mean, p99, most = nucleus[utt_id].meta["kl"][stream]
        assert mean == pytest.approx(found.mean(), abs=1e-5)
        assert p99 == pytest.approx(np.quantile(found, 0.99, method="higher"), abs=2e-5)
        assert most == pytest.approx(found.max(), abs=2e-5)
        everything.append(found)
    said = summary(nucleus)["streams"][stream]["lost"]
    everything = np.concatenate(everything)
    assert said["mean"] == pytest.approx(everything.mean(), abs=1e-5)
    assert np.quantile(everything, 0.99) <= said["p99"] + 2e-5
    assert said["max"] <= budget * 1.001
    assert summary(dense)["streams"][stream]["lost"] is None


def test_nucleus_always_keeps_the_blank_and_the_next_label(nucleus):
    for utt_id in nucleus:
        target = nucleus[utt_id]
        ctc = target["ctc"].at(1.0)
        assert (((ctc.ids == 0) & (ctc.logp > -1e4)).any(1)).all()
        at = target["rnnt"].at(1.0)
        following = np.tile(np.append(target.labels, 0), target.T)
        real = at.logp > -1e4
        assert (((at.ids == following[:, None]) & real).any(1)).all()
        assert (((at.ids == 0) & real).any(1)).all()
        assert target["ctc"].counts.min() == 1  # not the whole row


@pytest.mark.parametrize("method", ["linear", "nearest"])
def test_ragged_rows_make_batches_at_another_frame_rate(dense, nucleus, method):
    ids = list(nucleus)[:5]
    frames = [(dense[i].T + 1) // 2 for i in ids]
    one = dense.batch(ids, frames=frames, method=method, temperature=1.0)
    two = nucleus.batch(ids, frames=frames, method=method, temperature=1.0)
    for stream in ("ctc", "rnnt"):
        mask = one[stream].mask
        assert torch.equal(mask, two[stream].mask)
        a, b = one[stream].dense()[mask], two[stream].dense()[mask]
        assert (b.exp().sum(-1) - 1).abs().max() < 1e-4
        lost = (a.exp() * (a - b)).sum(-1)
        assert lost.max() < (2e-3 if stream == "ctc" else 2e-2)


def test_ragged_rows_map_to_a_students_table(dense, nucleus):
    table = dense.tokens
    student = TokenTable((table.tokens[0], *table.tokens[5:60], "<unk>"), blank=0)
    for missing in ("tail", "filler"):
        found = VocabMap.by_token(table, student, missing=missing)
        for utt_id in list(nucleus)[:3]:
            a = found.apply(dense[utt_id]["ctc"].at(1.0))
            b = found.apply(nucleus[utt_id]["ctc"].at(1.0))
            real = b.logp > -1e4
            kept = np.take_along_axis(a.logp, b.ids.astype(np.int64), 1)
            assert np.abs(np.exp(kept) - np.exp(b.logp))[real].max() < 5e-3
            mass = np.where(real, np.exp(b.logp), 0).sum(1) + np.exp(b.tail)
            assert np.abs(mass - 1).max() < 1e-4


@pytest.mark.parametrize("storage", ["webdataset", "zarr:zstd"])
def test_nucleus_survives_conversion(nucleus, storage, tmp_path):
    assert convert(nucleus.place, tmp_path / "b", storage) == UTTERANCES
    assert convert(tmp_path / "b", tmp_path / "c", "zarr") == UTTERANCES
    assert not verify(tmp_path / "b").findings
    assert same_tree(str(nucleus.place), tmp_path / "c")


def test_nucleus_does_not_depend_on_the_number_of_jobs(nucleus, tmp_path):
    for index in (1, 0):
        run(tmp_path / "s", {"ctc": "nucleus:1e-3", "rnnt": "nucleus:1e-2@2"}, part=Part(index, 2))
    assert same_tree(str(nucleus.place), tmp_path / "s")


def test_inspect_prints_what_was_lost(nucleus, capsys):
    from logitstore.cli import main

    with pytest.raises(SystemExit):
        main(["inspect", str(nucleus.place)])
    assert "ctc loses" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["inspect", str(nucleus.place), "--json"])
    said = json.loads(capsys.readouterr().out)["streams"]["ctc"]["lost"]
    assert 0 < said["mean"] < said["max"] <= 1e-3
