"""transformers: tiny models of the real classes, written by save_pretrained and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from logitstore import open_store
from logitstore.corpus.manifest import Utterance, read_manifest
from logitstore.dump.against import against_teacher
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.errors import LengthError, TeacherError, UsageError
from logitstore.runner.driver import TeacherDriver, TeacherOutput
from logitstore.runner.loader import LoadedUtterance
from logitstore.schema.spec import Head
from logitstore.store.verify import verify_store
from logitstore.teachers import load_teacher
from logitstore.teachers.layers import with_layers
from logitstore.teachers.tap import Tap
from logitstore.tokens.table import BYTES
from tests.frameworks.teacher_checks import batched, check_teacher, ctc_logits, framework, lattice, recordings

framework("transformers")
import transformers  # noqa: E402

from tests.frameworks.models_huggingface import LETTERS, SMALL, WAVE, WAVES, letters, wave_model  # noqa: E402


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
        got = ctc_logits(teacher, [audio])[0]
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
    for got, logits, n in zip(ctc_logits(teacher, audio), own, wanted, strict=True):
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
    got = ctc_logits(teacher, [audio])[0]
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
    got = ctc_logits(teacher, [audio])[0]
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
    # With one row the model squeezes its label axis away; the lattice keeps it.
    assert (lattice(teacher, [audio], [])[0] - got[:, :1]).abs().max() <= 1e-4
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
        got = ctc_logits(teacher, [audio])[0]
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
        assert (ctc_logits(teacher, [audio])[0] - logits).abs().max() <= 1e-5
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


SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
SPECIAL += ["<|nospeech|>", "<|notimestamps|>"]
PROMPTED = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]


def whisper(folder: Path, **extra: Any) -> Any:
    """A tiny Whisper of the real class, with a processor of bytes and three merges."""
    vocab = {t: i for i, t in enumerate([*sorted(BYTES), "Ġt", "he", "Ġthe"])}
    tokenizer = transformers.WhisperTokenizer(vocab=vocab, merges=[("Ġ", "t"), ("h", "e"), ("Ġt", "he")])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer) + 3,  # real ones are padded as well
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_target_positions=40,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        **dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), end),
        **extra,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    torch.nn.init.normal_(model.proj_out.weight, std=0.3)  # tied to the embeddings
    model.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor()
    transformers.WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return model.eval()


def forced(model: Any, folder: Path, audio: list[np.ndarray], text: str) -> torch.Tensor:
    """What the model's own ``labels=`` gives: (B, P - 1 + U, V), the first of its prompt being its start."""
    processor = transformers.WhisperProcessor.from_pretrained(folder)
    given = processor(audio, sampling_rate=16000, return_tensors="pt").input_features
    ids = processor.tokenizer.convert_tokens_to_ids(PROMPTED[1:])
    ids += [*processor.tokenizer(text, add_special_tokens=False).input_ids, model.config.eos_token_id]
    with torch.inference_mode():
        return model(given, labels=torch.tensor([ids] * len(audio))).logits


def test_whisper_is_the_models_own_forward_with_labels(tmp_path: Path) -> None:
    model = whisper(tmp_path)
    teacher: Any = load_teacher(f"huggingface:{tmp_path},language=en,task=transcribe")
    check_teacher(teacher)
    spec, audio, text = teacher.describe(), recordings(), " the cät"
    head = spec.head("seq2seq")
    assert (head.module, head.end, spec.frame_shift) == ("proj_out", model.config.eos_token_id, 320)
    assert spec.features["prompt"] == PROMPTED
    table = teacher.tokens()
    assert (len(table), table[table.blank]) == (model.config.vocab_size, "<|nospeech|>")
    labels = teacher.labels(text)
    assert table[labels[0]] == "Ġthe"
    assert table.text(labels) == "the cät"
    own = forced(model, tmp_path, audio, text)
    driver = TeacherDriver(teacher, table, ["seq2seq"], "cpu", factored=["seq2seq"])
    with torch.inference_mode():
        output = teacher.forward(*batched(teacher, audio))
    assert teacher.lengths(output).tolist() == [50, 29, 39]  # 320 samples each
    assert teacher.padded_frames(output) == 1500
    weight = torch.from_numpy(driver.heads["seq2seq"].weight)
    for b, full in enumerate(own):
        utt = LoadedUtterance(Utterance(str(b), tmp_path), torch.zeros(1), 1.0, None)
        spoken = TeacherOutput(utt, 50, {}, output, b)
        logits, inputs = driver.decoded(spoken, "seq2seq", [*labels, head.end])
        assert torch.allclose(logits, full[len(PROMPTED) - 1 :], atol=1e-4)
        assert torch.allclose(inputs @ weight.T, logits, atol=1e-4)
    other: Any = load_teacher(f"huggingface:{tmp_path},task=translate,language=de,space=0")
    assert other.describe().features["prompt"][1:3] == ["<|de|>", "<|translate|>"]
    assert other.tokens()[other.labels(text)[0]] == "t"


