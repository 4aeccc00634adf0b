"""Transcripts of the teacher: stored with every record, used to choose records, and written out again."""

import json
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitstore import StoreWriter, open_store
from logitstore.corpus.manifest import read_manifest
from logitstore.dump.blocks import JobPart
from logitstore.errors import UsageError
from logitstore.runner import transcribe
from logitstore.runner.driver import TeacherDriver
from logitstore.runner.loader import load
from logitstore.runner.transcribe import MAX_SYMBOLS, TeacherTranscriber
from logitstore.store.select import Where
from logitstore.store.transcripts import transcript_lines
from logitstore.tokens.table import TokenTable
from logitstore.tokens.transcript import edit_distance, plain, words
from tests.support import demo
from tests.support.command import logitstore
from tests.support.dumping import run as run_dump
from tests.support.dumping import same_tree


def run(*args, **options):
    """A dump that stores the transcripts of both branches."""
    return run_dump(*args, **{"transcripts": "all", **options})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("t") / "s"
    run(out)
    return open_store(out)


def slow_search(teacher, utt, most=MAX_SYMBOLS):
    """Search frame by frame with one joiner call at a time, with the model's own modules alone."""
    model, loaded = teacher.model, load(utt, teacher, teacher.tokens(), True)
    with torch.inference_mode():
        enc, lens = model.forward_encoder(loaded.features[None], torch.tensor([len(loaded.features)]))
        tokens, score, t, here = [], 0.0, 0, 0
        while t < int(lens[0]):
            dec = model.decoder(torch.tensor([[0, *tokens]]))[:, -1]
            logp = model.joiner(enc[0, t], dec[0]).log_softmax(-1)
            best = int(logp.argmax())
            if best and here < most:
                tokens, here = [*tokens, best], here + 1
            else:
                t, here = t + 1, 0
            score += float(logp[best]) if not best or here else 0.0
    return tokens, score


def test_the_search_is_the_models_own_frame_by_frame(store):
    teacher = demo.teacher()
    for utt in demo.manifest(4):
        tokens, score = slow_search(teacher, utt)
        said = store[utt.id].meta["hyp"]["rnnt"]
        assert said["text"] == teacher.tokens().text(tokens)
        assert abs(said["score"] - score) < 0.01


def test_tokens_of_a_frame_are_bounded(monkeypatch):
    """Check one token a frame, as icefall decodes, with a joiner that emits far too many."""
    teacher = demo.teacher()
    utt = next(iter(demo.manifest()))
    monkeypatch.setattr(transcribe, "MAX_SYMBOLS", 1)
    bias = teacher.model.joiner.output_linear.bias.data
    before = bias[0].item()
    try:
        bias[0] -= 12
        tokens, score = slow_search(teacher, utt, most=1)
        driver = TeacherDriver(teacher, teacher.tokens(), ["rnnt"], "cpu")
        (output,) = driver.run([load(utt, teacher, teacher.tokens(), True)])
        _, heard = TeacherTranscriber(driver).transcribe(output)
    finally:
        bias[0] = before
    assert len(tokens) > 15
    assert heard["rnnt"].tokens == tuple(tokens)
    assert abs(heard["rnnt"].score - score) < 0.01


def test_the_ctc_transcript_is_the_stored_rows_best_path(store):
    for utt_id in store:
        target = store[utt_id]
        said = target.meta["hyp"]["ctc"]
        logp = target.log_probs("ctc")
        best = logp.argmax(1)
        kept = [int(b) for i, b in enumerate(best) if b and (i == 0 or b != best[i - 1])]
        assert said["text"] == store.tokens.text(kept)
        assert abs(said["score"] - float(logp.max(1).sum())) < 0.1  # dense fp16
        assert said["wer"] == round(
            edit_distance(target.text.split(), said["text"].split()) / len(target.text.split()), 4
        )
        assert said["ter"] == round(edit_distance(target.labels.tolist(), kept) / target.U, 4)


