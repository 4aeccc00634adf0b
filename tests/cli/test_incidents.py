"""Five mistakes that cost people days, each refused with its name before anything is stored.

Every test runs the command line as these people would have run it.
"""

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from click.testing import CliRunner

from logitstore import open_store
from logitstore.cli import main
from logitstore.cli.dump import command as dump_command
from logitstore.runner import gpu
from logitstore.runner.gpu import Cuda, Gpu
from tests.support import demo
from tests.support.command import logitstore

BROKEN = Path(__file__).parents[1] / "support" / "broken_teachers.py"
BOTH = ["--stream", "ctc=dense", "--stream", "rnnt=topk:16"]


@pytest.fixture
def dump(capsys):
    """Run a dump in this process; gives exit status, stdout and stderr."""

    def run(name, out, *more, manifest=demo.MANIFEST, streams=BOTH):
        teacher = name if ":" in name else f"{BROKEN}:{name}"
        args = ["dump", "--teacher", teacher, "--manifest", manifest, "--out", out, *streams, *more]
        with pytest.raises(SystemExit) as e:
            main([str(a) for a in args])
        said = capsys.readouterr()
        return CompletedProcess(args, e.value.code, said.out, said.err)

    return run


def refused(done, out, *words):
    """Check that a dump ended with status 1 before the first shard, and that stderr holds these words."""
    assert done.returncode == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert not (out / "sealed").exists()


def test_a_token_table_whose_ids_were_renumbered(tmp_path, dump):
    """A re-sorted token table once raised false rejects from 3 % to 99 % without an error.

    The teacher's first transcripts show it. If the right table is given with --tokens, the difference is named
    before the teacher runs.
    """
    out = tmp_path / "s"
    done = dump("renumbered", out)
    refused(done, out, "word error rate", "right tokens under other numbers", "re-numbered")
    assert "reference  don’t turn off the light" in done.stderr
    done = dump("retitled", tmp_path / "r")
    refused(done, tmp_path / "r", "word error rate", "the reference's own token ids", "re-numbered")
    done = dump("renumbered", tmp_path / "t", "--tokens", demo.TOKENS)
    refused(done, tmp_path / "t", "VocabError", "the tokens are the same, in another order")


def test_weights_of_a_character_model_under_a_bpe_vocabulary(tmp_path, dump):
    done = dump("characters", tmp_path / "s", streams=["--stream", "ctc=dense"])
    refused(done, tmp_path / "s", "word error rate", "a character model under another vocabulary")
    done = dump("characters_narrow", tmp_path / "t", streams=["--stream", "ctc=dense"])
    refused(done, tmp_path / "t", "VocabError", "40 classes, the token table has 150")


def test_a_gpu_that_the_installed_torch_cannot_run(tmp_path, monkeypatch):
    """The device is checked first: neither manifest nor teacher exist here."""
    card = Gpu("NVIDIA GeForce RTX 5090", (12, 0))
    old = Cuda("2.4.0+cu121", "12.1", ("sm_80", "sm_86", "sm_90"), (card,), (card.name,))
    monkeypatch.setattr(gpu, "look", lambda device: old)
    args = [
        "--teacher",
        "none.py:load",
        "--manifest",
        "none",
        "--out",
        str(tmp_path / "s"),
        "--device",
        "cuda",
    ]
    done = CliRunner().invoke(dump_command, args)
    assert "cannot run on the NVIDIA GeForce RTX 5090: its compute capability is 12.0" in str(done.exception)
    assert "built for sm_80 sm_86 sm_90" in str(done.exception)
    assert not (tmp_path / "s").exists()
    done = logitstore("dump", *args[:-1], "cuda:7", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "--device cuda:7" in done.stderr


def test_a_transcript_that_ascii_cannot_write(tmp_path):
    """A job died after hours, when it wrote the first ’. Here every step runs in a C locale."""
    ascii_ = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    line = {**demo.lines(1)[0], "id": "don’t"}
    manifest = demo.write_manifest(tmp_path / "m.jsonl", [line, *demo.lines(5)[2:]])
    args = ["--teacher", demo.FACTORY, "--manifest", manifest, "--out", tmp_path / "s", *BOTH]
    done = logitstore("dump", *args, **ascii_)
    assert done.returncode == 0, done.stderr
    assert "don’t turn off" in done.stderr
    said = logitstore("transcripts", tmp_path / "s", **ascii_)
    assert said.returncode == 0, said.stderr
    texts = {x["id"]: x["text"] for x in map(json.loads, said.stdout.splitlines())}
    assert texts["don’t"] == line["text"]
    assert open_store(tmp_path / "s")["don’t"].text == line["text"]
    doctor = logitstore("doctor", **ascii_)
    assert "text is ascii here" in doctor.stdout


@pytest.mark.parametrize("name", ["constant", "one_word"])
def test_a_model_whose_output_is_constant(name, tmp_path, dump):
    done = dump(name, tmp_path / "s")
    refused(done, tmp_path / "s", "the ctc branch is constant")
