"""An attention decoder under teacher forcing, through every story, by a small one that is trained here."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from logitstore import StoreWriter, TokenTable, VocabMap, open_store
from logitstore.capture.probe.teacher import probe_teacher
from logitstore.cli import main
from logitstore.corpus.manifest import read_manifest
from logitstore.dump.against import against_teacher
from logitstore.dump.blocks import JobPart
from logitstore.errors import (
    FormatError,
    LengthError,
    NonFinite,
    NotLogits,
    TeacherError,
    TokenError,
    UsageError,
    VocabError,
)
from logitstore.losses import joint_kd, seq2seq_kd
from logitstore.runner.driver import TeacherDriver
from logitstore.runner.loader import by_length, load
from logitstore.schema.kinds import KINDS
from logitstore.schema.spec import StoreSpec
from logitstore.store.diff import diff_stores
from logitstore.store.inspect import inspect_store, inspect_utterance
from logitstore.store.rewrite import compact_store, convert_store
from logitstore.store.transcripts import transcript_lines
from logitstore.store.verify import verify_store
from logitstore.targets.clip import Clip
from tests.support import attention_teacher, demo
from tests.support.dumping import run as run_dump
from tests.support.dumping import same_tree

FACTORY = f"{attention_teacher.__file__}:load"
ALONE, HYBRID = {"seq2seq": "dense"}, {"ctc": "dense", "rnnt": "topk:4", "seq2seq": "dense"}
ENCODINGS = {  # and the nats that a row may lose on average, at temperatures 1, 2 and 4
    "dense": 1e-5,
    "dense:int8": 2e-3,
    "topk:8": 0.3,
    "nucleus:1e-3": 0.3,
    "factored": 1e-5,
    "factored:int8": 1e-3,
    "factored:1e-3": 5e-3,
}


def teacher():
    return attention_teacher.load()


class Spoiled:
    """The teacher with some of its methods replaced; each is given it first."""

    def __init__(self, **methods):
        self._methods = methods

    def __getattr__(self, name):
        if name in self._methods:
            return partial(self._methods[name], teacher())
        return getattr(teacher(), name)


def run(out, limit=0, streams=ALONE, **options):
    return run_dump(out, limit, streams, **{"teacher": teacher(), **options})


@pytest.fixture(scope="module")
def own():
    """The decoder's own logits, without any hook of ours: id -> (U, V), labels with their end."""
    said = {}
    for number in range(0, 20, 6):
        for batch in by_length(list(demo.manifest())[number : number + 6], 10.0, None):
            loaded = [load(u, teacher(), teacher().tokens(), True) for u in batch]
            lengths = torch.tensor([len(x.features) for x in loaded])
            features = torch.nn.utils.rnn.pad_sequence([x.features for x in loaded], batch_first=True)
            with torch.inference_mode():
                enc, lens = teacher().model.forward_encoder(features, lengths)
                for b, item in enumerate(loaded):
                    labels = [*item.labels, teacher().end]
                    ids = torch.tensor([[*teacher().prompt, *labels[:-1]]])
                    logits = teacher().model.attention(ids, enc[b : b + 1, : lens[b]])[0, 1:]
                    said[item.utt.id] = logits, labels
    return said


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store of the decoder alone, and a hybrid's with transcripts."""
    root = tmp_path_factory.mktemp("seq2seq")
    run(root / "alone")
    run(root / "hybrid", streams=HYBRID, transcripts="all")
    return root


def test_the_teacher_is_trained(own):
    right = [float((x.argmax(-1) == torch.tensor(y)).float().mean()) for x, y in own.values()]
    assert np.mean(right) > 0.95
    assert (
        max(float(x.softmax(-1).max()) for x, _ in own.values()) < 1
    )  # and not so sure that nothing is left