def test_the_search_ends_for_a_joiner_that_never_emits_blank():
    teacher = demo.teacher()
    utt = next(iter(demo.manifest()))
    driver = TeacherDriver(teacher, teacher.tokens(), ["rnnt"], "cpu")
    (output,) = driver.run([load(utt, teacher, teacher.tokens(), True)])
    bias = teacher.model.joiner.output_linear.bias.data
    before = bias[7].item()
    try:
        bias[7] += 1000
        _, heard = TeacherTranscriber(driver).transcribe(output)
    finally:
        bias[7] = before
    assert set(heard["rnnt"].tokens) == {7}
    assert len(heard["rnnt"].tokens) <= output.T


def test_without_references_labels_are_the_teachers_transcript(tmp_path, store):
    lines = [{k: v for k, v in x.items() if k != "text"} for x in demo.lines(4)]
    lines[0]["text"] = demo.lines(1)[0]["text"]
    run(tmp_path / "s", manifest=read_manifest(demo.write_manifest(tmp_path / "m.jsonl", lines)))
    opened = open_store(tmp_path / "s")
    for number, line in enumerate(lines):
        target, known = opened[line["id"]], store[line["id"]]
        if number == 0:
            assert "labels_from" not in target.meta
            continue
        said = target.meta["hyp"]["rnnt"]
        assert target.meta["labels_from"] == "rnnt"
        assert target.meta["labels_score"] == said["score"]
        assert abs(said["score"] - known.meta["hyp"]["rnnt"]["score"]) < 0.01  # other batches
        assert opened.tokens.text(target.labels.tolist()) == said["text"] == known.meta["hyp"]["rnnt"]["text"]
        assert "wer" not in said
        assert target.log_probs("rnnt").shape[1] == target.U + 1
    assert opened.select("labels_from == 'rnnt'") == [i for i in opened if i != lines[0]["id"]]


def test_records_without_transcripts_if_none_are_asked_for(tmp_path):
    done = run(tmp_path / "s", limit=6, transcripts="none")
    opened = open_store(tmp_path / "s")
    assert all("hyp" not in opened[i].meta for i in opened)
    assert any("greedy ctc" in f for f in done.findings)  # the gate still looks
    with pytest.raises(UsageError, match="no transcript of ctc"):
        list(transcript_lines(opened))
    lines = [{k: v for k, v in x.items() if k != "text"} for x in demo.lines(3)]
    run(
        tmp_path / "t", manifest=read_manifest(demo.write_manifest(tmp_path / "m", lines)), transcripts="none"
    )
    assert {open_store(tmp_path / "t")[x["id"]].meta["labels_from"] for x in lines} == {"rnnt"}


def test_transcripts_do_not_depend_on_the_number_of_jobs(tmp_path):
    lines = [{k: v for k, v in x.items() if k != "text"} for x in demo.lines(12)]
    manifest = read_manifest(demo.write_manifest(tmp_path / "m.jsonl", lines))
    for count in (1, 2):
        for index in range(count):
            run(tmp_path / str(count), manifest=manifest, part=JobPart(index, count))
    assert same_tree(tmp_path / "1", tmp_path / "2")


def test_select(store):
    every = list(store)
    rate = {i: store[i].meta["hyp"]["ctc"]["wer"] for i in every}
    assert store.select("") == every
    assert store.select("wer <= 0") == [i for i in every if rate[i] == 0]
    assert 0 < len(store.select("wer > 0")) < len(every)
    short = store.select("seconds < 2 and (rnnt.wer == 0 or not ctc.ter < 0.5)")
    assert short == [
        i
        for i in every
        if store[i].meta["seconds"] < 2
        and (store[i].meta["hyp"]["rnnt"]["wer"] == 0 or not store[i].meta["hyp"]["ctc"]["ter"] < 0.5)
    ]
    assert store.select("'light' in text and id in ('demo-00', 'demo-01')") == ["demo-00"]
    assert store.select("T / (U + 1) > 1e9") == []
    assert store.select("labels_from != None") == []
    assert store.select("labels_from < 3") == []  # what a row does not have compares false


