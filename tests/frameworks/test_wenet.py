"""WeNet: its conventions in a small model of our own; the real classes where WENET names a clone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from logitstore.errors import TeacherError
from logitstore.teachers import load_teacher
from logitstore.teachers.tap import Tap
from logitstore.teachers.wenet import WenetTeacher, WenetTransducer
from logitstore.tokens.table import TokenTable
from tests.frameworks.models_wenet import ENCODER, FBANK, TOKENS
from tests.frameworks.teacher_checks import (
    batched,
    check_teacher,
    ctc_logits,
    decoder_logits,
    lattice,
    recordings,
)


class Small(nn.Module):
    """An encoder that draws a chunk at random unless told one, CTC with functional dropout, a HAT joint."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(40, 12, 7, stride=4)

        def forward(
            self, x: Any, lengths: Any, decoding_chunk_size: int = 0, num_decoding_left_chunks: int = -1
        ) -> Any:
            out = self.conv(x.transpose(1, 2)).transpose(1, 2).tanh()
            if decoding_chunk_size == 0:
                out = out * torch.rand(1)
            frames = (lengths - 7) // 4 + 1
            return out, (torch.arange(out.shape[1])[None] < frames[:, None])[:, None]

    class Ctc(nn.Module):
        dropout_rate = 0.0

        def __init__(self) -> None:
            super().__init__()
            self.ctc_lo = nn.Linear(12, len(TOKENS))

        def log_softmax(self, x: Any) -> Any:
            return self.ctc_lo(x).log_softmax(-1)

    class Hat(nn.Module):
        ffn_out = None

        def __init__(self) -> None:
            super().__init__()
            self.enc_ffn, self.pred_ffn = nn.Linear(12, 8), nn.Linear(6, 8)
            self.blank_pred, self.token_pred = nn.Linear(8, 1), nn.Linear(8, len(TOKENS) - 1)

        def forward(self, enc: Any, pred: Any, pre_project: bool = True) -> Any:
            if pre_project:
                enc, pred = self.enc_ffn(enc), self.pred_ffn(pred)
            out = (enc[:, :, None] + pred[:, None]).tanh()
            blank = nn.functional.logsigmoid(self.blank_pred(out))
            rest = torch.log(1 - blank.exp()) + self.token_pred(out).log_softmax(-1)
            return torch.cat((blank, rest), -1)

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.ctc, self.joint = self.Encoder(), self.Ctc(), self.Hat()
        self.predictor = nn.Embedding(len(TOKENS), 6)


def test_a_model_of_the_same_conventions() -> None:
    torch.manual_seed(0)
    model, table = Small(), TokenTable(tuple(TOKENS), 0)
    teacher = WenetTransducer(model, table, FBANK)
    check_teacher(teacher)
    assert [h.module for h in teacher.describe().heads] == ["ctc.ctc_lo", "joint"]
    assert teacher.describe().head("rnnt").normalised  # a HAT joint has no logits
    rows = lattice(teacher, recordings()[:1], [2, 3])[0]
    assert rows.logsumexp(-1).abs().max() < 1e-4
    model.joint = None
    assert [h.stream for h in WenetTeacher(model, table, FBANK).describe().heads] == ["ctc"]


def test_live_dropout_is_refused() -> None:
    model = Small()
    model.ctc.dropout_rate = 0.1
    with pytest.raises(TeacherError, match=r"dropout_rate 0\.1"):
        WenetTransducer(model, TokenTable(tuple(TOKENS), 0), FBANK)


