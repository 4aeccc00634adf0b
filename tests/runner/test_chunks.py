"""Long recordings in chunks are what they are in one piece: the trained teacher's convolutions see 30 frames
to either side, which half an overlap of 1.28 s holds.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

from logitstore import open_store
from logitstore.cli.dump import command
from logitstore.corpus.audio import load_audio
from logitstore.corpus.manifest import read_manifest
from logitstore.dump.against import against_teacher
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.errors import DiskError, IdentityError, LengthError, TeacherError, UsageError
from logitstore.runner import chunks as chunked
from logitstore.runner.chunks import Chunks, make_driver
from logitstore.runner.driver import TeacherDriver
from logitstore.runner.loader import load
from logitstore.teachers.protocol import Head
from tests.support import attention_teacher, demo

STREAMS = ["ctc", "rnnt"]
CHUNKS = Chunks(100, 64)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A manifest of a recording of 11 s and three of its parts, that are short."""
    folder = tmp_path_factory.mktemp("long")
    samples = np.concatenate([load_audio(u, 16000) for u in demo.manifest(5)])
    soundfile.write(folder / "talk.wav", samples, 16000, subtype="FLOAT")
    text = " ".join(x["text"] for x in demo.lines(5))
    lines = [{"id": "talk", "audio": str(folder / "talk.wav"), "text": text}, *demo.lines(3)]
    return read_manifest(demo.write_manifest(folder / "m.jsonl", lines))


def loaded(manifest, samples=None):
    (item,) = [load(u, demo.teacher(), demo.teacher().tokens(), True) for u in manifest if u.id == "talk"]
    if samples is None:
        return item
    audio = load_audio(item.utt, 16000)[:samples]
    features = demo.teacher().features(audio)
    return type(item)(item.utt, features, len(audio) / 16000, item.labels)


def driver(chunks=CHUNKS, batch_seconds=0.0, streams=STREAMS, factored=(), teacher=None):
    teacher = teacher or demo.teacher()
    return make_driver(chunks, batch_seconds, teacher, teacher.tokens(), streams, "cpu", factored=factored)


