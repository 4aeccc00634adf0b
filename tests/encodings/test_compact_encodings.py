"""The compact encodings through the whole flow, on the trained demo teacher."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from logitstore import StoreWriter, open_store
from logitstore.dump.blocks import JobPart
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.encodings.linear_head import linear_head
from logitstore.errors import CorruptError, TapError, TeacherError, UsageError
from logitstore.runner.loader import load
from logitstore.store.inspect import inspect_store
from logitstore.store.rewrite import convert_store
from logitstore.store.verify import verify_store
from logitstore.targets.batch import FactoredBatch
from logitstore.targets.vocab_map import VocabMap
from logitstore.tokens.table import TokenTable
from tests.support import demo
from tests.support.dumping import same_tree

UTTERANCES = 8


def run(out, streams, limit=UTTERANCES, teacher=None, **options):
    options = {"shard_size": "3", "batch_seconds": 10.0, **options}
    dump_logits(
        teacher or demo.teacher(), demo.manifest(limit), out, DumpOptions(streams=dict(streams), **options)
    )
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


@pytest.mark.parametrize(("stream", "budget", "temperature"), [("ctc", 1e-3, 1.0), ("rnnt", 1e-2, 2.0)])
def test_nucleus_keeps_its_budget_and_reports_its_loss(dense, nucleus, stream, budget, temperature):
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
    said = inspect_store(nucleus).streams[stream].lost
    everything = np.concatenate(everything)
    assert said.mean == pytest.approx(everything.mean(), abs=1e-5)
    assert np.quantile(everything, 0.99) <= said.p99 + 2e-5
    assert said.max <= budget * 1.001
    assert inspect_store(dense).streams[stream].lost is None
    whole = [(nucleus[i][stream].counts == 150).mean() for i in nucleus]
    rows = [len(nucleus[i][stream]) for i in nucleus]
    assert inspect_store(nucleus).streams[stream].whole_share == pytest.approx(
        np.average(whole, weights=rows)
    )
    assert inspect_store(dense).streams[stream].whole_share is None


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


@pytest.mark.parametrize("storage", ["webdataset", "zarr:blosc"])
def test_nucleus_survives_conversion(nucleus, storage, tmp_path):
    assert convert_store(nucleus.place, tmp_path / "b", storage).written == UTTERANCES
    assert convert_store(tmp_path / "b", tmp_path / "c", "zarr").written == UTTERANCES
    assert not verify_store(tmp_path / "b").findings
    assert same_tree(str(nucleus.place), tmp_path / "c")


def test_nucleus_does_not_depend_on_the_number_of_jobs(nucleus, tmp_path):
    for index in (1, 0):
        run(tmp_path / "s", {"ctc": "nucleus:1e-3", "rnnt": "nucleus:1e-2@2"}, part=JobPart(index, 2))
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


FACTORED = {"factored": 1e-6, "factored:int8": 1e-4, "factored:0.001": 1.3e-3}


@pytest.fixture(scope="module", params=list(FACTORED))
def factored(request, tmp_path_factory):
    return run(tmp_path_factory.mktemp("compact") / "factored", {"ctc": request.param, "rnnt": "topk:4"})


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 3.3])
def test_factored_rows_are_the_teachers_at_every_temperature(own_logits, factored, temperature):
    lost = []
    for utt_id in factored:
        exact = (own_logits[utt_id].double() / temperature).log_softmax(-1).numpy()
        lost.append(divergence(exact, factored[utt_id].log_probs("ctc", temperature)))
    encoding = factored.spec.stream("ctc").encoding
    assert np.concatenate(lost).mean() < FACTORED[encoding]
    if temperature == 1:
        said = inspect_store(factored).streams["ctc"].lost
        assert said.mean == pytest.approx(np.concatenate(lost).mean(), rel=0.02, abs=5e-7)
        assert said.max == pytest.approx(np.concatenate(lost).max(), rel=0.02, abs=2e-6)
        assert said.changed <= 0.005
    elif temperature in (2.0, 4.0):
        mean, p99, most = inspect_store(factored).streams["ctc"].lost.at[f"{temperature:g}"]
        assert mean == pytest.approx(np.concatenate(lost).mean(), rel=0.06, abs=5e-7)
        assert most == pytest.approx(np.concatenate(lost).max(), rel=0.06, abs=2e-6)
        assert p99 >= 0.9 * np.quantile(np.concatenate(lost), 0.99) - 1e-6


@pytest.fixture(scope="module")
def own_logits():
    """The model's own CTC logits, utterance by utterance, without any hook."""
    teacher, said = demo.teacher(), {}
    for utt in demo.manifest(UTTERANCES):
        features = load(utt, teacher, teacher.tokens(), False).features
        with torch.inference_mode():
            hidden, _ = teacher.model.forward_encoder(features[None], torch.tensor([len(features)]))
            said[utt.id] = teacher.model.ctc_output[1](hidden)[0]
    return said


