"""Capture: an unmodified recipe runs, its own output untouched, and the store holds what its model said."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from logitstore import StoreWriter, TokenTable, open_store
from logitstore.capture.expression import Expression
from logitstore.errors import UsageError
from logitstore.store.verify import verify_store
from tests.support import captured as captured_program
from tests.support import demo, recipe

CTC = ["--ctc", "ctc_output.1", "--tokens", demo.TOKENS]


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """The same model and batches, dumped in a loop of one's own."""
    place = tmp_path_factory.mktemp("hand") / "store"
    texts = {line["id"]: line["text"] for line in demo.lines()}
    with StoreWriter.open(place, tokens=TokenTable.read(demo.TOKENS), streams={"ctc": "dense"}) as w:
        for utt_id, logits in recipe.own().items():
            w.add(utt_id, ctc=logits, text=texts[utt_id])
    return recipe.rows(place)


@pytest.fixture(scope="module")
def plain():
    """The recipe on its own."""
    return recipe.call(*recipe.DECODE)


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """The store of a capture, and the finished process."""
    place = tmp_path_factory.mktemp("captured") / "store"
    return place, recipe.capture(place, *CTC)


def test_the_store_equals_a_hand_made_dump_bit_for_bit(captured, by_hand):
    place, ran = captured
    assert ran.returncode == 0, ran.stderr
    assert recipe.rows(place) == by_hand
    assert not verify_store(place).findings
    assert not (place / "partial").exists()


def test_output_and_status_of_the_recipe_are_its_own(captured, plain):
    assert captured[1].stdout == plain.stdout
    assert b"%WER 2.82%" in plain.stdout
    assert b"logitstore: lengths: encoder_out_lens" in captured[1].stderr


def test_rates_that_were_not_given_are_stored_and_shown_as_assumed(captured, tmp_path):
    place, ran = captured
    said = b"assumed: frame_shift = 640, sample_rate = 16000. The store marks what nobody gave; give it with "
    assert said + b"--frame-shift, --sample-rate" in ran.stderr
    store = open_store(place)
    assert store.spec.teacher.assumed == ("frame_shift", "sample_rate")
    assert store.spec.teacher.clock is None
    first = next(iter(store))
    assert not store[first].meta["seconds"]
    shown = recipe.logitstore("inspect", place).stdout.decode("utf-8")
    assert "assumed    frame_shift, sample_rate: given by nobody, and not used for frame times" in shown


def test_rates_that_were_given_are_facts(session, model, utterances):
    run = session(frame_shift=320, sample_rate=8000, tokens="")
    captured_program.decode(
        captured_program.Program(model, "plain").eval(), captured_program.loader(utterances)
    )
    store = run.store()
    assert store.spec.teacher.assumed == ("blank",)
    first = store[next(iter(store))]
    assert first.meta["seconds"] == pytest.approx(first.T * 0.04)


def test_the_store_names_the_teacher_and_its_weights(captured):
    spec = open_store(captured[0]).spec
    assert spec.teacher.name == "AsrModel"
    assert spec.teacher.heads[0].module == "ctc_output.1"
    from logitstore.teachers.protocol import weights_sha256

    assert spec.teacher.weights == weights_sha256(demo.teacher().model)


def test_running_again_adds_nothing_and_another_model_is_refused(captured, tmp_path):
    place, _ = captured
    before = sorted(p.name for p in (place / "sealed").iterdir())
    again = recipe.capture(place, *CTC)
    assert again.returncode == 0
    assert b"0 utterances sealed (20 were there already)" in again.stderr
    assert sorted(p.name for p in (place / "sealed").iterdir()) == before
    other = recipe.capture(place, *CTC, "--stream", "ctc=topk:4")
    assert other.returncode == 1
    assert b"IdentityError" in other.stderr


def test_wrappers_workers_and_given_expressions(tmp_path, by_hand):
    shell = f'cd / && export PYTHONPATH={recipe.FOLDER}:$PYTHONPATH && exec env A=1 "$@"'
    module = [sys.executable, "-m", "decode", *recipe.DATA, "--num-workers", "2"]
    options = ["--ids", '[c.id for c in batch["supervisions"]["cut"]]', "--lengths", 'modules["encoder"][1]']
    ran = recipe.capture(tmp_path / "s", *CTC, *options, command=["bash", "-c", shell, "sh", *module])
    assert ran.returncode == 0, ran.stderr
    assert recipe.rows(tmp_path / "s") == by_hand