@pytest.mark.parametrize("encoding", ["dense", "factored", "factored:int8", "topk:8"])
def test_a_store_of_a_whisper_and_its_encoder(encoding: str, tmp_path: Path) -> None:
    model = whisper(tmp_path / "m")
    lines = []
    for n, audio in enumerate(recordings()):
        soundfile.write(tmp_path / f"{n}.wav", audio, 16000, subtype="FLOAT")
        lines.append({"id": str(n), "audio": f"{n}.wav", "text": "the cat"[: 7 - n]})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    manifest = read_manifest(tmp_path / "m.jsonl")
    teacher = load_teacher(f"huggingface:{tmp_path}/m,language=en")
    blank = teacher.tokens().blank
    layers = [
        Head("hidden", "model.encoder.layer_norm", blank),
        Head("hidden_0", "model.encoder.layers.0", blank),
    ]
    streams = {"seq2seq": encoding, "hidden": "vectors", "hidden_0": "vectors:int8"}
    options = DumpOptions(streams=streams, skip_checks="it is not trained", transcripts="all")
    done = dump_logits(with_layers(teacher, layers), manifest, tmp_path / "s", options)
    assert done.done == 3
    assert not verify_store(tmp_path / "s").findings
    store = open_store(tmp_path / "s")
    extractor = transformers.WhisperFeatureExtractor()
    for line, audio in zip(lines, recordings(), strict=True):
        target = store[line["id"]]
        own = forced(model, tmp_path / "m", [audio], " " + line["text"])[0, 3:].log_softmax(-1)
        assert target.shapes["seq2seq"] == tuple(own.shape)
        assert target.labels[-1] == model.config.eos_token_id
        assert len(target.meta["hyp"]["seq2seq"]["text"]) > 0
        p = own.exp().numpy()
        bound = {"topk:8": 1.0, "factored:int8": 0.05}.get(encoding, 1e-3)
        assert (p * (own.numpy() - target.log_probs("seq2seq"))).sum(1).mean() < bound
        given = extractor(audio, sampling_rate=16000, return_tensors="pt").input_features
        with torch.inference_mode():
            said = model.get_encoder()(given)
        want = said.last_hidden_state[0, : target.T].numpy()
        assert -(-len(audio) // 320) == target.T
        assert np.abs(target.vectors() - want).max() < 5e-3
    if encoding == "dense":
        assert max(c.kl for c in against_teacher(store, teacher, manifest, 3)) < 1e-4
        layer = Head("hidden", "model.encoder.conv1", blank, "BVT")
        with pytest.raises(LengthError, match="3000 frames where the teacher has 1500"):
            dump_logits(
                with_layers(teacher, [layer]),
                manifest,
                tmp_path / "t",
                DumpOptions(streams={"hidden": "vectors"}),
            )


def test_what_whisper_cannot_take(tmp_path: Path) -> None:
    whisper(tmp_path)
    place = f"huggingface:{tmp_path}"
    teacher: Any = load_teacher(place)  # of so small a table, as an English one: no language
    assert teacher.describe().features["prompt"] == [PROMPTED[0], PROMPTED[-1]]
    with pytest.raises(ValueError, match="Whisper takes 30 s at once: cut the recording"):
        teacher.features(np.zeros(30 * 16000 + 1, np.float32))
    assert teacher.features(np.zeros(30 * 16000, np.float32)).shape == (3000, 81)
    with pytest.raises(ValueError, match=r"80 tokens, where the decoder holds 38"):
        teacher.labels("a" * 79)
    with pytest.raises(ValueError, match="does not tokenise"):
        teacher.labels("<|endoftext|>")
    assert teacher.labels(" ") == []
    for option, match in (
        ("language=fr", r"the tokenizer has no <\|fr\|>"),
        ("language=en,task=summarise", "task=summarise"),
        ("space=2", "neither 0 nor 1"),
        ("lang=en", "Known: model, processor, target_lang, language, task, space"),
    ):
        with pytest.raises(UsageError, match=match):
            load_teacher(f"{place},{option}")
    settings = tmp_path / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "is_multilingual": True}))
    with pytest.raises(UsageError, match="a multilingual Whisper needs a language"):
        load_teacher(place)
    german = load_teacher(f"{place},language=de").describe()
    assert german.features["prompt"][1:3] == ["<|de|>", "<|transcribe|>"]


def test_a_prompt_is_for_whisper(tmp_path: Path) -> None:
    wave_model("Wav2Vec2", tmp_path)
    with pytest.raises(UsageError, match="language: Wav2Vec2ForCTC takes no prompt"):
        load_teacher(f"huggingface:{tmp_path},language=en")


def test_another_attention_decoder_is_refused_with_the_reason(tmp_path: Path) -> None:
    transformers.MoonshineConfig(hidden_size=16).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="neither CTC nor transducer nor Whisper"):
        load_teacher(f"huggingface:{tmp_path}")


def test_wrong_places(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_teacher(f"huggingface:{tmp_path}/no")
    with pytest.raises(UsageError, match="Known: model, processor, target_lang, language, task, space"):
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