def test_hours_fill_a_budget_in_order(store):
    chosen = store.select("hours * 3600 <= 10")
    total = sum(store[i].meta["seconds"] for i in chosen)
    assert 5 < total <= 10
    left = [i for i in store if i not in chosen]
    assert all(total + store[i].meta["seconds"] > 10 for i in left if list(store).index(i) > len(chosen))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("weer < 1", "Did you mean 'wer'"),
        ("ctv.wer < 1", "Did you mean 'ctc'"),
        ("ctc.were < 1", "Did you mean 'wer'"),
        ("wer <", "invalid syntax"),
        ("__import__('os').system('true')", "not allowed here"),
        ("id.__class__ == 1", "no stream 'id'"),
        ("(lambda: 1)()", "not allowed here"),
        ("[x for x in text]", "not allowed here"),
        ("text[0] == 'a'", "not allowed here"),
        ("9 ** 9 ** 9 > T", "not allowed here"),
        ("T << 99999999 > 1", "not allowed here"),
        ("text * 1000000000 == id", "can only be compared"),
        ("f'{id}' == id", "not allowed here"),
        ("wer if T else U", "not allowed here"),
        ("text < 3", "not supported"),
        ("T / 0 > 1", "division"),
        ("not " * 900 + "T", "is not a condition"),
        ("(" * 500 + "T" + ")" * 500, "is not a condition"),
        ("T == " + "1" * 5000, "longer than"),
        ("T == 1j", "not allowed here"),
        ("a := 3", "is not a condition"),
    ],
)
def test_text_that_is_no_condition_is_refused_and_never_run(store, text, what):
    with pytest.raises(UsageError, match="is not a condition") as e:
        store.select(text)
    assert what in str(e.value)


@given(st.text(max_size=60))
def test_any_text_is_a_condition_or_refused(text):
    with suppress(UsageError):
        Where(text, ["ctc"])({"id": "a", "T": 1, "seconds": 1.0})


def test_the_command_writes_a_manifest_that_can_be_dumped(store, tmp_path):
    out = tmp_path / "hard.jsonl"
    place = str(store.place)
    done = logitstore(
        "transcripts",
        place,
        "--where",
        "wer <= 0.1",
        "--stream",
        "rnnt",
        "--manifest",
        demo.MANIFEST,
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    written = list(read_manifest(out))
    assert {u.id for u in written} == set(store.select("wer <= 0.1"))
    assert f"{len(written)} transcripts" in done.stdout
    for utt in written:
        assert utt.text == store[utt.id].meta["hyp"]["rnnt"]["text"]
        assert utt.audio.is_file()
    bare = logitstore("transcripts", place, "--where", "wer > 0")
    found = [json.loads(x) for x in bare.stdout.splitlines()]
    assert [x["id"] for x in found] == store.select("wer > 0")
    assert all(x["score"] < 0 and x["duration"] > 0 for x in found)
    assert logitstore("transcripts", place, "--where", "wer >").returncode == 2
    assert "It has: ctc, rnnt" in logitstore("transcripts", place, "--stream", "x").stderr


def test_a_loop_that_gives_no_transcripts_stores_none(tmp_path):
    table = TokenTable(("<blk>", "a"), 0)
    with StoreWriter.open(tmp_path / "s", tokens=table, streams={"ctc": "dense"}) as w:
        w.add("u", ctc=torch.randn(3, 2), text="a", seconds=1.0)
    opened = open_store(tmp_path / "s")
    assert opened.select("text == 'a' and hyp == None") == ["u"]
    assert opened.select("wer < 1") == []


def brute(reference, hypothesis):
    row = list(range(len(hypothesis) + 1))
    for i, r in enumerate(reference, 1):
        corner, row[0] = row[0], i
        for j, h in enumerate(hypothesis, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (r != h))
    return row[-1]


@given(st.lists(st.integers(0, 4), max_size=80), st.lists(st.integers(0, 4), max_size=80))
def test_edit_distance_equals_the_table(a, b):
    assert edit_distance(a, b) == brute(a, b)


def test_words():
    assert words("meet  peter\nat 東京タワー now") == ["meet", "peter", "at", *"東京タワー", "now"]
    assert plain("Don’t, STOP!") == "dont stop"
