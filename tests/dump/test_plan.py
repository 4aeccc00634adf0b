"""A plan measures what a dump then gives: bytes, divergence, and an encoding that keeps its promise."""

import json
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from logitstore import open_store
from logitstore.corpus.manifest import read_manifest
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.dump.plan import trial
from logitstore.dump.plan.choose import Criterion, Measurement, choose
from logitstore.dump.plan.options import AutoEncoding, PlanOptions, contenders, extent
from logitstore.dump.plan.run import plan_encodings
from logitstore.dump.plan.trial import divergences
from logitstore.errors import IdentityError, ManifestError, NotLogits, TeacherError, UsageError
from logitstore.runner.driver import TeacherDriver
from logitstore.runner.loader import load
from logitstore.schema.spec import Head
from logitstore.store.inspect import inspect_store
from logitstore.teachers.layers import with_layers
from tests.support import attention_teacher
from tests.support.demo import FACTORY, MANIFEST, ROOT, Spoiled, lines, manifest, teacher, write_manifest

BOTH = {"ctc": AutoEncoding(), "rnnt": AutoEncoding()}
CTC = {"ctc": AutoEncoding()}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A plan of both streams over the whole demo manifest."""
    folder = tmp_path_factory.mktemp("plan")
    found = plan_encodings(teacher(), manifest(), PlanOptions(BOTH, storages=("zarr",)), folder=folder)
    assert not list(folder.iterdir()), "nothing is left behind"
    return found


@cache
def own_logits():
    """(N, V) of every utterance and stream, from the teacher alone."""
    driver = TeacherDriver(teacher(), teacher().tokens(), ["ctc", "rnnt"], "cpu")
    said = {}
    for utt in manifest():
        output = driver.run([load(utt, teacher(), driver.table, True)])[0]
        joint = torch.cat(list(driver.lattice(output))).flatten(0, 1)
        said[utt.id] = {"ctc": output.rows["ctc"].numpy(), "rnnt": joint.numpy()}
    return said


def measured_of(found, stream, encoding, storage="zarr"):
    return next(m for m in found.measured if (m.stream, m.encoding, m.storage) == (stream, encoding, storage))


def test_the_recommended_store_keeps_its_budget_and_weighs_what_was_said(planned, tmp_path):
    streams = {s: m.encoding for s, m in planned.choice.streams.items()}
    dump_logits(teacher(), manifest(), tmp_path, DumpOptions(streams=streams, storage=planned.choice.storage))
    store = open_store(tmp_path)
    for stream, chosen in planned.choice.streams.items():
        for temperature, (mean, _, _) in chosen.kl.items():
            lost = [
                divergences(own_logits()[i][stream], store[i][stream].at(temperature).dense(), temperature)
                for i in store
            ]
            found = float(np.concatenate(lost).mean())
            assert found <= 1e-3
            assert found == pytest.approx(mean, rel=0.05, abs=1e-9)
    assert planned.choice.bytes == pytest.approx(inspect_store(store).bytes, rel=0.03)


def test_the_smallest_that_keeps_the_budget_is_taken(planned):
    for stream, chosen in planned.choice.streams.items():
        good = [m for m in planned.measured if m.stream == stream and m.meets(Criterion(1e-3))]
        assert chosen.bytes == min(m.bytes for m in good if m.storage == chosen.storage)
        bad = [m for m in planned.measured if m.stream == stream and m.bytes < chosen.bytes and m not in good]
        assert bad, "something smaller was tried and loses more"


def test_forms_of_a_lattice_say_how_much_of_the_alignment_they_hold(planned):
    held = {m.encoding: m.held for m in planned.measured if m.stream == "rnnt"}
    assert held["dense"] == held["factored"] == pytest.approx(1)
    assert 0.8 < held["dense:int8/path"] < held["dense:int8/banded:5"] < 1
    assert measured_of(planned, "rnnt", "dense:int8/path").bytes < planned.choice.streams["rnnt"].bytes


@pytest.mark.parametrize("encoding", ["dense", "nucleus:0.001", "factored:int8"])
def test_a_fraction_of_the_manifest_tells_the_bytes_of_all_of_it(tmp_path, encoding, monkeypatch):
    monkeypatch.setattr("logitstore.dump.plan.run.contenders", lambda *given: [encoding])
    storages = ("zarr",) if encoding in ("dense", "factored:int8") else ("zarr:blosc", "webdataset")
    options = PlanOptions(CTC, storages=storages, sample=6, shard_size="10")
    found = plan_encodings(teacher(), manifest(), options, folder=tmp_path)
    for m in found.measured:
        store = tmp_path / m.storage
        dump_logits(
            teacher(),
            manifest(),
            store,
            DumpOptions(streams={"ctc": encoding}, storage=m.storage, shard_size="10"),
        )
        truth = inspect_store(open_store(store))
        assert m.bytes == pytest.approx(truth.bytes, rel=0.15)
        assert m.bytes_per_frame == pytest.approx(truth.bytes_per_frame, rel=0.15)
        assert m.once == pytest.approx(truth.bytes_once, rel=0.03)


def test_lattices_too_large_to_hold_and_shards_weighed_on_the_way_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("logitstore.dump.plan.run.contenders", lambda *given: ["topk:4", "topk:4/banded:3"])
    options = PlanOptions({"rnnt": AutoEncoding()}, storages=("zarr",), sample=3)
    with_room = plan_encodings(teacher(), manifest(), options, folder=tmp_path)
    monkeypatch.setattr(trial, "HELD_LOGITS", 0)
    monkeypatch.setattr(trial, "SHARD_BYTES", 1)
    held = []
    real = trial.TimedLattice.__call__

    def drive(self):
        held.append(len(self._slices))
        return real(self)

    monkeypatch.setattr(trial.TimedLattice, "__call__", drive)
    without = plan_encodings(teacher(), manifest(), options, folder=tmp_path)
    assert held
    assert not any(held)
    for a, b in zip(with_room.measured, without.measured, strict=True):
        assert (a.encoding, a.kl, a.held) == (b.encoding, b.kl, b.held)
        assert b.bytes == pytest.approx(a.bytes, rel=0.15)  # an index of inner chunks a column for each row


@contextmanager
def head_says(change):
    """The ctc head's output changed, as by something that follows it."""
    handle = teacher().model.ctc_output[1].register_forward_hook(lambda m, i, o: change(o))
    try:
        yield
    finally:
        handle.remove()