def test_a_dense_store_holds_the_decoders_own_logits(stores, own):
    opened = open_store(stores / "alone")
    for utt_id, (logits, labels) in own.items():
        target = opened[utt_id]
        assert target.labels.tolist() == target.driven["seq2seq"].tolist() == labels
        assert target.shapes == {"seq2seq": (len(labels), 151)}
        logp = logits.log_softmax(-1).numpy()
        bound = np.maximum(np.abs(logp) * 2.0**-11, 2.0**-24) + 2e-5
        assert (np.abs(target["seq2seq"].logits() - logits.numpy()) <= bound).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_of_rows(encoding, own, tmp_path):
    done = run(tmp_path / "s", 8, {"seq2seq": encoding})
    assert ("weight and bias" in " ".join(done.findings)) == encoding.startswith("factored")
    assert not verify_store(tmp_path / "s").findings
    opened = open_store(tmp_path / "s")
    for temperature in (1.0, 2.0, 4.0):
        lost = []
        for utt_id in opened:
            logits, _ = own[utt_id]
            p = (logits.double() / temperature).log_softmax(-1).numpy()
            lost.append((np.exp(p) * (p - opened[utt_id].log_probs("seq2seq", temperature))).sum(1).mean())
        assert abs(np.mean(lost)) < ENCODINGS[encoding] * temperature**2
    for c in against_teacher(opened, teacher(), demo.manifest(8), 3):
        assert (c.stream, c.note) == ("seq2seq", "")
        assert c.kl < 1e-4
        assert c.lost < ENCODINGS[encoding]


def test_nucleus_keeps_the_label_and_no_blank_for_its_own_sake(tmp_path, own):
    lines = [{**x, "text": "meet peter"} for x in demo.lines(6)]  # the decoder would say something else
    run(
        tmp_path / "s",
        streams={"seq2seq": "nucleus:1"},
        manifest=read_manifest(demo.write_manifest(tmp_path / "m", lines)),
        skip_checks="the texts are wrong on purpose",
    )
    for target in map(open_store(tmp_path / "s").__getitem__, [x["id"] for x in lines]):
        at = target["seq2seq"].at(1.0)
        kept = [set(ids[logp > -1e4].tolist()) for ids, logp in zip(at.ids, at.logp, strict=True)]
        assert all(label in ids for label, ids in zip(target.labels.tolist(), kept, strict=True))
        assert sum(0 in ids for ids in kept) < len(kept)


def test_rows_keep_labels_by_stream(stores, own):
    opened = open_store(stores / "hybrid")
    for utt_id, (_, labels) in own.items():
        target = opened[utt_id]
        assert target.driven["seq2seq"].tolist() == labels
        assert target.driven["rnnt"].tolist() == target.labels.tolist() == labels[:-1]
        assert target.meta["U"] == len(labels) - 1
        assert target.shapes["rnnt"][1] == target.shapes["seq2seq"][0] == len(labels)


def test_labels_are_the_decoders_own_where_nobody_gave_any(tmp_path, stores):
    known = open_store(stores / "hybrid")
    lines = [{k: v for k, v in x.items() if k != "text"} for x in demo.lines(5)]
    manifest = read_manifest(demo.write_manifest(tmp_path / "m.jsonl", lines))
    for streams, first in ((ALONE, "seq2seq"), (HYBRID, "rnnt")):
        run(tmp_path / first, manifest=manifest, streams=streams, transcripts="all")
        opened = open_store(tmp_path / first)
        for line in lines:
            target = opened[line["id"]]
            tokens, score = slow_search(line["id"])
            said = target.meta["hyp"]["seq2seq"]
            assert target.driven["seq2seq"].tolist() == [*tokens, teacher().end]
            assert (
                said["text"] == opened.tokens.text(tokens) == known[line["id"]].meta["hyp"]["seq2seq"]["text"]
            )
            assert abs(said["score"] - score) < 0.01
            assert "wer" not in said
            assert (target.meta["labels_from"], target.meta["labels_score"]) == (
                first,
                target.meta["hyp"][first]["score"],
            )
        found = against_teacher(opened, teacher(), manifest, 2)
        assert max(c.kl for c in found) < 1e-4
    run(
        tmp_path / "factored", manifest=manifest, streams={"seq2seq": "factored:1e-3"}
    )  # samples need labels too
    assert len(open_store(tmp_path / "factored")) == 5


