"""Small NeMo models of the real classes, written by save_to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

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


def write_tokenizer(folder: Path) -> Path:
    """Train a SentencePiece model of 25 pieces and write it as NeMo reads it."""
    import sentencepiece

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
    """Build a model of one of ``KINDS`` and save it: the model, and its file."""
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