def test_a_head_that_does_not_factor_is_refused_with_its_reason_and_the_rest_measured(tmp_path):
    silent = Spoiled(log_probs=lambda self, output: {})
    with head_says(lambda logits: 2 * logits):
        found = plan_encodings(
            silent, manifest(), PlanOptions(CTC, storages=("zarr",), sample=2), folder=tmp_path
        )
    refused = {encoding: reason for _, encoding, reason in found.refused}
    assert set(refused) == {"factored", "factored:int8", "factored:0.001"}
    assert all("miss its own log-probabilities" in reason for reason in refused.values())
    assert "dense" in {m.encoding for m in found.measured}


def test_what_a_dump_refuses_a_plan_refuses(tmp_path):
    with head_says(lambda logits: logits.log_softmax(-1)), pytest.raises(NotLogits):
        plan_encodings(teacher(), manifest(2), PlanOptions(CTC, sample=2), folder=tmp_path)
    with pytest.raises(UsageError, match="temperature"):
        PlanOptions(CTC, temperatures=(0.5,))
    with pytest.raises(UsageError, match="no encodings are planned for text"):
        PlanOptions({"text": AutoEncoding()})
    with pytest.raises(UsageError, match="seq2seq=auto/path: only an rnnt"):
        PlanOptions({"seq2seq": AutoEncoding.parse("auto/path")})
    with pytest.raises(UsageError, match="there is nothing to plan"):
        PlanOptions(CTC, sample=0)


def test_the_sample_is_spread_and_hours_come_from_durations_or_from_its_mean(tmp_path):
    about = extent(manifest(), 7)
    places = [int(u.id.removeprefix("demo-")) for u in about.sample]
    assert len(places) == 7
    assert set(np.diff(places)) == {2, 3} or set(np.diff(places)) == {3}
    assert len(about.others) == 13
    assert about.hours(99.0) * 3600 == pytest.approx(44.271, abs=0.01)
    assert about.hours_from(1.0) == "durations of the manifest"
    bare = [{k: v for k, v in x.items() if k != "duration"} for x in lines()]
    some = extent(read_manifest(write_manifest(tmp_path / "m.jsonl", [*bare[:5], *lines()[5:]])), 50)
    assert some.unstated == 5
    assert some.hours(2.0) == pytest.approx((some.seconds + 10) / 3600)
    assert some.hours_from(2.0) == "5 missing from the manifest: 2.00 s each, the sample's mean"
    with pytest.raises(ManifestError, match="no utterance"):
        extent(read_manifest(write_manifest(tmp_path / "none.jsonl", [])), 5)