def slow_search(utt_id):
    """Token by token with the model's own modules: ids without the end, and their log-probability."""
    utt = next(u for u in demo.manifest() if u.id == utt_id)
    features = load(utt, teacher(), teacher().tokens(), True).features
    with torch.inference_mode():
        enc, _ = teacher().model.forward_encoder(features[None], torch.tensor([len(features)]))
        tokens, score = [], 0.0
        while True:
            row = teacher().model.attention(torch.tensor([[*teacher().prompt, *tokens]]), enc)[0, -1]
            best = int(row.argmax())
            score += float(row.log_softmax(-1)[best])
            if best == teacher().end:
                return tokens, score
            tokens.append(best)


def test_transcripts_and_selection(stores, own):
    opened = open_store(stores / "hybrid")
    for utt_id in list(own)[:6]:
        said = opened[utt_id].meta["hyp"]["seq2seq"]
        assert said["text"] == opened.tokens.text(slow_search(utt_id)[0])
        assert 0 <= said["ter"] <= 1
    right = [m["id"] for m in opened.metadata() if m["hyp"]["seq2seq"]["wer"] == 0]
    assert opened.select("seq2seq.wer == 0") == right
    assert len(right) > 10
    lines = [json.loads(x) for x in transcript_lines(opened, stream="seq2seq")]
    assert [x["text"] for x in lines] == [m["hyp"]["seq2seq"]["text"] for m in opened.metadata()]
    assert "hyp" not in next(iter(open_store(stores / "alone").metadata()))  # --transcripts ctc
    assert inspect_store(opened).transcript_error_rates["seq2seq"] < 0.05


@pytest.mark.parametrize("most", [attention_teacher.LONGEST - 2, 9])
def test_a_decoder_that_never_ends_is_stopped(most, tmp_path):
    bias, one = teacher().model.attention.output_layer.bias, Spoiled()
    one.most_labels = most
    driver = TeacherDriver(one, one.tokens(), ["seq2seq"], "cpu")
    (output,) = driver.run([load(next(iter(demo.manifest())), one, one.tokens(), True)])
    before = bias[teacher().end].item()
    try:
        bias[teacher().end] -= 1000
        tokens, score = driver.generated(output)
    finally:
        bias[teacher().end] = before
    assert len(tokens) == min(output.T, most)
    assert teacher().end not in tokens
    assert score < -900  # it was made to end


def test_inspect(stores, own, capsys):
    opened = open_store(stores / "hybrid")
    utt_id = next(iter(own))
    shown = inspect_utterance(opened, utt_id).streams["seq2seq"]
    assert shown.shape == [len(own[utt_id][1]), 151]
    assert [f.u for f in shown.frames] == list(range(len(own[utt_id][1])))
    assert shown.labels[-1] == attention_teacher.END_TOKEN
    assert attention_teacher.END_TOKEN not in shown.text
    assert shown.errors == int((own[utt_id][0].argmax(-1) != torch.tensor(own[utt_id][1])).sum())
    about = inspect_store(opened).streams
    assert (about["seq2seq"].shape, about["seq2seq"].error_unit) == ("(U, V)", "token")
    assert about["seq2seq"].rows == sum(len(labels) for _, labels in own.values())
    for args in ((stores / "hybrid",), (stores / "hybrid", utt_id), (stores / "alone",)):
        with pytest.raises(SystemExit) as e:
            main(["inspect", *map(str, args)])
        assert e.value.code == 0
        assert "seq2seq" in capsys.readouterr().out


