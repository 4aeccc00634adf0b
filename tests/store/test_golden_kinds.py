"""Stores of attention decoders, layers and transcripts that an earlier version wrote: the same numbers as then."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from logitstore import open_store
from logitstore.encodings.rows import NOTHING
from logitstore.errors import MissingUtterance
from logitstore.schema.clock import FrameClock
from logitstore.store.lhotse_cuts import CutClips
from logitstore.store.verify import verify_store
from logitstore.targets.clip import Clip

GOLDEN = Path(__file__).parents[1] / "golden"
SAID = {  # storage; kind, encoding and width of each stream
    "kinds": (
        "webdataset",
        {
            "seq2seq": ("seq2seq", "nucleus:0.01", 0),
            "hidden": ("hidden", "vectors", 11),
            "hidden_b": ("hidden", "vectors:int8", 11),
            "text": ("text", "", 0),
        },
    ),
    "kinds-zarr": (
        "zarr",
        {
            "ctc": ("ctc", "dense", 0),
            "seq2seq": ("seq2seq", "topk:3", 0),
            "hidden": ("hidden", "vectors:int8", 11),
        },
    ),
}
LABELS = {"a.1": [3, 1, 4, 8], "b/2’": [8]}  # with the token that ends them
FRAMES = {"a.1": 13, "b/2’": 8}
TEMPERATURES = (1.0, 3.0)


@pytest.fixture(params=list(SAID))
def golden(request):
    """Name of a store, the opened store, and the numbers kept beside it."""
    with np.load(GOLDEN / f"v1.0-{request.param}.npz") as kept:
        return request.param, open_store(GOLDEN / f"v1.0-{request.param}"), dict(kept)


def test_the_descriptions(golden):
    name, store, _ = golden
    storage, streams = SAID[name]
    said = {s.name: (s.kind, s.encoding, s.width) for s in store.spec.streams}
    assert said == streams
    assert store.spec.storage == {"name": storage}
    assert store.spec.teacher.head("seq2seq").end == 8
    assert store.spec.teacher.head("ctc").end is None
    assert not verify_store(GOLDEN / f"v1.0-{name}").findings
    for utt, target in store.items():
        assert FRAMES[utt] == target.T
        assert len(LABELS[utt]) == target.U
        assert target.driven["seq2seq"].tolist() == target.labels.tolist() == LABELS[utt]
        shapes = {"ctc": (target.T, 9), "seq2seq": (target.U, 9)}
        assert target.shapes == {n: shapes.get(n, (target.T, 11)) for n in streams if n != "text"}


def test_numbers_are_those_of_the_day_they_were_written(golden):
    _, store, kept = golden
    seen = {k for k in kept if k.endswith(" own")}
    for utt, target in store.items():
        for stream in target.shapes:
            if stream.startswith("hidden"):
                found = {f"{utt} {stream}": target.vectors(stream)}
            else:
                found = {f"{utt} {stream} {t:g}": target.log_probs(stream, t) for t in TEMPERATURES}
            for key, numbers in found.items():
                np.testing.assert_allclose(numbers, kept[key], atol=2e-5, rtol=1e-5)
            seen |= set(found)
    assert seen == set(kept)


def test_vectors_are_the_models_layers(golden):
    """Compare within half a step of the rounding of SPEC E19."""
    _, store, kept = golden
    for utt, target in store.items():
        for spec in store.spec.streams:
            if spec.kind != "hidden":
                continue
            own = kept[f"{utt} {spec.name} own"]
            step = np.abs(own) / 2048 if spec.encoding == "vectors" else np.abs(own).max(1)[:, None] / 254
            far = np.abs(target.vectors(spec.name) - own)
            assert (far <= step + 1e-5).all()
            assert far.max() > 1e-5
    assert np.abs(own).max() > 0.3


def test_rows_of_the_decoder_are_its_distribution_of_each_label(golden):
    """Check rows and labels by SPEC S13, and the label that SPEC E9 always keeps."""
    name, store, kept = golden
    for utt, target in store.items():
        own = kept[f"{utt} seq2seq own"].astype(np.float64)
        told = np.exp(own - np.log(np.exp(own).sum(1, keepdims=True)))
        at = target["seq2seq"].at(1.0)
        there = at.logp > NOTHING
        near = np.abs(np.exp(at.logp) - np.take_along_axis(told, at.ids.astype(int), 1))[there]
        assert near.max() < 4e-3  # of rows stored whole, in one byte a class
        left = 1 - np.array([told[u, ids[there[u]]].sum() for u, ids in enumerate(at.ids)])
        np.testing.assert_allclose(np.exp(at.tail), left, atol=1e-3)
        for u, label in enumerate(LABELS[utt]):
            if name == "kinds":
                assert label in at.ids[u, there[u]]
            else:
                assert at.ids[u].tolist() == np.argsort(-told[u], kind="stable")[:3].tolist()


def test_transcripts():
    a, b = (open_store(GOLDEN / "v1.0-kinds")[utt] for utt in LABELS)
    assert (a.text, b.text) == ("cad", None)
    assert a.meta["hyp"]["text"] == {"text": "c ad", "score": -1.25, "wer": 2.0}
    assert b.meta["hyp"]["text"] == {"text": "", "score": None}
    decoded = {"text": "<blk>aa<blk>da<blk>dddddd", "score": -13.174, "wer": 1.0, "ter": 3.6667}
    assert a.meta["hyp"]["seq2seq"] == decoded
    with pytest.raises(MissingUtterance, match="no stream 'text'"):
        a["text"]
    with pytest.raises(MissingUtterance, match="no stream 'text'"):
        open_store(GOLDEN / "v1.0-kinds-zarr")["a.1"]["text"]


def test_the_place_of_records_in_their_recordings(golden):
    """Check SPEC S16 in the record metadata, and find the record by a cut."""
    _, store, _ = golden
    first = {"id": "demo/00", "start": 0.5, "seconds": 3.0425, "channel": 0}
    assert store["a.1"].meta["recording"] == first
    assert store["b/2’"].meta["recording"] == {"id": "demo/01", "start": 0.25}
    clips = CutClips(store)
    assert clips(cut("demo/00", 0.625, 0.25)) == Clip("a.1", start=Fraction(1, 8), duration=Fraction(1, 4))
    for other in (cut("demo/00", 0.375, 0.25), cut("demo/00", 0.625, 0.25, channel=1)):
        with pytest.raises(MissingUtterance):
            clips(other)


def cut(recording, start, seconds, channel=0):
    """Return the parts of a lhotse cut of a recording with two channels that the reader uses."""
    source = SimpleNamespace(channels=[0, 1])
    whole = SimpleNamespace(
        id=recording,
        sampling_rate=16000,
        num_samples=48680,
        transforms=None,
        sources=[source],
        channel_ids=[0, 1],
    )
    kind = type("MonoCut", (SimpleNamespace,), {})
    parts = {"id": "x", "start": start, "duration": seconds, "channel": channel, "sampling_rate": 16000}
    return kind(recording=whole, supervisions=[], **parts)


def test_times_of_frames(golden):
    """SPEC S17: frame 0 is centred on sample 80, so a student's, of 20 ms from sample 160 on, lie between."""
    _, store, _ = golden
    assert store.spec.teacher.offset == 80
    assert store.spec.teacher.clock == FrameClock(Fraction(1, 25), Fraction(1, 200), 16000)
    whole = Clip("a.1").crop(0, "0.48")
    batch = store.batch([whole], frames=[24], ratio=FrameClock("0.02", "0.01"), streams=["hidden"])
    at = (0.01 + 0.02 * np.arange(24) - 0.005) / 0.04
    rows = store["a.1"].vectors("hidden")
    want = np.stack([np.interp(at, np.arange(13), rows[:, d]) for d in range(11)], 1)
    np.testing.assert_allclose(batch["hidden"].h[0].numpy(), want, atol=1e-5)
