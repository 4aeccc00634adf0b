"""A teacher that is a black box: a store of nothing but what it wrote down, and the way out of it."""

import json

import pytest

from logitstore import StoreWriter, TokenTable, open_store
from logitstore.cli import main
from logitstore.corpus.manifest import read_manifest
from logitstore.dump.against import against_teacher
from logitstore.dump.blocks import JobPart
from logitstore.dump.doctor.facts import planned_work
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.errors import (
    FormatError,
    IdentityError,
    LengthError,
    MissingUtterance,
    TeacherError,
    UsageError,
)
from logitstore.schema.spec import TeacherSpec
from logitstore.store.diff import diff_stores
from logitstore.store.inspect import inspect_store
from logitstore.store.record_encoder import RecordEncoder
from logitstore.store.rewrite import compact_store, convert_store
from logitstore.store.transcripts import transcript_lines
from logitstore.store.verify import verify_store
from logitstore.teachers import load_teacher
from tests.support import demo
from tests.support.dumping import run as run_dump
from tests.support.dumping import same_tree

TEXT = {"text": ""}
STREAMS = {"text": "", "hidden": "vectors/128", "hidden_2": "vectors:int8", "seq2seq": "dense"}
SAID = {x["id"]: x["text"].replace("the", "a") for x in demo.lines()}  # a recogniser with one habit


def kaldi(path):
    path.write_text("".join(f"{i} {t}\n" for i, t in SAID.items()), "utf-8")


def jsonl(path):
    lines = [
        {"id": i, "pred_text": t, "text": "the reference", "score": -len(t) / 2} for i, t in SAID.items()
    ]
    path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), "utf-8")


def nemo(path):
    lines = [
        {"audio_filepath": f"x/{i}.wav", "text": "the reference", "pred_text": t} for i, t in SAID.items()
    ]
    path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), "utf-8")


FILES = {"kaldi": kaldi, "jsonl": jsonl, "nemo": nemo}


class Service:
    """Somebody's recogniser behind an interface: it hears the audio, and answers."""

    def __init__(self, **said):
        self.heard, self._said = [], said

    def describe(self):
        return TeacherSpec("a service", 16000, 160)

    def transcribe(self, audio):
        self.heard.append(len(audio))
        lengths = {round(x["duration"] * 16000): x["id"] for x in demo.lines()}
        utt_id = min(lengths, key=lambda n: abs(n - len(audio)))
        text = SAID[lengths[utt_id]]
        return self._said.get(lengths[utt_id], (text, -0.5 * len(text)))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    kaldi(path)
    return f"text:{path}"


def run(out, teacher, limit=0, streams=TEXT, **options):
    teacher = load_teacher(teacher) if isinstance(teacher, str) else teacher
    return run_dump(out, limit, streams, teacher=teacher, **options)


@pytest.mark.parametrize("form", FILES)
def test_hypotheses_of_every_form(form, tmp_path):
    FILES[form](tmp_path / "hyp")
    done = run(tmp_path / "s", f"text:{tmp_path / 'hyp'},name=somebody")
    assert any("words wrong" in f for f in done.findings)
    opened = open_store(tmp_path / "s")
    assert opened.spec.teacher.name == "somebody"
    assert not verify_store(tmp_path / "s").findings
    for line in demo.lines():
        target = opened[line["id"]]
        said = target.meta["hyp"]["text"]
        wrong = sum(a != b for a, b in zip(line["text"].split(), SAID[line["id"]].split(), strict=True))
        assert (target.text, said["text"]) == (line["text"], SAID[line["id"]])
        assert said["wer"] == round(wrong / len(line["text"].split()), 4)
        assert said["score"] == (-len(said["text"]) / 2 if form == "jsonl" else None)
        assert (dict(target.streams), target.U) == ({}, 0)
        assert round(line["duration"] * 100) == target.T
        with pytest.raises(MissingUtterance, match="no stream 'text'"):
            target["text"]
    assert 0 < len(opened.select("wer == 0")) < 20
    assert opened.select("text.wer > 0 and seconds < 100") == opened.select("wer > 0")