def test_word_errors_where_labels_are_not_the_streams_own(tmp_path):
    """Of ctc beside seq2seq the labels are the decoder's: its own errors are counted in words."""
    run(tmp_path / "s", 4, {"ctc": "dense", "seq2seq": "dense"})
    about = inspect_store(open_store(tmp_path / "s")).streams
    assert [about[s].error_unit for s in ("ctc", "seq2seq")] == ["word", "token"]
    assert about["ctc"].error_rate < 0.2


def test_stories(stores, tmp_path, capsys):
    assert not verify_store(stores / "hybrid").findings
    assert convert_store(stores / "hybrid", tmp_path / "tar", "webdataset").written == 20
    assert convert_store(tmp_path / "tar", tmp_path / "zarr", "zarr").written == 20
    assert same_tree(stores / "hybrid", tmp_path / "zarr")
    assert compact_store(tmp_path / "tar", "100").merged == 4
    assert not verify_store(tmp_path / "tar").findings
    assert diff_stores(open_store(stores / "hybrid"), open_store(tmp_path / "tar")).same
    for part in (1, 0):
        run(tmp_path / "jobs", part=JobPart(part, 2))
    assert same_tree(stores / "alone", tmp_path / "jobs")
    run(tmp_path / "topk", 4, {"seq2seq": "topk:4"})
    found = diff_stores(open_store(stores / "alone"), open_store(tmp_path / "topk"))
    assert found.kl["seq2seq"] > 0
    assert not found.same
    args = ["verify", tmp_path / "topk", "--against-teacher", FACTORY, "2", "--manifest", demo.MANIFEST]
    with pytest.raises(SystemExit) as e:
        main(list(map(str, args)))
    assert e.value.code == 0
    assert "seq2seq: 2 utterances again: KL of a row in nats" in capsys.readouterr().out


def test_batches_have_masks_whatever_the_frames(stores, own):
    opened = open_store(stores / "hybrid")
    ids = sorted(own)[:4]
    counts = [len(own[i][1]) for i in ids]
    for frames, method in ((None, "linear"), ([7, 9, 8, 5], "nearest"), ([7, 9, 8, 5], "max-nonblank")):
        streams = ["ctc", "seq2seq"] if method == "max-nonblank" else None
        batch = opened.batch(
            ids, frames=frames, method=method, temperature=2.0, streams=streams, stretch=True
        )
        rows = batch["seq2seq"]
        assert rows.logp.shape == (4, max(counts), 151)
        assert rows.mask.sum(1).tolist() == counts
        assert batch.driven["seq2seq"][0, : counts[0]].tolist() == own[ids[0]][1]
        want = (own[ids[0]][0] / 2).log_softmax(-1)
        assert (rows.logp[0, : counts[0]] - want).abs().max() < 0.02
        assert (rows.logp[~rows.mask] == -1e4).all()
    moved = batch.map(lambda x: x.clone())
    assert torch.equal(moved.driven["seq2seq"], batch.driven["seq2seq"])


def test_clips_keep_all_labels_or_are_refused(stores, own):
    opened, utt_id = open_store(stores / "alone"), sorted(own)[0]
    batch = opened.batch([Clip(utt_id).at_speed("1.1").pad(after=1), utt_id])
    rows = batch["seq2seq"]
    assert rows.mask.sum(1).tolist() == [len(own[utt_id][1])] * 2
    assert torch.equal(rows.logp[0], rows.logp[1])
    assert torch.equal(batch.driven["seq2seq"][0], batch.driven["seq2seq"][1])
    with pytest.raises(UsageError, match="labels within a part are not known"):
        opened.batch([Clip(utt_id).crop(0, 1)])


