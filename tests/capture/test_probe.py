"""Probe: it finds the logits in a recipe it never saw, and the command it prints makes the right store."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from logitstore import open_store
from logitstore.capture.batch_ids import FoundIds, find_by_index, repeated_in_dataset, stems_are_unique
from logitstore.capture.inject.lengths import FoundLengths
from logitstore.capture.probe.finding import FoundValues, ProbedHead, ProbeReport
from logitstore.capture.probe.observer import OutputObserver
from logitstore.capture.probe.rank import rank
from logitstore.capture.probe.recorder import CallContext, SeenIds, _blanks, _which_call
from logitstore.capture.probe.run import _blank, _several_calls, finding_of
from logitstore.capture.probe.teacher import probe_teacher
from tests.support import demo, recipe


@pytest.fixture(scope="module")
def home():
    """Where commands find logitstore while they run in a folder of their own."""
    return {"PYTHONPATH": str(demo.ROOT)}


@pytest.fixture(scope="module")
def probed(tmp_path_factory, home):
    folder = tmp_path_factory.mktemp("probed")
    return folder, recipe.call(
        *recipe.PROBE, "--", *recipe.DECODE, cwd=folder, env={**home, "COLUMNS": "250"}
    )


def test_probe_reports_head_lengths_ids_and_blank_of_a_recipe(probed):
    _, ran = probed
    assert ran.returncode == 0
    report = ran.stderr.decode("utf-8").partition("---- logitstore probe: 2 batches watched ----\n")[2]
    first = report.splitlines()[1].split()
    assert first[:5] == ["ctc", "ctc_output.1", "Linear", "BTV", "[5,"]
    assert first[-6:] == ["yes", "logits", first[-4], "1", "log_softmax", "D=128"]
    assert float(first[-4]) > 1  # nats: no log-probabilities
    assert "ctc_output.2  LogSoftmax" in report
    assert "log-probs" in report
    assert f"tokens   {demo.TOKENS}: 150, as many as classes" in report
    assert "blank    0: the token table has '<blk>' at 0; the model names it: decoder.blank_id = 0" in report
    assert (
        "audio    16000 Hz by the headers of 5 audio files; a frame every 40 ms by the lengths of 5" in report
    )
    assert "--frame-shift 640 --sample-rate 16000 --out store" in report
    assert "lengths  encoder_out_lens = [76, 37, 42, 34, 62]" in report
    assert 'lengths  modules["encoder"][1] = [76, 37, 42, 34, 62]' in report
    assert 'ids      [x.id for x in batch["supervisions"]["cut"]]: demo-00, demo-01, demo-02' in report
    assert 'texts    batch["supervisions"]["text"]' in report
    assert "factors  ctc_output.1: 128 inputs for 150 classes" in report
    assert "note     joiner does not run here: --joiner joiner stores the lattices" in report


def test_probe_leaves_the_output_alone_and_writes_nothing(probed):
    folder, ran = probed
    assert [line.split("\t")[0] for line in ran.stdout.decode().splitlines()] == [
        f"demo-{i:02d}" for i in range(10)
    ]
    assert b"batch 1, cuts processed until now is 10\n---- logitstore probe" in ran.stderr
    assert list(folder.iterdir()) == []


def test_the_printed_command_makes_the_store_of_a_hand_made_dump(probed, home):
    folder, ran = probed
    capture = recipe.call(*recipe.printed(ran.stderr), cwd=folder, env=home)
    assert capture.returncode == 0, capture.stderr
    assert b"%WER 2.82%" in capture.stdout
    opened, own = open_store(folder / "store"), recipe.own()
    assert set(opened) == set(own)
    for utt_id, logits in own.items():
        logp = (logits - logits.logsumexp(-1, keepdim=True)).half().numpy()
        assert (opened.record(utt_id).arrays["ctc.logp"] == logp).all()


LOOP = """
import sys, torch
from pathlib import Path
sys.path[:0] = [{root!r}, {folder!r}]
from decode import load_model
from recipes.demo.decode import read_audio
from recipes.demo.features import log_mel

model = load_model(Path({root!r}) / "recipes" / "demo")
torch.set_num_threads(1)
for wav in sys.argv[1:]:
    features = torch.from_numpy(log_mel(read_audio(Path(wav))))[None]
    with torch.inference_mode():
        hidden, lens = model.forward_encoder(features, torch.tensor([features.shape[1]]))
        print(wav, torch.log_softmax(model.ctc_output[1](hidden), -1).argmax(-1)[0, :3].tolist())