def test_recordings_of_a_file_of_hypotheses_need_not_be_there(text, tmp_path):
    lines = [{**x, "audio": f"nowhere/{x['id']}.flac"} for x in demo.lines()]
    manifest = read_manifest(demo.write_manifest(tmp_path / "m.jsonl", lines))
    assert run(tmp_path / "s", text, manifest=manifest).done == 20
    assert "audio" not in open_store(tmp_path / "s")["demo-00"].meta


def test_stories(text, tmp_path, capsys):
    run(tmp_path / "s", text)
    for storage in ("webdataset", "zarr:blosc"):
        convert_store(tmp_path / "s", tmp_path / storage, storage)
        assert not verify_store(tmp_path / storage).findings
    convert_store(tmp_path / "webdataset", tmp_path / "back", "zarr")
    assert same_tree(tmp_path / "s", tmp_path / "back")
    assert compact_store(tmp_path / "webdataset", "100").merged == 4
    assert diff_stores(open_store(tmp_path / "s"), open_store(tmp_path / "webdataset")).same
    for part in (1, 0):
        run(tmp_path / "jobs", text, part=JobPart(part, 2))
    assert same_tree(tmp_path / "s", tmp_path / "jobs")
    assert run(tmp_path / "s", text).done == 0
    for args in (["inspect", tmp_path / "s"], ["inspect", tmp_path / "s", "demo-00"]):
        with pytest.raises(SystemExit) as e:
            main(list(map(str, args)))
        assert e.value.code == 0
    shown = capsys.readouterr().out
    assert f"decoded    {SAID['demo-00']}" in shown
    assert "errors in" in shown
    rate = inspect_store(open_store(tmp_path / "s")).streams["text"]
    words = [(line["text"].split(), SAID[line["id"]].split()) for line in demo.lines()]
    wrong = sum(a != b for x in words for a, b in zip(*x, strict=True))
    assert rate.error_rate == wrong / sum(len(x) for x, _ in words)
    assert rate.error_unit == "word"
    verifying = ["verify", tmp_path / "s", "--against-teacher", text, "3", "--manifest", demo.MANIFEST]
    with pytest.raises(SystemExit) as e:
        main(list(map(str, verifying)))
    assert e.value.code == 0
    SAID["demo-00"], before = "something else", SAID["demo-00"]
    try:
        kaldi(tmp_path / "other")
    finally:
        SAID["demo-00"] = before
    other = load_teacher(f"text:{tmp_path / 'other'},name=text")
    found = against_teacher(open_store(tmp_path / "s"), other, demo.manifest(), 20)
    assert {c.id for c in found if c.kl > 0} == {"demo-00"}
    with pytest.raises(IdentityError, match="hypotheses"):
        run(tmp_path / "s", other)
    run(tmp_path / "t", other)
    assert diff_stores(open_store(tmp_path / "s"), open_store(tmp_path / "t")).differing == ["demo-00"]


def test_transcripts_are_the_way_out(text, tmp_path):
    run(tmp_path / "s", text)
    opened = open_store(tmp_path / "s")
    assert {x["id"]: x["text"] for x in map(json.loads, transcript_lines(opened))} == SAID
    lines = list(transcript_lines(opened, "wer == 0", manifest=demo.manifest(), beside=tmp_path))
    (tmp_path / "m.jsonl").write_bytes(b"".join(lines))
    chosen = read_manifest(tmp_path / "m.jsonl")
    assert [u.text for u in chosen] == [SAID[u.id] for u in chosen]
    assert chosen.utterances == len(opened.select("wer == 0"))
    dump_logits(demo.teacher(), chosen, tmp_path / "student", DumpOptions())