def test_what_cannot_be_loaded_is_left_out_and_named(tmp_path):
    gone = [{**x, "audio": "/nowhere.flac"} if n == 1 else x for n, x in enumerate(lines(4))]
    found = plan_encodings(
        teacher(),
        read_manifest(write_manifest(tmp_path / "m.jsonl", gone)),
        PlanOptions(CTC, storages=("zarr",)),
        folder=tmp_path,
    )
    assert found.sample[0] == 3
    assert len(found.failed) == 1
    assert "demo-01" in found.failed[0]


# ---- attention decoders

DECODER = {"seq2seq": AutoEncoding()}


@contextmanager
def counted():
    """How often the decoder runs."""
    calls = Counter()
    decoder = attention_teacher.load().model.attention
    handle = decoder.register_forward_hook(lambda module, ids, out: calls.update(["decoder"]))
    try:
        yield calls
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Twelve utterances; of every third the text is another, which the decoder would not say."""
    some = [{**x, "text": x["text"] if n % 3 else "meet peter"} for n, x in enumerate(lines(12))]
    return read_manifest(write_manifest(tmp_path_factory.mktemp("told") / "m.jsonl", some))


@pytest.fixture(scope="module")
def decoders_plan(told, tmp_path_factory):
    """A plan of an attention decoder over twelve utterances, and how often the decoder ran."""
    folder = tmp_path_factory.mktemp("decoder")
    with counted() as calls:
        found = plan_encodings(
            attention_teacher.load(), told, PlanOptions(DECODER, storages=("zarr",)), folder=folder
        )
    assert not list(folder.iterdir())
    return found, calls["decoder"]


@pytest.fixture(scope="module")
def own_of_decoder(told):
    """(U, V) logits of the decoder by itself."""
    speaker, said = attention_teacher.load(), {}
    driver = TeacherDriver(speaker, speaker.tokens(), ["seq2seq"], "cpu")
    for utt in told:
        output = driver.run([load(utt, speaker, driver.table, True)])[0]
        labels = [*speaker.labels(utt.text), speaker.end]
        memory = output.batch_output.encoder_out[:1, : output.T]
        with torch.inference_mode():
            logits = speaker.model.attention(torch.tensor([[*speaker.prompt, *labels[:-1]]]), memory)
        said[utt.id] = logits[0, 1:].numpy()
    return said


def lost_of(store, own, temperature, ids):
    """Nats a row, on average, of some utterances of a store."""
    lost = [divergences(own[i], store[i]["seq2seq"].at(temperature).dense(), temperature) for i in ids]
    return float(np.concatenate(lost).mean())


def test_a_decoder_is_planned_as_its_dump_then_turns_out(decoders_plan, told, own_of_decoder, tmp_path):
    """What some encodings lose against the decoder's own rows, and what their stores weigh."""
    found, _ = decoders_plan
    assert {m.encoding for m in found.measured} == set(contenders("seq2seq", 1e-3, (1, 2, 4)))
    assert not found.refused
    chosen = found.choice.streams["seq2seq"]
    assert chosen.meets(Criterion(1e-3))
    some = (measured_of(found, "seq2seq", e) for e in ("dense", "nucleus:0.001", "factored:0.001"))
    for m in (chosen, *some):
        at = tmp_path / m.encoding
        if at.exists():
            continue
        dump_logits(attention_teacher.load(), told, at, DumpOptions(streams={"seq2seq": m.encoding}))
        store = open_store(at)
        for t, (mean, _, _) in m.kl.items():
            assert lost_of(store, own_of_decoder, t, store) == pytest.approx(mean, rel=0.01, abs=1e-8)
        truth = inspect_store(store)
        assert m.bytes == pytest.approx(truth.bytes, rel=0.01)
        assert m.bytes_per_frame == pytest.approx(truth.bytes_per_frame, rel=0.05)


