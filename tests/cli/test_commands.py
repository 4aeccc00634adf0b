"""The command line in processes of its own: output, exit status, locales, several jobs."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from logitstore import open_store
from tests.support import demo
from tests.support.command import logitstore
from tests.support.dumping import same_tree
from tests.support.sealed import forge, forge_description

DUMP = ["dump", "--teacher", demo.FACTORY, "--manifest", str(demo.MANIFEST), "--stream", "ctc=dense"]
RNNT = ["--stream", "rnnt=topk:16"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "store"
    done = logitstore(*DUMP, *RNNT, "--tokens", demo.TOKENS, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "20 utterances" in done.stdout
    assert "self-check: softmax of the tapped logits is the model's own" in done.stderr
    return out


def test_running_again_prints_that_there_is_nothing_to_do(store):
    done = logitstore(*DUMP, *RNNT, "--out", store)
    assert done.returncode == 0
    assert "nothing to do, all 20 utterances are there" in done.stdout


def test_inspect_shows_description_and_error_rates(store):
    done = logitstore("inspect", store, "--manifest", demo.MANIFEST)
    assert done.returncode == 0
    for text in ("ctc at ctc_output.1", "weights sha256:", "20 utterances", "0 missing, 0 extra", "topk:16"):
        assert text in done.stdout
    data = json.loads(logitstore("inspect", store, "--json").stdout)
    for stream in ("ctc", "rnnt"):
        assert 0 < data["streams"][stream]["error_rate"] <= 0.05
        assert data["streams"][stream]["error_reference"] == 299
    assert data["streams"]["ctc"]["kept_mass"] == pytest.approx(1)
    assert data["transcript_error_rates"]["ctc"] == pytest.approx(
        data["streams"]["ctc"]["error_rate"], abs=1e-3
    )
    assert "decoded without teacher forcing: ctc" in done.stdout
    assert data["bytes_per_frame"] == pytest.approx((data["bytes"] - data["bytes_once"]) / data["frames"])


def test_inspect_one_utterance_fits_the_terminal_and_decodes_it(store):
    done = logitstore("inspect", store, "demo-00", "--all", COLUMNS="72")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert "reference  don’t turn off the light before half past three" in lines
    assert "decoded    don’t turn off the light before half past three" in lines
    assert "transcript don’t turn off the light before half past three" in lines
    frames = [x for x in lines if x[:1].isdigit()]
    assert len(frames) >= 76
    assert max(map(len, frames)) <= 72
    data = json.loads(logitstore("inspect", store, "demo-00", "--json", "--top", "3").stdout)
    assert len(data["streams"]["ctc"]["frames"]) == data["T"]
    assert all(len(f["best"]) == 3 for f in data["streams"]["rnnt"]["frames"])


def test_inspect_lists_missing_utterances(store, tmp_path):
    lines = [*demo.lines(20)[2:], {**demo.lines(1)[0], "id": "new"}, {**demo.lines(1)[0], "id": "new"}]
    manifest = demo.write_manifest(tmp_path / "m.jsonl", lines)
    done = logitstore("inspect", store, "--manifest", manifest)
    assert "19 utterances, 1 missing, 2 extra" in done.stdout
    for text in ("missing  new", "extra    demo-00", "is already at line 19"):
        assert text in done.stdout


def test_an_unknown_utterance_or_store_is_an_error_without_a_traceback(store, tmp_path):
    for args, text in (
        (["inspect", store, "demo-99"], "MissingUtterance"),
        (["inspect", tmp_path], "NotAStore"),
        (["verify", tmp_path / "x"], "NotAStore"),
    ):
        done = logitstore(*args)
        assert done.returncode == 1
        assert text in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["dmp"], "Did you mean 'dump'?"),
        ([*DUMP, "--out", "x", "--stream", "rnnt=topk"], "topk:16"),
        ([*DUMP, "--out", "x", "--stream", "rnnt=tpok:3"], "Did you mean 'topk'?"),
        ([*DUMP, "--out", "x", "--storage", "zar"], "Did you mean 'zarr'?"),
        ([*DUMP, "--out", "x", "--shard-size", "0"], "shard size"),
        ([*DUMP, "--out", "x", "--job", "3/3"], "does not exist"),
        (["dump", "--teacher", "nothing.py:load", "--manifest", "m", "--out", "x"], "cannot be read"),
    ],
)
def test_wrong_usage_lists_the_known_names(args, text, tmp_path):
    done = logitstore(*[tmp_path / "x" if a == "x" else a for a in args])
    assert done.returncode in (1, 2)
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_verify_names_a_flipped_bit_and_exits_1(store, tmp_path):
    copy = tmp_path / "s"
    logitstore("convert", store, copy, "--storage", "zarr")
    assert logitstore("verify", copy).stdout.strip().endswith("good")
    path = copy / "shards/000000.zarr.zip"
    data, opened = bytearray(path.read_bytes()), open_store(copy)
    data[data.find(opened.record(list(opened)[3]).arrays["rnnt.logp"].tobytes()) + 45] ^= 4
    path.write_bytes(data)
    done = logitstore("verify", copy)
    assert done.returncode == 1
    assert "shards/000000.zarr.zip" in done.stdout
    assert "checksum of rnnt does not match" in done.stdout
    assert "demo-" in done.stdout
    found = json.loads(logitstore("verify", copy, "--json").stdout)
    assert sum(len(f["utterances"]) for f in found["findings"]) == 1


def test_commands_work_in_an_ascii_locale(tmp_path):
    """A job once died after hours at a ’ in an ASCII locale."""
    ascii_only = {
        "LANG": "C",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    lines = [{**x, "id": f"{x['id']}’é漢"} for x in demo.lines(2)]
    lines.append({**lines[0], "id": "schlecht’", "text": "straße"})
    os.symlink(lines[0]["audio"], tmp_path / "café’.flac")
    lines[0]["audio"] = "café’.flac"
    manifest = demo.write_manifest(tmp_path / "m.jsonl", lines)
    args = ["dump", "--teacher", demo.FACTORY, "--manifest", manifest, "--out", tmp_path / "é’", *RNNT]
    done = logitstore(*args, "--on-error", "skip", **ascii_only)
    assert done.returncode == 3, done.stderr
    assert "1 skipped" in done.stdout
    assert "schlecht’" in (tmp_path / "é’/skipped.jsonl").read_text("utf-8")
    shown = logitstore("inspect", tmp_path / "é’", "demo-00’é漢", **ascii_only)
    assert shown.returncode == 0
    assert "don’t turn off" in shown.stdout
    failed = logitstore(*args[:-3], tmp_path / "t", *RNNT, **ascii_only)
    assert failed.returncode == 1
    assert "straße" in failed.stderr


def test_one_encoding_for_all_streams_and_positions_of_a_lattice(tmp_path):
    args = ["dump", "--teacher", demo.FACTORY, "--manifest", demo.MANIFEST, "--limit", 2, "--out"]
    done = logitstore(*args, tmp_path / "s", "--encoding", "topk:4", "--u-sample", 2, "--stream", "ctc=dense")
    assert done.returncode == 0, done.stderr
    streams = json.loads((tmp_path / "s" / "logitstore.json").read_text())["streams"]
    told = {s["name"]: (s["encoding"], s["form"]) for s in streams}
    assert told == {"ctc": ("dense", ""), "rnnt": ("topk:4", "sample:2")}
    for more in (["--stream", "ctc=dense"], ["--stream", "rnnt=topk:4/path"]):
        refused = logitstore(*args, tmp_path / "t", *more, "--u-sample", 2)
        assert (refused.returncode, "u_sample=2 with rnnt=" in refused.stderr) == (2, True)
    assert not (tmp_path / "t").exists()


def test_ids_and_tokens_cannot_control_the_terminal():
    from logitstore.cli._terminal import printable

    assert printable("a\x1b[2Jb\u202e\x9b\u2028") == "a\\x1b[2Jb\\u202e\\x9b\\u2028"
    assert printable("don’t 漢 é") == "don’t 漢 é"


HOSTILE = "\x1b[2J\x9b2J\u202e\u2066"


def test_descriptions_of_a_store_cannot_control_the_terminal(store, tmp_path):
    copies = tmp_path / "a", tmp_path / "b"
    for copy in copies:
        shutil.copytree(store, copy)
    named = {"name": f"w{HOSTILE}", "weights": f"w{HOSTILE}"}
    forge_description(copies[1], lambda value: value["teacher"].update(named))
    notes = {
        "made_with": {f"lib{HOSTILE}": f"1.0{HOSTILE}"},
        "gates": [{"gate": f"blank{HOSTILE}", "reason": HOSTILE}],
        "allowed": [{"field": f"teacher.name{HOSTILE}", "was": HOSTILE, "now": ""}],
    }
    forge(copies[1] / "notes.json", lambda value: value.update(notes))
    for args in (["inspect", copies[1]], ["diff", *copies]):
        for more in ([], ["--json"]):
            done = logitstore(*args, *more)
            assert "Traceback" not in done.stderr
            assert "2J" in done.stdout
            assert not set(HOSTILE) & set(done.stdout) - set("[2J")
    assert json.loads(logitstore("inspect", copies[1], "--json").stdout)["teacher"]["name"] == f"w{HOSTILE}"


def test_the_recipe_script_makes_the_same_store_with_any_number_of_jobs(tmp_path):
    def script(*args):
        return subprocess.run(
            [demo.ROOT / "bin/dump_logits.sh", "--python", sys.executable, *map(str, args)],
            capture_output=True,
            encoding="utf-8",
            cwd=demo.ROOT,
            check=False,
        )

    common = ["--teacher", demo.FACTORY, "--manifest", demo.MANIFEST, "--shard-size", 4]
    common += ["--streams", "ctc=topk:4 rnnt=topk:4", "--hidden", "encoder.blocks.1", "--stop-stage", 3]
    common += ["--chunk", 2, "--overlap", 1, "--transcripts", "none", "--max-skipped", "1%"]
    for jobs in (1, 3):
        done = script(*common, "--out", tmp_path / str(jobs), "--nj", jobs)
        assert done.returncode == 0, done.stderr
        assert "good" in done.stdout
    assert same_tree(tmp_path / "1", tmp_path / "3")
    assert len(list((tmp_path / "3.log").glob("dump.*.log"))) == 3

    missing = script(
        "--out", tmp_path / "x", "--teacher", demo.FACTORY, "--manifest", tmp_path / "no", "--nj", 2
    )
    assert missing.returncode == 1
    assert "cannot be read" in missing.stderr
    assert script("--nj", "two", "--out", "x").returncode == 2
    assert "no option --jobs" in script("--jobs", "2").stderr
    assert script("--help").returncode == 0
