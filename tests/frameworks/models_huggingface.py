"""Small transformers models of the real classes, written by save_pretrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"EATONHI"]


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": len(LETTERS),
    "pad_token_id": 0,
}


WAVE: dict[str, Any] = {
    **SMALL,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


WAVES = {
    "Wav2Vec2": {"feat_extract_norm": "group"},
    "Wav2Vec2-layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "Wav2Vec2-adapter": {
        "feat_extract_norm": "layer",
        "add_adapter": True,
        "output_hidden_size": 32,
        "num_adapter_layers": 1,
    },
    "Hubert": {"feat_extract_norm": "group"},
    "WavLM": {"feat_extract_norm": "layer", "num_buckets": 20, "max_bucket_distance": 40},
    "UniSpeechSat": {"feat_extract_norm": "layer"},
    "Data2VecAudio": {"conv_pos_kernel_size": 5},
    "Wav2Vec2Conformer": {"feat_extract_norm": "layer"},
    "UniSpeech": {"feat_extract_norm": "layer"},
    "SEWD": {
        **{"feat_extract_norm": "layer", "conv_stride": (5, *(2,) * 6), "conv_kernel": (10, *(3,) * 6)},
        **{"max_position_embeddings": 64, "position_buckets": 16, "feature_layer_norm_eps": 1e-5},
    },
    "SEW": {"feat_extract_norm": "layer", "conv_stride": (5, *(2,) * 6), "conv_kernel": (10, *(3,) * 6)},
}


def letters(folder: Path) -> None:
    """Write a CTC tokenizer of ``LETTERS``."""
    vocab = folder / "vocab.json"
    vocab.write_text(json.dumps({t: i for i, t in enumerate(LETTERS)}))
    transformers.Wav2Vec2CTCTokenizer(str(vocab)).save_pretrained(folder)


def wave_model(name: str, folder: Path) -> Any:
    """Write a model of one of ``WAVES``, with its processor, and return it."""
    kind, extra = name.partition("-")[0], WAVES[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCTC")(getattr(transformers, f"{kind}Config")(**WAVE, **extra))
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        return_attention_mask=extra.get("feat_extract_norm") != "group"
    ).save_pretrained(folder)
    letters(folder)
    return model.eval()