def test_a_decoders_constants_come_from_more_than_the_sample(told, own_of_decoder, tmp_path, monkeypatch):
    """From the same utterances as those of the dump."""
    monkeypatch.setattr("logitstore.dump.plan.run.contenders", lambda *given: ["factored:0.001"])
    options = PlanOptions(DECODER, storages=("zarr",), sample=3)
    found = plan_encodings(attention_teacher.load(), told, options, folder=tmp_path)
    dump_logits(
        attention_teacher.load(), told, tmp_path / "s", DumpOptions(streams={"seq2seq": "factored:0.001"})
    )
    store, sampled = open_store(tmp_path / "s"), [u.id for u in extent(told, 3).sample]
    for t, (mean, _, _) in found.measured[0].kl.items():
        assert lost_of(store, own_of_decoder, t, sampled) == pytest.approx(mean, rel=0.01)


def test_a_decoders_nucleus_keeps_the_label_and_no_blank(told, tmp_path, monkeypatch):
    """A blank kept for its own sake in rows of one class would weigh."""
    monkeypatch.setattr("logitstore.dump.plan.run.contenders", lambda *given: ["nucleus:1"])
    found = plan_encodings(
        attention_teacher.load(), told, PlanOptions(DECODER, storages=("zarr",)), folder=tmp_path
    )
    dump_logits(attention_teacher.load(), told, tmp_path / "s", DumpOptions(streams={"seq2seq": "nucleus:1"}))
    assert found.measured[0].bytes == pytest.approx(inspect_store(open_store(tmp_path / "s")).bytes, abs=250)


def test_the_decoder_runs_once_an_utterance_for_all_that_is_tried(decoders_plan, told, tmp_path, monkeypatch):
    """Beside the checks of the first batch."""
    found, ran = decoders_plan
    assert len(found.measured) > 5
    monkeypatch.setattr("logitstore.dump.plan.run._Planner._take", lambda *given: None)
    options = PlanOptions(DECODER, storages=("zarr",))
    with counted() as checks, pytest.raises(TeacherError, match="no utterance of the sample"):
        plan_encodings(attention_teacher.load(), told, options, folder=tmp_path)
    assert ran == checks["decoder"] + 12


def test_auto_of_a_decoder_beside_what_is_named(tmp_path):
    """Labels that nobody gave are the decoder's own, in the plan as in the dump."""
    bare = [{k: v for k, v in x.items() if k != "text"} for x in lines(4)]
    silent = read_manifest(write_manifest(tmp_path / "m.jsonl", bare))
    options = DumpOptions(streams={"ctc": "dense", "seq2seq": "auto:1e-4"})
    done = dump_logits(attention_teacher.load(), silent, tmp_path / "s", options)
    assert done.done == 4
    (said,) = done.planned
    stream = open_store(tmp_path / "s").spec.stream("seq2seq")
    assert said.startswith(f"seq2seq: {stream.encoding} is the smallest of")
    assert "lose at most 0.0001 nats" in said


class Endless:
    """The attention teacher as if no token ended what its decoder says."""

    def __getattr__(self, name):
        return getattr(attention_teacher.load(), name)

    def describe(self):
        spec = attention_teacher.load().describe()
        return replace(spec, heads=tuple(replace(h, end=None) for h in spec.heads))


def test_an_utterance_of_which_a_decoder_has_no_row_ends_no_trial(tmp_path):
    said = [{k: v for k, v in x.items() if k != "text"} for x in lines(3)]
    some = [{**x, "tokens": [5, 7] if n else []} for n, x in enumerate(said)]
    few = read_manifest(write_manifest(tmp_path / "m.jsonl", some))
    found = plan_encodings(Endless(), few, PlanOptions(DECODER, storages=("zarr",)), folder=tmp_path)
    assert found.sample[0] == 2
    assert not found.refused
    assert "seq2seq stream is empty" in found.failed[0]


# ---- layers

LAYERS = [Head("hidden", "encoder.norm", 0), Head("hidden_2", "encoder.blocks.1", 0)]