@pytest.mark.parametrize("encoding", ["dense", "topk:6", "factored"])
def test_losses_take_the_batch(encoding, own, tmp_path):
    run(tmp_path / "s", 6, {"ctc": "dense", "seq2seq": encoding})
    opened = open_store(tmp_path / "s")
    ids = sorted(opened)[:3]
    batch = opened.batch(ids)
    logits = torch.nn.utils.rnn.pad_sequence([own[i][0] for i in ids], batch_first=True)
    near = seq2seq_kd(logits, batch["seq2seq"])
    far = seq2seq_kd(torch.zeros_like(logits), batch["seq2seq"])
    assert 0 <= float(near) < 1e-3 < float(far)
    student = torch.zeros_like(logits).requires_grad_()
    ctc = torch.zeros(*batch.mask.shape, 151)
    loss = joint_kd(
        batch, logits={"ctc": ctc, "seq2seq": student}, lambdas={"seq2seq_kd": 0.5}, temperature=1.0
    )
    loss.backward()
    assert set(loss.parts) == {"ctc_kd", "seq2seq_kd"}
    assert torch.allclose(loss.parts["seq2seq_kd"], far)
    assert (student.grad[~batch["seq2seq"].mask] == 0).all()
    assert (student.grad[batch["seq2seq"].mask] != 0).any()
    every = seq2seq_kd(student, batch["seq2seq"], reduction="none")
    assert torch.allclose(every.sum() / batch["seq2seq"].mask.sum(), far)
    with pytest.raises(UsageError, match="no stream 'seq2sek'"):
        joint_kd(batch, logits={"seq2sek": student})


def test_a_resorted_table_moves_rows_and_labels(stores, own):
    table = teacher().tokens()
    student = TokenTable((*reversed(table.tokens),), len(table) - 1)
    mapped = open_store(stores / "hybrid", vocab=VocabMap.by_token(table, student))
    for utt_id in list(own)[:4]:
        logits, labels = own[utt_id]
        target = mapped[utt_id]
        assert target.driven["seq2seq"].tolist() == [150 - i for i in labels]
        want = logits.log_softmax(-1).flip(-1).numpy()
        assert np.abs(np.exp(target.log_probs("seq2seq")) - np.exp(want)).max() < 1e-3
    small = TokenTable(table.tokens[:-1], table.blank)
    with pytest.raises(TokenError, match=r"'<sos/eos>' is not in the student's token table"):
        open_store(stores / "alone", vocab=VocabMap.by_token(table, small))[utt_id]


def test_in_ones_own_loop(own, tmp_path):
    table = teacher().tokens()
    with StoreWriter.open(tmp_path / "s", tokens=table, streams={"ctc": "dense", "seq2seq": "topk:5"}) as w:
        for utt_id, (logits, labels) in own.items():
            w.add(utt_id, ctc=torch.zeros(7, 151), seq2seq=logits, labels=labels)
        with pytest.raises(LengthError, match=r"seq2seq has 3 rows, 2 labels"):
            w.add("short", ctc=torch.zeros(7, 151), seq2seq=torch.zeros(3, 151), labels=[1, 2])
        with pytest.raises(LengthError, match=r"seq2seq logits of shape \(1, 3, 151\), not \(U, V\)"):
            w.add("axes", ctc=torch.zeros(7, 151), seq2seq=torch.zeros(1, 3, 151), labels=[1, 2, 3])
        with pytest.raises(UsageError, match="no stream 'seq2sec'"):
            w.add("name", ctc=torch.zeros(7, 151), seq2sec=torch.zeros(3, 151), labels=[1, 2, 3])
        with pytest.raises(VocabError, match="outside the token table"):
            w.add(
                "label", ctc=torch.zeros(7, 151), seq2seq=torch.zeros(3, 151), labels={"seq2seq": [1, 2, 151]}
            )
        w.add("ragged", ctc=torch.zeros(2, 151), seq2seq=torch.zeros(1, 151), labels={"seq2seq": [150]})
    opened = open_store(tmp_path / "s")
    assert (opened["ragged"].T, opened["ragged"].U) == (2, 1)
    for utt_id, (logits, labels) in own.items():
        assert opened[utt_id].T == 7
        assert opened[utt_id].labels.tolist() == labels
        assert (opened[utt_id]["seq2seq"].ids == logits.topk(5).indices.numpy()).mean() > 0.99