def test_factored_stores_are_the_same_for_any_number_of_jobs_and_after_conversion(factored, tmp_path):
    streams = {s.name: s.encoding for s in factored.spec.streams}
    for index in (2, 0, 1):
        run(tmp_path / "s", streams, part=JobPart(index, 3))
    assert same_tree(str(factored.place), tmp_path / "s")
    assert convert_store(factored.place, tmp_path / "b", "webdataset").written == UTTERANCES
    assert convert_store(tmp_path / "b", tmp_path / "c", "zarr").written == UTTERANCES
    assert not verify_store(tmp_path / "b").findings
    assert same_tree(str(factored.place), tmp_path / "c")


def test_a_factored_store_grows_with_its_own_constants(factored, tmp_path):
    streams = {s.name: s.encoding for s in factored.spec.streams}
    run(tmp_path / "s", streams, limit=3)
    before = {p.name: p.read_bytes() for p in (tmp_path / "s" / "constants").iterdir()}
    assert len(run(tmp_path / "s", streams)) == UTTERANCES
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "s" / "constants").iterdir()}


def test_factored_batches_equal_dense_ones(factored):
    ids = list(factored)[:4]
    for temperature in (1.0, 2.0):
        batch = factored.batch(ids, temperature=temperature).map(lambda x: x.clone())["ctc"]
        assert isinstance(batch, FactoredBatch)
        assert not any(t.shape[-1] == 150 for t in (batch.h, batch.mask))  # nothing V wide is moved
        dense, logp = batch.dense(), batch.logp
        for b, utt_id in enumerate(ids):
            exact = factored[utt_id].log_probs("ctc", temperature)
            np.testing.assert_allclose(dense[b, : len(exact)], exact, atol=2e-4)
            np.testing.assert_allclose(logp[b, : len(exact)], exact, atol=2e-4)
            assert (logp[b, len(exact) :] == -1e4).all()
        top = batch.top(8)
        np.testing.assert_allclose(top.logp[batch.mask], dense.topk(8)[0][batch.mask])
        mass = top.logp.exp().sum(-1) + top.tail.exp()
        assert (mass[batch.mask] - 1).abs().max() < 1e-5
        assert (top.tail[~batch.mask] == -1e4).all()


