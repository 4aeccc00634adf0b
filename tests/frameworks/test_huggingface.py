"""transformers: tiny models of the real classes, written by save_pretrained and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from teacher_checks import batched, check_teacher, framework, heard, lattice, recordings

from logitstore.errors import TeacherError, UsageError
from logitstore.tap import Tap
from logitstore.teachers import load_teacher

framework("transformers")
import transformers  # noqa: E402

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
    vocab = folder / "vocab.json"
    vocab.write_text(json.dumps({t: i for i, t in enumerate(LETTERS)}))
    transformers.Wav2Vec2CTCTokenizer(str(vocab)).save_pretrained(folder)


def pieces(folder: Path, size: int, blank: str) -> None:
    """A Parakeet tokenizer of ``size`` pieces, the blank last."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "▁the", "▁cat", "▁sat"]
    vocab = {t: i for i, t in enumerate([*words, *(f"p{i}" for i in range(size - len(words) - 1)), blank])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    transformers.ParakeetTokenizer(
        tokenizer_object=inner, unk_token="<unk>", pad_token=blank
    ).save_pretrained(folder)


def wave_model(name: str, folder: Path) -> Any:
    kind, extra = name.partition("-")[0], WAVES[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCTC")(getattr(transformers, f"{kind}Config")(**WAVE, **extra))
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        return_attention_mask=extra.get("feat_extract_norm") != "group"
    ).save_pretrained(folder)
    letters(folder)
    return model.eval()


ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "subsampling_conv_channels": 8,
    "num_mel_bins": 80,
}


def parakeet(kind: str, folder: Path, **extra: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"Parakeet{kind}Config")(vocab_size=24, encoder_config=ENCODER, **extra)
    model = getattr(transformers, f"ParakeetFor{kind}")(config)
    for name, buffer in model.named_buffers():  # batch norm that has seen nothing would hide a leak
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn_like(buffer) * 0.1)
    model.save_pretrained(folder)
    transformers.ParakeetFeatureExtractor().save_pretrained(folder)
    pieces(folder, 24, "<blank>")
    return model.eval()