# What can be wrong with a teacher.


def test_a_head_without_a_decoder(tmp_path):
    class Mute:
        model = teacher().model

        def __getattr__(self, name):
            if name == "decode":
                raise AttributeError(name)
            return getattr(teacher(), name)

    with pytest.raises(TeacherError, match=r"a seq2seq head, but no decode\(\)"):
        run(tmp_path / "s", teacher=Mute())


@pytest.mark.parametrize(
    ("decode", "error", "said"),
    [
        (lambda t, o, b, labels: t.decode(o, b, labels[:-3]), LengthError, "rows before the last U"),
        (lambda t, o, b, labels: [t.decode(o, b, labels) for _ in "ab"], TeacherError, "ran 2 times"),
        (lambda t, o, b, labels: None, TeacherError, "did not run"),
    ],
)
def test_a_decoder_driven_wrongly(decode, error, said, tmp_path):
    with pytest.raises(error, match=said):
        run(tmp_path / "s", teacher=Spoiled(decode=decode))


def poisoned(change):
    """The decoder's head gives something else."""
    module = teacher().model.attention.output_layer
    return module.register_forward_hook(lambda module, args, output: change(output))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda x: x * torch.nan, NonFinite, "seq2seq branch gives NaN"),
        (lambda x: x * 0, NotLogits, "seq2seq branch is uniform"),
        (lambda x: x.log_softmax(-1), NotLogits, "seq2seq tap gives log-probabilities"),
        (lambda x: x[..., :-1], VocabError, "seq2seq head gives 150 classes"),
        (lambda x: x.roll(1, -1), TeacherError, "word error rate"),
    ],
)
def test_a_decoder_that_says_nonsense(change, error, said, tmp_path):
    hook = poisoned(change)
    try:
        with pytest.raises(error, match=said):
            run(tmp_path / "s")
    finally:
        hook.remove()
    assert not (tmp_path / "s" / "sealed").exists()


def test_what_cannot_be_asked_for(tmp_path):
    for streams, said in (
        ({"seq2seq": "dense/path"}, "only an rnnt stream"),
        ({"seq2seq": "collapsed"}, "only an rnnt stream"),
        ({"seq2seq": "vectors"}, "not for rows of V"),
        ({"seq2sek": "dense"}, "Did you mean 'seq2seq'"),
        ({"seq2seq_2": "dense"}, "no stream 'seq2seq_2'"),
    ):
        with pytest.raises(UsageError, match=said):
            run(tmp_path / "s", streams=streams)
    with pytest.raises(TeacherError, match="has no seq2seq head"):
        run_dump(tmp_path / "s", 0, ALONE)


def test_a_reader_that_does_not_know_the_kind_refuses_it(stores, monkeypatch):
    value = open_store(stores / "alone").spec.to_json()
    monkeypatch.delitem(KINDS, "seq2seq")
    with pytest.raises(FormatError, match="the kind of a stream is 'seq2seq'"):
        StoreSpec.from_json(value)


def test_a_row_that_breaks_the_rule_is_named(stores):
    opened = open_store(stores / "alone")
    row = opened.record(next(iter(opened)))
    fewer = replace(row, arrays={**row.arrays, "seq2seq.labels": row.arrays["seq2seq.labels"][1:]})
    with pytest.raises(FormatError, match="SPEC S13"):
        opened.decode(fewer)
    beyond = replace(row, arrays={**row.arrays, "seq2seq.labels": row.arrays["seq2seq.labels"] + 151})
    with pytest.raises(FormatError, match="a label outside"):
        opened.decode(beyond)


def test_probe_drives_the_decoder_too():
    found = probe_teacher(FACTORY, str(demo.MANIFEST), batches=1, out="store")
    assert "--stream seq2seq=topk:16" in found.command
    assert "attention.output_layer" in {c.path for c in found.candidates}
    assert not [n for n in found.notes if "seq2seq" in n]
