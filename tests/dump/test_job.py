"""The main job, with the trained demo teacher: what is stored is what the model says, whatever happens."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from logitstore import open_store
from logitstore.corpus.manifest import read_manifest
from logitstore.dump.blocks import JobPart
from logitstore.errors import IdentityError, LogitStoreError, StoreBusy
from logitstore.runner.loader import by_length, load
from logitstore.storage.places import open_place
from logitstore.store.rewrite import convert_store
from logitstore.store.verify import verify_store
from tests.support import demo
from tests.support.dumping import SMALL, run, same_tree


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """The demo, dumped densely in both streams, and with topk."""
    root = tmp_path_factory.mktemp("stores")
    run(root / "dense", streams={"ctc": "dense", "rnnt": "dense"})
    run(root / "topk", streams={"ctc": "topk:8", "rnnt": "topk:16"})
    return root


@pytest.fixture(scope="session")
def own():
    """The model's own logits, without any hook, in the same batches: id -> (T, V), (T, U+1, V), labels."""
    teacher, said = demo.teacher(), {}
    utterances = list(demo.manifest())
    for number in range(0, len(utterances), 6):
        for batch in by_length(utterances[number : number + 6], SMALL["batch_seconds"], None):
            loaded = [load(u, teacher, teacher.tokens(), True) for u in batch]
            lengths = torch.tensor([len(x.features) for x in loaded])
            features = torch.nn.utils.rnn.pad_sequence([x.features for x in loaded], batch_first=True)
            with torch.inference_mode():
                enc, lens = teacher.model.forward_encoder(features, lengths)
                ctc = teacher.model.ctc_output[1](enc)
                for b, item in enumerate(loaded):
                    prefix = torch.tensor([[0, *item.labels]])
                    dec = teacher.model.decoder(prefix)
                    joint = teacher.model.joiner(enc[b : b + 1, : lens[b], None], dec[:, None])
                    said[item.utt.id] = ctc[b, : lens[b]], joint[0], item.labels
    return said


def test_dense_store_holds_the_models_own_logits_to_fp16_rounding(store, own):
    opened = open_store(store / "dense")
    assert set(opened) == set(own)
    for utt_id, (ctc, joint, labels) in own.items():
        target = opened[utt_id]
        assert target.labels.tolist() == labels
        for stream, logits in (("ctc", ctc), ("rnnt", joint)):
            ours = target[stream].logits().reshape(logits.shape)
            logp = logits.log_softmax(-1).numpy()
            bound = np.maximum(np.abs(logp) * 2.0**-11, 2.0**-24) + 2e-5
            assert (np.abs(ours - logits.numpy()) <= bound).all()


def test_topk_store_keeps_exactly_the_top_k_of_it_and_its_exact_tail(store, own):
    opened = open_store(store / "topk")
    for utt_id, (ctc, joint, _) in own.items():
        for stream, logits, k in (("ctc", ctc, 8), ("rnnt", joint, 16)):
            flat = logits.reshape(-1, logits.shape[-1]).double()
            order = np.argsort(-flat.numpy(), axis=1, kind="stable")[:, :k]
            rows = opened[utt_id][stream]
            assert (rows.ids == order).all()
            left = flat.scatter(1, torch.from_numpy(order), -torch.inf)
            for temperature in (1, 2, 4, 8):
                exact = (left / temperature).logsumexp(-1) - (flat / temperature).logsumexp(-1)
                tail = rows.at(temperature).tail
                far = exact.numpy() > -30  # below, float32 logits themselves end
                assert np.abs(tail - exact.numpy())[far].max() < 1e-3


def test_both_storages_give_identical_targets(store, tmp_path):
    run(tmp_path / "tar", storage="webdataset")
    run(tmp_path / "zarr", storage="zarr:blosc")
    plain = tmp_path / "plain"
    run(plain)
    one = open_store(plain)
    for other in (open_store(tmp_path / "tar"), open_store(tmp_path / "zarr")):
        assert list(one) == list(other)
        for utt_id in one:
            a, b = one.record(utt_id), other.record(utt_id)
            assert a.meta == b.meta
            assert all(np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays)