"""


def test_a_loop_without_any_dataloader(tmp_path, home):
    script = tmp_path / "x.py"
    script.write_text(LOOP.format(root=str(demo.ROOT), folder=str(recipe.FOLDER)))
    wavs = [line["audio"] for line in demo.lines(5)]
    ran = recipe.call(*recipe.PROBE, "--json", "--", sys.executable, script, *wavs, cwd=tmp_path, env=home)
    found = json.loads(ran.stdout.decode().splitlines()[-1])
    assert found["ctc"]["path"] == "ctc_output.1"
    assert found["ctc"]["after"] == ["log_softmax", "argmax"]
    assert found["blank"]["index"] == 0
    words = shlex.split(found["command"])
    assert words[words.index("--ids") + 1] == "stem(wav)"
    assert words[words.index("--lengths") + 1] == "lens"
    capture = recipe.call(sys.executable, "-m", *words, cwd=tmp_path, env=home)
    assert capture.returncode == 0, capture.stderr
    opened = open_store(tmp_path / "store")
    assert sorted(opened) == [f"demo-{i:02d}" for i in range(5)]
    alone = recipe.own(size=1)
    for utt_id in opened:
        logits = alone[utt_id]
        logp = (logits - logits.logsumexp(-1, keepdim=True)).half().numpy()
        assert (opened.record(utt_id).arrays["ctc.logp"] == logp).all()


SCORE = """
import sys, torch
from pathlib import Path
sys.path[:0] = [{root!r}, {folder!r}]
from asr_datamodule import test_dataloader
from decode import load_model
from recipes.demo.pieces import Pieces

model, root = load_model(Path({root!r}) / "recipes" / "demo"), Path({root!r}) / "manifests"
pieces = Pieces.read(root / "demo.tokens.txt")
for batch in test_dataloader(root / "demo.jsonl", 4, 0):
    texts = [torch.tensor(pieces.encode(text)) for text in batch["supervisions"]["text"]]
    y = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    with torch.no_grad():
        ctc, joint, lens = model(batch["inputs"], batch["supervisions"]["num_frames"], y)
        print(ctc.log_softmax(-1).mean(), joint.log_softmax(-1).mean())
