"""Cuts that went through lhotse get right targets: proved by what the teacher says of the audio that lhotse
itself loads for them.
"""

from fractions import Fraction as F

import numpy as np
import pytest
import soundfile
import torch

from logitstore import TargetDataset, collate_targets, open_store
from logitstore.corpus.audio import load_audio
from logitstore.corpus.manifest import read_manifest
from logitstore.corpus.survey import Survey, survey, write_lines
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.errors import MissingUtterance, UsageError
from logitstore.store.lhotse_cuts import CutClips
from logitstore.targets.clip import Clip
from logitstore.targets.frames import nearest
from tests.support import demo

lhotse = pytest.importorskip("lhotse")
RATE = 16000
PAUSE = RATE // 2


def recording_of(samples, path):
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return lhotse.Recording.from_file(path, recording_id=path.stem)


def supervision(name, recording, start, seconds, text="x"):
    return lhotse.SupervisionSegment(name, recording.id, start, seconds, text=text)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Five cuts, each of its own recording, a long recording of all five, noise, and stores dumped from the cuts."""
    folder = tmp_path_factory.mktemp("cuts")
    cuts, pieces, said, at = {}, [], [], 0
    noise = np.random.default_rng(0).normal(0, 0.01, 20 * RATE).astype(np.float32)
    for line, utt in zip(demo.lines(5), demo.manifest(5), strict=True):
        audio = load_audio(utt, RATE)
        one = recording_of(audio, folder / f"rec-{utt.id}.wav")
        told = supervision(f"sup-{utt.id}", one, 0.0, one.duration, line["text"])
        cuts[utt.id] = lhotse.MonoCut(utt.id, 0.0, one.duration, 0, supervisions=[told], recording=one)
        said.append((utt.id, at / RATE, one.duration, line["text"]))
        pieces += [audio, noise[:PAUSE]]
        at += len(audio) + PAUSE
    long = recording_of(np.concatenate(pieces), folder / "talk.wav")
    told = [supervision(f"talk-{i}", long, start, seconds, text) for i, start, seconds, text in said]
    talk = lhotse.MonoCut("talk", 0.0, long.duration, 0, supervisions=told, recording=long)
    hiss = lhotse.MonoCut("hiss", 0.0, 20.0, 0, recording=recording_of(noise, folder / "hiss.wav"))
    stores = {}
    parts = lhotse.CutSet.from_cuts([talk]).trim_to_supervisions()
    for name, some in (("short", cuts.values()), ("parts", parts), ("long", [talk])):
        lhotse.CutSet.from_cuts(some).to_file(folder / f"{name}.jsonl")
        streams = {"ctc": "dense"} if name == "long" else {"ctc": "dense", "rnnt": "topk:8"}
        manifest = read_manifest(folder / f"{name}.jsonl")
        dump_logits(demo.teacher(), manifest, folder / name, DumpOptions(streams=streams))
        stores[name] = open_store(folder / name)
    return {**stores, **cuts, "talk": talk, "hiss": hiss, "folder": folder}


def teacher_says(samples):
    features = demo.teacher().features(samples.astype(np.float32))
    output = demo.teacher().forward(features[None], torch.tensor([len(features)]))
    return output.ctc[0, : int(output.lens[0])].numpy()


def kl(p, q):
    return float((np.exp(p) * (p - q)).sum(1).mean())


def misses(store, cut, clip=None):
    """Return KL(teacher on the audio that lhotse loads ‖ target) on valid frames, moved by k frames."""
    real = teacher_says(cut.load_audio()[0])
    clip = clip or CutClips(store)(cut)
    batch = store.batch([clip], frames=[len(real)], ratio=(1, 1), streams=["ctc"])
    told, said = batch["ctc"].mask[0].numpy(), batch["ctc"].dense()[0].numpy()
    assert told.mean() > 0.3
    return {k: kl(np.roll(real, -k, 0)[told], said[told]) for k in range(-3, 4)}


def require_aligned(found, near=0.95, far=0.85):
    """Of a short cut this teacher, which normalises by the utterance, says other things than of the whole:
    the right frames are still the nearest.
    """
    assert found[0] < near * min(found[-1], found[1]), found
    assert found[0] < far * min(found[k] for k in (-3, -2, 2, 3)), found


CHANGES = {
    "slower": lambda w: w["demo-00"].perturb_speed(0.9),
    "faster": lambda w: w["demo-04"].perturb_speed(1.1),
    "faster, then slower": lambda w: w["demo-04"].perturb_speed(1.1).perturb_speed(0.8),
    "faster, then cut": lambda w: w["demo-04"].perturb_speed(1.1).truncate(offset=0.4, duration=1.4),
    "slower, then cut": lambda w: w["demo-00"].perturb_speed(0.9).truncate(offset=0.5, duration=2.0),
    "cut, then slower": lambda w: w["demo-00"].truncate(offset=0.3, duration=2.2).perturb_speed(0.9),
    "louder": lambda w: w["demo-03"].perturb_volume(2.0),
    "joined": lambda w: w["demo-00"].append(w["demo-04"]),
    "joined, one faster": lambda w: w["demo-01"].append(w["demo-04"].perturb_speed(1.1)),
    "joined, then slower": lambda w: w["demo-01"].append(w["demo-04"]).perturb_speed(0.9),
    "joined, then cut": lambda w: w["demo-00"].append(w["demo-04"]).truncate(offset=1.0, duration=3.5),
    "noisy": lambda w: w["demo-04"].mix(w["hiss"].truncate(duration=2.0), snr=25),
    "padded in noise": lambda w: w["demo-00"].pad(duration=4.0).mix(w["hiss"].truncate(duration=4.0), snr=25),
    "padded before, in noise, faster": lambda w: (
        w["demo-04"].pad(duration=3.3, direction="left").mix(w["hiss"].truncate(duration=3.3), snr=25)
    ).perturb_speed(1.1),
    "joined with a pause": lambda w: (
        w["demo-00"].append(w["hiss"].truncate(duration=0.5), snr=40).append(w["demo-04"])
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_targets_follow_the_audio_that_lhotse_loads(world, change):
    near, far = (0.95, 0.85) if "cut" in change else (0.6, 0.3)
    require_aligned(misses(world["short"], CHANGES[change](world)), near, far)


def test_speed_ignored_or_inverted_is_seen(world):
    """Check that the tests above would fail for a reader that ignores or inverts the speed."""
    cut = world["demo-04"].perturb_speed(1.1).truncate(offset=0.4, duration=1.4)
    right = misses(world["short"], cut)[0]
    for speed in (F(1), F(10, 11)):
        wrong = misses(world["short"], cut, Clip("demo-04").at_speed(speed).crop(F(2, 5), F(7, 5)))
        assert wrong[0] > 2 * right


def test_lhotse_itself_is_silently_wrong_after_perturb_speed(world):
    """An array of 25 frames a second that is attached to a cut is cut short by 1.1, not made 1.1 times as
    fast: its last tenth is gone, and every other frame lies up to a tenth too early. No error is raised.
    """
    cut = world["demo-04"]
    frames = np.arange(world["short"][cut.id].T)
    attached = cut.attach_tensor("teacher", frames[:, None], frame_shift=0.04, temporal_dim=0)
    lhotses = attached.perturb_speed(1.1).load_teacher()[:, 0]
    assert lhotses.tolist() == frames[: len(lhotses)].tolist()
    assert len(lhotses) == round(len(frames) / 1.1)
    clip = CutClips(world["short"])(attached.perturb_speed(1.1))
    batch = world["short"].batch([clip], frames=[len(lhotses)], method="nearest", streams=["ctc"])
    rows = world["short"][cut.id].log_probs("ctc")
    right = nearest(len(frames), len(lhotses))
    at = batch["ctc"].logp[0].numpy()
    np.testing.assert_array_equal(at, rows[right])
    assert (right != lhotses).mean() > 0.8


def test_parts_of_a_long_recording(world):
    """Check supervisions, windows and other cuts of one long recording, dumped whole or in parts."""
    talk = lhotse.CutSet.from_cuts([world["talk"]])
    for cut in talk.trim_to_supervisions():
        assert CutClips(world["parts"])(cut).ids[0] in world["parts"]
        require_aligned(misses(world["long"], cut))
        whole = world["parts"].batch([CutClips(world["parts"])(cut)])  # lattices too: it is whole
        assert whole["rnnt"].mask.any()
    windows = [misses(world["long"], w) for w in talk.perturb_speed(0.9).cut_into_windows(4.0, hop=3.0)]
    require_aligned({k: sum(w[k] for w in windows) for k in windows[0]})
    (first, *_) = talk.trim_to_supervisions()
    wide = first.extend_by(duration=0.3, direction="right")
    require_aligned(misses(world["long"], wide))
    with pytest.raises(MissingUtterance, match=r"no stored utterance holds .*; there are .* 0-3\.0425 s"):
        CutClips(world["parts"])(wide)
    inside = CutClips(world["parts"])(first.truncate(offset=1, duration=1))
    assert (inside.start, inside.duration) == (1, 1)


def test_padding_has_no_target_or_blank(world):
    cut = world["demo-01"].pad(duration=2.0)
    store = world["short"]
    batch = store.batch([CutClips(store)(cut)])
    assert batch["rnnt"].mask[0].any(-1).tolist() == [True] * 37 + [False] * 13
    blank = store.batch([CutClips(store, blank=True)(cut)])
    assert bool(blank["ctc"].mask.all())
    assert batch.lengths.tolist() == [50]
    assert blank["rnnt"].mask[0].any(-1).all()


def test_changes_that_keep_the_time_change_no_target(world):
    clips = CutClips(world["short"])
    cut = world["demo-00"].truncate(offset=0.5, duration=1.0)
    plain = Clip("demo-00", start=F(1, 2), duration=1)
    assert clips(cut) == plain
    assert clips(cut.perturb_volume(0.3)) == plain
    assert clips(cut.normalize_loudness(-20, affix_id=True)) == plain
    assert clips(cut.reverb_rir(affix_id=True)) == plain
    assert clips(cut.clip_amplitude(gain_db=3.0, affix_id=True)) == plain
    assert clips(cut.resample(8000, affix_id=True)) == plain
    odd = clips(cut.resample(22050))
    assert abs(odd.start - F(1, 2)) <= F(1, 22050)
    assert clips(world["demo-00"].perturb_tempo(1.1)) == Clip("demo-00", speed=F(11, 10))
    assert clips(world["demo-00"].mix(world["hiss"].truncate(duration=1), snr=10)).ids == ["demo-00"]
    longer = world["demo-00"].mix(world["hiss"].truncate(duration=4), snr=10)
    assert sum(p.length for p in clips(longer).pieces(lambda i: F(30425, 10000))) == 4


def test_names_do_not_matter_where_the_recording_is_known(world):
    clips, cut = CutClips(world["short"]), world["demo-00"]
    for same in (
        cut.with_id("anything"),
        cut.perturb_speed(0.9, affix_id=False).perturb_speed(1 / 0.9, affix_id=False).with_id("x"),
        cut.drop_supervisions().with_id("y"),
    ):
        assert clips(same).ids == ["demo-00"]
    again = lhotse.serialization.deserialize_item(cut.perturb_speed(1.1).to_dict())
    assert clips(again) == Clip("demo-00", speed=F(11, 10))


def test_part_of_a_recording_is_not_mistaken_for_all_of_it(world):
    """``move_to_memory`` and Shar keep a recording's id, and cut its beginning off."""
    clips, cut = CutClips(world["short"]), world["demo-00"]
    part = cut.truncate(offset=0.5, duration=2.0).move_to_memory(audio_format="wav")
    assert part.recording.id == cut.recording.id
    assert part.start == 0
    with pytest.raises(MissingUtterance, match="nor the cut's or a supervision's id is known at that length"):
        clips(part)
    part.supervisions[0].id = "demo-00"  # a supervision tells: it began half a second before
    said = clips(part)
    assert (said.start, said.duration) == (F(1, 2), 2)
    require_aligned(misses(world["short"], part))