def test_a_service_that_hears(tmp_path):
    service = Service()
    run(tmp_path / "s", service)
    opened = open_store(tmp_path / "s")
    assert sorted(service.heard) == sorted(round(opened[i].meta["seconds"] * 16000) for i in opened)
    for i in opened:
        said = opened[i].meta["hyp"]["text"]
        assert (said["text"], said["score"]) == (SAID[i], -0.5 * len(SAID[i]))
        assert opened[i].meta["audio"].startswith("sha256:")
    assert opened.spec.teacher.weights == ""
    assert opened.select("score > -10") == [i for i in opened if len(SAID[i]) < 20]


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"demo-03": None}, "gives None, not a text"),
        ({"demo-03": ("a", "b")}, "not a text and its score"),
        ({"demo-03": 7}, "gives 7"),
    ],
)
def test_a_service_that_answers_wrongly(said, match, tmp_path):
    with pytest.raises(TeacherError, match=match) as e:
        run(tmp_path / "s", Service(**said))
    assert e.value.where == "demo-03"
    done = run(tmp_path / "s", Service(**said), on_error="skip")
    assert (done.done + done.present, done.skipped) == (19, 1)


def test_a_service_that_fails(tmp_path):
    class Down(Service):
        def transcribe(self, audio):
            raise ConnectionError("refused")

    with pytest.raises(TeacherError, match=r"transcribe\(\) failed with ConnectionError: refused"):
        run(tmp_path / "s", Down())


@pytest.mark.parametrize(
    ("text", "match"),
    [("", "all blank"), ("hello", "text branch is constant"), ("{} x y z q", "word error rate")],
)
def test_gates_judge_it_by_its_words(text, match, tmp_path):
    path = tmp_path / "text"
    path.write_text("".join(f"{i} {text.format(i)}\n" for i in SAID), "utf-8")
    with pytest.raises(TeacherError, match=match):
        run(tmp_path / "s", f"text:{path}")
    assert run(tmp_path / "s", f"text:{path}", skip_checks="it is what it is").done == 20


def test_hypotheses_that_are_missing_or_wrong(tmp_path):
    path = tmp_path / "text"
    kaldi(path)
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join(lines[:-1]), "utf-8")
    with pytest.raises(TeacherError, match="no hypothesis of this id"):
        run(tmp_path / "s", f"text:{path}")
    assert run(tmp_path / "s", f"text:{path}", on_error="skip").skipped == 1
    for content, match in (
        ("a b\na c\n", "'a' stands twice"),
        ("{", "not JSON"),
        ('{"id": "a"}', "no text"),
        ('{"text": "a"}', "no id"),
        ('{"audio_filepath": "x.wav", "text": "a"}', "no pred_text"),
        ('{"id": "a", "text": "b", "score": "c"}', "not a number"),
    ):
        path.write_text(content, "utf-8")
        with pytest.raises(TeacherError, match=match):
            load_teacher(f"text:{path}")
    path.write_bytes(b"a \xff\n")
    with pytest.raises(TeacherError, match="not UTF-8"):
        load_teacher(f"text:{path}")
    with pytest.raises(UsageError, match="does not exist"):
        load_teacher(f"text:{tmp_path}/no")


def test_beside_logits_it_is_the_greedy_transcript(tmp_path):
    both = {"ctc": "dense", "text": ""}
    run_dump(tmp_path / "s", 6, both, transcripts="none")
    run_dump(tmp_path / "t", 6, both)
    run_dump(tmp_path / "ctc", 6, {"ctc": "dense"})
    for one in map(open_store(tmp_path / "s").record, known := open_store(tmp_path / "ctc")):
        greedy = known[one.id].meta["hyp"]["ctc"]
        assert {k: one.meta["hyp"]["text"][k] for k in ("text", "score", "wer")} == {
            k: greedy[k] for k in ("text", "score", "wer")
        }
        assert set(one.meta["hyp"]) == {"text"}
        assert open_store(tmp_path / "t")[one.id].meta["hyp"] == {
            "ctc": greedy,
            "text": one.meta["hyp"]["text"],
        }
    batch = open_store(tmp_path / "s").batch(["demo-00", "demo-01"])
    assert set(batch.streams) == {"ctc"}
    assert {
        c.stream for c in against_teacher(open_store(tmp_path / "s"), demo.teacher(), demo.manifest(6), 2)
    } == {
        "ctc",
        "text",
    }


