"""The recipe that trains a student: it runs on a store, goes on from its checkpoint, and prints its table."""

import sys

import pytest
import torch

from logitstore import DumpOptions, dump_logits, open_store
from logitstore.tokens.tokenise import Tokeniser
from recipes.student import train as recipe
from tests.support import demo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / "s"
    dump_logits(
        demo.teacher(), demo.manifest(), path, DumpOptions(streams={"ctc": "dense", "rnnt": "topk:16"})
    )
    return path


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(store, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "REPORT", 2)
    opened = open_store(store)
    examples = recipe.read_examples(demo.MANIFEST, Tokeniser(opened.tokens))[:6]
    settings = recipe.Settings(rate=(1, 2), steps=4, batch=3, width=16)
    whole = recipe.train(examples, opened, settings, distil=True)
    checkpoint = tmp_path / "student.pt"
    count, loss_of = 0, recipe.loss_of

    def stop_at_the_fourth(*args):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return loss_of(*args)

    monkeypatch.setattr(recipe, "loss_of", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        recipe.train(examples, opened, settings, distil=True, checkpoint=checkpoint)
    monkeypatch.setattr(recipe, "loss_of", loss_of)
    resumed = recipe.train(examples, opened, settings, distil=True, checkpoint=checkpoint)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(SystemExit, match="other settings"):
        recipe.train(examples, opened, recipe.Settings(), distil=True, checkpoint=checkpoint)


def test_the_recipe_prints_both_students(store, monkeypatch, capsys):
    arguments = ["train.py", str(store), "--manifest", str(demo.MANIFEST), "--steps", "3", "--rate", "1:2"]
    monkeypatch.setattr(sys, "argv", arguments)
    recipe.main()
    lines = capsys.readouterr().out.splitlines()
    assert "3 steps, seed 0, rate 1:2" in lines[0]
    assert [line.split("  ")[0] for line in lines[-2:]] == ["labels only", "labels + distillation"]
