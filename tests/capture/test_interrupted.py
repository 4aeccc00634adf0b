"""Captures that are interrupted: whole utterances are kept, nothing outlives the command, and doubt is said."""

import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import torch

from logitstore import open_store
from logitstore.store.verify import verify_store
from tests.support import demo, recipe

CTC = ["--ctc", "ctc_output.1", "--tokens", demo.TOKENS]
PROGRAM = f"""
import sys
sys.path[:0] = [{str(demo.ROOT)!r}, {str(recipe.FOLDER)!r}]
from pathlib import Path
import torch
from asr_datamodule import test_dataloader
from decode import load_model

mode, at = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
model = load_model(Path({str(demo.ROOT)!r}) / "recipes" / "demo")
with torch.no_grad():
    for number, batch in enumerate(test_dataloader(Path({str(demo.MANIFEST)!r}), 5, 0)):
        x, lens = batch["inputs"], batch["supervisions"]["num_frames"]
        utt_ids = [cut.id for cut in batch["supervisions"]["cut"]]
        if mode == "others" and number < 2:
            utt_ids = utt_ids[1:] + utt_ids[:1]
        if number == at:
            if mode == "wait":
                print("ready", flush=True)
                sys.stdin.readline()
            if mode == "twice":
                encoder_out, encoder_out_lens = model.forward_encoder(x * 0.9, lens)
                model.ctc_output(encoder_out)
        encoder_out, encoder_out_lens = model.forward_encoder(x, lens)
        model.ctc_output(encoder_out)
"""


@pytest.fixture(scope="module")
def own():
    return recipe.own(size=1)


@pytest.fixture
def script(tmp_path):
    (tmp_path / "x.py").write_text(PROGRAM)
    return [sys.executable, tmp_path / "x.py"]


def check(place, own, count):
    """Check that a store has so many records, each with the logits of its id."""
    opened = open_store(place)
    assert len(opened) == count
    assert not verify_store(place).findings
    for utt_id in opened:
        stored = torch.from_numpy(opened[utt_id]["ctc"].logits())
        torch.testing.assert_close(stored, own[utt_id], atol=2e-2, rtol=1e-3)


def begin(tmp_path, command):
    """Start a capture and wait until its program waits."""
    (tmp_path / "tmp").mkdir()
    words = [sys.executable, "-m", "logitstore", "capture", *CTC, "--out", tmp_path / "s", "--", *command]
    process = subprocess.Popen(
        list(map(str, words)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=demo.ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
    )
    assert process.stdout.readline() == b"ready\n"
    return process


def test_a_program_that_fails_keeps_its_whole_utterances(tmp_path, own):
    failing = [*recipe.DECODE, "--fail-after", "3"]
    ran = recipe.capture(tmp_path / "s", *CTC, "--shard-size", "10", command=failing)
    assert ran.returncode == 1
    assert b"the disk is full" in ran.stderr
    assert b"15 utterances sealed\n" in ran.stderr
    assert b"the command ended with status 1: run it again to capture the rest" in ran.stderr
    assert not (tmp_path / "s" / "partial").exists()
    check(tmp_path / "s", own, 15)
    again = recipe.capture(tmp_path / "s", *CTC)
    assert again.returncode == 0
    assert b"5 utterances sealed (15 were there already)" in again.stderr
    check(tmp_path / "s", own, 20)


def test_a_last_stage_that_fails_keeps_every_utterance(tmp_path, own):
    decode = shlex.join(map(str, recipe.DECODE))
    ran = recipe.capture(tmp_path / "s", *CTC, command=["bash", "-c", f"{decode}; no-such-scoring-tool"])
    assert ran.returncode == 127
    assert b"20 utterances sealed\n" in ran.stderr
    check(tmp_path / "s", own, 20)


def test_a_shell_that_is_ended_by_a_signal(tmp_path):
    ran = recipe.capture(tmp_path / "s", *CTC, command=["bash", "-c", "kill -TERM $$"])
    assert ran.returncode == 143
    assert not (tmp_path / "s").exists()


def test_sigterm_of_the_capture_ends_the_program_and_keeps_its_utterances(tmp_path, script, own):
    shell = ["bash", "-c", f"{shlex.join(map(str, script))} wait 2; true"]
    with begin(tmp_path, shell) as process:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 143
    assert b"10 utterances sealed\n" in said
    check(tmp_path / "s", own, 10)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("below", ["a shell", "nothing"])
def test_sigkill_of_the_capture_leaves_no_program_and_the_next_one_cleans_up(tmp_path, script, own, below):
    command = [*script, "wait", "2"]
    if below == "a shell":
        command = ["bash", "-c", f"{shlex.join(map(str, command))}; true"]
    with begin(tmp_path, command) as process:
        process.kill()
        process.wait()
        if (
            below == "a shell"
        ):  # no signal reaches the program: it sees at its next batch that nobody is there
            process.stdin.write(b"\n")
            process.stdin.flush()
        process.stdout.read()  # until the program has ended
        process.stderr.read()
    assert len(list((tmp_path / "tmp").glob("logitstore~*"))) == 1
    check(tmp_path / "s", own, 10)
    env = {"TMPDIR": str(tmp_path / "tmp")}
    again = recipe.capture(tmp_path / "s", *CTC, env=env)
    assert b"10 utterances sealed (10 were there already)" in again.stderr
    check(tmp_path / "s", own, 20)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "s" / "partial").exists()


def test_a_killed_process_is_named_with_the_count_of_what_is_lost(tmp_path):
    code = "import os, runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__'); os._exit(0)"
    code = f"import sys; sys.argv = sys.argv[1:]; sys.path.insert(0, {str(recipe.FOLDER)!r}); {code}"
    command = [sys.executable, "-c", code, recipe.FOLDER / "decode.py", *recipe.DATA]
    ran = recipe.capture(tmp_path / "s", *CTC, "--shard-size", "3", command=command)
    assert ran.returncode == 1
    assert b"ended without a report" in ran.stderr
    (lost,) = re.findall(
        rb"(\d+) utterances? that it had captured since its last full shard are lost", ran.stderr
    )
    (sealed,) = re.findall(rb"(\d+) utterances sealed", ran.stderr)
    assert int(lost) + int(sealed) == 20


def test_a_refusal_names_the_shards_sealed_before_it_and_how_to_remove_them(tmp_path, script, own):
    ran = recipe.capture(tmp_path / "s", *CTC, "--shard-size", "5", command=[*script, "twice", "3"])
    assert ran.returncode == 1
    said = ran.stderr.decode()
    assert "TapFiredTwice" in said
    assert "this run sealed 15 utterances before that error: shard capture-" in said
    check(
        tmp_path / "s", own, 15
    )  # the fourth batch, of which it is not known which call is right, is not there
    (advice,) = re.findall(r"logitstore (verify .+ --drop .+-\*'?)\. The next", said)
    dropped = recipe.logitstore(*shlex.split(advice))
    assert dropped.returncode == 0
    assert b"15 utterances removed; the next run makes them again" in dropped.stdout
    again = recipe.capture(tmp_path / "s", *CTC)
    assert b"20 utterances sealed\n" in again.stderr
    check(tmp_path / "s", own, 20)