@pytest.mark.parametrize("way", [("zarr", "webdataset"), ("webdataset", "zarr"), ("zarr", "zarr:blosc")])
def test_convert_there_and_back_gives_the_same_bytes(way, tmp_path):
    here, there = way
    run(tmp_path / "a", limit=8, storage=here)
    assert convert_store(tmp_path / "a", tmp_path / "b", there).written == 8
    assert convert_store(tmp_path / "b", tmp_path / "c", here).written == 8
    assert convert_store(tmp_path / "b", tmp_path / "c", here).written == 0
    assert not verify_store(tmp_path / "b").findings
    assert same_tree(tmp_path / "a", tmp_path / "c")


def test_any_number_of_jobs_makes_the_same_store(tmp_path):
    for count in (1, 3):
        for index in reversed(range(count)):
            run(tmp_path / str(count), part=JobPart(index, count))
    assert same_tree(tmp_path / "1", tmp_path / "3")


def test_running_again_does_only_what_is_missing(tmp_path):
    first = run(tmp_path / "s", limit=8)
    assert (first.done, first.present) == (8, 0)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s" / "shards").rglob("c/**/*")}
    second = run(tmp_path / "s")
    assert (second.done, second.present) == (12, 8)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    third = run(tmp_path / "s")
    assert (third.done, third.present, third.shards) == (0, 20, 0)
    assert not verify_store(tmp_path / "s").findings
    assert len(open_store(tmp_path / "s")) == 20


def test_an_error_in_the_middle_keeps_what_was_sealed_and_nothing_else(tmp_path):
    class Power(Exception):
        pass

    calls = []

    def forward(teacher, features, lengths):
        calls.append(len(lengths))
        if sum(size > 1 for size in calls) > 3:  # two batches of the dump, and one of the self-check
            raise Power
        return teacher.forward(features, lengths)

    with pytest.raises(Power):
        run(tmp_path / "s", teacher=demo.Spoiled(forward=forward))
    sealed = len(open_store(tmp_path / "s"))
    assert 0 < sealed < 20
    assert not verify_store(tmp_path / "s").findings
    run(tmp_path / "s")
    run(tmp_path / "whole")
    assert same_tree(tmp_path / "s", tmp_path / "whole")


def test_another_teacher_is_refused_with_both_answers(tmp_path):
    run(tmp_path / "s", limit=3)
    other = demo.Spoiled(describe=lambda t: replace(t.describe(), name="other"))
    with pytest.raises(IdentityError, match=r'teacher.name\s+"demo"\s+"other"'):
        run(tmp_path / "s", teacher=other)
    with pytest.raises(IdentityError, match="streams"):
        run(tmp_path / "s", streams={"ctc": "topk:4"})
    assert run(tmp_path / "s", teacher=other, allow_different=("teacher.name",)).done == 17
    assert open_store(tmp_path / "s").spec.allowed[0]["was"] == "demo"


def test_two_dumps_of_the_same_part_do_not_meet(tmp_path):
    run(tmp_path / "s", limit=1)
    with open_place(tmp_path / "s").lock("job-0-of-1"), pytest.raises(StoreBusy):
        run(tmp_path / "s")


# What can be wrong with one utterance: what the line says, and the name of the error.
def audio(path, samples, rate=16000):
    import soundfile

    soundfile.write(path, np.asarray(samples, np.float32), rate, subtype="FLOAT")
    return str(path)


BAD = {
    "missing": (lambda d: {"audio": "nowhere.flac"}, "AudioError", "does not exist"),
    "unreadable": (lambda d: {"audio": _text(d / "x.wav")}, "AudioError", "cannot be read"),
    "empty": (lambda d: {"audio": audio(d / "e.wav", []), "duration": None}, "AudioError", "is empty"),
    "short": (
        lambda d: {"audio": audio(d / "t.wav", [0.1] * 9), "duration": None},
        "AudioError",
        "no features",
    ),
    "cut": (lambda d: {"duration": 3600.0}, "AudioError", "lasts"),
    "text": (lambda d: {"text": "straße 東"}, "TokenError", "does not tokenise"),
    "token": (lambda d: {"tokens": [3, 99999]}, "TokenError", "outside a table"),
    "blank": (lambda d: {"tokens": [3, 0]}, "TokenError", "the blank"),
    "nan": (lambda d: {"audio": audio(d / "n.wav", [np.nan] * 9000), "duration": None}, "AudioError", "NaN"),
    "json": (lambda d: "{", "ManifestError", "not JSON"),
    "twice": (lambda d: {"id": "demo-00"}, "ManifestError", "is already at line"),
    "no id": (lambda d: {"id": ""}, "ManifestError", "non-empty"),
    "control": (lambda d: {"id": "a\x1b[2Jb"}, "ManifestError", "control"),
}