def test_a_layer_is_judged_by_how_far_its_rows_are(tmp_path):
    speaker = with_layers(teacher(), LAYERS)
    options = PlanOptions(
        {"hidden": AutoEncoding(), "hidden_2": AutoEncoding(1e-9), "ctc": AutoEncoding()}, storages=("zarr",)
    )
    found = plan_encodings(speaker, manifest(6), options, folder=tmp_path)
    assert found.choice.streams["hidden"].encoding == "vectors:int8"
    assert found.choice.streams["hidden_2"].encoding == "vectors"
    assert "at most 0.001 of a row's squared length on average" in found.choice.why["hidden"]
    assert found.choice.why["hidden_2"].startswith(
        "No encoding that was tried is known to lose at most 1e-09 of a row's"
    )
    driver = TeacherDriver(speaker, speaker.tokens(), ["hidden"], "cpu")
    for encoding in ("vectors", "vectors:int8"):
        at = tmp_path / encoding
        dump_logits(speaker, manifest(6), at, DumpOptions(streams={"hidden": encoding}))
        store, far = open_store(at), []
        for utt in manifest(6):
            own = driver.run([load(utt, speaker, driver.table, False)])[0].rows["hidden"].double().numpy()
            missed = store[utt.id].vectors() - own
            far.extend((np.linalg.norm(missed, axis=1) / np.linalg.norm(own, axis=1)) ** 2)
        m = measured_of(found, "hidden", encoding)
        assert list(m.kl) == [1.0]
        assert m.kl[1.0] == pytest.approx((np.mean(far), np.quantile(far, 0.99), np.max(far)), rel=0.01)
        assert m.bytes == pytest.approx(inspect_store(store).bytes, rel=0.01)
        assert m.to_json()["relative_error"]["mean"] == m.kl[1.0][0]
        assert "kl" not in m.to_json()


def test_auto_of_layers_takes_it(tmp_path):
    options = DumpOptions(streams={"hidden": "auto", "hidden_2": "auto:1e-6"})
    for already in (0, 3):
        done = dump_logits(with_layers(teacher(), LAYERS), manifest(3), tmp_path, options)
        assert done.present == already
    said = {s.name: (s.encoding, s.width) for s in open_store(tmp_path).spec.streams}
    assert said == {"hidden": ("vectors:int8", 128), "hidden_2": ("vectors", 128)}


def measured(encoding, size, kl, held=1.0, stream="ctc", storage="zarr"):
    return Measurement(
        stream,
        encoding,
        storage,
        size,
        0,
        10,
        1.0,
        {1.0: (kl / 2, kl, kl), 4.0: (kl, kl, kl)},
        0.0,
        held,
        1,
        1,
    )


def test_the_choice_says_what_it_took_and_why():
    small, good, large = (
        measured("small", 100, 1e-1),
        measured("good", 200, 1e-4),
        measured("large", 500, 1e-6),
    )
    taken = choose([large, small, good], {"ctc": Criterion(1e-3)})
    assert taken.streams["ctc"] is good
    assert taken.why["ctc"] == (
        "good is the smallest of 2 that lose at most 0.001 nats a row on average at each of the temperatures "
        "1, 4 (0.0001 at most, at 4); large comes next, 2.5 times as large."
    )
    nearest = choose([large, small, good], {"ctc": Criterion(1e-9)})
    assert nearest.streams["ctc"] is large
    assert nearest.why["ctc"].startswith("No encoding that was tried is known to lose at most 1e-09")
    fitting = choose([large, small, good], {"ctc": Criterion(1e-3)}, max_bytes=150)
    assert fitting.streams["ctc"] is small
    assert fitting.why["ctc"].startswith("No encoding that was tried and fits into 1.5e-07 GB")
    assert choose([large, small, good], {"ctc": Criterion(1e-5)}, max_bytes=450).streams["ctc"] is good
    assert choose([large, small, good], {"ctc": Criterion(1e-5)}, max_bytes=10).streams["ctc"] is small


def test_a_form_that_leaves_alignments_out_is_not_taken_unless_it_was_asked_for():
    path, whole = measured("path", 100, 1e-6, 0.9), measured("full", 300, 1e-6)
    assert choose([path, whole], {"ctc": Criterion(1e-3)}).streams["ctc"] is whole
    asked = PlanOptions({"rnnt": AutoEncoding.parse("auto:1e-2/path")}).criteria()
    assert asked["rnnt"] == Criterion(1e-2, 0.0)
    assert choose([path, whole], {"ctc": Criterion(1e-3, 0.0)}).streams["ctc"] is path


def test_a_compressor_must_be_worth_unpacking_every_row_for():
    plain = measured("a", 100, 1e-6)
    for size, storage in ((95, "zarr"), (80, "zarr:blosc")):
        taken = choose([plain, measured("a", size, 1e-6, storage="zarr:blosc")], {"ctc": Criterion(1e-3)})
        assert taken.storage == storage
        assert str(round(100 - size)) in taken.why["storage"]


