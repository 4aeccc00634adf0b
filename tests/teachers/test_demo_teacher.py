"""The trained demo teacher: what it claims of itself, and that it recognises speech it never heard."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from logitstore.corpus.audio import load_audio
from logitstore.corpus.manifest import read_manifest as read_rows
from logitstore.teachers.protocol import load_teacher
from recipes.demo import corpus, grammar, teacher
from recipes.demo.decode import collate, ctc_greedy, edits, read_manifest, rnnt_greedy, token_error
from recipes.demo.features import SAMPLE_RATE, log_mel, resample
from recipes.demo.model import AsrModel, Sizes
from recipes.demo.pieces import Pieces
from recipes.demo.rnnt_loss import rnnt_loss

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "manifests" / "demo.jsonl"


@pytest.fixture(scope="module")
def demo():
    return teacher.load()


@pytest.fixture(scope="module")
def utterances():
    return read_manifest(MANIFEST, Pieces.read(teacher.TOKENS))


@pytest.fixture(scope="module")
def output(demo, utterances):
    return demo.forward(*collate(utterances))


def rows():
    return [json.loads(line) for line in MANIFEST.read_text(encoding="utf-8").splitlines()]


def test_the_manifest_says_what_is_in_the_audio():
    assert [row["id"] for row in rows()] == [f"demo-{n:02d}" for n in range(20)]
    rates = []
    for row in rows():
        path = MANIFEST.parent / row["audio"]
        info = soundfile.info(path)
        assert info.format == "FLAC"
        assert info.channels == 1
        assert row["duration"] == pytest.approx(info.frames / info.samplerate, abs=1e-6)
        assert 1.0 <= row["duration"] <= 4.0
        rates.append(info.samplerate)
    assert sorted(set(rates)) == [16000, 22050]
    assert rates.count(22050) == 2
    assert sum(path.stat().st_size for path in MANIFEST.parent.glob("demo/*")) < 1.5e6
    assert any("don’t" in row["text"] for row in rows())
    assert any("café" in row["text"] for row in rows())


def test_no_demo_sentence_and_no_held_out_speaker_is_trained_on():
    assert all(grammar.split_of(row["text"]) == "demo" for row in rows())
    assert len({row["text"] for row in rows()}) == 20
    assert not set(corpus.HELD_OUT) & set(corpus.SPEAKERS)
    takes = corpus.training(1, "train")
    for take in (next(takes) for _ in range(200)):
        assert take.speaker not in corpus.HELD_OUT
        assert grammar.split_of(take.text) == "train"


def test_the_weights_are_small(demo):
    assert sum(p.numel() for p in demo.model.parameters()) <= 480_000
    assert teacher.WEIGHTS.stat().st_size < 2_000_000
    assert not demo.model.training
    assert not any(p.requires_grad for p in demo.model.parameters())


def test_weights_of_another_token_table_are_refused(tmp_path):
    other = tmp_path / "tokens.txt"
    other.write_text("<blk> 0\na 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="token table"):
        teacher.load(tokens=other)


def test_both_branches_recognise_unseen_speech(demo, utterances):
    error = token_error(demo.model, utterances)
    assert max(error.values()) <= 0.05, error


def test_logitstore_loads_it_and_its_audio(demo, utterances):
    """The file loader and another resampler (soxr) than training used: the same labels come out."""
    loaded = load_teacher(f"{teacher.HERE / 'teacher.py'}:load")
    assert loaded.describe() == demo.describe()
    wrong = total = 0
    for row, utterance in zip(read_rows(MANIFEST), utterances, strict=True):
        features = loaded.features(load_audio(row, SAMPLE_RATE))
        output = loaded.forward(features[None], torch.tensor([len(features)]))
        wrong += edits(ctc_greedy(loaded.log_probs(output)["ctc"][0]), utterance.labels)
        total += len(utterance.labels)
    assert wrong / total <= 0.05


def test_padding_changes_nothing(demo, utterances, output):
    """A batch of one against the whole padded batch, with rubbish where the padding was."""
    features, lengths = collate(utterances)
    for b, frames in enumerate(lengths.tolist()):
        features[b, frames:] = 1e3
    soiled = demo.forward(features, lengths)
    for b, utterance in enumerate(utterances):
        alone = demo.forward(*collate([utterance]))
        frames = int(alone.lens[0])
        assert frames == int(output.lens[b]) == alone.encoder_out.shape[1]
        for many in (output, soiled):
            assert torch.allclose(many.encoder_out[b, :frames], alone.encoder_out[0], atol=1e-4)
            assert torch.allclose(many.ctc[b, :frames], alone.ctc[0], atol=1e-4)


def test_one_teacher_frame_is_640_samples(demo):
    shift = demo.describe().frame_shift
    assert shift == 640
    for samples in (400, 640, 16000, 16079, 16080, 47999):
        features = demo.features(np.zeros(samples, dtype=np.float32))
        assert features.dtype == torch.float32
        assert features.shape == ((samples + 80) // 160, 64)
        frames = int(demo.lengths(demo.forward(features[None], torch.tensor([len(features)])))[0])
        assert abs(frames - samples / shift) <= 1


def test_the_sliced_projected_join_is_the_joiner(demo, utterances, output):
    b = 3
    labels = utterances[b].labels
    enc, dec = demo.transducer(output, b, labels)
    frames = int(output.lens[b])
    assert enc.shape == (frames, 112)
    assert dec.shape == (len(labels) + 1, 112)
    sliced = torch.cat([demo.join(enc[t : t + 7], dec) for t in range(0, frames, 7)])
    with torch.inference_mode():
        said = torch.tensor([[0, *labels]])
        whole = demo.model.joiner(output.encoder_out[b, :frames, None], demo.model.decoder(said))
    assert sliced.shape == (frames, len(labels) + 1, 150)
    assert torch.allclose(sliced, whole, atol=1e-5)


def test_each_named_head_fires_once_with_what_the_model_says(demo, utterances):
    fired: dict[str, list[torch.Tensor]] = {}
    handles = []
    for head in demo.describe().heads:
        seen = fired.setdefault(head.stream, [])
        module = demo.model.get_submodule(head.module)
        handles.append(module.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out)))
    try:
        output = demo.forward(*collate(utterances[:3]))
        assert len(fired["ctc"]) == 1
        assert not fired["rnnt"]
        logits = demo.join(*demo.transducer(output, 0, utterances[0].labels))
        assert len(fired["rnnt"]) == 1
        assert torch.equal(fired["rnnt"][0], logits)
    finally:
        for handle in handles:
            handle.remove()
    said = demo.log_probs(output)["ctc"]
    assert torch.allclose(fired["ctc"][0].log_softmax(-1), said, atol=1e-5)
    assert all(len(demo.tokens()) == logits.shape[-1] == said.shape[-1] for said in (said, logits))
    json.dumps(demo.describe().features)


def test_greedy_search_walks_the_lattice_the_teacher_gives(demo, utterances, output):
    """On its own labels, each lattice node the search passed through must prefer what the search said."""
    frames = int(output.lens[0])
    said = rnnt_greedy(demo.model, output.encoder_out[0, :frames])
    best = demo.join(*demo.transducer(output, 0, said)).argmax(-1)
    t = u = 0
    while t < frames:
        if best[t, u] == 0:
            t += 1
        else:
            assert best[t, u] == said[u]
            u += 1
    assert u == len(said)


def test_tokens_round_trip(demo):
    for row in rows():
        labels = demo.labels(row["text"])
        assert 0 not in labels
        assert demo.tokens().text(labels) == row["text"]
    assert demo.labels("cafe\N{COMBINING ACUTE ACCENT}") == demo.labels("café")
    assert demo.labels("") == []
    for text, character in (("Turn on", "'T'"), ("route 66", "'6'"), ("a▁b", "'▁'"), ("<blk>", "'<'")):
        with pytest.raises(ValueError, match=character):
            demo.labels(text)
    table = Pieces.read(teacher.TOKENS)
    assert all(letter in table.pieces for letter in "abcdefghijklmnopqrstuvwxyz’é")


def test_rnnt_loss_is_the_sum_over_alignments():
    """Value and gradient against every alignment written out, in a batch of unequal lengths."""

    def alignments(log_probs, labels, t, u):
        if t == len(log_probs) - 1 and u == len(labels):
            return [log_probs[t, u, 0]]
        paths = []
        if t < len(log_probs) - 1:
            paths += [log_probs[t, u, 0] + rest for rest in alignments(log_probs, labels, t + 1, u)]
        if u < len(labels):
            paths += [log_probs[t, u, labels[u]] + rest for rest in alignments(log_probs, labels, t, u + 1)]
        return paths

    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 5, 4, 6, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    labels = torch.tensor([[1, 2, 3], [4, 5, 0], [2, 2, 1], [3, 3, 3]])
    frames, counts = torch.tensor([5, 3, 4, 1]), torch.tensor([3, 2, 0, 3])
    loss = rnnt_loss(logits, labels, frames, counts)
    brute = []
    for b in range(4):
        log_probs = logits[b, : frames[b]].log_softmax(-1)
        paths = alignments(log_probs, labels[b, : counts[b]].tolist(), 0, 0)
        brute.append(-torch.logsumexp(torch.stack(paths), 0))
    assert torch.allclose(loss, torch.stack(brute))
    (have,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (want,) = torch.autograd.grad(torch.stack(brute).sum(), logits)
    assert torch.allclose(have, want, atol=1e-10)
    assert have.isfinite().all()


def test_the_whole_forward_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    model = AsrModel(Sizes(vocab=20)).eval()
    features, lengths = torch.randn(2, 50, 64), torch.tensor([50, 31])
    labels = torch.tensor([[3, 4, 5], [6, 7, 0]])
    ctc, joint, lens = model(features, lengths, labels)
    assert ctc.shape == (2, 13, 20)
    assert joint.shape == (2, 13, 4, 20)
    assert lens.tolist() == [13, 8]
    decoder_out = model.decoder(torch.tensor([[0, 6, 7]]))
    stepwise = [model.decoder(torch.tensor([c]), need_pad=False) for c in ([-1, 0], [0, 6], [6, 7])]
    assert torch.allclose(decoder_out, torch.cat(stepwise, dim=1), atol=1e-6)
    encoder_out, _ = model.forward_encoder(features, lengths)
    assert torch.allclose(joint[1, 4, :3], model.joiner(encoder_out[1, 4], decoder_out[0]), atol=1e-5)


def test_resampling_keeps_a_tone():
    time = np.arange(22050) / 22050
    tone = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    out = resample(tone, 22050, 16000)
    want = np.sin(2 * np.pi * 1000 * np.arange(16000) / SAMPLE_RATE)
    assert out.shape == (16000,)
    assert np.abs(out - want)[500:-500].max() < 0.01


def test_bad_audio_is_refused():
    for audio in (np.zeros((2, 16000), dtype=np.float32), np.zeros(399, dtype=np.float32)):
        with pytest.raises(ValueError, match="one channel of at least 400 samples"):
            log_mel(audio)


def test_edits_are_counted():
    assert edits([], [1, 2]) == 2
    assert edits([1, 2, 3], [1, 3]) == 1
    assert edits([1, 4, 3], [1, 2, 3]) == 1
