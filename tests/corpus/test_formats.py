"""Manifests of every format name the same utterances, and are refused by name where they cannot be used."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from logitstore import open_store
from logitstore.cli.manifest import command
from logitstore.corpus.audio import load_audio, seconds_of
from logitstore.corpus.formats import recognise
from logitstore.corpus.manifest import open_source, read_manifest
from logitstore.errors import AudioError, LogitStoreError, ManifestError, UsageError
from tests.support import demo

LINES = demo.lines(4)
RATE = {x["id"]: soundfile.info(x["audio"]).samplerate for x in LINES}


def kaldi(folder, wav=None, **files):
    folder.mkdir()
    wav = wav if wav is not None else "".join(f"{x['id']} {x['audio']}\n" for x in LINES)
    for name, text in {"wav.scp": wav, **files}.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def texts():
    return "".join(f"{x['id']} {x['text']}\n" for x in LINES)


def nemo(path):
    rows = [{"audio_filepath": x["audio"], "duration": x["duration"], "text": x["text"]} for x in LINES]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    return path


def cuts():
    lhotse = pytest.importorskip("lhotse")
    found = []
    for x in LINES:
        recording = lhotse.Recording.from_file(x["audio"], recording_id=f"rec-{x['id']}")
        said = lhotse.SupervisionSegment(
            f"sup-{x['id']}", recording.id, 0.0, recording.duration, text=x["text"], channel=0
        )
        found.append(
            lhotse.MonoCut(x["id"], 0.0, recording.duration, 0, supervisions=[said], recording=recording)
        )
    return lhotse.CutSet.from_cuts(found)


def without_recording(cut):
    return {k: v for k, v in cut.to_dict().items() if k != "recording"}


def from_web(cut):
    line = cut.to_dict()
    line["recording"]["sources"][0].update(type="url", source="https://example.org/a.flac")
    return line


def hugging(folder):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict(
        {k: [x[k] for x in LINES] for k in ("id", "audio", "text")}
    ).cast_column("audio", datasets.Audio())
    data.save_to_disk(folder)
    return folder


def good(path, **options):
    m = read_manifest(path, **options)
    assert not m.problems, m.problems
    return list(m)


def same_audio(found):
    """The four demo utterances: ids, texts and every sample."""
    assert [(u.id, u.text) for u in found] == [(x["id"], x["text"]) for x in LINES]
    for utt, line in zip(found, LINES, strict=True):
        whole, _ = soundfile.read(line["audio"], dtype="float32")
        assert np.array_equal(load_audio(utt, RATE[utt.id]), whole)
        assert abs(seconds_of(utt) - line["duration"]) < 0.01


def test_kaldi(tmp_path):
    durations = "".join(f"{x['id']} {x['duration']:.2f}\n" for x in LINES)
    path = kaldi(tmp_path / "data", text=texts(), utt2dur=durations)
    assert recognise(path) == "kaldi"
    same_audio(good(path))


def test_kaldi_files_in_any_order_and_texts_of_others(tmp_path):
    path = kaldi(tmp_path / "data", text="zz other words\n" + "".join(reversed(texts().splitlines(True))))
    same_audio(good(path))


def test_kaldi_segments(tmp_path):
    rec = LINES[0]["audio"]
    segments = "u1 r 0.5 1.25\nu2 r 1.25 -1\n"
    found = good(kaldi(tmp_path / "d", f"r {rec}\n", segments=segments, text="u2 the rest\nu1\n"))
    assert [(u.id, u.offset, u.duration, u.text) for u in found] == [
        ("u1", 0.5, 0.75, ""),
        ("u2", 1.25, None, "the rest"),
    ]
    whole, rate = soundfile.read(rec, dtype="float32")
    assert np.array_equal(load_audio(found[0], rate), whole[round(0.5 * rate) : round(1.25 * rate)])
    assert np.array_equal(load_audio(found[1], rate), whole[round(1.25 * rate) :])


def test_kaldi_paths_are_relative_to_the_working_directory(tmp_path, monkeypatch):
    os.symlink(LINES[0]["audio"], tmp_path / "x.flac")
    path = kaldi(tmp_path / "d", "u x.flac\n")
    monkeypatch.chdir(tmp_path)
    assert len(load_audio(good(path)[0], 16000))
    assert good(path, audio_root="/else")[0].audio.as_posix() == "/else/x.flac"


def test_kaldi_channels(tmp_path):
    stereo = np.stack([np.full(800, 0.25), np.full(800, -0.5)], axis=1)
    soundfile.write(tmp_path / "s.wav", stereo, 8000, subtype="FLOAT")
    wav = f"r {tmp_path}/s.wav\n"
    found = good(kaldi(tmp_path / "d", wav, segments="a r 0 0.1 0\nb r 0 0.1 1\nc r 0 0.1\n"))
    assert [load_audio(u, 8000)[0] for u in found] == [0.25, -0.5, -0.125]
    beyond = good(kaldi(tmp_path / "e", wav, segments="a r 0 0.1 2\n"))[0]
    with pytest.raises(AudioError, match="no channel 2"):
        load_audio(beyond, 8000)


PIPE = f"u cat {LINES[0]['audio']} |\n"


def test_pipes_run_only_when_allowed(tmp_path):
    mark = tmp_path / "ran"
    path = kaldi(tmp_path / "d", f"v touch {mark}; cat {LINES[0]['audio']} |\n")
    (problem,) = read_manifest(path).problems
    assert "shell command" in problem.what
    assert "--allow-pipes" in problem.what
    assert not mark.exists()
    (utt,) = good(path, allow_pipes=True)
    whole, rate = soundfile.read(LINES[0]["audio"], dtype="float32")
    assert np.array_equal(load_audio(utt, rate), whole)
    assert mark.exists()


def test_a_wave_file_from_a_pipe_has_no_true_length(tmp_path):
    """Programs that write to a pipe put 0xFFFFFFFF or 0x7FFFFFFF for the length they do not know yet."""
    soundfile.write(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 4000), 16000, subtype="PCM_16")
    raw = bytearray((tmp_path / "a.wav").read_bytes())
    at = raw.index(b"data") + 4
    for length in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"):
        raw[4:8], raw[at : at + 4] = length, length
        (tmp_path / "b.wav").write_bytes(raw)
        path = kaldi(tmp_path / length.hex(), f"u cat {tmp_path}/b.wav |\n")
        assert len(load_audio(good(path, allow_pipes=True)[0], 16000)) == 4000


def test_a_pipe_that_fails_is_named(tmp_path):
    path = kaldi(tmp_path / "d", "u echo no such disc >&2; false | cat |\n")
    with pytest.raises(AudioError, match="status 1: no such disc"):
        load_audio(good(path, allow_pipes=True)[0], 16000)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"wav": "u feats.ark:123\n"}, "inside an archive"),
        ({"wav": "u -\n"}, "inside an archive"),
        ({"wav": "u\n"}, "not a path"),
        ({"wav": "u a.wav\nu b.wav\n"}, "is already at line"),
        ({"wav": "u a.wav\n", "text": "u x\nu y\n"}, "'u' stands twice"),
        ({"wav": "u a.wav\n", "utt2dur": "u long\n"}, "'long' is not seconds"),
        ({"wav": "r a.wav\n", "segments": "u q 0 1\n"}, "'q' is not in wav.scp"),
        ({"wav": "r a.wav\n", "segments": "u r 2 1\n"}, "ends at 1.0 s"),
        ({"wav": "r a.wav\n", "segments": "u r 2\n"}, "not RECORDING BEGIN END"),
        ({"wav": "r a.wav\n", "segments": "u r 0 1 B\n"}, "channel 'B'"),
    ],
)
def test_kaldi_lines_that_cannot_be_used(tmp_path, files, what):
    (problem,) = read_manifest(kaldi(tmp_path / "d", files.pop("wav"), **files)).problems
    assert what in problem.what
    assert problem.id == "u"


def test_another_utt2dur_is_another_recording(tmp_path):
    (utt,) = good(kaldi(tmp_path / "d", f"u {LINES[0]['audio']}\n", utt2dur="u 2.5\n"))
    with pytest.raises(AudioError, match=r"the manifest says 2\.500 s"):
        load_audio(utt, 16000)


def test_the_digest_of_a_folder_changes_with_any_of_its_files(tmp_path):
    path = kaldi(tmp_path / "d", text=texts())
    seen = {read_manifest(path).sha256}
    (path / "utt2dur").write_text(f"{LINES[0]['id']} 3.04\n")
    seen.add(read_manifest(path).sha256)
    (path / "text").write_text(texts() + "\n")
    seen.add(read_manifest(path).sha256)
    assert len(seen) == 3


def test_nemo(tmp_path):
    path = nemo(tmp_path / "train.json")
    assert recognise(path) == "nemo"
    same_audio(good(path))


def test_nemo_parts_of_one_recording_have_their_own_ids(tmp_path):
    part = {"audio_filepath": "a/rec.wav", "text": "x"}
    rows = [{**part, "offset": 0.5 * i, "duration": 0.5} for i in range(2)]
    (tmp_path / "m").write_text("\n".join(map(json.dumps, rows)))
    found = good(tmp_path / "m")
    assert [u.id for u in found] == ["rec-0000000-0000500", "rec-0000500-0001000"]
    assert found[0].audio == tmp_path / "a" / "rec.wav"


def test_nemo_archives_are_refused(tmp_path):
    row = {"audio_filepath": "a.wav", "duration": 1, "text": "x", "shard_id": 3}
    (tmp_path / "m").write_text(json.dumps(row))
    (problem,) = read_manifest(tmp_path / "m").problems
    assert "inside tar archive 3" in problem.what


def test_a_damaged_first_line_hides_no_format(tmp_path):
    path = nemo(tmp_path / "m")
    path.write_text("{\n" + path.read_text())
    m = read_manifest(path)
    assert (m.source.format, m.utterances, len(m.problems)) == ("nemo", 4, 1)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_lhotse(tmp_path, ending):
    path = tmp_path / f"cuts.{ending}"
    cuts().to_file(path)
    assert recognise(path) == "lhotse"
    same_audio(good(path))


def test_lhotse_parts(tmp_path):
    cuts().subset(first=1).truncate(offset_type="start", max_duration=1.5).to_file(tmp_path / "c.jsonl")
    (utt,) = good(tmp_path / "c.jsonl")
    assert (utt.offset, utt.duration) == (0.0, 1.5)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda c: c.perturb_speed(1.1), "Speed(factor=1.1"),
        (lambda c: c.perturb_volume(2.0), "Volume(factor=2.0"),
        (lambda c: c.resample(8000), "Resample("),
        (lambda c: c.pad(duration=10.0), "MixedCut"),
        (lambda c: c.append(c), "MixedCut"),
        (lambda c: without_recording(c), "has no recording"),
        (lambda c: from_web(c), "of type 'url'"),
    ],
)
def test_lhotse_cuts_without_a_recording_of_their_own(tmp_path, change, what):
    changed = change(next(iter(cuts())))
    line = changed if isinstance(changed, dict) else changed.to_dict()
    (tmp_path / "c.jsonl").write_text(json.dumps({**line, "id": "u"}))
    (problem,) = read_manifest(tmp_path / "c.jsonl", format="lhotse").problems
    assert problem.id == "u"
    assert what in problem.what


def test_lhotse_recordings_are_no_cuts(tmp_path):
    line = next(iter(cuts())).recording.to_dict()
    (tmp_path / "r.jsonl").write_text(json.dumps(line))
    (problem,) = read_manifest(tmp_path / "r.jsonl", format="lhotse").problems
    assert "CutSet.from_manifests" in problem.what


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lhotse", None)
    monkeypatch.setitem(sys.modules, "lhotse.serialization", None)
    (tmp_path / "c").write_text('{"type": "MonoCut", "id": "a"}')
    with pytest.raises(UsageError, match=r"logitstore\[lhotse\]"):
        read_manifest(tmp_path / "c")
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dataset_info.json").write_text("{}")
    with pytest.raises(UsageError, match=r"logitstore\[huggingface\]"):
        read_manifest(tmp_path / "d")


def test_huggingface_bytes_are_refused_until_they_are_written_to_files(tmp_path):
    path = hugging(tmp_path / "ds")
    assert recognise(path) == "huggingface"
    m = read_manifest(path)
    assert (m.utterances, len(m.problems)) == (0, 4)
    assert "--audio-dir" in m.problems[0].what
    result = run(path, tmp_path / "m.jsonl", "--audio-dir", tmp_path / "wavs")
    assert result.exit_code == 0, result.output
    same_audio(good(tmp_path / "m.jsonl"))


def test_huggingface_splits_are_listed(tmp_path):
    (tmp_path / "dataset_dict.json").write_text("{}")
    (tmp_path / "test").mkdir()
    with pytest.raises(ManifestError, match=r"splits: test\n.*Give one of them: .*/test"):
        read_manifest(tmp_path)


def test_huggingface_without_audio(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "d")
    with pytest.raises(ManifestError, match="none of its columns is audio: text"):
        read_manifest(tmp_path / "d")


def test_unknown_formats(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'kaldi'"):
        read_manifest(tmp_path, format="kalid")
    with pytest.raises(LogitStoreError, match="no known format of manifests"):
        open_source(tmp_path)


def run(*args):
    return CliRunner().invoke(command, [str(a) for a in args])


def test_convert_from_every_format_gives_the_same_lines(tmp_path):
    sources = [kaldi(tmp_path / "data", text=texts()), nemo(tmp_path / "nemo.json")]
    try:
        cuts().to_file(tmp_path / "c.jsonl.gz")
        sources.append(tmp_path / "c.jsonl.gz")
    except pytest.skip.Exception:
        pass
    written = []
    for number, source in enumerate(sources):
        to = tmp_path / f"{number}.jsonl"
        result = run(source, to)
        assert result.exit_code == 0, result.output
        assert "4 utterances" in result.output
        same_audio(good(to))
        written.append([(u.id, u.audio, u.text, round(u.duration, 4)) for u in good(to)])
    assert all(w == written[0] for w in written)


def test_convert_finds_what_is_wrong_with_recordings_and_keeps_the_rest(tmp_path):
    soundfile.write(tmp_path / "b.wav", np.zeros(16000), 16000)
    rows = [
        {"id": "good", "audio": "b.wav"},
        {"id": "gone", "audio": "a.wav"},
        {"id": "long", "audio": "b.wav", "duration": 1.5},
        {"id": "behind", "audio": "b.wav", "offset": 2.0},
        {"id": "good", "audio": "b.wav"},
    ]
    demo.write_manifest(tmp_path / "m.jsonl", rows)
    result = run(tmp_path / "m.jsonl", tmp_path / "to" / "out.jsonl", "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert (said["utterances"], said["rates"], said["hours"]) == (1, {"16000": 1}, 1 / 3600)
    what = {p["id"]: p["what"] for p in said["problems"]}
    assert "is already at line" in what["good"]
    assert "does not exist" in what["gone"]
    assert "asks for 0.000 + 1.500 s" in what["long"]
    assert "it ends before the utterance" in what["behind"]
    (line,) = (tmp_path / "to" / "out.jsonl").read_text().splitlines()
    assert json.loads(line) == {"id": "good", "audio": str(tmp_path / "b.wav"), "duration": 1.0}
    assert run(tmp_path / "m.jsonl").exit_code == 1
    plain = run(tmp_path / "m.jsonl", tmp_path / "again.jsonl").output
    assert "4 cannot be used" in plain
    assert json.loads((tmp_path / "again.jsonl").read_text())["audio"] == "b.wav"  # it lies beside


def test_convert_keeps_channels_tokens_pipes_and_strange_names(tmp_path):
    strange = os.fsdecode(b"\xff.wav")
    soundfile.write(tmp_path / "b.wav", np.zeros((1600, 2)), 16000)
    os.rename(tmp_path / "b.wav", tmp_path / strange)
    rows = [
        {"id": "’é", "audio": strange, "channel": 1, "tokens": [1, 2], "text": "’"},
        {"id": "p", "pipe": f"cat {LINES[0]['audio']}"},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert run(tmp_path / "m.jsonl", tmp_path / "o.jsonl", "--allow-pipes").exit_code == 0
    a, b = good(tmp_path / "o.jsonl", allow_pipes=True)
    assert (a.id, a.channel, a.tokens, a.text, a.audio) == ("’é", 1, (1, 2), "’", tmp_path / strange)
    assert b.pipe == rows[1]["pipe"]


def test_embedded_recordings_get_harmless_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    raw = Path(LINES[0]["audio"]).read_bytes()
    ids = ["../../etc/x", "..", "漢" * 100, "漢" * 99 + "字"]
    audio = [{"bytes": raw, "path": None} for _ in ids]
    data = datasets.Dataset.from_dict({"id": ids, "audio": audio}).cast_column("audio", datasets.Audio())
    data.save_to_disk(tmp_path / "ds")
    result = run(tmp_path / "ds", tmp_path / "m.jsonl", "--audio-dir", tmp_path / "w")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "w").iterdir())) == 4
    assert [u.id for u in good(tmp_path / "m.jsonl")] == ids


def test_the_dump_takes_a_kaldi_folder_as_it_takes_json_lines(tmp_path):
    path = kaldi(tmp_path / "data", text=texts())
    lines = demo.write_manifest(tmp_path / "m.jsonl", LINES)
    stores = []
    for name, manifest in (("k", path), ("j", lines)):
        out = tmp_path / name
        args = ["--teacher", demo.FACTORY, "--manifest", manifest, "--out", out, "--stream", "ctc=topk:4"]
        subprocess.run(
            [sys.executable, "-m", "logitstore", "dump", *map(str, args)], check=True, cwd=demo.ROOT
        )

        stores.append(open_store(out))
    one, two = stores
    assert list(one) == list(two)
    for utt_id in one:
        a, b = one.record(utt_id), two.record(utt_id)
        assert a.meta == b.meta
        assert all(np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays)


def test_memory_does_not_grow_with_texts(tmp_path):
    """Sixteen bytes a line and file, whatever the lines hold."""
    import tracemalloc

    count = 5_000
    wav = "".join(f"u{i:07d} {'d' * 400}/{i}.wav\n" for i in range(count))
    text = "".join(f"u{i:07d} {'word ' * 2000}\n" for i in range(count))
    path = kaldi(tmp_path / "d", wav, text=text)
    read_manifest(kaldi(tmp_path / "small", "u a.wav\n", text="u x\n"))
    tracemalloc.start()
    assert read_manifest(path).utterances == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The files hold 10 400 bytes a line. pathlib interns names: Python's own table of them may double here.
    assert peak < 2_500 * count


def test_gzip_json_lines(tmp_path):
    (tmp_path / "m.gz").write_bytes(gzip.compress(json.dumps(LINES[0]).encode()))
    assert good(tmp_path / "m.gz")[0].id == LINES[0]["id"]


def test_wenet(tmp_path, monkeypatch):
    monkeypatch.chdir(demo.ROOT)
    lines = [json.loads(x) for x in demo.MANIFEST.read_text("utf-8").splitlines()][:3]
    audio = [str((demo.MANIFEST.parent / x["audio"]).relative_to(demo.ROOT)) for x in lines]
    given = [{"key": x["id"], "wav": a, "txt": x["text"]} for x, a in zip(lines, audio, strict=True)]
    given.append({"key": "part", "wav": audio[0], "txt": "a", "start": 0.25, "end": 0.75})
    given.append({"key": "bad", "wav": audio[0], "txt": "a", "start": 0.75, "end": 0.25})
    path = tmp_path / "data.list"
    path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in given), "utf-8")
    m = read_manifest(path)
    assert m.source.format == "wenet"
    found = {u.id: u for u in m}
    assert list(found) == [*(x["id"] for x in lines), "part"]
    assert found[lines[0]["id"]].text == lines[0]["text"]
    assert (found["part"].offset, found["part"].duration) == (0.25, 0.5)
    assert "not times in seconds" in m.problems[0].what
    assert len(load_audio(found["part"], 16000)) == 8000