def test_factored_rows_at_another_frame_rate_are_those_of_dense(dense, factored):
    ids = list(factored)[:3]
    frames = [t // 2 for t in (dense[i].T for i in ids)]
    for method in ("nearest", "linear", "linear-logit"):
        options = {"frames": frames, "method": method, "temperature": 2.0, "streams": ["ctc"]}
        one, two = (s.batch(ids, **options)["ctc"] for s in (dense, factored))
        assert isinstance(two, FactoredBatch)
        a, b = one.dense()[one.mask], two.dense()[two.mask]
        assert (a.exp() * (a - b)).sum(-1).mean() < 2e-3


def test_constants_are_checked(factored, tmp_path):
    shutil.copytree(str(factored.place), tmp_path / "s")
    path = tmp_path / "s" / "constants" / "ctc.weight.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="E13"):
        open_store(tmp_path / "s")
    path.unlink()
    with pytest.raises(CorruptError, match="missing"):
        open_store(tmp_path / "s")


def spoiled_head(change):
    """The demo teacher whose CTC head was changed for the time of a test."""

    @contextmanager
    def spoil():
        model = demo.teacher().model
        before = model.ctc_output[1]
        model.ctc_output[1] = change(before)
        try:
            yield
        finally:
            model.ctc_output[1] = before

    return spoil()


class Scaled(torch.nn.Linear):
    def forward(self, x):
        return 1.5 * super().forward(x)


def scaled(linear):
    new = Scaled(linear.in_features, linear.out_features)
    new.load_state_dict(linear.state_dict())
    return new


def test_heads_that_do_not_factor_are_refused_with_the_reason(tmp_path):
    with (
        spoiled_head(lambda m: torch.nn.Sequential(m)),
        pytest.raises(TapError, match="Sequential is not one"),
    ):
        run(tmp_path / "a", {"ctc": "factored"})
    with spoiled_head(scaled), pytest.raises(TeacherError, match="miss its own log-probabilities"):
        run(tmp_path / "b", {"ctc": "factored"})
    assert not (tmp_path / "b" / "sealed").exists()


def test_a_convolution_over_one_frame_is_a_head_too():
    linear = torch.nn.Linear(6, 4)
    conv = torch.nn.Conv1d(6, 4, 1, bias=False)
    conv.weight.data = linear.weight.data[:, :, None]
    head = linear_head(conv, "x")
    assert np.array_equal(head.weight, linear_head(linear, "x").weight)
    assert not head.bias.any()
    with pytest.raises(TapError, match="over 3 frames"):
        linear_head(torch.nn.Conv1d(6, 4, 3), "x")


def test_a_loop_without_a_head_is_refused(tmp_path):
    table = demo.teacher().tokens()
    with (
        pytest.raises(UsageError, match="stores the input of the ctc head"),
        StoreWriter.open(tmp_path / "s", tokens=table, streams={"ctc": "factored"}) as w,
    ):
        w.add("a", ctc=torch.zeros(3, len(table)))


@pytest.fixture(scope="module")
def lattice(tmp_path_factory):
    return run(tmp_path_factory.mktemp("compact") / "lattice", {"ctc": "factored:int8", "rnnt": "factored"})


def test_a_factored_lattice_is_the_models_full_joint(lattice):
    teacher, worst = demo.teacher(), 0.0
    for utt in demo.manifest(UTTERANCES):
        item = load(utt, teacher, teacher.tokens(), True)
        with torch.inference_mode():
            output = teacher.forward(item.features[None], torch.tensor([len(item.features)]))
            joint = teacher.join(*teacher.transducer(output, 0, item.labels)).log_softmax(-1).numpy()
        target = lattice[utt.id]
        assert target.labels.tolist() == item.labels
        ours = target.log_probs("rnnt")
        assert ours.shape == joint.shape
        worst = max(worst, np.abs(ours - joint)[joint > -20].max())
    assert worst < 1e-3


def test_a_factored_lattice_is_small(lattice):
    stored = dense = 0
    for utt_id in lattice:
        row, target = lattice.record(utt_id), lattice[utt_id]
        size = sum(a.nbytes for n, a in row.arrays.items() if n.startswith("rnnt."))
        assert size == (2 * 112 + 4) * target.T + 4 * 112 * (target.U + 1) + target.U
        stored += size
        dense += 2 * target["rnnt"].classes * len(target["rnnt"])
    assert stored / dense < 0.12  # of V = 150; the share falls as V and U grow


def test_the_joiner_runs_for_the_self_check_only(tmp_path):
    joined = []

    def join(teacher, *sides):
        joined.append(1)
        return teacher.join(*sides)

    teacher = demo.Spoiled(join=join)
    options = {"teacher": teacher, "shard_size": "1", "transcripts": "none"}
    run(tmp_path / "a", {"rnnt": "factored"}, limit=4, **options)
    few = len(joined)
    run(tmp_path / "b", {"rnnt": "factored"}, limit=12, **options)
    assert len(joined) - few == few > 0


@pytest.mark.parametrize("method", ["linear", "nearest"])
def test_factored_lattices_make_batches(dense, lattice, method):
    ids = list(lattice)[:3]
    for frames in (None, [dense[i].T // 2 for i in ids]):
        one = dense.batch(ids, frames=frames, method=method, temperature=2.0)["rnnt"]
        two = lattice.batch(ids, frames=frames, method=method, temperature=2.0)["rnnt"]
        assert isinstance(two, FactoredBatch)
        assert torch.equal(one.mask, two.mask)
        a, b = one.dense()[one.mask], two.dense()[two.mask]
        assert (a.exp() - b.exp()).abs().max() < 2e-3
        moved = two.map(lambda t: t.clone())
        assert torch.equal(moved.logp, two.logp)
        assert (two.logp[~two.mask] == -1e4).all()
        assert torch.equal(two.top(4).mask, one.mask)


def test_factored_lattices_survive_jobs_and_conversion(lattice, tmp_path):
    for index in (1, 0):
        run(tmp_path / "s", {"ctc": "factored:int8", "rnnt": "factored"}, part=JobPart(index, 2))
    assert same_tree(str(lattice.place), tmp_path / "s")
    assert convert_store(lattice.place, tmp_path / "b", "webdataset").written == UTTERANCES
    assert not verify_store(tmp_path / "b").findings
    assert verify_store(tmp_path / "b").records == UTTERANCES
    inspect_store(lattice)


def test_losses_of_factored_and_dense_rows_agree(dense, lattice):
    from logitstore.losses import ctc_kd, rnnt_kd

    ids = list(lattice)[:3]
    one, two = (s.batch(ids, temperature=2.0) for s in (dense, lattice))
    generator = torch.Generator().manual_seed(1)
    for stream, loss in (("ctc", ctc_kd), ("rnnt", rnnt_kd)):
        logits = torch.randn(*one[stream].mask.shape, 150, generator=generator)
        assert loss(logits, two[stream]) == pytest.approx(loss(logits, one[stream]).item(), rel=1e-3)


class Multiplied(torch.nn.Module):
    """A joiner that multiplies its sides."""

    def __init__(self, joiner, function):
        super().__init__()
        self.encoder_proj, self.decoder_proj = joiner.encoder_proj, joiner.decoder_proj
        self.output_linear, self.function = joiner.output_linear, function

    def forward(self, enc, dec, project_input=True):
        return self.function(self.output_linear, enc, dec)


JOINERS = {
    "multiplied": (lambda out, e, d: out(torch.tanh(e * d)), "not tanh or relu of enc . dec"),
    "gelu": (lambda out, e, d: out(torch.nn.functional.gelu(e + d)), "not tanh or relu"),
    "a blank apart": (
        lambda out, e, d: torch.cat([x := out(torch.tanh(e + d)), x[..., :0]], -1) * 1.2,
        r"miss the output of join\(\)",
    ),
}


@pytest.mark.parametrize("name", list(JOINERS))
def test_joiners_that_do_not_factor_are_refused(name, tmp_path):
    function, message = JOINERS[name]
    model = demo.teacher().model
    before = model.joiner
    model.joiner = Multiplied(before, function)
    try:
        with pytest.raises(TeacherError, match=message):
            run(tmp_path / "s", {"rnnt": "factored"})
    finally:
        model.joiner = before
    assert not (tmp_path / "s" / "sealed").exists()


def test_relu_joiners_factor_too(tmp_path):
    model = demo.teacher().model
    before = model.joiner
    model.joiner = Multiplied(before, lambda out, e, d: out(torch.relu(e + d)))
    try:
        store = run(tmp_path / "s", {"rnnt": "factored"}, limit=2)
        exact = run(tmp_path / "d", {"rnnt": "dense"}, limit=2)
    finally:
        model.joiner = before
    assert store.spec.stream("rnnt").activation == "relu"
    for utt_id in store:
        a, b = (np.exp(s[utt_id].log_probs("rnnt")) for s in (store, exact))
        assert np.abs(a - b).max() < 1e-3


def test_factored_lattices_take_no_setting(tmp_path):
    with pytest.raises(UsageError, match="rnnt=factored"):
        run(tmp_path / "s", {"rnnt": "factored:int8"})


def test_a_factored_lattice_of_600_classes_is_a_fiftieth_of_dense(tmp_path):
    """The demo teacher's joiner in front of four times as many classes, each like one of its own."""
    model = demo.teacher().model
    table = demo.teacher().tokens()
    tokens = TokenTable((*table.tokens, *(f"{t}+{n}" for n in "abc" for t in table.tokens)), blank=0)
    before = model.joiner.output_linear
    wide = torch.nn.Linear(before.in_features, 600)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(600, before.in_features, generator=generator) * before.weight.std() / 4
    wide.weight.data = before.weight.data.repeat(4, 1) + noise
    wide.bias.data = before.bias.data.repeat(4)
    model.joiner.output_linear, embedding = wide, model.decoder.embedding
    model.decoder.embedding = torch.nn.Embedding.from_pretrained(embedding.weight.repeat(4, 1))
    try:
        teacher = demo.Spoiled(tokens=lambda t: tokens)
        store, exact = (
            run(
                tmp_path / e,
                {"rnnt": e},
                teacher=teacher,
                transcripts="none",
                skip_checks="no table of words",
            )
            for e in ("factored", "dense")
        )
        item = load(next(iter(demo.manifest(1))), demo.teacher(), table, True)
        with torch.inference_mode():
            output = teacher.forward(item.features[None], torch.tensor([len(item.features)]))
            joint = teacher.join(*teacher.transducer(output, 0, item.labels)).log_softmax(-1).numpy()
    finally:
        model.joiner.output_linear, model.decoder.embedding = before, embedding
    ours = store[item.utt.id].log_probs("rnnt")
    assert np.abs(ours - joint)[joint > -20].max() < 1e-3
    sizes = [
        sum(store.record(i).arrays[n].nbytes for i in store for n in ("rnnt.enc", "rnnt.scale", "rnnt.dec"))
    ]
    sizes.append(sum(exact.record(i).arrays["rnnt.logp"].nbytes for i in exact))
    assert sizes[0] <= 0.03 * sizes[1]