@pytest.mark.parametrize("kind", ["asr_model", "bitransformer", "transducer", "hat"])
def test_the_real_models(wenet_clone: str, kind: str, tmp_path: Path) -> None:
    import argparse

    import yaml
    from wenet.utils.init_model import init_model

    (tmp_path / "data").mkdir()
    (tmp_path / "exp").mkdir()
    (tmp_path / "data" / "units.txt").write_text(
        "".join(f"{t} {i}\n" for i, t in enumerate(TOKENS)), encoding="utf-8"
    )
    config: dict[str, Any] = {
        "input_dim": 40,
        "output_dim": len(TOKENS),
        "encoder": "conformer",
        "encoder_conf": ENCODER,
        "decoder": "transformer",
        "decoder_conf": {"attention_heads": 2, "linear_units": 24, "num_blocks": 1},
        "ctc": "ctc",
        "ctc_conf": {"ctc_blank_id": 0},
        "model": "asr_model",
        "model_conf": {"ctc_weight": 0.3},
        "tokenizer": "char",
        "tokenizer_conf": {"symbol_table_path": "data/units.txt", "non_lang_syms_path": None},
        "dataset_conf": {"fbank_conf": {"num_mel_bins": 40, "dither": 0.1}},
    }
    if kind == "bitransformer":
        config |= {"decoder": kind, "decoder_conf": {**config["decoder_conf"], "r_num_blocks": 1}}
    elif kind != "asr_model":
        config |= {
            "model": "transducer",
            "model_conf": {"ctc_weight": 0.2, "transducer_weight": 0.5, "attention_weight": 0.3},
            "predictor": "rnn",
            "predictor_conf": {
                "embed_size": 8,
                "output_size": 10,
                "embed_dropout": 0.1,
                "hidden_size": 8,
                "num_layers": 1,
            },
            "joint": "transducer_joint",
            "joint_conf": {
                "enc_output_size": 16,
                "pred_output_size": 10,
                "join_dim": 12,
                "hat_joint": kind == "hat",
            },
        }
    (tmp_path / "exp" / "train.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    torch.manual_seed(0)
    model = init_model(argparse.Namespace(checkpoint=None), dict(config))[0].eval()
    torch.save(model.state_dict(), tmp_path / "exp" / "final.pt")
    teacher: Any = load_teacher(f"wenet:{tmp_path}/exp")
    check_teacher(teacher)
    assert teacher.describe().frame_shift == 640
    labels = teacher.labels("the cat")
    assert [TOKENS[i] for i in labels] == ["t", "h", "e", "▁", "c", "a", "t"]
    with pytest.raises(ValueError, match="does not tokenise"):
        teacher.labels("fox")
    audio = recordings()[0]
    x = teacher.features(audio)[None]
    with torch.inference_mode():
        enc, _ = model._forward_encoder(x, torch.tensor([x.shape[1]]))
        ctc = model.ctc_logprobs(enc)[0]
    assert (ctc_logits(teacher, [audio])[0].log_softmax(-1) - ctc).abs().max() <= 1e-5
    caught = []
    with torch.inference_mode():
        model.criterion_att.forward = lambda *pair: caught.append(pair) or torch.tensor(0.0)
        mask = torch.ones(1, 1, enc.shape[1], dtype=torch.bool)
        model._calc_att_loss(enc, mask, torch.tensor([labels]), torch.tensor([len(labels)]))
    assert caught[0][1][0].tolist() == [*labels, teacher.describe().head("seq2seq").end]
    assert (decoder_logits(teacher, [audio], labels)[0] - caught[0][0][0]).abs().max() <= 1e-5
    if kind in ("asr_model", "bitransformer"):
        return
    with torch.inference_mode():
        own = model.joint(enc, model.predictor(torch.tensor([[0, *labels]])))[0]
    assert (lattice(teacher, [audio], labels)[0] - own).abs().max() <= 1e-4
    head = teacher.describe().head("rnnt")
    assert head.normalised == (kind == "hat")
    features, lengths = batched(teacher, [audio])
    with torch.inference_mode(), Tap(teacher.model, {"rnnt": head.module}) as tap:
        out = teacher.join(*teacher.transducer(teacher.forward(features, lengths), 0, labels))
        assert torch.equal(tap.take("rnnt")[0], out)
