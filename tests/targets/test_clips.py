"""Targets of clips against the trained teacher, which runs on the cropped, sped-up, padded or joined audio itself."""

from dataclasses import replace
from fractions import Fraction as F
from functools import cache

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitstore import TargetDataset, collate_targets, open_store
from logitstore.corpus.audio import load_audio
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.encodings.dense import Dense
from logitstore.encodings.rows import NOTHING, logsumexp
from logitstore.errors import LengthError, MissingUtterance, UsageError
from logitstore.schema.clock import FrameClock
from logitstore.schema.spec import Head
from logitstore.targets.clip import Clip, Clipped, Piece, silence
from logitstore.targets.clip_resample import frames_of, stretches
from logitstore.targets.frames import Method, Ramp
from logitstore.targets.target import Target
from tests.support import demo

RATE, SHIFT = 16000, 640
FRAME = F(SHIFT, RATE)
IDS = ["demo-00", "demo-01", "demo-04"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    place = tmp_path_factory.mktemp("clips") / "s"
    streams = {"ctc": "dense", "rnnt": "topk:16/banded:4+occupancy"}
    dump_logits(demo.teacher(), demo.manifest(5), place, DumpOptions(streams=streams))
    return open_store(place)


@cache
def audio(utt_id):
    return next(load_audio(u, RATE) for u in demo.manifest(5) if u.id == utt_id)


@cache
def run_teacher(samples):
    """(T, V) log-probabilities of the teacher for the bytes of float32 samples."""
    features = demo.teacher().features(np.frombuffer(samples, np.float32))
    output = demo.teacher().forward(features[None], torch.tensor([len(features)]))
    return output.ctc[0, : int(output.lens[0])].numpy()


def teacher_on(samples):
    return run_teacher(samples.astype(np.float32).tobytes())


def dense(batch, b=0):
    return batch["ctc"].dense()[b, : batch.lengths[b]].numpy()


def kl(p, q):
    return float((np.exp(p) * (p - q)).sum(1).mean())


def faster(samples, speed):
    """``speed`` times as fast, as sox speed and lhotse do it: played at another rate."""
    return soxr.resample(samples, RATE * speed.numerator, RATE * speed.denominator)


@pytest.mark.parametrize("speed", [F(9, 10), F(11, 10)])
@pytest.mark.parametrize("utt", IDS)
def test_targets_at_another_speed_fit_the_teacher_on_that_audio(store, utt, speed):
    """Check that of targets moved by whole frames, unmoved ones are nearest to the teacher's output for that audio."""
    real = teacher_on(faster(audio(utt), speed))
    clip = Clip(utt).at_speed(speed)
    batch = store.batch([clip], frames=[len(real)], ratio=FrameClock(FRAME), streams=["ctc"], method="linear")
    served = dense(batch)
    moved = {k: kl(real, np.roll(served, k, 0)) for k in range(-3, 4)}
    assert min(moved, key=moved.get) == 0
    assert moved[0] < 0.6 * min(moved[-1], moved[1])
    assert moved[0] < 0.2 * min(moved[-2], moved[2])
    assert (served.argmax(1) == real.argmax(1)).mean() > 0.85
    assert abs(int(store.batch([clip], streams=["ctc"]).lengths[0]) - len(real)) <= 1
    inverse = Clip(utt).at_speed(1 / speed)
    with pytest.raises(LengthError, match=r"frames of 0\.04 s, but"):
        store.batch([inverse], frames=[len(real)], ratio=FrameClock(FRAME), streams=["ctc"])
    with pytest.raises(LengthError, match=r"frames of 0\.04 s, but"):
        store.batch([utt], frames=[len(real)], ratio=FrameClock(FRAME), streams=["ctc"])


@pytest.mark.parametrize("speed", [F(9, 10), F(11, 10)])
def test_a_crop_counts_seconds_after_the_change_of_speed(store, speed):
    """Ignoring the speed, or inverting it, gives other frames."""
    cut = (12 * FRAME, 20 * FRAME)
    lost = np.zeros(3)
    for utt in ("demo-00", "demo-01", "demo-04"):
        real = teacher_on(faster(audio(utt), speed))[12:32]
        at = [Clip(utt).at_speed(v) for v in (speed, 1, 1 / speed)]
        served = [dense(store.batch([c.crop(*cut)], streams=["ctc"], method="linear")) for c in at]
        lost += [kl(real, x) for x in served]
    right, ignored, inverted = lost
    assert right < 0.5
    assert ignored > 8 * right
    assert inverted > 8 * right


def test_a_crop_of_whole_frames_gives_those_frames(store):
    """Bit for bit, from any sample that begins a frame; and near the teacher's output for the cropped audio."""
    whole = store["demo-00"].log_probs("ctc")
    for options in ({}, {"frames": [40], "ratio": (1, 1)}, {"frames": [40], "ratio": FrameClock("0.04")}):
        clip = Clip("demo-00").crop(F(12 * SHIFT, RATE), 40 * FRAME)
        batch = store.batch([clip], streams=["ctc"], **options)
        assert batch.lengths.tolist() == [40]
        np.testing.assert_array_equal(dense(batch), whole[12:52])
    real = teacher_on(audio("demo-00")[12 * SHIFT : 52 * SHIFT])
    right, late = kl(real, whole[12:52]), kl(real, whole[13:53])
    assert right < 0.3 * late


def test_a_crop_from_half_a_frame_mixes_two_frames(store):
    p = np.exp(store["demo-00"].log_probs("ctc"))
    batch = store.batch([Clip("demo-00").crop(FRAME / 2, 20 * FRAME)], streams=["ctc"], method="linear")
    np.testing.assert_allclose(np.exp(dense(batch)), (p[:20] + p[1:21]) / 2, atol=1e-6)


def test_padding_is_masked_or_blank(store):
    whole = store["demo-01"].log_probs("ctc")
    pad = (3 * FRAME, 5 * FRAME)
    batch = store.batch([Clip("demo-01").pad(*pad)], streams=["ctc"])
    assert batch["ctc"].mask[0].tolist() == [False] * 3 + [True] * len(whole) + [False] * 5
    assert bool((batch["ctc"].logp[~batch["ctc"].mask] == NOTHING).all())
    np.testing.assert_array_equal(dense(batch)[3:-5], whole)
    blank = store.batch([Clip("demo-01").pad(*pad, blank=True)], streams=["ctc"])
    assert bool(blank["ctc"].mask.all())
    np.testing.assert_allclose(np.exp(dense(blank)[[0, 1, 2, -1]])[:, store.tokens.blank], 1)
    np.testing.assert_array_equal(dense(blank)[3:-5], whole)


def test_targets_of_padded_audio_are_in_place(store):
    """Noise in place of silence, as this teacher normalises by the utterance."""
    noise = np.random.default_rng(0).normal(0, 0.01, 8 * SHIFT)
    real = teacher_on(np.concatenate([noise[: 3 * SHIFT], audio("demo-00"), noise[3 * SHIFT :]]))
    clip = Clip("demo-00").pad(3 * FRAME, 5 * FRAME)
    batch = store.batch([clip], frames=[len(real)], streams=["ctc"])
    told = batch["ctc"].mask[0].numpy()
    served = dense(batch)
    moved = {k: kl(np.roll(real, -k, 0)[told], served[told]) for k in (-2, -1, 0, 1, 2)}
    assert min(moved, key=moved.get) == 0
    assert moved[0] < 0.6 * min(moved[-1], moved[1])


def test_joined_utterances_begin_at_their_own_first_sample(store):
    """The second utterance begins at its first sample, not at the end of the first one's frames."""
    clip = Clip("demo-01") + Clip("demo-04")
    real = teacher_on(np.concatenate([audio("demo-01"), audio("demo-04")]))
    batch = store.batch([clip, "demo-02"], frames=[len(real), 42], ratio=(1, 1), streams=["ctc"])
    served = dense(batch)
    moved = {k: kl(real, np.roll(served, k, 0)) for k in (-2, -1, 0, 1, 2)}
    assert min(moved, key=moved.get) == 0
    assert moved[0] < 0.3 * min(moved[-1], moved[1])
    assert batch.utt_ids == ("demo-01+demo-04", "demo-02")
    labels = [*store["demo-01"].labels, *store["demo-04"].labels]
    assert batch.labels[0, : batch.label_lengths[0]].tolist() == labels
    np.testing.assert_array_equal(dense(batch, 1), store["demo-02"].log_probs("ctc"))


def test_crop_speed_and_padding_together(store):
    """The same clips from exact and decimal numbers, in a batch and in a dataset's worker process."""
    exact = [
        Clip("demo-00", start=F(1, 2), duration=1, speed="0.9").pad(0, F(1, 5)),
        Clip("demo-01", speed=F(11, 10)).pad("0.1", 0),
    ]
    one = store.batch(exact, streams=["ctc"])
    clips = [
        Clip("demo-00").crop(0.5, 1).at_speed(0.9).pad(0, 0.2),
        Clip("demo-01").at_speed(1.1).pad(0.1),
    ]
    loader = torch.utils.data.DataLoader(
        TargetDataset(store, clips), 2, collate_fn=only_ctc, num_workers=1, multiprocessing_context="fork"
    )
    for other in (store.batch(clips, streams=["ctc"]), next(iter(loader))):
        assert torch.equal(one.lengths, other.lengths)
        assert torch.equal(one["ctc"].logp, other["ctc"].logp)
        assert torch.equal(one["ctc"].mask, other["ctc"].mask)
    assert one.lengths.tolist() == [round(25 / 0.9 + 5), 36]
    assert one.labels is None  # the labels of a cropped utterance are not known
    with pytest.raises(MissingUtterance, match="nobody"):
        TargetDataset(store, [Clip("demo-00") + Clip("nobody")])


def only_ctc(targets):
    return collate_targets(targets, streams=["ctc"])


def test_an_unchanged_clip_is_the_stored_target(store):
    for same in (Clip("demo-00"), Clip("demo-00").crop(0).at_speed(1).pad(), Clip("demo-00").pad(0, 0)):
        assert store.read_clip(same).plain.id == "demo-00"
        a, b = store.batch([same], frames=[30])["rnnt"], store.batch(["demo-00"], frames=[30])["rnnt"]
        assert torch.equal(a.logp, b.logp)


def test_lattices_follow_speed_and_padding_and_refuse_crops_and_joins(store):
    whole = store["demo-04"]
    plain, t = store.batch(["demo-04"])["rnnt"], whole.T
    padded = store.batch([Clip("demo-04").pad(2 * FRAME, 3 * FRAME, blank=True)])
    rnnt = padded["rnnt"]
    for name in ("logp", "ids", "positions", "occupancy"):
        assert torch.equal(getattr(rnnt, name)[:, 2 : 2 + t], getattr(plain, name))
    assert bool(rnnt.mask.all())
    assert rnnt.occupancy[0, 0].tolist() == [1, 0, 0, 0]
    assert rnnt.occupancy[0, -1].tolist() == [0, 0, 0, 1]
    assert rnnt.positions[0, -1].tolist() == plain.positions[0, -1].tolist()
    assert rnnt.ids[0, 0, 0, 0] == store.tokens.blank
    assert padded.labels.tolist() == [whole.labels.tolist()]
    assert not store.batch([Clip("demo-04").pad(2 * FRAME, 0)])["rnnt"].mask[0, :2].any()
    fast = store.batch([Clip("demo-04").at_speed(F(11, 10))], frames=[56])["rnnt"]
    assert torch.equal(fast.logp, store.batch(["demo-04"], frames=[56])["rnnt"].logp)
    for clip, what in (
        (Clip("demo-04").crop(0, 1), "rnnt of 1 s of 2.46"),
        (Clip("demo-04") + Clip("demo-01"), "rnnt of 2 pieces"),
    ):
        with pytest.raises(UsageError, match=what) as e:
            store.batch([clip])
        assert "labels belong to the whole utterance" in str(e.value)


def test_a_crop_of_a_decoder_stream_is_refused():
    rows, labels = Dense(np.zeros((5, 4), np.float16), np.zeros(5, np.float32)), np.array([1, 2], np.int32)
    target = Target("u", 5, labels, {"seq2seq": rows}, {"seq2seq": (5, 4)}, {"seconds": 0.2})
    clip = Clipped.of(Clip("u").crop(0, F(1, 10)), lambda i: target)
    with pytest.raises(UsageError, match="no time axis"):
        collate_targets([clip])


def test_hidden_streams_follow_clips(tmp_path):
    heads = (Head("hidden", "encoder.norm", 0),)
    layered = demo.Spoiled(describe=lambda teacher: replace(teacher.describe(), heads=heads))
    dump_logits(layered, demo.manifest(2), tmp_path / "s", DumpOptions(streams={"hidden": "vectors"}))
    store = open_store(tmp_path / "s")
    rows = [store[i].vectors("hidden") for i in ("demo-00", "demo-01")]
    clip = Clip("demo-00").crop(12 * FRAME, 40 * FRAME).pad(2 * FRAME) + Clip("demo-01").crop(0, 5 * FRAME)
    batch = store.batch([clip])["hidden"]
    assert batch.mask[0].tolist() == [False] * 2 + [True] * 45
    np.testing.assert_array_equal(batch.h[0, 2:].numpy(), np.concatenate([rows[0][12:52], rows[1][:5]]))
    fast = store.batch([Clip("demo-00").at_speed(2)], frames=[38], method="nearest")["hidden"]
    np.testing.assert_array_equal(fast.h[0].numpy(), rows[0][::2])


def test_a_path_at_another_speed_is_refused(tmp_path):
    dump_logits(
        demo.teacher(), demo.manifest(1), tmp_path / "s", DumpOptions(streams={"rnnt": "topk:4/path"})
    )
    store = open_store(tmp_path / "s")
    assert store.batch([Clip("demo-00")])["rnnt"].frames is not None
    for changed in (Clip("demo-00").at_speed(F(11, 10)), Clip("demo-00").pad(1, 0)):
        with pytest.raises(UsageError, match="path"):
            store.batch([changed])


def test_every_method_resamples_clips_of_pruned_rows(tmp_path):
    """Every method gives the rows of the stored frames where a clip holds whole frames."""
    options = DumpOptions(streams={"ctc": "nucleus:1e-3"})
    dump_logits(demo.teacher(), demo.manifest(3), tmp_path / "s", options)
    store = open_store(tmp_path / "s")
    clip = Clip("demo-00").crop(10 * FRAME, 40 * FRAME) + Clip("demo-01").crop(0, 20 * FRAME)
    parts = [store["demo-00"].log_probs("ctc")[10:50], store["demo-01"].log_probs("ctc")[:20]]
    rows = np.concatenate(parts)
    for method, frames in (("nearest", 60), ("linear", 60), ("max-nonblank", 60), ("nearest", 30)):
        served = dense(store.batch([clip], frames=[frames], ratio=(frames, 60), method=method))
        np.testing.assert_allclose(served, rows[:: 60 // frames], atol=1e-4)
    stacked = store.batch([clip], method="stack:7")
    assert stacked["ctc"].mask.shape == (1, 9, 7)
    assert int(stacked["ctc"].mask.sum()) == 60
    np.testing.assert_allclose(stacked["ctc"].dense()[0].flatten(0, 1)[:60].numpy(), rows, atol=1e-4)
    slow = store.batch([clip], frames=[20], ratio=(1, 3), method="max-nonblank")
    best = np.exp(rows[:, store.tokens.blank]).reshape(20, 3).argmin(1) + 3 * np.arange(20)
    np.testing.assert_allclose(dense(slow), rows[best], atol=1e-4)
    late = store.batch([clip], frames=[60], ratio=(1, 1), method="nearest+shift=4")
    assert late["ctc"].mask[0].tolist() == [False] * 4 + [True] * 56
    np.testing.assert_allclose(dense(late)[4:], rows[:56], atol=1e-4)


# --- exactness


seconds = st.fractions(F(1, 100), 20, max_denominator=44100)
speeds = st.sampled_from([F(1), F(9, 10), F(11, 10), F(4, 5), F(21, 20)])


def fake(t, length, clock):
    rows = Dense(np.zeros((t, 2), np.float16), np.zeros(t, np.float32))
    return Target(
        "u", t, np.zeros(0, np.int32), {"ctc": rows}, {"ctc": (t, 2)}, {"seconds": length}, clock=clock
    )


@given(st.integers(1, 300), st.integers(1, 300), speeds)
def test_a_change_of_speed_alone_keeps_the_positions_of_frames(t, s, speed):
    """Frames that share a clip evenly do so at any speed."""
    clip = Clipped.of(Clip("u").at_speed(speed), lambda i: fake(t, 3.0, None))
    (stretch,) = stretches(clip, s, Method(), None)
    assert stretch.ramp == Ramp.whole(t, s)


@given(seconds, seconds, st.integers(1, 400), speeds, st.booleans())
def test_positions_of_frames_equal_the_definition(start, length, s, speed, clocked):
    """Frame by frame, in rational numbers."""
    total, clock = 50, FrameClock(FRAME)
    pieces = [silence(F(1, 3)), Clip("u", start=start, duration=length, speed=speed), silence(F(2, 7))]
    clip = Clipped.of(Clip(*pieces), lambda i: fake(1250, total, clock))
    ratio = (s, 10 * s) if clocked else None
    found = list(stretches(clip, s, Method(), ratio))
    assert sum(x.ramp.count for x in found) == s
    step = 10 * FRAME if clocked else clip.length / s
    i = 0
    for x in found:
        for k in range(x.ramp.count):
            at = (2 * i + 1) * step / 2 - F(1, 3)
            if x.piece.id:
                assert 0 <= at < length / speed
                assert x.ramp.begin + k * x.ramp.step == (start + at * speed) / FRAME - F(1, 2)
            else:
                assert at < 0 or at >= length / speed
            i += 1


def test_frame_offsets_count_where_both_clocks_have_one():
    clip = Clipped.of(Clip("u").crop(1, 2), lambda i: fake(250, 10.0, FrameClock(FRAME, F(1, 200))))
    (both,) = stretches(clip, 100, Method(), FrameClock("0.02", "0.01"))
    assert both.ramp.begin == (1 + F(1, 100) - F(1, 200)) / FRAME
    (one,) = stretches(clip, 100, Method(), FrameClock("0.02"))
    assert one.ramp.begin == (1 + F(1, 100)) / FRAME - F(1, 2)


@given(st.integers(1, 10**6), st.integers(1, 10**5), st.integers(1, 200))
def test_positions_are_exact_for_large_denominators(a, b, s):
    ramp = Ramp(F(a, 10**18 + 9), F(b, 10**16 + 61), s)
    low, _, weight = ramp.linear(10**9)
    exact = [ramp.begin + ramp.step * i for i in range(s)]
    assert low.tolist() == [int(x) for x in exact]
    np.testing.assert_allclose(weight, [float(x - int(x)) for x in exact], atol=1e-6)


@given(
    st.lists(st.tuples(seconds, speeds), min_size=1, max_size=4),
    speeds,
    st.fractions(0, 1),
    st.fractions(0, 1),
)
def test_clips_of_clips_have_the_right_length(parts, speed, a, b):
    """A crop of joined clips at another speed."""
    whole = Clip(*(Clip("u", duration=d, speed=v) for d, v in parts)).at_speed(speed)
    total = sum(d / v for d, v in parts) / speed
    a, b = sorted((a, b))
    cut = whole.crop(a * total, (b - a) * total) if a < b else whole
    pieces = cut.pieces(lambda i: F(20))
    assert sum(p.length for p in pieces) == ((b - a) * total if a < b else total)
    assert all(p.start >= 0 and p.start + p.duration <= 20 for p in pieces)


def test_frames_of_clips_are_as_many_as_the_teacher_gives(store):
    for clip, samples in (
        (Clip("demo-01").pad(2 * FRAME, "0.3"), np.pad(audio("demo-01"), (2 * SHIFT, 4800))),
        (Clip("demo-01") + Clip("demo-04"), np.concatenate([audio("demo-01"), audio("demo-04")])),
        (Clip("demo-00").crop(0, 10 * FRAME), audio("demo-00")[: 10 * SHIFT]),
        (Clip("demo-00").at_speed("0.9"), faster(audio("demo-00"), F(9, 10))),
    ):
        assert frames_of(store.read_clip(clip)) == len(teacher_on(samples))
    unknown = Clipped.of(Clip("u").crop(0, "0.42"), lambda i: fake(38, 1.5, FrameClock(FRAME)))
    assert frames_of(unknown) == 10


def test_impossible_clips_are_refused(store):
    for wrong in (
        lambda: Clip("u", speed=0),
        lambda: Clip("u", start=-1),
        lambda: Clip("u", duration=0),
        lambda: Clip("u").at_speed("fast"),
        lambda: Clip("u").pad(-1),
        lambda: FrameClock(0),
        lambda: store.batch([Clip(silence(1))]),
    ):
        with pytest.raises(UsageError):
            wrong()
    for clip in (Clip("demo-00").crop(4), Clip("demo-00").crop(0, 4), Clip("demo-00").at_speed(2).crop(1, 1)):
        with pytest.raises(LengthError, match="are asked of"):
            store.batch([clip], streams=["ctc"])
    assert Clip("demo-00").crop(0, "3.043").pieces(lambda i: F(30425, 10000))[0].duration == F(30425, 10000)
    unknown = Target("u", 3, np.zeros(0, np.int32), {}, {})
    with pytest.raises(LengthError, match="length in seconds"):
        Clipped.of(Clip("u").at_speed(2), lambda i: unknown)


def test_audio_length_and_frame_counts_are_compared():
    """A stored T that contradicts the stored seconds is found once the student's frame rate is given."""
    good, feature_frames = fake(75, 3.0, FrameClock(FRAME)), fake(300, 3.0, FrameClock(FRAME))
    collate_targets([good], frames=[150], ratio=(2, 1))
    collate_targets([good], frames=[150], ratio=FrameClock("0.02"))
    with pytest.raises(LengthError, match=r"150\.0 frames of 0\.02 s, but 75"):
        collate_targets([good], frames=[75], ratio=FrameClock("0.02"))
    for ratio, frames in (((2, 1), 600), (FrameClock("0.02"), 150)):
        with pytest.raises(LengthError, match="4 times too many: the lengths may count feature frames"):
            collate_targets([feature_frames], frames=[frames], ratio=ratio)


def test_a_part_of_a_piece_is_in_its_own_seconds():
    piece = Piece("u", F(1), F(2), F(2)).part(F(1, 4), F(1, 2))
    assert (piece.start, piece.duration, piece.length) == (F(3, 2), F(1, 2), F(1, 4))


def test_rows_of_clips_sum_to_one(store):
    batch = store.batch([Clip("demo-00").at_speed("0.9").pad(0.1) + Clip("demo-01")], streams=["ctc"])
    np.testing.assert_allclose(logsumexp(dense(batch))[batch["ctc"].mask[0]], 0, atol=1e-3)


def test_a_misspelt_argument_names_the_nearest_one(store):
    for call, near in (
        (lambda: store.batch(["demo-00"], frame=[1]), "frames"),
        (lambda: store.batch(["demo-00"], temprature=2.0), "temperature"),
        (lambda: collate_targets([store["demo-00"]], vocabs=None), "vocab"),
        (lambda: TargetDataset(store, mising="skip"), "missing"),
        (lambda: TargetDataset(store, frame=[1]), "frames"),
    ):
        with pytest.raises(UsageError, match="has no argument") as e:
            call()
        assert f"Did you mean '{near}'" in str(e.value)
        assert "Known: " in str(e.value)
    with pytest.raises(UsageError, match="Clip"):
        store.batch(["demo-00"], speed=2)
