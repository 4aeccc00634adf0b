"""Reports without a browser: what is drawn is what the store holds."""

import re
import zlib
from dataclasses import replace

import numpy as np
import pytest

from logitstore import open_store, register, registry
from logitstore.errors import MissingUtterance, UsageError
from logitstore.pictures.colour import palette
from logitstore.pictures.html import foreign, tag
from logitstore.pictures.png import encode
from logitstore.report.alignment import align, edits
from logitstore.report.base import ReportOptions, Section
from logitstore.report.measure import losses_of, measure
from logitstore.report.rows import lattice_of, served_lattice
from logitstore.report.run import gather, report_store
from logitstore.report.spectrogram import spectrogram
from logitstore.report.utterance import drawn
from logitstore.targets.decode import decode
from logitstore.targets.frames import Method
from logitstore.targets.resample import resample_stream
from logitstore.teachers import load_teacher
from logitstore.tokens.transcript import edit_distance
from tests.support import attention_teacher, demo, dumping


def test_html_escapes_text_attributes_and_bidi_controls():
    assert tag("p", "<b>&", title='"<') == '<p title="&quot;&lt;">&lt;b&gt;&amp;</p>'
    assert foreign("a\u202eb\x07") == "<bdi>a\\u202eb\\x07</bdi>"
    assert foreign("می\u200cخواهم") == "<bdi>می\u200cخواهم</bdi>"  # a joiner is part of the word


@pytest.mark.parametrize(("shape", "levels"), [((3, 7), 16), ((5, 4), 64), ((1, 1), 2)])
def test_a_png_holds_its_pixels(shape, levels):
    pixels = np.random.default_rng(0).integers(0, levels, shape).astype(np.uint8)
    data = encode(pixels, palette("probability", levels))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert int.from_bytes(data[at + 8 + size : at + 12 + size], "big") == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + size
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(shape[0], -1)[:, 1:]
    if chunks[b"IHDR"][8] == 4:
        lines = np.stack([lines >> 4, lines & 15], axis=2).reshape(shape[0], -1)[:, : shape[1]]
    assert np.array_equal(lines, pixels)
    assert len(chunks[b"tRNS"]) == levels


@pytest.mark.parametrize("ramp", ["probability", "sound", "occupancy"])
def test_colours_darken_evenly_on_white_and_the_first_is_the_paper(ramp):
    rgba = palette(ramp, 32).astype(float)
    on_white = rgba[:, :3] * rgba[:, 3:] / 255 + 255 - rgba[:, 3:]
    linear = (on_white / 255) ** 2.2
    lightness = np.cbrt(linear @ [0.2126, 0.7152, 0.0722])
    assert rgba[0, 3] == 0
    assert (np.diff(lightness) < 0).all()
    assert np.diff(lightness).min() > 3 * np.diff(lightness).mean()  # no step is more than three mean steps


@pytest.mark.parametrize(
    ("a", "b"),
    [("kitten", "sitting"), ("", "abc"), ("abc", ""), ("", ""), ("aaab", "baaa"), ("same", "same")],
)
def test_an_alignment_has_both_sequences_and_the_fewest_edits(a, b):
    pairs = align(a, b)
    assert "".join(x for x, _ in pairs if x) == a
    assert "".join(y for _, y in pairs if y) == b
    assert edits(pairs) == edit_distance(a, b)


def test_a_lattice_passes_every_label_and_its_alignment_is_one_path(store):
    opened = open_store(store)
    target, spec = opened["demo-03"], opened.spec.stream("rnnt")
    lattice = lattice_of(target, spec)
    assert lattice.kept.shape == lattice.occupancy.shape == (target.T, target.U + 1)
    assert lattice.occupancy[~lattice.kept].max(initial=0) == 0
    assert lattice.occupancy.sum() == pytest.approx(target.T + target.U, rel=0.05)
    points = np.array(lattice.alignment())
    assert tuple(points[0]) == (0.5, 0.5)
    assert tuple(points[-1]) == (target.T - 0.5, target.U + 0.5)
    assert (np.diff(points, axis=0) >= 0).all()
    on = lattice.occupancy[tuple((points - 0.5).astype(int).T)]
    assert np.median(on) > 0.5  # the best alignment goes where the alignments are