def test_a_store_of_json_lines_is_found_by_ids(world, tmp_path):
    """Check records without a recording: found by id of cut, recording or supervision at the same length."""
    dump_logits(demo.teacher(), demo.manifest(2), tmp_path / "s", DumpOptions())
    clips, cut = CutClips(open_store(tmp_path / "s")), world["demo-00"]
    assert clips(cut.perturb_speed(1.1)) == Clip("demo-00", speed=F(11, 10))
    named = cut.with_id("other")
    named.supervisions[0].id = "demo-00"
    half = named.perturb_speed(0.9).truncate(offset=1.0, duration=1.0)
    assert clips(half) == Clip("demo-00", start=F(9, 10), duration=F(9, 10), speed=F(9, 10))
    named.supervisions[0].id = "demo-01"  # whose length is another
    with pytest.raises(MissingUtterance):
        clips(named.truncate(duration=1.0))


def test_refusals_name_the_cut_and_the_reason(world):
    clips = CutClips(world["short"])
    babble = world["demo-00"].mix(world["demo-04"], offset_other_by=1.0)
    with pytest.raises(UsageError, match=r"demo-04 begins at 1 s, other speech goes on to 3\.0425 s"):
        clips(babble)
    unknown = world["demo-00"].perturb_volume(2.0)
    unknown.recording.transforms[0] = {"name": "Rewind", "kwargs": {"by": 2}}
    with pytest.raises(UsageError, match=r"Rewind\(by=2\)"):
        clips(unknown)
    with pytest.raises(MissingUtterance, match="talk"):
        clips(world["talk"])
    stranger = world["demo-00"].append(world["talk"])
    with pytest.raises(MissingUtterance, match="talk"):
        clips(stranger)
    for cut, what in (
        (world["demo-00"].truncate(duration=1.0), "rnnt of 1 s"),
        (CHANGES["joined"](world), "2 pieces"),
    ):
        with pytest.raises(UsageError, match=what):
            world["short"].batch([clips(cut)])
    with pytest.raises(UsageError, match="no cut"):
        clips("demo-00")
    bare = world["demo-00"].drop_supervisions()
    bare.recording = None
    with pytest.raises(UsageError, match="no recording"):
        clips(bare)
    mixed = world["demo-00"].mix(world["hiss"].truncate(duration=1.0), snr=10)
    mixed.tracks[1].cut.recording = None  # noise of which there are features alone
    assert clips(mixed).ids == ["demo-00"]
    with pytest.raises(UsageError, match="silence only"):
        world["short"].batch([clips(lhotse.cut.PaddingCut("p", 1.0, RATE, 0.0, num_samples=RATE))])