@pytest.mark.parametrize(
    ("chunks", "at_once"),
    [(CHUNKS, 0.0), (CHUNKS, 12.0), (Chunks(101, 64), 9.0), (Chunks(65, 64), 60.0), (Chunks(200, 60), 0.0)],
)
def test_joined_is_the_whole(long, chunks, at_once):
    """Logits, what goes into the head, and both sides of the lattice; chunk by chunk or several at once."""
    item = loaded(long)
    (one,) = driver(None, factored=STREAMS).run([item])
    split = driver(chunks, at_once, factored=STREAMS)
    (two,) = split.run([item])
    assert one.T == two.T == 250
    torch.testing.assert_close(two.rows["ctc"], one.rows["ctc"], atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(two.inputs["ctc"], one.inputs["ctc"], atol=1e-5, rtol=1e-6)
    for a, b in zip(driver(None).sides(one), split.sides(two), strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-6)
    pieces = [torch.cat(list(d.lattice(s))) for d, s in ((driver(None), one), (split, two))]
    assert pieces[0].shape == (one.T, len(item.labels) + 1, 150)
    torch.testing.assert_close(pieces[1], pieces[0], atol=1e-4, rtol=0)


def test_what_forward_gives_may_be_anything(long):
    """Tensors by name, as of transformers: only what was tapped is joined."""

    def forward(teacher, features, lengths):
        output = teacher.forward(features, lengths)
        return {"states": output.encoder_out, "ctc": output.ctc, "lens": output.lens}

    named = demo.Spoiled(forward=forward, lengths=lambda teacher, output: output["lens"])
    (one,) = driver(streams=["ctc"], teacher=named).run([loaded(long)])
    (two,) = driver(streams=["ctc"]).run([loaded(long)])
    assert torch.equal(one.rows["ctc"], two.rows["ctc"])


def test_too_little_overlap_is_not_the_whole(long):
    """That the chunks above are joined where the context fits, and that it takes that much."""
    item = loaded(long)
    (one,), (two,) = (
        driver(None, streams=["ctc"]).run([item]),
        driver(Chunks(100, 20), streams=["ctc"]).run([item]),
    )
    assert one.T == two.T
    assert (one.rows["ctc"] - two.rows["ctc"]).abs().max() > 0.1


@pytest.mark.parametrize("more", [0, 1, 79, 80, 81, 159, 160, 319, 320, 400, 639, 640, 641, 23040])
def test_as_many_frames_as_the_whole_whatever_the_length(long, more):
    item = loaded(long, 100 * 640 + more)
    (one,), (two,) = driver(None, streams=["ctc"]).run([item]), driver(streams=["ctc"]).run([item])
    assert one.T == two.T
    torch.testing.assert_close(two.rows["ctc"], one.rows["ctc"], atol=1e-5, rtol=1e-6)


def test_every_frame_once():
    """Exact, for every length: kept parts lie one behind the other, and none has less context than half."""
    for frames in range(1, 90):
        for chunks in (Chunks(10, 4), Chunks(10, 0), Chunks(7, 6), Chunks(3, 2)):
            begins, half, at = chunks.starts(frames), chunks.overlap // 2, 0
            for begin in begins:
                end = min(begin + chunks.frames, frames)
                low = begin + half * bool(begin)
                high = end if begin == begins[-1] else begin + chunks.frames - half
                assert low == at < high <= end
                at = high
            assert at == frames


def test_short_recordings_are_not_touched(long, tmp_path):
    """Their rows are the same bytes with and without, and the long one's say the same."""
    streams = {"ctc": "dense", "rnnt": "factored"}
    options = {"streams": streams, "batch_seconds": 0, "max_wer": 100}
    dump_logits(demo.teacher(), long, tmp_path / "a", DumpOptions(**options))
    done = dump_logits(demo.teacher(), long, tmp_path / "b", DumpOptions(chunk=4, overlap="2.56", **options))
    assert done.done == 4
    assert any(
        "padded batch" in f or "model's own" in f for f in done.findings
    )  # the first chunk was checked
    whole, joined = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    assert joined.spec.teacher.features["chunks"] == {"frames": 100, "overlap": 64}
    for utt in whole:
        a, b = whole.record(utt), joined.record(utt)
        if utt != "talk":
            assert a.meta == b.meta
            assert all(np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays)
    a, b = whole["talk"], joined["talk"]
    assert (a.T, a.meta["text"], a.meta["hyp"]["ctc"]["text"]) == (
        b.T,
        b.meta["text"],
        b.meta["hyp"]["ctc"]["text"],
    )
    np.testing.assert_allclose(np.exp(a.log_probs("ctc")), np.exp(b.log_probs("ctc")), atol=1e-4)
    p, q = a["rnnt"].at().dense(), b["rnnt"].at().dense()
    assert float((np.exp(p) * (p - q)).sum(1).mean()) < 1e-6
    for found in against_teacher(joined, demo.teacher(), long, 4):
        assert found.kl < 1e-5
        assert not found.note


def test_a_store_is_not_resumed_with_other_chunks(long, tmp_path):
    options = {"batch_seconds": 0, "max_wer": 100, "chunk": 4, "overlap": 3}
    dump_logits(demo.teacher(), long, tmp_path / "s", DumpOptions(**options))
    assert dump_logits(demo.teacher(), long, tmp_path / "s", DumpOptions(**options)).present == 4
    for other in ({"overlap": 2}, {"chunk": 8}, {"chunk": None, "overlap": None}):
        with pytest.raises(IdentityError, match="chunks"):
            dump_logits(demo.teacher(), long, tmp_path / "s", DumpOptions(**{**options, **other}))


def test_memory_of_forward_does_not_grow(long):
    """The teacher never sees more than a batch of chunks, however long the recording is."""
    seen = []

    def forward(teacher, features, lengths):
        seen.append(tuple(features.shape))
        return teacher.forward(features, lengths)

    item = loaded(long)
    three = type(item)(item.utt, item.features.repeat(3, 1), 3 * item.seconds, item.labels)
    split = driver(batch_seconds=9.0, teacher=demo.Spoiled(forward=forward))
    for one in (item, three):
        (said,) = split.run([one])
        assert said.rows["ctc"].shape == (said.T, 150)
    assert max(b * t for b, t, _ in seen) <= 2 * 400
    assert max(b for b, _, _ in seen) == 2


def test_rows_of_very_long_recordings_lie_in_a_file(long, monkeypatch, tmp_path):
    """Mapped, so that they take no memory that could not be had back; the same rows, and nothing is left."""
    (one,) = driver(factored=STREAMS).run([loaded(long)])
    monkeypatch.setattr(chunked, "IN_MEMORY", 10_000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (two,) = driver(factored=STREAMS).run([loaded(long)])
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert sum(str(tmp_path) in line for line in maps) == 2
    assert not list(tmp_path.iterdir())
    torch.testing.assert_close(two.rows["ctc"], one.rows["ctc"], atol=0, rtol=0)
    torch.testing.assert_close(two.inputs["ctc"], one.inputs["ctc"], atol=0, rtol=0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chunked.os, "posix_fallocate", full)
    with pytest.raises(DiskError, match="No space left"):
        driver().run([loaded(long)])


def test_long_and_short_in_one_batch_keep_their_order(long):
    items = [load(u, demo.teacher(), demo.teacher().tokens(), True) for u in long]
    for order in ([1, 0, 2, 3], [0, 1, 2, 3], [2, 3, 1, 0]):
        said = driver().run([items[i] for i in order])
        assert [s.loaded.utt.id for s in said] == [items[i].utt.id for i in order]


def test_what_cannot_be_joined_is_refused(long, tmp_path):
    item = loaded(long)

    def cut(teacher, output):
        return teacher.lengths(output) - 40

    with pytest.raises(LengthError, match="a chunk of 100 frames from frame 0 gave 60"):
        driver(streams=["ctc"], teacher=demo.Spoiled(lengths=cut)).run([item])
    odd = type(item)(item.utt, item.features[:-200], item.seconds, item.labels)
    with pytest.raises(TeacherError, match="not a whole number"):
        driver(streams=["ctc"]).run([odd])
    for wrong in (Chunks.of_seconds, lambda a, b, c: Chunks(a, b)):
        with pytest.raises(UsageError, match="chunks longer than their overlap"):
            wrong(4, 5, demo.teacher().describe())
    with pytest.raises(UsageError, match="a chunk is 'long'"):
        DumpOptions(chunk="long") and dump_logits(
            demo.teacher(), long, tmp_path / "s", DumpOptions(chunk="long")
        )
    chunks = Chunks.of_seconds(30, "5", demo.teacher().describe())
    assert (chunks.frames, chunks.overlap) == (750, 124)
    with pytest.raises(UsageError, match="seq2seq stream cannot be dumped in chunks"):
        driver(streams=["ctc", "seq2seq"], teacher=attention_teacher.load())


def test_layers_are_joined_as_well(long):
    """A layer in the middle of the encoder, and what goes into the head."""
    heads = (*demo.teacher().describe().heads, Head("hidden_2", "encoder.blocks.1", 0))
    layered = demo.Spoiled(describe=lambda teacher: replace(teacher.describe(), heads=heads))
    item, streams = loaded(long), ["hidden_2", "ctc"]
    (one,) = driver(None, streams=streams, teacher=layered).run([item])
    (two,) = driver(streams=streams, teacher=layered).run([item])
    assert two.rows["hidden_2"].shape == (250, 128)
    for name, rows in one.rows.items():
        torch.testing.assert_close(two.rows[name], rows, atol=1e-5, rtol=1e-6)


def test_from_the_command_line(long, tmp_path):
    def run(*args):
        given = ["--teacher", demo.FACTORY, "--max-wer", "100", "--manifest", long.path, *args]
        return CliRunner().invoke(command, [*map(str, given), "--out", str(tmp_path / "s")])

    done = run("--chunk", "4", "--overlap", "2.56", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["utterances"] == 4
    assert "an overlap without a chunk" in str(run("--overlap", "2").exception)
    assert Chunks.stored(open_store(tmp_path / "s").spec.teacher) == CHUNKS


def test_a_plain_driver_where_nothing_is_cut():
    assert type(driver(None)) is TeacherDriver
    assert Chunks.stored(demo.teacher().describe()) is None


def test_a_plan_cuts_as_the_dump_will(long, tmp_path):
    """``auto`` is decided on chunks: the teacher is never given a whole recording."""
    seen = []

    def forward(teacher, features, lengths):
        seen.append(features.shape[1])
        return teacher.forward(features, lengths)

    options = DumpOptions(streams={"ctc": "auto"}, chunk=4, overlap="2.56", max_wer=100, batch_seconds=0)
    assert dump_logits(demo.Spoiled(forward=forward), long, tmp_path / "s", options).done == 4
    assert max(seen) <= 400
