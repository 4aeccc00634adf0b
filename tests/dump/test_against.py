"""Running some utterances again: whatever is stored, the same teacher agrees, and nobody else does."""

import numpy as np
import pytest
import soundfile
import torch

from logitstore import open_store
from logitstore.corpus.manifest import read_manifest
from logitstore.dump.against import against_teacher
from tests.support import demo
from tests.support.dumping import run


@pytest.mark.parametrize(
    ("streams", "lost"),
    [
        ({"ctc": "dense", "rnnt": "topk:16"}, 0.1),
        ({"ctc": "dense:int8", "rnnt": "topk:8/banded:4+occupancy"}, 0.2),
        ({"ctc": "nucleus:1e-3", "rnnt": "nucleus:1e-2"}, 0.02),
        ({"ctc": "factored", "rnnt": "factored"}, 1e-4),
        ({"ctc": "factored:1e-3", "rnnt": "collapsed/path"}, 2.0),
    ],
)
def test_the_same_teacher_agrees_with_every_encoding_and_form(streams, lost, tmp_path):
    run(tmp_path / "s", limit=8, streams=streams)
    found = against_teacher(open_store(tmp_path / "s"), demo.teacher(), demo.manifest(8), 4)
    assert [c.stream for c in found] == ["ctc", "rnnt"] * 4
    for c in found:
        assert c.rows > 0
        assert not c.note
        assert c.kl < 1e-4
        assert c.lost < lost


def test_another_teacher_and_another_recording_are_named(tmp_path):
    lines = demo.lines(3)
    samples, rate = soundfile.read(lines[0]["audio"])
    lines[0]["audio"] = str(tmp_path / "a.wav")
    soundfile.write(lines[0]["audio"], samples, rate, subtype="FLOAT")
    manifest = read_manifest(demo.write_manifest(tmp_path / "m.jsonl", lines))
    run(tmp_path / "s", manifest=manifest)
    store = open_store(tmp_path / "s")
    assert store[lines[0]["id"]].meta["audio"].startswith("sha256:")
    assert not any(c.note for c in against_teacher(store, demo.teacher(), manifest, 3))
    soundfile.write(lines[0]["audio"], samples * 0.5, rate, subtype="FLOAT")
    notes = {c.id: c.note for c in against_teacher(store, demo.teacher(), manifest, 3)}
    assert "not the one that was dumped" in notes.pop(lines[0]["id"])
    assert set(notes.values()) == {""}

    def forward(teacher, *args):
        linear = teacher.model.ctc_output[1]
        bias = linear.bias.data
        linear.bias.data = bias + torch.linspace(0, 3, len(bias))
        try:
            return teacher.forward(*args)
        finally:
            linear.bias.data = bias

    other = against_teacher(store, demo.Spoiled(forward=forward), manifest, 3)
    assert min(c.kl for c in other if c.stream == "ctc") > 1e-3
    assert np.isfinite([c.kl for c in other]).all()