"""


def test_a_program_that_computes_whole_lattices(tmp_path, home):
    script = tmp_path / "x.py"
    script.write_text(SCORE.format(root=str(demo.ROOT), folder=str(recipe.FOLDER)))
    tokens = ["--tokens", demo.TOKENS]
    ran = recipe.call(*recipe.PROBE, *tokens, "--json", "--", sys.executable, script, cwd=tmp_path, env=home)
    found = json.loads(ran.stdout.decode().splitlines()[-1])
    assert (found["rnnt"]["path"], found["rnnt"]["layout"]) == ("joiner.output_linear", "BTUV")
    assert found["rnnt"]["labels"] == ["y"]
    words = shlex.split(found["command"])
    assert "--joiner joiner.output_linear --labels y" in found["command"]
    capture = recipe.call(sys.executable, "-m", *words, cwd=tmp_path, env=home)
    assert capture.returncode == 0, capture.stderr
    opened = open_store(tmp_path / "store")
    assert len(opened) == 20
    assert {s.name: s.encoding for s in opened.spec.streams} == {"ctc": "dense", "rnnt": "topk:16"}
    labels = demo.teacher().labels
    assert all(opened[x["id"]].labels.tolist() == labels(x["text"]) for x in demo.lines())


def test_a_decoding_loop_of_a_transducer_is_recognised(tmp_path):
    ran = recipe.call(*recipe.PROBE, "--json", "--", *recipe.DECODE, "--method", "greedy-search")
    found = json.loads(ran.stdout.decode().splitlines()[-1])
    assert found["ctc"] is None
    assert found["rnnt"]["path"] == "joiner.output_linear"
    assert found["rnnt"]["joiner"] == "encoder_proj 128 + decoder_proj 96 -> 112"
    assert found["rnnt"]["calls"] > 100
    assert found["transducer"]["convention"] == "icefall"
    assert "a decoding loop: this program never computes the lattice" in found["notes"][0]
    assert "logitstore capture --joiner joiner --encoder encoder --ids" in found["command"]


def test_a_program_that_ends_before_it_is_ended():
    ran = recipe.call(*recipe.PROBE, "--json", "--", *recipe.DECODE, "--max-cuts", 20)
    found = json.loads(ran.stdout.decode().splitlines()[-1])
    assert (found["ctc"]["path"], found["ctc"]["lengths_expression"]) == ("ctc_output.1", "encoder_out_lens")
    assert found["batches"] == 1


def test_a_program_without_a_model():
    ran = recipe.call(*recipe.PROBE, "--", sys.executable, "-c", "print(1)")
    assert ran.returncode == 1
    assert ran.stdout == b"1\n"
    assert b"TapNeverFired" in ran.stderr


@pytest.mark.parametrize("args", [[], ["--teacher", "a.py:b", "--", "true"], ["--teacher", "a.py:b"]])
def test_wrong_usage(args):
    assert recipe.call(*recipe.PROBE, *args).returncode == 2


def test_a_teacher():
    found = probe_teacher(demo.FACTORY, str(demo.MANIFEST), batches=2, out="store")
    assert (found.ctc.path, found.ctc.layout) == ("ctc_output.1", "BTV")
    assert (found.rnnt.path, found.rnnt.layout) == ("joiner.output_linear", "TUV")
    assert found.rnnt.joiner == "encoder_proj 128 + decoder_proj 96 -> 112"
    assert found.ctc.lengths[0].values == (76, 37, 42, 34)
    assert found.blank.index == 0
    assert found.notes == ()
    assert found.command == (
        f"logitstore dump --teacher {demo.FACTORY} --manifest {demo.MANIFEST} --stream ctc=dense "
        "--stream rnnt=topk:16 --out store"
    )


def test_a_teacher_that_names_another_layer(monkeypatch):
    from logitstore.capture.probe import teacher as module

    def describe(teacher):
        spec = teacher.describe()
        heads = (
            replace(spec.heads[0], module="ctc_output.2", blank=3),
            replace(spec.heads[1], module="joiner"),
        )
        return replace(spec, heads=heads)

    monkeypatch.setattr(module, "load_teacher", lambda text: demo.Spoiled(describe=describe))
    found = probe_teacher(demo.FACTORY, str(demo.MANIFEST), batches=1, out="store")
    assert found.notes == (
        "the teacher's ctc head is ctc_output.2, not ctc_output.1",
        "the teacher's ctc head says blank 3",
        "the teacher's rnnt head joiner gave nothing like logits",
    )


class Transposing(nn.Conv1d):
    """As transformers' Parakeet head: a Conv1d that gives [B, T, V]."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Head(nn.Module):
    """A head behind real frames, its output going the way that each framework takes."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.head = {"conv": nn.Conv1d, "transposing": Transposing}.get(kind, nn.Linear)(
            64, 29, *([1] if kind in ("conv", "transposing") else [])
        )

    def forward(self, x):
        if self.kind == "conv":
            return functional.log_softmax(self.head(x.transpose(1, 2)).transpose(1, 2), dim=-1)
        if self.kind == "time first":
            return self.head(x.transpose(0, 1)).permute(1, 0, 2).log_softmax(2)
        if self.kind == "packed":
            return self.head(x.reshape(-1, 64)).softmax(-1)
        if self.kind == "lattice":
            return self.head(x[:, :, None] + x[:, None, :7]).float().logsumexp(-1)
        scale = 2 if self.kind == "divided" else 1
        x = self.head(x).float()
        return torch.softmax(x / scale if scale > 1 else x, -1).topk(3)


LAYOUTS = {"conv": "BVT", "time first": "TBV", "packed": "NV", "lattice": "BTUV", "transposing": "BTV"}


@pytest.mark.parametrize("kind", [*LAYOUTS, "divided"])
def test_layouts_and_functions_that_follow(kind):
    torch.manual_seed(0)
    batch = torch.randn(3, 20, 64)
    model, observer = Head(kind), OutputObserver()
    with observer, torch.no_grad():
        for _ in range(2):
            observer.batch += 1
            model(batch)
    ranked = rank(list(observer.emitted.values()), [model], 3, None)
    if kind == "divided":  # a temperature in between: the softmax is of something else
        assert ranked == []
        return
    assert (ranked[0].path, ranked[0].layout, ranked[0].classes) == ("head", LAYOUTS[kind], 29)
    assert ranked[0].after[0] in ("log_softmax", "softmax", "logsumexp")
    assert not ranked[0].normalised
    assert ranked[0].calls == 1
    assert not nn.modules.module._global_forward_hooks


def a_head(**fields):
    """A probed head of a CTC model, with some fields replaced."""
    head = ProbedHead(
        path="head",
        model="Model",
        kind="Linear",
        layout="BTV",
        shape=(1, 9, 5),
        classes=5,
        normalised=False,
        logz=3.0,
        calls=1,
        after=(),
        best=(0, 0.9),
        inputs=4,
        joiner="",
        score=1.0,
    )
    return replace(head, **fields)


def seen(shape, *lengths):
    found = [FoundLengths("x", values) for values in lengths]
    return CallContext(shape, found, found[0] if found else None, [])


CONDITIONED = (("softmax",), ("softmax",), ("log_softmax",), ("argmax",))
CALLS = {
    "once": ([seen((1, 9, 5))], (), 1, (None, "")),
    "inner layers too": ([seen((1, 9, 5))] * 4, CONDITIONED, 1, (2, "")),
    "which of them is not clear": ([seen((1, 9, 5))] * 2, (("log_softmax",),) * 2, 1, (None, "")),
    "chunks": ([seen((2, 4, 5)), seen((2, 4, 5)), seen((2, 1, 5), (9, 7))], (), 2, (None, "t")),
    "parts of a batch": ([seen((2, 9, 5), (9, 8)), seen((1, 7, 5), (7,))], (), 3, (None, "b")),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_which_of_several_calls(name):
    calls, steps, count, wanted = CALLS[name]
    candidate = a_head(shape=calls[0].shape, calls=len(calls), steps=steps)
    assert _which_call(candidate, calls, count) == wanted
    notes = list(_several_calls(replace(candidate, call=wanted[0], accumulate=wanted[1])))
    assert len(notes) == (len(calls) > 1)
    assert name != "which of them is not clear" or "--call N" in notes[0]
    assert name != "chunks" or "on some frames each" in notes[0]


def test_attributes_that_name_the_blank():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.ctc_loss, self.decoder = nn.CTCLoss(blank=28), nn.Linear(2, 3)
            self.decoder.blank_id = 28

    told = _blanks([Model()])
    assert told == {"ctc_loss.blank": 28, "decoder.blank_id": 28}
    head = a_head(classes=29, best=(3, 0.9))
    assert _blank(head, None, told).index == 28
    assert _blank(head, None, {**told, "other.blank": 0}).index is None
    assert _blank(replace(head, best=(0, 0.9)), None, {}).index == 0
    assert _blank(replace(head, classes=20), None, told).index is None


def test_what_the_printed_command_lacks_is_said():
    ids, lengths = (FoundValues("utt", ("a", "b")),), "lens"
    whole = a_head(shape=(2, 9, 5), lengths_expression=lengths)

    def missing(head, ids=ids):
        report = ProbeReport(heads=(head,), ids=ids, blanks={}, batches=2)
        return [reason.split(":")[0] for reason in finding_of(report, {}, ["decode"], "s").missing]

    assert missing(whole) == []
    assert missing(whole, ids=()) == ["the utterance ids"]
    assert missing(replace(whole, lengths_expression="")) == ["the valid lengths"]
    assert missing(replace(whole, lengths_expression="", shape=(1, 9, 5))) == []
    assert missing(replace(whole, normalised=True)) == ["logits"]
    assert missing(replace(whole, calls=3))[0].startswith("the call that gives the answer")


def test_a_report_survives_its_json():
    head = a_head(lengths=(FoundValues("lens", (3, 2)),), steps=(("softmax",), ()), labels=("ys",))
    report = ProbeReport(heads=(head,), ids=(FoundValues("utt", ("a",)),), blanks={"x": 1}, batches=2)
    assert ProbeReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_ids_repeated_in_a_pass_are_no_utterance_ids():
    ids = SeenIds()
    for batch, (speakers, utterances) in enumerate([("ab", "12"), ("bc", "34")], 1):
        ids.add([FoundIds("spk", tuple(speakers)), FoundIds("utt", tuple(utterances))], 1, batch)
    assert [f.expression for f in ids.unique] == ["utt"]
    assert ids.repeated == {"spk": "gave 'b' in batch 1 and again in batch 2"}
    ids.add([FoundIds("utt", ("1", "2"))], 2, 3)  # a second pass over the data repeats all ids
    assert [f.expression for f in ids.unique] == ["utt"]


def test_stems_of_files_in_a_folder_per_speaker_are_not_unique(tmp_path):
    for name in ("spk1/0_1.wav", "spk1/0_2.wav", "spk2/0_1.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert stems_are_unique([tmp_path / "spk1" / "0_2.wav"])
    assert not stems_are_unique([tmp_path / "spk1" / "0_1.wav"])
    assert not stems_are_unique(["x/0_1.wav", "y/0_1.wav"])

    class Dataset:
        def __init__(self):
            self.paths = [str(p) for p in sorted(tmp_path.rglob("*.wav"))]
            self.items = [{"id": Path(p).stem} for p in self.paths]

        def __len__(self):
            return len(self.paths)

    dataset = Dataset()
    found = {f.expression: f.values for f in find_by_index([2, 1], dataset, guess=True)}
    assert found["[str(dataset.paths[i]) for i in index]"] == (dataset.paths[2], dataset.paths[1])
    assert '[dataset.items[i]["id"] for i in index]' not in found
    assert repeated_in_dataset(["0_1", "0_2"], [2, 1], dataset) == "2 items of the dataset have '0_1'"
    assert not repeated_in_dataset(list(map(str, dataset.paths)), [0, 1, 2], dataset)
