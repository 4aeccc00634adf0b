"""NeMo: tiny models of the real classes, written by save_to and restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from logitstore.errors import TeacherError
from logitstore.teachers import load_teacher
from logitstore.teachers.tap import Tap
from tests.frameworks.models_nemo import (
    CTC_DECODER,
    ENCODER,
    PREPROCESSOR,
    build,
)
from tests.frameworks.teacher_checks import batched, check_teacher, ctc_logits, framework, lattice, recordings

framework("nemo.collections.asr")


@pytest.mark.parametrize("kind", ["ctc", "hybrid"])
def test_ctc(kind: str, nemo_tokenizer: Path, tmp_path: Path) -> None:
    model, path = build(kind, nemo_tokenizer, tmp_path)
    teacher: Any = load_teacher(f"nemo:{path}")
    check_teacher(teacher)
    head, table = teacher.describe().head("ctc"), teacher.tokens()
    assert head.layout == "BVT"
    assert head.module.endswith("decoder.decoder_layers.0")
    assert head.blank == table.blank == len(table) - 1
    assert table.tokens[:-1] == tuple(model.tokenizer.ids_to_tokens(list(range(len(table) - 1))))
    assert teacher.describe().frame_shift == 1280
    model.preprocessor.featurizer.pad_to = 0
    for audio in recordings():
        with torch.inference_mode():
            said = model.forward(
                input_signal=torch.from_numpy(audio)[None], input_signal_length=torch.tensor([len(audio)])
            )
            own = said[0] if kind == "ctc" else model.ctc_decoder(encoder_output=said[0])
        got = ctc_logits(teacher, [audio])[0]
        assert len(got) == int(said[1][0])
        assert (got.log_softmax(-1) - own[0, : len(got)]).abs().max() <= 1e-5
        assert got.logsumexp(-1).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["rnnt", "hybrid", "tdt", "hat"])
def test_transducers(kind: str, nemo_tokenizer: Path, tmp_path: Path) -> None:
    model, path = build(kind, nemo_tokenizer, tmp_path)
    teacher: Any = load_teacher(f"nemo:{path}")
    check_teacher(teacher)
    labels = teacher.labels("the cat")
    assert labels == model.tokenizer.text_to_ids("the cat")
    audio = recordings()[0]
    with torch.inference_mode():
        model.preprocessor.featurizer.pad_to = 0
        enc, frames = model.forward(
            input_signal=torch.from_numpy(audio)[None], input_signal_length=torch.tensor([len(audio)])
        )
        dec = model.decoder(targets=torch.tensor([labels]), target_length=torch.tensor([len(labels)]))[0]
        own = model.joint.joint(enc.transpose(1, 2), dec.transpose(1, 2))[0, : int(frames[0])]
    got = lattice(teacher, [audio], labels)[0]
    classes, head = len(teacher.tokens()), teacher.describe().head("rnnt")
    if kind == "tdt":  # on a CPU its log_softmax runs over tokens and durations as one
        assert own.shape[-1] == classes + 5
        own = own[..., :classes].log_softmax(-1)
    assert (got.log_softmax(-1) - own).abs().max() <= 1e-4
    normalised = bool(got.logsumexp(-1).abs().max() < 1e-3)
    assert normalised == head.normalised == (kind == "hat")
    features, lengths = batched(teacher, [audio])
    with torch.inference_mode(), Tap(teacher.model, {"rnnt": head.module}) as tap:
        out = teacher.join(*teacher.transducer(teacher.forward(features, lengths), 0, labels))
        assert torch.equal(tap.take("rnnt")[0][..., :classes], out)


def test_no_labels_is_one_row(nemo_tokenizer: Path, tmp_path: Path) -> None:
    teacher = load_teacher(f"nemo:{build('rnnt', nemo_tokenizer, tmp_path)[1]}")
    assert lattice(teacher, recordings()[:1], [])[0].shape[1] == 1


def test_a_model_of_characters(tmp_path: Path) -> None:
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import OmegaConf

    decoder = {**CTC_DECODER, "vocabulary": [" ", "a", "t", "c"], "num_classes": 4}
    config = {"sample_rate": 16000, "preprocessor": PREPROCESSOR, "encoder": ENCODER, "decoder": decoder}
    model = EncDecCTCModel(cfg=OmegaConf.create({**config, "labels": decoder["vocabulary"]}))
    model.save_to(str(tmp_path / "chars.nemo"))
    teacher: Any = load_teacher(f"nemo:{tmp_path}/chars.nemo")
    check_teacher(teacher)
    assert teacher.tokens().tokens == (" ", "a", "t", "c", "<blank>")
    assert teacher.labels("a cat") == [1, 0, 3, 1, 2]
    with pytest.raises(ValueError, match="does not tokenise"):
        teacher.labels("a dog")


@pytest.mark.parametrize("subsampling", ["striding", "stacking", "jasper"])
def test_encoders_in_a_batch(subsampling: str) -> None:
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import OmegaConf

    from logitstore.teachers.nemo import teacher_of

    encoder: dict[str, Any] = {**ENCODER, "subsampling": subsampling, "subsampling_factor": 4}
    if subsampling == "jasper":
        block = {"filters": 16, "repeat": 1, "kernel": [5], "stride": [2], "dilation": [1], "dropout": 0.1}
        block.update(residual=False, separable=True, se=True, se_context_size=-1)
        encoder = {
            "_target_": "nemo.collections.asr.modules.ConvASREncoder",
            "feat_in": 40,
            "activation": "relu",
            "conv_mask": True,
            "jasper": [block, block],
        }
    decoder = {**CTC_DECODER, "vocabulary": [" ", "a", "t", "c"], "num_classes": 4}
    config = {"sample_rate": 16000, "preprocessor": PREPROCESSOR, "encoder": encoder, "decoder": decoder}
    torch.manual_seed(0)
    model = EncDecCTCModel(cfg=OmegaConf.create({**config, "labels": decoder["vocabulary"]}))
    check_teacher(teacher_of(model, alone=True))
    if subsampling != "stacking":  # which counts frames by the longest of the batch
        check_teacher(teacher_of(model))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.nemo").write_bytes(b"no")
    with pytest.raises(TeacherError, match="cannot restore"):
        load_teacher(f"nemo:{tmp_path}/x.nemo")


SCRIPT = """
import sys
import soundfile
import torch
from nemo.collections.asr.models import ASRModel