def test_beside_logits_of_a_teacher_that_transcribes_it_is_that(tmp_path):
    teacher = demo.Spoiled(transcribe=lambda t, audio: Service().transcribe(audio))
    run(tmp_path / "s", teacher, 4, {"ctc": "dense", "text": ""})
    opened = open_store(tmp_path / "s")
    assert [opened[i].meta["hyp"]["text"]["text"] for i in opened] == [SAID[i] for i in opened]
    assert opened["demo-00"].meta["hyp"]["ctc"]["text"] != SAID["demo-00"]


def test_in_ones_own_loop(tmp_path):
    table = TokenTable(("<blk>",), 0)
    with StoreWriter.open(tmp_path / "s", tokens=table, streams=TEXT) as w:
        w.add("a", text="one two", hyp="one too", seconds=2.0)
        w.add("b", hyp=("three", -1.5))
        with pytest.raises(LengthError, match="no transcript for the text stream"):
            w.add("c", text="four")
    opened = open_store(tmp_path / "s")
    assert opened["a"].meta["hyp"] == {"text": {"text": "one too", "score": None, "wer": 0.5}}
    assert (opened["a"].T, opened["b"].T) == (50, 1)
    assert opened["b"].meta["hyp"]["text"]["score"] == -1.5
    assert opened.select("wer <= 0.5") == ["a"]


def test_what_cannot_be_asked_for(text, tmp_path):
    with pytest.raises(UsageError, match="no rows to encode"):
        run(tmp_path / "s", text, streams={"text": "dense"})
    with pytest.raises(TeacherError, match=r"no ctc head[\s\S]*none"):
        run(tmp_path / "s", text, streams={"ctc": "dense"})
    with pytest.raises(TeacherError, match="no transcript for the text stream"):
        run_dump(tmp_path / "s", 4, TEXT)
    run(tmp_path / "t", text, 4)
    opened = open_store(tmp_path / "t")
    row = opened.record("demo-00")
    row.meta["hyp"]["text"]["text"] = 5
    with pytest.raises(FormatError, match="SPEC S15"):
        opened.decode(row)
    with pytest.raises(LengthError, match="no transcript"):
        RecordEncoder(opened.spec).finish("x", {}, {"T": 1})


def test_what_a_dump_of_any_stream_weighs():
    table = demo.teacher().tokens()
    weighs = {n: planned_work(demo.manifest(), {n: e}, table, 0.04).bytes for n, e in STREAMS.items()}
    seconds, labels = 44.27, sum(-(-len(x["text"]) // 4) for x in demo.lines())
    assert weighs["text"] == 0
    assert weighs["hidden"] == pytest.approx(seconds / 0.04 * 2 * 128, rel=0.02)
    assert weighs["hidden_2"] == pytest.approx(seconds / 0.04 * (512 + 4), rel=0.02)
    assert weighs["seq2seq"] == pytest.approx(labels * (2 * 150 + 4), rel=0.6)


def test_by_the_command_line(text, tmp_path, capsys):
    args = [
        "dump",
        "--teacher",
        text,
        "--manifest",
        demo.MANIFEST,
        "--out",
        tmp_path / "s",
        "--stream",
        "text",
    ]
    with pytest.raises(SystemExit) as e:
        main(list(map(str, args)))
    assert e.value.code == 0
    assert "20 utterances" in capsys.readouterr().out
    with pytest.raises(SystemExit) as e:
        main(["transcripts", str(tmp_path / "s"), "--where", "wer == 0"])
    assert e.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) == len(open_store(tmp_path / "s").select("wer == 0"))