@pytest.mark.parametrize("name", WAVES)
def test_a_wave_model(name: str, tmp_path: Path) -> None:
    model = wave_model(name, tmp_path)
    teacher = load_teacher(f"huggingface:{tmp_path}")
    check_teacher(teacher)
    assert teacher.describe().head("ctc").module == "lm_head"
    assert teacher.describe().frame_shift == (640 if "adapter" in name else 320)
    assert teacher.tokens().tokens == tuple(LETTERS)
    assert teacher.tokens().blank == 0
    for audio in recordings():
        given = transformers.Wav2Vec2FeatureExtractor()(audio, sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            own = model(given.input_values).logits[0]
        got = heard(teacher, [audio])[0]
        assert got.shape == own.shape
        assert (got - own).abs().max() <= 1e-5


def test_lengths_of_a_batch_with_a_mask(tmp_path: Path) -> None:
    model = wave_model("Wav2Vec2-layer", tmp_path)
    teacher = load_teacher(f"huggingface:{tmp_path}")
    audio = recordings()
    given = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)(
        audio, sampling_rate=16000, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        own = model(**given).logits
    wanted = model._get_feat_extract_output_lengths(given.attention_mask.sum(-1))
    for got, logits, n in zip(heard(teacher, audio), own, wanted, strict=True):
        assert len(got) == n
        assert (got - logits[:n]).abs().max() <= 1e-5


def test_wav2vec2_bert(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2BertConfig(**SMALL, add_adapter=False, conv_depthwise_kernel_size=5)
    model = transformers.Wav2Vec2BertForCTC(config).eval()
    model.save_pretrained(tmp_path)
    extractor = transformers.SeamlessM4TFeatureExtractor()
    extractor.save_pretrained(tmp_path)
    letters(tmp_path)
    teacher = load_teacher(f"huggingface:{tmp_path}")
    check_teacher(teacher)
    assert teacher.describe().frame_shift == 320
    audio = recordings()[0]
    with torch.inference_mode():
        own = model(**extractor(audio, sampling_rate=16000, return_tensors="pt")).logits[0]
    got = heard(teacher, [audio])[0]
    assert (got - own[: len(got)]).abs().max() <= 1e-5


def test_parakeet_ctc(tmp_path: Path) -> None:
    model = parakeet("CTC", tmp_path, pad_token_id=23)
    teacher = load_teacher(f"huggingface:{tmp_path}")
    check_teacher(teacher)
    spec = teacher.describe()
    assert (spec.head("ctc").module, spec.head("ctc").layout) == ("ctc_head", "BTV")
    assert spec.frame_shift == 1280
    assert teacher.tokens().blank == 23
    assert teacher.tokens()[23] == "<blank>"
    audio = recordings()[0]
    given = transformers.ParakeetFeatureExtractor()(audio, sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        own = model(**given, output_attention_mask=True).logits[0]
    got = heard(teacher, [audio])[0]
    assert (got - own[: len(got)]).abs().max() <= 1e-5
    assert len(got) == int(model._get_subsampling_output_length(given.attention_mask.sum(-1)))


@pytest.mark.parametrize("kind", ["RNNT", "TDT"])
def test_parakeet_transducers(kind: str, tmp_path: Path) -> None:
    if not hasattr(transformers, f"ParakeetFor{kind}"):
        pytest.skip(f"this transformers has no ParakeetFor{kind}")
    model = parakeet(kind, tmp_path, decoder_hidden_size=20, blank_token_id=23, pad_token_id=2)
    teacher = load_teacher(f"huggingface:{tmp_path}")
    check_teacher(teacher)
    labels = teacher.labels("the cat sat")
    assert labels == [1, 2, 3]
    audio = recordings()[0]
    given = transformers.ParakeetFeatureExtractor()(audio, sampling_rate=16000, return_tensors="pt")
    ids = torch.tensor([[23, *labels]])
    with torch.inference_mode():
        own = model(**given, decoder_input_ids=ids).logits[0]
    got = lattice(teacher, [audio], labels)[0]
    assert own.shape[-1] == 24 + (5 if kind == "TDT" else 0)  # the durations of TDT are no tokens
    assert (got - own[: len(got), :, :24]).abs().max() <= 1e-4
    with torch.inference_mode(), Tap(teacher.model, {"rnnt": "joint.head"}) as tap:
        features, lengths = batched(teacher, [audio])
        enc, dec = teacher.transducer(teacher.forward(features, lengths), 0, labels)
        out = teacher.join(enc, dec)
        assert torch.equal(tap.take("rnnt").reshape(len(enc), len(dec), -1)[..., :24], out)


@pytest.mark.parametrize(
    ("config", "model", "extractor", "bins", "extra"),
    [
        ("LasrCTCConfig", "LasrForCTC", "LasrFeatureExtractor", 128, {"pad_token_id": 23}),
        (
            "NemotronAsrStreamingConfig",
            "NemotronAsrStreamingForRNNT",
            "NemotronAsrStreamingFeatureExtractor",
            80,
            {"pad_token_id": 2, "blank_token_id": 23, "decoder_hidden_size": 20},
        ),
        (
            "Nemotron3_5AsrConfig",
            "Nemotron3_5AsrForRNNT",
            "NemotronAsrStreamingFeatureExtractor",
            80,
            {"pad_token_id": 2, "blank_token_id": 23, "decoder_hidden_size": 20},
        ),
    ],
)
def test_kin_of_parakeet(
    config: str, model: str, extractor: str, bins: int, extra: dict[str, Any], tmp_path: Path
) -> None:
    if not hasattr(transformers, model):
        pytest.skip(f"this transformers has no {model}")
    torch.manual_seed(0)
    encoder = {**ENCODER, "num_mel_bins": bins}
    settings = getattr(transformers, config)(vocab_size=24, encoder_config=encoder, **extra)
    getattr(transformers, model)(settings).save_pretrained(tmp_path)
    getattr(transformers, extractor)().save_pretrained(tmp_path)
    pieces(tmp_path, 24, "<blank>")
    teacher = load_teacher(f"huggingface:{tmp_path}")
    check_teacher(teacher)
    assert teacher.tokens().blank == 23


def test_granite_speech(tmp_path: Path) -> None:
    """A layer amid the encoder shares its head's weights, not the module: the tap hears the answer alone."""
    pytest.importorskip("torchaudio", reason="its feature extractor needs torchaudio")
    torch.manual_seed(0)
    encoder = {
        **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2},
        **{"context_size": 16, "max_position_embeddings": 64, "conv_kernel_size": 5, "vocab_size": 24},
    }
    config = transformers.GraniteSpeech5CTCConfig(vocab_size=24, encoder_config=encoder, pad_token_id=23)
    model = transformers.GraniteSpeech5ForCTC(config).eval()
    model.save_pretrained(tmp_path)
    extractor = transformers.GraniteSpeech5FeatureExtractor()
    extractor.save_pretrained(tmp_path)
    pieces(tmp_path, 24, "<blank>")
    teacher = load_teacher(f"huggingface:{tmp_path}")
    check_teacher(teacher)
    assert (teacher.describe().frame_shift, teacher.tokens().blank) == (1280, 23)
    for audio in recordings():
        with torch.inference_mode():
            own = model(**extractor(audio, sampling_rate=16000, return_tensors="pt")).logits[0]
        got = heard(teacher, [audio])[0]
        assert len(own) - len(got) <= 1
        assert (got - own[: len(got)]).abs().max() <= 1e-5


SPANISH = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ESPAÑOL"]


def test_a_language_of_mms(tmp_path: Path) -> None:
    """An adapter, a head and a table a language: ``target_lang`` changes all three."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        **WAVE, feat_extract_norm="layer", do_stable_layer_norm=True, adapter_attn_dim=8
    )
    model = transformers.Wav2Vec2ForCTC(config).eval()
    model.save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path)
    vocab = {lang: {t: i for i, t in enumerate(ts)} for lang, ts in (("eng", LETTERS), ("spa", SPANISH))}
    (tmp_path / "v.json").write_text(json.dumps(vocab))
    transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "v.json"), target_lang="eng").save_pretrained(tmp_path)
    weights = {k: torch.randn_like(v) * 0.1 for k, v in model._get_adapters().items()}
    weights |= {"lm_head.weight": torch.randn(len(SPANISH), 32), "lm_head.bias": torch.randn(len(SPANISH))}
    save_file(weights, tmp_path / "adapter.spa.safetensors")

    english, spanish = (load_teacher(f"huggingface:{tmp_path}{x}") for x in ("", ",target_lang=spa"))
    assert english.tokens().tokens == tuple(LETTERS)
    assert spanish.tokens().tokens == tuple(SPANISH)
    check_teacher(spanish)
    own = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path)
    own.load_adapter("spa")
    own.eval()
    audio = recordings()[0]
    given = transformers.Wav2Vec2FeatureExtractor()(audio, sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        said = [m(given.input_values).logits[0] for m in (model, own)]
    for teacher, logits in zip((english, spanish), said, strict=True):
        assert (heard(teacher, [audio])[0] - logits).abs().max() <= 1e-5
    with pytest.raises(TeacherError, match=r"say target_lang=spa\."):
        load_teacher(f"huggingface:{tmp_path},target_lang=fra")


def test_every_class_of_transformers_is_tested() -> None:
    """A new one in ``AutoModelForCTC`` and its kin fails here, until the teacher is known to read it."""
    named = {f"{name.partition('-')[0]}ForCTC" for name in WAVES}
    named |= {"Wav2Vec2BertForCTC", "GraniteSpeech5ForCTC", "LasrForCTC"}
    named |= {"ParakeetForCTC", "ParakeetForRNNT", "ParakeetForTDT"}
    named |= {"NemotronAsrStreamingForRNNT", "Nemotron3_5AsrForRNNT"}
    mappings = (getattr(transformers, f"MODEL_FOR_{kind}_MAPPING", {}) for kind in ("CTC", "RNNT", "TDT"))
    assert {c.__name__ for mapping in mappings for c in mapping.values()} <= named


def test_text_that_does_not_tokenise(tmp_path: Path) -> None:
    parakeet("CTC", tmp_path, pad_token_id=23)
    teacher: Any = load_teacher(f"huggingface:{tmp_path}")
    with pytest.raises(ValueError, match="does not tokenise"):
        teacher.labels("the dog")


def test_audio_too_short(tmp_path: Path) -> None:
    wave_model("Wav2Vec2", tmp_path)
    teacher = load_teacher(f"huggingface:{tmp_path}")
    with pytest.raises(ValueError, match="too short"):
        teacher.features(recordings()[0][:300])


def test_a_pretrained_model_without_a_head_is_refused(tmp_path: Path) -> None:
    wave_model("Wav2Vec2", tmp_path)
    transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path).base_model.save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match=r"lacks lm_head\.bias, lm_head\.weight"):
        load_teacher(f"huggingface:{tmp_path}")


def test_a_whisper_folder_is_refused_with_the_reason(tmp_path: Path) -> None:
    transformers.WhisperConfig(d_model=16, encoder_layers=1, decoder_layers=1).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="neither CTC nor transducer"):
        load_teacher(f"huggingface:{tmp_path}")


def test_wrong_places(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_teacher(f"huggingface:{tmp_path}/no")
    with pytest.raises(UsageError, match="Known: model, processor, target_lang"):
        load_teacher(f"huggingface:{tmp_path},proc=x")
    with pytest.raises(TeacherError, match="cannot load"):
        load_teacher(f"huggingface:{tmp_path}")


def test_the_processor_may_lie_elsewhere(tmp_path: Path) -> None:
    wave_model("Wav2Vec2", tmp_path / "m") if (tmp_path / "m").mkdir() is None else None
    (tmp_path / "p").mkdir()
    for f in (tmp_path / "m").iterdir():
        if f.name not in ("config.json", "model.safetensors"):
            f.rename(tmp_path / "p" / f.name)
    with pytest.raises(TeacherError, match="processor=DIR"):
        load_teacher(f"huggingface:{tmp_path}/m")
    teacher = load_teacher(f"huggingface:{tmp_path}/m,processor={tmp_path}/p")
    assert teacher.tokens().tokens == tuple(LETTERS)