model = ASRModel.restore_from(sys.argv[1], map_location="cpu").eval()
model.preprocessor.featurizer.dither, model.preprocessor.featurizer.pad_to = 0.0, 0
for wav in sys.argv[2:]:
    audio, rate = soundfile.read(wav, dtype="float32")
    with torch.inference_mode():
        encoded, lengths = model.forward(
            input_signal=torch.from_numpy(audio)[None], input_signal_length=torch.tensor([len(audio)])
        )
        print(wav, model.decoding.rnnt_decoder_predictions_tensor(encoded, lengths)[0].text)
"""


@pytest.mark.parametrize("kind", ["rnnt", "tdt", "hat"])
def test_its_own_greedy_search_captured(kind: str, nemo_tokenizer: Path, tmp_path: Path) -> None:
    from tests.frameworks.own_inference import audio, check_lattices, probed_and_captured

    _, path = build(kind, nemo_tokenizer, tmp_path)
    found, store, _ = probed_and_captured(SCRIPT, tmp_path, path)
    assert found["transducer"]["convention"] == "nemo"
    assert (found["transducer"]["joiner"], found["transducer"]["encoder"]) == ("joint", "encoder")
    head = store.spec.teacher.heads[-1]
    assert head.normalised == (kind == "hat")
    teacher: Any = load_teacher(f"nemo:{path}")
    assert store.spec.tokens["blank"] == len(teacher.tokens()) - 1 == store.spec.tokens["size"] - 1
    check_lattices(store, lambda wav, labels: lattice(teacher, [audio(wav)], labels)[0])