LAUNCH = """
import sys, runpy
import torch.multiprocessing as mp
sys.path.insert(0, {folder!r})

def work(rank, manifests, rest):
    import decode
    sys.argv = ["decode.py", *rest, "--manifest", manifests[rank]]
    decode.main()

if __name__ == "__main__":
    mp.start_processes(work, ({manifests!r}, {rest!r}), nprocs=2, start_method={method!r})
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_every_process_of_a_launcher_writes_its_own_shards(tmp_path, by_hand, method):
    lines = demo.lines()  # 12 are in both, as a distributed sampler gives them: they are stored once
    parts = [demo.write_manifest(tmp_path / f"{i}.jsonl", x) for i, x in enumerate([lines[:15], lines[5:]])]
    rest = list(map(str, recipe.DATA[:4]))
    script = tmp_path / "launch.py"
    script.write_text(
        LAUNCH.format(folder=str(recipe.FOLDER), manifests=list(map(str, parts)), rest=rest, method=method)
    )
    ran = recipe.capture(tmp_path / "s", *CTC, command=[sys.executable, script])
    assert ran.returncode == 0, ran.stderr
    assert {i: x[1] for i, x in recipe.rows(tmp_path / "s").items()} == {i: x[1] for i, x in by_hand.items()}
    assert len(list((tmp_path / "s" / "sealed").iterdir())) == 2
    assert not verify_store(tmp_path / "s").findings


def test_torchrun(tmp_path, by_hand):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "--master-port=0"]
    ran = recipe.capture(tmp_path / "s", *CTC, command=[*command, recipe.FOLDER / "decode.py", *recipe.DATA])
    assert ran.returncode == 0, ran.stderr
    assert recipe.rows(tmp_path / "s") == by_hand


def test_the_next_sitecustomize_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os; 'LOGITSTORE_JOB' in os.environ and print('mine too')"
    )
    ran = recipe.capture(
        tmp_path / "s", *CTC, command=[sys.executable, "-c", "pass"], env={"PYTHONPATH": str(tmp_path)}
    )
    assert ran.stdout == b"mine too\n"


REFUSED = {
    "wrong path": (["--ctc", "ctc_output.11"], [], 1, "Did you mean 'ctc_output.1'?"),
    "log-probs": (["--ctc", "ctc_output.2"], [], 1, "log-probabilities, not logits"),
    "loop": (["--ctc", "joiner.output_linear"], ["--method", "greedy-search"], 1, "not (B, T, V)"),
    "lengths": (["--ctc", "ctc_output.1", "--lengths", "feature_lens"], [], 1, "instead of encoder frames"),
    "expression": (["--ctc", "ctc_output.1", "--ids", "__import__('os')"], [], 2, "not allowed"),
    "no program": (["--ctc", "ctc_output.1"], None, 2, "cannot be run"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused_with_the_reason(name, tmp_path):
    options, args, status, said = REFUSED[name]
    command = ["/no/such/program"] if args is None else [*recipe.DECODE, *args]
    ran = recipe.capture(tmp_path / "s", *options, command=command)
    assert ran.returncode == status
    assert said in ran.stderr.decode("utf-8")
    assert not (tmp_path / "s" / "sealed").exists()


def test_a_program_that_lost_the_start_up_hook_is_refused(tmp_path):
    ran = recipe.capture(tmp_path / "s", *CTC, command=[sys.executable, "-I", "-c", "pass"])
    assert ran.returncode == 1
    assert b"PYTHONPATH" in ran.stderr
    assert not (tmp_path / "s").exists()


def test_a_signal_reaches_the_recipe(tmp_path):
    command = [sys.executable, "-m", "logitstore", "capture", *CTC, "--out", tmp_path / "s", "--"]
    process = subprocess.Popen(
        list(map(str, [*command, "bash", "-c", "echo ready; sleep 600 & wait"])),
        stdout=subprocess.PIPE,
        cwd=demo.ROOT,
    )
    with process:
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(120) == 143


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os')", "a.__class__", "(lambda: 1)()", "open('x')", "a.system('x')", "", "*a"),
        *("[x for x in y if x]", "f'{a}'", "a if b else c", "a := 1", "a ** 9", "x.format(y)", "x['a'](1)"),
        *("str(key=1)", "[x._y for x in z]", "[open for open in a][0]('b')"),
    ],
)
def test_expressions_with_side_effects_are_refused(text):
    with pytest.raises(UsageError, match="expression"):
        Expression(text, "--ids")


def test_values_of_expressions():
    names = {"batch": {"ids": ["a", "b"], "x": np.arange(6)}, "n": 3}.__getitem__
    for text, value in [
        ('batch["ids"][-1]', "b"),
        ('[str(i) for i in batch["x"][1:4:2]]', ["1", "3"]),
        ("(n + 1) // 2 * 5 % 7 - 1", 2),
        ('stem("/a/b.c.wav")', "b.c"),
        ('batch["x"].sum().tolist()', 15),
        ('len(list(batch["x"]))', 6),
        ("[n, n][0]", 3),
    ]:
        assert Expression(text, "--ids").value(names) == value