def test_channels_are_told_apart(world, tmp_path):
    audio = np.stack([load_audio(u, RATE)[: 2 * RATE] for u in (*demo.manifest(5),)][:1] * 2, 1)
    audio[:, 1] = audio[::-1, 0]
    soundfile.write(tmp_path / "two.wav", audio, RATE)
    both = lhotse.Recording.from_file(tmp_path / "two.wav")
    cuts = [lhotse.MonoCut(f"c{i}", 0.0, 2.0, i, recording=both) for i in (0, 1)]
    lhotse.CutSet.from_cuts(cuts).to_file(tmp_path / "c.jsonl")
    dump_logits(demo.teacher(), read_manifest(tmp_path / "c.jsonl"), tmp_path / "s", DumpOptions())
    clips = CutClips(open_store(tmp_path / "s"))
    assert [clips(c.truncate(duration=1.0).with_id("x")).ids for c in cuts] == [["c0"], ["c1"]]


def test_json_lines_keep_the_recording(world, tmp_path):
    """``logitstore manifest`` writes what later finds cuts again."""
    write_lines(survey(read_manifest(world["folder"] / "parts.jsonl"), Survey("")), tmp_path / "m.jsonl")
    dump_logits(demo.teacher(), read_manifest(tmp_path / "m.jsonl"), tmp_path / "s", DumpOptions())
    store, talk = open_store(tmp_path / "s"), world["talk"]
    assert [r.meta["recording"] for r in store.values()] == [
        r.meta["recording"] for r in world["parts"].values()
    ]
    cut = talk.perturb_speed(1.1).truncate(offset=3.6, duration=0.5)
    assert CutClips(store)(cut).ids == CutClips(world["parts"])(cut).ids


def test_clips_in_a_dataset_with_workers(world):
    clips = CutClips(world["short"])
    cuts = [world["demo-00"].perturb_speed(1.1), world["demo-04"].truncate(offset=0.2, duration=1.0)]
    dataset = TargetDataset(world["short"], [clips(c) for c in cuts])
    loader = torch.utils.data.DataLoader(
        dataset, 2, collate_fn=only_ctc, num_workers=1, multiprocessing_context="fork"
    )
    batch = next(iter(loader))
    assert batch.lengths.tolist() == [70, 25]


def only_ctc(targets):
    return collate_targets(targets, streams=["ctc"])
