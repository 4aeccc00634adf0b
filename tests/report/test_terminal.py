"""One utterance in a terminal, and a store that is watched while it grows."""

import csv
import re
from importlib import import_module

import click
import numpy as np
import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from logitstore import open_store
from logitstore.cli import _utterance, _watch
from logitstore.cli.inspect import command
from logitstore.pictures.terminal import halves, pooled
from logitstore.store.inspect import inspect_utterance
from tests.support import demo, dumping

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def opened(store):
    return open_store(store)


def shown(opened, utt_id, **options):
    settings = {"frames": (0, None), "unfolded": False, "colour": False, **options}
    return list(_utterance.lines_of(inspect_utterance(opened, utt_id), opened, **settings))


def numbers(lines):
    """Return the frames that the first table names, runs written out."""
    found = []
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("t ")) + 1 :]
    for line in table:
        if not (match := re.match(r"(\d+)(?: – (\d+))?  ", line)):
            break
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def test_folded_rows_name_every_frame_once_in_a_fraction_of_the_lines(opened):
    folded, unfolded = shown(opened, "demo-00"), shown(opened, "demo-00", unfolded=True)
    assert numbers(folded) == numbers(unfolded) == list(range(76))
    assert len(folded) < 0.6 * len(unfolded)
    assert any(re.match(r"\d+ – \d+ +<blk> × \d+", line) for line in folded)


@pytest.mark.parametrize("columns", [40, 72, 200])
@pytest.mark.parametrize("colour", [False, True])
def test_no_line_is_wider_than_the_terminal(opened, monkeypatch, columns, colour):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = [ESCAPE.sub("", line) for line in shown(opened, "demo-05", colour=colour)]
    assert max(map(cell_len, lines)) <= columns


def test_a_posteriorgram_has_a_line_for_each_class_in_play(opened, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = shown(opened, "demo-00", colour=True)
    picture = [ESCAPE.sub("", line) for line in lines if "\x1b" in line]
    tokens = [line.split()[0] for line in picture]
    assert tokens[-1] == "<blk>"
    assert {"▁don’t", "▁turn", "ight", "▁three"} <= set(tokens)
    assert not any("\x1b" in line for line in shown(opened, "demo-00"))


def test_halves_hold_two_frames_a_character_and_pooling_keeps_the_largest():
    values = np.zeros((1, 5))
    values[0, 3] = 1
    [line] = halves(values, "probability")
    assert ESCAPE.sub("", line) == "▌▌▌"
    colours = re.findall(r"38;5;(\d+);48;5;(\d+)", line)
    assert colours[0][0] == colours[0][1] == colours[1][0] == "16"
    assert colours[1][1] != "16"  # the frame is in the right half of the second character
    assert pooled(values, 2).tolist() == [[0, 1]]


def test_frames_and_csv_show_those_rows_alone(store):
    run = CliRunner().invoke(command, [str(store), "demo-00", "--frames", "10:14", "--csv"])
    assert run.exit_code == 0
    rows = list(csv.DictReader(run.output.splitlines()))
    assert {int(row["t"]) for row in rows} == {10, 11, 12, 13}
    ctc = [row for row in rows if row["stream"] == "ctc"]
    assert [row["token1"] for row in ctc] == ["<blk>", "▁the", "▁the", "▁the"]
    assert all(0 < float(row["p1"]) <= 1 for row in ctc)
    for wrong in (["--frames", "x"], ["--frames", "5"]):
        assert CliRunner().invoke(command, [str(store), "demo-00", *wrong]).exit_code == 2
    assert CliRunner().invoke(command, [str(store), "--csv"]).exit_code == 2


def test_long_texts_are_wrapped_and_hostile_ones_are_harmless():
    lines = list(_utterance.wrapped("reference", "漢" * 60 + "\x1b[2J " + "word " * 30, 50))
    assert len(lines) > 4
    assert max(map(cell_len, lines)) <= 50
    assert not any("\x1b" in line for line in lines)
    assert all(line.startswith(" " * _utterance.LABEL) for line in lines[1:])


def test_a_store_is_watched_from_before_it_exists_until_the_manifest_is_done(tmp_path):
    place = tmp_path / "grows"
    parts = iter((2, 2, 5))

    def wait():
        dumping.run(place, limit=next(parts), streams={"ctc": "topk:4"}, allow_different=("manifest",))

    lines = list(_watch.watch(str(place), 5, wait))
    assert lines[0].endswith("no store yet")
    assert [line.split()[0] for line in lines[1:]] == ["2/5", "5/5"]  # no line while nothing grows
    assert "shards" in lines[1]


def test_watching_a_finished_store_ends_at_once(store):
    run = CliRunner().invoke(command, [str(store), "--manifest", str(demo.MANIFEST), "--watch"])
    assert run.exit_code == 0
    assert run.output.startswith("20/20 utterances")
    assert isinstance(command, click.Command)


def test_progress_shows_a_store_once_and_ends(store, tmp_path):
    progress = import_module("logitstore.cli.progress").command
    run = CliRunner().invoke(progress, [str(store)])
    assert (run.exit_code, run.output.split(",")[0]) == (0, "20 utterances")
    run = CliRunner().invoke(progress, [str(store), "--manifest", str(demo.MANIFEST), "--every", "0.1"])
    assert (run.exit_code, run.output.split(",")[0]) == (0, "20/20 utterances")
    run = CliRunner().invoke(progress, [str(tmp_path / "none")])
    assert (run.exit_code, run.output) == (0, f"{tmp_path / 'none'}: no store yet\n")