def test_the_storage_that_is_named_first_is_taken_where_the_other_saves_little(tmp_path):
    options = PlanOptions({"hidden": AutoEncoding()}, storages=("zarr", "zarr:blosc"))
    found = plan_encodings(with_layers(teacher(), LAYERS[:1]), manifest(2), options, folder=tmp_path)
    assert found.measured[0].storage == "zarr:blosc"
    assert found.choice.storage == "zarr"


def test_two_streams_share_what_rows_say_of_themselves():
    both = [measured("a", 100, 0.0), measured("b", 200, 0.0, stream="rnnt")]
    assert choose(both, {"ctc": Criterion(1e-3), "rnnt": Criterion(1e-3)}).bytes == 290


@pytest.mark.parametrize(
    "text", ["auto:", "auto:x", "auto:0", "auto:-1", "auto/full:3", "auto:1e-3/no", "auto/mean-u"]
)
def test_a_wish_that_says_nothing_is_refused(text):
    with pytest.raises(UsageError):
        AutoEncoding.parse(text)


def test_wishes_and_what_is_tried_for_them():
    assert AutoEncoding.parse("auto") == AutoEncoding()
    assert AutoEncoding.parse("auto:1e-4/banded:5") == AutoEncoding(1e-4, "banded:5")
    assert AutoEncoding.parse("autumn") is AutoEncoding.parse("topk:8") is None
    tried = contenders("rnnt", 1e-3, (1, 2, 4))
    assert len(tried) == len(set(tried))
    assert {
        "dense",
        "nucleus:0.001@4",
        "factored",
        "factored:0.001",
        "collapsed/path",
        "topk:8/banded:5",
    } <= set(tried)
    assert all(e.endswith("/banded:3") for e in contenders("rnnt", 1e-3, (1,), "banded:3"))
    assert "nucleus:1e-05" in contenders("ctc", 1e-9, (1,))


# ---- auto


@pytest.fixture
def few(monkeypatch):
    """Only two encodings are tried."""
    monkeypatch.setattr("logitstore.dump.plan.run.contenders", lambda *given: ["dense", "topk:4"])


def test_auto_takes_what_the_plan_recommends_and_a_resume_what_the_store_has(tmp_path, monkeypatch, few):
    said = []
    options = DumpOptions(streams={"ctc": "auto", "rnnt": "topk:2"})
    done = dump_logits(teacher(), manifest(6), tmp_path, options, report=lambda p: said.append(p.planned))
    store = open_store(tmp_path)
    taken = store.spec.stream("ctc").encoding
    how = plan_encodings(teacher(), manifest(6), PlanOptions(CTC, storages=("zarr",)), folder=tmp_path.parent)
    assert taken == how.choice.streams["ctc"].encoding
    assert store.spec.stream("rnnt").encoding == "topk:2"
    assert done.planned == said[0] == (f"ctc: {how.choice.why['ctc']}",)
    monkeypatch.setattr("logitstore.dump.auto.plan_encodings", None)  # a second plan would fail
    again = dump_logits(teacher(), manifest(6), tmp_path, options)
    assert again.present == 6
    assert again.planned == (f"ctc: {taken} is what the store has.",)
    assert not (tmp_path / "partial").exists()


def test_auto_keeps_a_budget_and_a_form_of_its_own(tmp_path):
    dump_logits(teacher(), manifest(3), tmp_path, DumpOptions(streams={"rnnt": "auto:1/path"}))
    stream = open_store(tmp_path).spec.stream("rnnt")
    assert stream.form == "path"
    with pytest.raises(IdentityError, match="no ctc stream"):
        dump_logits(teacher(), manifest(3), tmp_path, DumpOptions(streams={"ctc": "auto"}))


def test_a_stopped_first_try_does_not_decide_for_the_next(tmp_path, few):
    """Answers without a shard and without a living writer are forgotten: auto plans again."""

    def stop(progress):
        if progress.planned and (tmp_path / "logitstore.json").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dump_logits(teacher(), manifest(2), tmp_path, DumpOptions(streams={"ctc": "auto:1e-9"}), report=stop)
    first = json.loads((tmp_path / "logitstore.json").read_text("utf-8"))["streams"][0]["encoding"]
    dump_logits(teacher(), manifest(2), tmp_path, DumpOptions(streams={"ctc": "auto:1"}))
    assert open_store(tmp_path).spec.stream("ctc").encoding != first


def logitstore(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "logitstore", *map(str, args)], capture_output=True, text=True, **options
    )