def test_a_lattice_at_the_teachers_own_rate_is_the_stored_one(store):
    opened = open_store(store)
    target, spec = opened["demo-03"], opened.spec.stream("rnnt")
    served = resample_stream(target, "rnnt", target.T, Method.of("rnnt", None), 1.0)
    same, tokens = served_lattice(target, spec, served)
    stored = lattice_of(target, spec)
    assert np.array_equal(same.kept, stored.kept)
    assert np.array_equal(same.begin, stored.begin)
    assert np.abs(same.occupancy - stored.occupancy).max() < 0.05  # stored: over all nodes, in float16
    assert tokens == decode(target, "rnnt", spec.blank)
    half = resample_stream(target, "rnnt", (target.T + 1) // 2, Method.of("rnnt", None), 1.0)
    fewer, _ = served_lattice(target, spec, half)
    assert fewer.kept.shape == ((target.T + 1) // 2, target.U + 1)
    assert fewer.occupancy.sum() == pytest.approx(fewer.kept.shape[0] + target.U, rel=0.05)


def test_the_worst_utterances_come_first_and_those_asked_for_before_them(store):
    report = gather(open_store(store), ReportOptions(utterances=3, ids=("demo-07",)))
    assert report.shown[0] == "demo-07"
    assert len(report.shown) == 3
    by_wer = max(report.measured.utterances, key=lambda m: m.wer or 0)
    assert by_wer.id in report.shown
    assert by_wer.wer > 0


def test_a_sample_depends_on_its_seed_alone_and_is_said(store):
    samples = [
        gather(open_store(store), ReportOptions(sample=5, seed=s)).measured.utterances for s in (1, 1, 2)
    ]
    ids = [[one.id for one in sample] for sample in samples]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 5
    text = report_store(store, ReportOptions(sample=5, seed=1, utterances=2))
    assert "5 of 20 utterances, drawn at random (seed 1)" in text
    assert text == report_store(store, ReportOptions(sample=5, seed=1, utterances=2))


def test_targets_at_another_rate_have_a_decode_of_their_own(store):
    text = report_store(store, ReportOptions(rate=(1, 2), utterances=1, ids=("demo-00",)))
    assert "38 student frames, keep-tokens" in text
    assert text.count("against the stored rows") == 2  # of both streams
    assert "rnnt target at 1:2" in text
    assert "target at 1:2" not in report_store(store, ReportOptions(utterances=1))


def test_a_section_of_another_package_appears_in_its_place(store, monkeypatch):
    class Mine:
        ORDER = 35

        @staticmethod
        def draw(report):
            return Section("Mine", tag("p", f"{len(report.measured.utterances)} measured"), "mine")

    monkeypatch.setattr(registry, "_registered", {})
    register("report_sections", "mine", Mine)
    titles = re.findall(r"<h2>(.*?)</h2>", report_store(store, ReportOptions(utterances=1)))
    assert titles.index("Mine") == titles.index("Distributions") + 1
    assert "20 measured" in report_store(store, ReportOptions(utterances=1))


def test_wrong_options_are_refused(store):
    with pytest.raises(MissingUtterance, match="nobody"):
        report_store(store, ReportOptions(ids=("nobody",)))
    with pytest.raises(UsageError, match="sample=0"):
        ReportOptions(sample=0)
    with pytest.raises(UsageError, match="rate"):
        ReportOptions(rate=(0, 2))


@pytest.mark.parametrize(
    ("streams", "shown"),
    [
        ({"ctc": "factored:int8", "rnnt": "factored"}, ["ctc best path", "rnnt lattice"]),
        ({"rnnt": "topk:8/path"}, ["rnnt lattice", "most probable alignment"]),
        ({"rnnt": "topk:8/sample:4+occupancy"}, ["rnnt lattice", "of the nodes stored"]),
        ({"rnnt": "dense/mean-u"}, ["rnnt posteriors", "entropy"]),
        ({"rnnt": "collapsed/banded:5"}, ["rnnt lattice"]),
    ],
)
def test_every_form_of_a_lattice_is_drawn(tmp_path, streams, shown):
    dumping.run(tmp_path / "s", limit=2, streams=streams)
    text = report_store(tmp_path / "s", ReportOptions(rate=(1, 2)))
    assert all(words in text for words in shown)
    assert "cannot be read" not in text


def test_a_layer_an_attention_decoder_and_transcripts_are_drawn(tmp_path):
    dumping.run(tmp_path / "layers", limit=2, streams={"ctc": "topk:4"}, layers=("ctc_output.0",))
    assert "hidden root mean square" in report_store(tmp_path / "layers")
    streams = {"ctc": "topk:4", "seq2seq": "topk:8"}
    dumping.run(tmp_path / "decoder", limit=2, streams=streams, teacher=attention_teacher.load())
    text = report_store(tmp_path / "decoder")
    assert text.count("label by label, under teacher forcing") == 2
    assert text.count("Labels of seq2seq as a table") == 2
    lines = "".join(f'{{"id": "{u.id}", "text": "said {u.id}"}}\n' for u in demo.manifest(2))
    (tmp_path / "texts.jsonl").write_text(lines, "utf-8")
    teacher = load_teacher(f"text:{tmp_path / 'texts.jsonl'}")
    dumping.run(
        tmp_path / "texts", limit=2, streams={"text": ""}, teacher=teacher, max_wer=100, skip_checks="a test"
    )
    assert "<bdi>said</bdi>" in report_store(tmp_path / "texts")


@pytest.mark.parametrize("seconds", [10**400, -1, 1e300, float("nan"), float("inf"), True, 0], ids=range(7))
def test_lengths_that_no_recording_has_break_no_page(store, monkeypatch, seconds):
    opened = open_store(store)
    read = opened.decode

    def with_seconds(record, only=None):
        target = read(record, only)
        return replace(
            target, meta={**target.meta, "seconds": seconds, "kl": {"ctc": ["x", None, 1], "rnnt": 3}}
        )

    monkeypatch.setattr(opened, "decode", with_seconds)
    measured = measure(opened, ["demo-00", "demo-01"])
    assert len(measured.utterances) == 2
    assert losses_of(opened["demo-00"]) == {}
    report = gather(open_store(store), ReportOptions(utterances=1))
    report.store, report.measured = opened, measured
    assert "<article" in drawn(report, "demo-00")


def test_a_spectrogram_shows_a_tone_at_its_time_and_silence_after_the_audio():
    rate = 16000
    t = np.arange(rate) / rate
    audio = np.where(t < 0.5, np.sin(2 * np.pi * 400 * t), np.sin(2 * np.pi * 4000 * t)).astype(np.float32)
    image = spectrogram(audio, rate, 2.0)
    assert image.shape == (40, 200)
    low, high = image[:, 25].argmax(), image[:, 75].argmax()
    assert low > 25 > 15 > high  # high bands are at the top
    assert image[:, 110:].max() == 0
    assert spectrogram(audio, rate, 1e12).shape == (40, 420)
