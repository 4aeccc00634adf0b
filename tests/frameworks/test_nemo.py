"""NeMo: tiny models of the real classes, written by save_to and restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from logitstore.errors import TeacherError
from logitstore.teachers import load_teacher
from logitstore.teachers.tap import Tap
from tests.frameworks.teacher_checks import batched, check_teacher, framework, heard, lattice, recordings

framework("nemo.collections.asr")

SENTENCES = "the cat sat on the mat\na dog ate that hat\nthe hat sat on a dog\nthat mat the dog ate\n" * 5
PREPROCESSOR = {
    "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
    "sample_rate": 16000,
    "normalize": "per_feature",
    "window_size": 0.025,
    "window_stride": 0.01,
    "features": 40,
    "n_fft": 512,
    "dither": 0.00001,
    "pad_to": 16,
}
ENCODER = {
    "_target_": "nemo.collections.asr.modules.ConformerEncoder",
    "feat_in": 40,
    "feat_out": -1,
    "n_layers": 2,
    "d_model": 16,
    "n_heads": 2,
    "conv_kernel_size": 5,
    "subsampling": "dw_striding",
    "subsampling_factor": 8,
    "subsampling_conv_channels": 8,
    "dropout": 0.1,
}
CTC_DECODER = {
    "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
    "feat_in": 16,
    "num_classes": -1,
    "vocabulary": [],
}
TRANSDUCER = {
    "decoder": {
        "_target_": "nemo.collections.asr.modules.RNNTDecoder",
        "prednet": {"pred_hidden": 12, "pred_rnn_layers": 1, "dropout": 0.1},
    },
    "joint": {
        "_target_": "nemo.collections.asr.modules.RNNTJoint",
        "jointnet": {"joint_hidden": 10, "activation": "relu", "dropout": 0.2},
        "fuse_loss_wer": True,
        "fused_batch_size": 2,
    },
    "model_defaults": {"enc_hidden": 16, "pred_hidden": 12, "joint_hidden": 10},
    "decoding": {"strategy": "greedy", "greedy": {"max_symbols": 10}},
    "loss": {"loss_name": "pytorch"},
}
KINDS = {
    "ctc": ("EncDecCTCModelBPE", {"decoder": CTC_DECODER}),
    "rnnt": ("EncDecRNNTBPEModel", TRANSDUCER),
    "hybrid": (
        "EncDecHybridRNNTCTCBPEModel",
        {**TRANSDUCER, "aux_ctc": {"decoder": CTC_DECODER, "ctc_loss_weight": 0.3}},
    ),
    "tdt": (
        "EncDecRNNTBPEModel",
        {
            **TRANSDUCER,
            "joint": {**TRANSDUCER["joint"], "num_extra_outputs": 5},
            "decoding": {**TRANSDUCER["decoding"], "model_type": "tdt", "durations": [0, 1, 2, 3, 4]},
            "loss": {"loss_name": "tdt", "tdt_kwargs": {"durations": [0, 1, 2, 3, 4]}},
        },
    ),
    "hat": (
        "EncDecRNNTBPEModel",
        {
            **TRANSDUCER,
            "joint": {**TRANSDUCER["joint"], "_target_": "nemo.collections.asr.modules.HATJoint"},
        },
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text").write_text(SENTENCES)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=25,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    (folder / "vocab.txt").write_text("\n".join(pieces[1:]), encoding="utf-8")
    return folder


def build(kind: str, tokenizer: Path, folder: Path) -> tuple[Any, Path]:
    from nemo.collections.asr import models
    from omegaconf import OmegaConf

    name, extra = KINDS[kind]
    torch.manual_seed(0)
    config = OmegaConf.create(
        {
            "sample_rate": 16000,
            "preprocessor": PREPROCESSOR,
            "encoder": ENCODER,
            "tokenizer": {"dir": str(tokenizer), "type": "bpe"},
            **extra,
        }
    )
    model = getattr(models, name)(cfg=config)
    model.save_to(str(folder / f"{kind}.nemo"))
    return model.eval(), folder / f"{kind}.nemo"


@pytest.mark.parametrize("kind", ["ctc", "hybrid"])
def test_ctc(kind: str, tokenizer: Path, tmp_path: Path) -> None:
    model, path = build(kind, tokenizer, tmp_path)
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
        got = heard(teacher, [audio])[0]
        assert len(got) == int(said[1][0])
        assert (got.log_softmax(-1) - own[0, : len(got)]).abs().max() <= 1e-5
        assert got.logsumexp(-1).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["rnnt", "hybrid", "tdt", "hat"])
def test_transducers(kind: str, tokenizer: Path, tmp_path: Path) -> None:
    model, path = build(kind, tokenizer, tmp_path)
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


def test_no_labels_is_one_row(tokenizer: Path, tmp_path: Path) -> None:
    teacher = load_teacher(f"nemo:{build('rnnt', tokenizer, tmp_path)[1]}")
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
def test_its_own_greedy_search_captured(kind: str, tokenizer: Path, tmp_path: Path) -> None:
    from tests.frameworks.own_inference import audio, check_lattices, probed_and_captured

    _, path = build(kind, tokenizer, tmp_path)
    found, store, _ = probed_and_captured(SCRIPT, tmp_path, path)
    assert found["driven"]["convention"] == "nemo"
    assert (found["driven"]["joiner"], found["driven"]["encoder"]) == ("joint", "encoder")
    head = store.spec.teacher.heads[-1]
    assert head.normalised == (kind == "hat")
    teacher: Any = load_teacher(f"nemo:{path}")
    assert store.spec.tokens["blank"] == len(teacher.tokens()) - 1 == store.spec.tokens["size"] - 1
    check_lattices(store, lambda wav, labels: lattice(teacher, [audio(wav)], labels)[0])