def test_two_jobs_at_once_agree_and_only_one_plans(tmp_path):
    args = ["dump", "--teacher", FACTORY, "--manifest", MANIFEST, "--out", tmp_path / "s", "--limit", 4]
    args += ["--stream", "ctc=auto", "--shard-size", 2]
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "logitstore", *map(str, args), "--job", f"{i}/2"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for i in range(2)
    ]
    said = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    kinds = Counter("planned" if "is the smallest of" in s else "took" for s in said)
    assert kinds == {"planned": 1, "took": 1}, said
    assert len(open_store(tmp_path / "s")) == 4
    assert logitstore("verify", tmp_path / "s", cwd=ROOT).returncode == 0


# ---- the command


def test_the_command_prints_json_of_a_known_shape_and_a_command_that_runs(tmp_path):
    args = ["plan", "--teacher", FACTORY, "--manifest", MANIFEST, "--out", tmp_path / "store", "--stream"]
    args += ["ctc", "--sample", 4, "--temperatures", "1,4", "--limit", 6, "--storage", "zarr", "--json"]
    done = logitstore(*args, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    d = json.loads(done.stdout)
    assert set(d) == {
        *("schema", "teacher", "manifest", "sample", "speed", "streams", "storage", "gigabytes", "command"),
    }
    assert d["schema"] == 1
    assert set(d["manifest"]) == {"utterances", "hours", "hours_from", "frames"}
    assert set(d["sample"]) == {"utterances", "seconds", "frames", "chosen", "failed"}
    ctc = d["streams"]["ctc"]
    assert set(ctc) == {"max_kl", "candidates", "refused", "recommended", "why"}
    for c in ctc["candidates"]:
        assert set(c) == {
            *("encoding", "storage", "bytes_per_frame", "bytes_once", "gigabytes", "kl", "alignments"),
            *("encode_speed", "speed", "good_enough", "best_class_changed"),
        }
        assert set(c["kl"]) == {"1", "4"}
        assert c["speed"] < c["encode_speed"]
    assert [c["gigabytes"] for c in ctc["candidates"]] == sorted(c["gigabytes"] for c in ctc["candidates"])
    command = d["command"].split()
    assert command[:2] == ["logitstore", "dump"]
    assert f"ctc={ctc['recommended']}" in command
    assert logitstore(*command[1:], cwd=ROOT).returncode == 0
    store = open_store(tmp_path / "store")
    assert len(store) == 6
    assert inspect_store(store).bytes / 1e9 == pytest.approx(d["gigabytes"], rel=0.15)


def test_the_table_is_plain_text_where_there_is_no_terminal(tmp_path):
    args = ["plan", "--teacher", FACTORY, "--manifest", MANIFEST, "--out", tmp_path, "--stream"]
    done = logitstore(*args, "rnnt=auto/path", "--sample", 2, "--storage", "zarr", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    head = next(x for x in done.stdout.splitlines() if "KL at 4" in x)
    assert head.split()[:4] == ["rnnt", "B/frame", "zarr", "aligned"]
    assert "2 of 20 utterances, the same distance apart in the manifest" in done.stdout
    assert done.stdout.count("→") == 2
    assert "  logitstore dump --teacher" in done.stdout.splitlines()[-1]


def test_the_command_plans_layers_that_it_is_given(tmp_path):
    args = ["plan", "--teacher", FACTORY, "--manifest", MANIFEST, "--out", tmp_path / "s", "--stream", "ctc"]
    done = logitstore(*args, "--hidden", "encoder.norm", "--limit", 2, "--storage", "zarr", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    heads = [x.split() for x in done.stdout.splitlines() if "B/frame" in x]
    assert ["hidden", "B/frame", "zarr", "error", "speed"] in heads
    assert len(heads) == 2
    assert "squared length by which a layer's row differs" in done.stdout
    command = done.stdout.splitlines()[-1].split()
    assert logitstore(*command[1:], cwd=ROOT).returncode == 0
    assert open_store(tmp_path / "s").spec.stream("hidden").encoding == "vectors:int8"


@pytest.mark.parametrize(
    "wrong",
    [["--stream", "ctc=dense"], ["--temperatures", "hot"], ["--stream", "ctc", "--stream", "ctc=auto"]],
)
def test_wrong_usage_is_named(wrong):
    done = logitstore("plan", "--teacher", FACTORY, "--manifest", MANIFEST, *wrong, cwd=ROOT)
    assert done.returncode == 2
    assert wrong[-1] in done.stderr
