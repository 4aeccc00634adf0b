"""Choices that select nothing, ids of another kind, and closed standard streams: each is named, and no work is lost."""

import json
import os
import subprocess
import sys

import pytest
import torch

from logitstore import StoreWriter, inspect_store, open_store, read_manifest
from logitstore.errors import MissingUtterance
from logitstore.store.transcripts import transcript_lines
from logitstore.tokens.table import TokenTable
from tests.support import demo
from tests.support.command import logitstore
from tests.support.dumping import run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("chosen") / "s"
    run(out, limit=4)
    return out


@pytest.fixture(scope="module")
def store_of_paths(tmp_path_factory):
    """A store with the ids that a NeMo program gives: absolute paths of the recordings."""
    out = tmp_path_factory.mktemp("paths") / "s"
    table = TokenTable(("<blk>", "a", "b"), 0)
    with StoreWriter.open(out, tokens=table, streams={"ctc": "dense"}) as writer:
        for line in demo.lines(3):
            writer.add(line["audio"], ctc=torch.eye(3))
    return out


def test_a_condition_that_no_record_meets_is_named(store):
    done = logitstore("transcripts", store, "--where", "wer < 0")
    assert done.returncode == 0
    assert done.stdout == ""
    assert "None of 4 records meets the condition 'wer < 0'." in done.stderr


def test_a_condition_on_values_that_records_lack_says_so(tmp_path):
    manifest = demo.write_manifest(
        tmp_path / "m.jsonl", [{"id": line["id"], "audio": line["audio"]} for line in demo.lines(2)]
    )
    run(tmp_path / "s", manifest=read_manifest(manifest), streams={"ctc": "dense"})
    with pytest.warns(UserWarning, match=r"2 of them have no 'wer', and a comparison with a missing value"):
        assert list(transcript_lines(tmp_path / "s", "wer < 0.5")) == []


def test_ids_that_are_paths_are_matched_with_the_names_of_a_manifest(store_of_paths, tmp_path):
    lines = [{"id": line["id"], "audio": line["audio"]} for line in demo.lines(4)]
    names = [os.path.splitext(os.path.basename(line["audio"]))[0] for line in lines]
    manifest = demo.write_manifest(
        tmp_path / "m.jsonl", [{**line, "id": name} for line, name in zip(lines, names, strict=True)]
    )
    found = inspect_store(store_of_paths, manifest=read_manifest(manifest)).manifest
    assert found.missing == sorted(names)
    assert found.other_names == {name: line["audio"] for name, line in zip(names[:3], lines, strict=False)}
    done = logitstore("inspect", store_of_paths, "--manifest", manifest)
    assert (
        f"3 of the missing ones are stored under another id, by the file's name: {names[0]} as" in done.stdout
    )
    with pytest.raises(MissingUtterance, match="The ids of this store are paths, such as '/"):
        open_store(store_of_paths)[names[0]]


@pytest.mark.parametrize("closed", [(2,), (1, 2), (0, 1, 2)], ids=lambda numbers: f"closed {numbers}")
def test_a_dump_with_closed_standard_streams_makes_the_whole_store(tmp_path, closed):
    manifest = demo.write_manifest(tmp_path / "m.jsonl", demo.lines(2))
    command = [
        sys.executable, "-m", "logitstore", "dump", "--teacher", demo.FACTORY, "--manifest", str(manifest),
        "--out", str(tmp_path / "s"),
    ]  # fmt: skip
    shell = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    done = subprocess.run(["bash", "-c", f'"$@" {shell}', "bash", *command], capture_output=True, text=True)
    assert done.returncode == 0
    assert len(open_store(tmp_path / "s")) == 2
    assert json.loads(logitstore("verify", tmp_path / "s", "--json").stdout)["records"] == 2
