"""SpeechBrain: tiny models built from a yaml, written by its checkpointer's savers and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from logitstore.errors import TeacherError, UsageError
from logitstore.teachers import load_teacher
from logitstore.teachers.tap import Tap
from tests.frameworks.models_speechbrain import (
    CTC,
    LETTERS,
    RNN,
    TRANSDUCER,
    TRANSFORMER,
    build,
    write_pieces,
)
from tests.frameworks.teacher_checks import (
    batched,
    check_teacher,
    ctc_logits,
    decoder_logits,
    framework,
    lattice,
    recordings,
)

framework("speechbrain")


@pytest.fixture
def transducer(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    write_pieces(tmp_path)
    return tmp_path, build(TRANSDUCER, tmp_path)


def test_a_ctc_folder(speechbrain_ctc: tuple[Path, dict[str, Any]]) -> None:
    folder, hparams = speechbrain_ctc
    teacher: Any = load_teacher(f"speechbrain:{folder}")
    check_teacher(teacher)
    assert teacher.describe().frame_shift == 640
    assert teacher.tokens().tokens == ("<blank>", *LETTERS)
    assert teacher.tokens().blank == 0
    assert teacher.labels("a dog") == [teacher.tokens().id(c) for c in "a dog"]
    with pytest.raises(ValueError, match="does not tokenise"):
        teacher.labels("a fox")
    for audio in recordings():
        with torch.inference_mode():
            own = hparams["encoder"](torch.from_numpy(audio)[None], torch.ones(1))[0]
        got = ctc_logits(teacher, [audio])[0]
        assert got.shape == own.shape
        assert (got.log_softmax(-1) - own).abs().max() <= 1e-5
        assert (got.logsumexp(-1)).abs().max() > 1e-2  # logits, not the log-softmax behind them


def test_encoder_asr_says_the_same(speechbrain_ctc: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from speechbrain.inference.ASR import EncoderASR

    folder, _ = speechbrain_ctc
    text = (folder / "hyperparams.yaml").read_text().replace("somebody/somewhere", str(folder))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "hyperparams.yaml").write_text(text)
    model = EncoderASR.from_hparams(str(tmp_path / "own"), savedir=str(tmp_path / "saved"))
    teacher = load_teacher(f"speechbrain:{folder}")
    audio = recordings()[0]
    own = model.encode_batch(torch.from_numpy(audio)[None], torch.ones(1))[0]
    assert (ctc_logits(teacher, [audio])[0].log_softmax(-1) - own).abs().max() <= 1e-5


def test_a_batch_together_is_what_the_model_says_of_that_batch(
    speechbrain_ctc: tuple[Path, dict[str, Any]],
) -> None:
    folder, hparams = speechbrain_ctc
    teacher = load_teacher(f"speechbrain:{folder},batch=together")
    audio = recordings()
    waves = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(a) for a in audio], batch_first=True)
    relative = torch.tensor([len(a) for a in audio]) / len(audio[0])
    with torch.inference_mode():
        own = hparams["encoder"](waves, relative)
    for got, said, r in zip(ctc_logits(teacher, audio), own, relative, strict=True):
        assert len(got) == round(float(r) * own.shape[1])
        assert (got.log_softmax(-1) - said[: len(got)]).abs().max() <= 1e-5


def test_a_transducer_folder(transducer: tuple[Path, dict[str, Any]]) -> None:
    folder, hparams = transducer
    teacher: Any = load_teacher(f"speechbrain:{folder}")
    check_teacher(teacher)
    assert [h.stream for h in teacher.describe().heads] == ["ctc", "rnnt"]
    assert teacher.tokens()[0] == "<blank>"
    labels = teacher.labels("the cat")
    assert 0 not in labels
    audio = recordings()[1]
    with torch.inference_mode():
        tn = hparams["encoder"](torch.from_numpy(audio)[None], torch.ones(1))
        pn = hparams["emb"](torch.tensor([[0, *labels]]))
        pn = hparams["proj_dec"](hparams["dec"](pn)[0])
        own = hparams["transducer_lin"](hparams["Tjoint"](tn[:, :, None], pn[:, None]))[0]
        ctc = hparams["ctc_lin"](tn)[0]
    assert (lattice(teacher, [audio], labels)[0] - own).abs().max() <= 1e-4
    assert (ctc_logits(teacher, [audio])[0] - ctc).abs().max() <= 1e-5
    features, lengths = batched(teacher, [audio])
    with torch.inference_mode(), Tap(teacher.model, {"rnnt": teacher.describe().head("rnnt").module}) as tap:
        out = teacher.join(*teacher.transducer(teacher.forward(features, lengths), 0, labels))
        assert torch.equal(tap.take("rnnt")[0], out)


@pytest.mark.parametrize("kind", ["rnn", "transformer"])
def test_an_attention_decoder(kind: str, tmp_path: Path) -> None:
    write_pieces(tmp_path)
    hparams = build(RNN if kind == "rnn" else TRANSFORMER, tmp_path)
    teacher: Any = load_teacher(f"speechbrain:{tmp_path}")
    check_teacher(teacher)
    head = teacher.describe().head("seq2seq")
    assert ([h.stream for h in teacher.describe().heads], head.end) == (["seq2seq"], 2)
    labels = teacher.labels("the cat")
    audio = recordings()[1]
    with torch.inference_mode():  # as compute_forward of the recipes
        one, bos = torch.ones(1), torch.tensor([[1, *labels]])
        if kind == "rnn":
            x = hparams["encoder"](torch.from_numpy(audio)[None], one)
            said, _ = hparams["dec"](hparams["emb"](bos), x, one)
        else:
            feats = hparams["normalize"](hparams["compute_features"](torch.from_numpy(audio)[None]), one)
            _, said = hparams["Transformer"](hparams["enc"](feats), bos, one, pad_idx=0)
        own = hparams["seq_lin"](said)[0]
    assert (decoder_logits(teacher, [audio], labels)[0] - own).abs().max() <= 1e-4


def test_greedy_search_walks_the_same_lattice(transducer: tuple[Path, dict[str, Any]]) -> None:
    folder, hparams = transducer
    teacher = load_teacher(f"speechbrain:{folder}")
    audio = recordings()[1]
    with torch.inference_mode():
        tn = hparams["encoder"](torch.from_numpy(audio)[None], torch.ones(1))
        found = hparams["decoder"](tn)[0][0]
    logits = lattice(teacher, [audio], list(found))[0]
    t = u = symbols = 0
    while t < len(logits):
        best = int(logits[t, u].argmax())
        if best == 0 or symbols == 6:  # its own limit of symbols a frame
            t, symbols = t + 1, 0
            continue
        assert best == found[u]
        u, symbols = u + 1, symbols + 1
    assert u == len(found)


def test_a_missing_checkpoint_is_named(speechbrain_ctc: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = speechbrain_ctc
    (folder / "asr.ckpt").unlink()
    with pytest.raises(TeacherError, match=r"asr\.ckpt is missing"):
        load_teacher(f"speechbrain:{folder}")


def test_a_yaml_without_weights_is_refused(speechbrain_ctc: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = speechbrain_ctc
    (folder / "train.yaml").write_text(CTC.partition("pretrainer")[0])
    with pytest.raises(TeacherError, match="no pretrainer"):
        load_teacher(f"speechbrain:{folder},hparams=train.yaml")


def test_a_head_that_no_checkpoint_fills_is_refused(speechbrain_ctc: tuple[Path, dict[str, Any]]) -> None:
    from hyperpyyaml import load_hyperpyyaml
    from speechbrain.utils.checkpoints import torch_save

    folder, _ = speechbrain_ctc
    text = CTC.replace("- [!ref <enc>, !ref <ctc_lin>]", "- [!ref <enc>]")
    (folder / "hyperparams.yaml").write_text(text)
    torch_save(load_hyperpyyaml(text)["asr"], folder / "asr.ckpt")
    with pytest.raises(TeacherError, match="no checkpoint fills the ctc head"):
        load_teacher(f"speechbrain:{folder}")


def test_a_wrong_ctc_path_lists_its_siblings(speechbrain_ctc: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = speechbrain_ctc
    with pytest.raises(TeacherError, match="Did you mean 'ctc_lin'"):
        load_teacher(f"speechbrain:{folder},ctc=encoder.ctc_lim.w")
    with pytest.raises(UsageError, match="neither alone nor together"):
        load_teacher(f"speechbrain:{folder},batch=some")


def test_audio_too_short(speechbrain_ctc: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="too short"):
        load_teacher(f"speechbrain:{speechbrain_ctc[0]}").features(recordings()[0][:300])


SCRIPT = """
import sys
import soundfile
import torch
from speechbrain.inference.ASR import EncoderDecoderASR

model = EncoderDecoderASR.from_hparams("own", savedir="saved")
for path in sys.argv[1:]:
    audio, rate = soundfile.read(path, dtype="float32")
    encoded = model.encode_batch(torch.from_numpy(audio)[None], torch.ones(1))
    with torch.no_grad():
        print(path, model.mods.decoder(encoded)[0])  # transcribe_batch, less the text
"""


def test_its_own_greedy_search_captured(transducer: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from tests.frameworks.own_inference import audio, check_lattices, probed_and_captured

    folder, _ = transducer
    (tmp_path / "own").mkdir()
    paths = f"    paths:\n        asr: {folder}/asr.ckpt\n        tokenizer: {folder}/tokenizer.ckpt\n"
    text = (folder / "hyperparams.yaml").read_text() + paths + "transducer_beam_search: True\n"
    (tmp_path / "own" / "hyperparams.yaml").write_text(text)
    found, store, _ = probed_and_captured(SCRIPT, tmp_path)
    assert found["transducer"]["convention"] == "speechbrain"
    assert found["transducer"]["encoder"] == "input:mods.decoder"
    teacher: Any = load_teacher(f"speechbrain:{folder}")
    check_lattices(store, lambda wav, labels: lattice(teacher, [audio(wav)], labels)[0])