def _text(path):
    path.write_text("this is no recording")
    return str(path)


def bad_manifest(folder, *names):
    lines = demo.lines(4)
    for name in names:
        change = BAD[name][0](folder)
        line = change if isinstance(change, str) else json.dumps({**demo.lines(8)[-1], "id": name, **change})
        lines.append(line)
    path = folder / "m.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), "utf-8")
    return read_manifest(path)


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_an_error_that_names_it(name, tmp_path):
    with pytest.raises(LogitStoreError, match=BAD[name][2]) as e:
        run(tmp_path / "s", manifest=bad_manifest(tmp_path, name))
    assert type(e.value).__name__ == BAD[name][1]
    if (tmp_path / "s" / "logitstore.json").exists():  # the good records before it may be kept
        assert set(open_store(tmp_path / "s")) <= {line["id"] for line in demo.lines(4)}
        assert not verify_store(tmp_path / "s").findings


@pytest.mark.parametrize("jobs", [1, 2])
def test_bad_input_can_be_skipped_and_is_listed(tmp_path, jobs):
    manifest = bad_manifest(tmp_path, *BAD)
    done = [
        run(tmp_path / "s", manifest=manifest, on_error="skip", part=JobPart(i, jobs)) for i in range(jobs)
    ]
    assert sum(d.done for d in done) == 4
    assert sum(d.skipped for d in done) == len(BAD)
    listed = [json.loads(x) for x in (tmp_path / "s" / "skipped.jsonl").read_text("utf-8").splitlines()]
    assert sorted(x["reason"] for x in listed) == sorted(reason for _, reason, _ in BAD.values())
    assert all(BAD[x["id"]][1:] == (x["reason"], BAD[x["id"]][2]) for x in listed if x["id"] in BAD)
    assert all(BAD[x["id"]][2] in x["what"] for x in listed if x["id"] in BAD)
    assert not verify_store(tmp_path / "s").findings
    again = run(tmp_path / "s", manifest=manifest, on_error="skip")
    assert (again.done, again.shards) == (0, 0)


def test_what_was_skipped_is_dumped_once_it_is_mended(tmp_path):
    lines = demo.lines(5)
    recording = lines[2]["audio"]
    lines[2]["audio"] = str(tmp_path / "later.flac")
    path = demo.write_manifest(tmp_path / "m.jsonl", lines)
    assert run(tmp_path / "s", manifest=read_manifest(path), on_error="skip").skipped == 1
    os.symlink(recording, tmp_path / "later.flac")
    assert run(tmp_path / "s", manifest=read_manifest(path), on_error="skip").done == 1
    assert (tmp_path / "s" / "skipped.jsonl").read_text() == ""


def test_strange_ids_are_kept_as_they_are(tmp_path):
    ids = ["a.b_sp1.1", "x/y z", "’é" * 60, "漢" * 100, "-", "..", "a%2Eb"]
    lines = [{**line, "id": i} for line, i in zip(demo.lines(7), ids, strict=True)]
    manifest = read_manifest(demo.write_manifest(tmp_path / "m.jsonl", lines))
    for storage in ("zarr", "webdataset"):
        run(tmp_path / storage, manifest=manifest, storage=storage)
        opened = open_store(tmp_path / storage)
        assert sorted(opened) == sorted(ids)
        assert all(opened[i].id == i for i in ids)


def test_no_labels_at_all_and_one_frame(tmp_path):
    lines = [{**demo.lines(1)[0], "text": "", "id": "silence"}]
    lines.append({**lines[0], "id": "one", "duration": 0.03, "text": "a"})
    manifest = read_manifest(demo.write_manifest(tmp_path / "m.jsonl", lines))
    run(tmp_path / "s", manifest=manifest)
    opened = open_store(tmp_path / "s")
    assert opened["silence"].U == 0
    assert opened["silence"].log_probs("rnnt").shape[1] == 1
    assert opened["one"].T == 1
    batch = opened.batch(["silence", "one"], frames=[10, 2])
    assert batch["rnnt"].mask.sum(dim=(1, 2)).tolist() == [10, 4]
