"""SpeechBrain: tiny models built from a yaml, written by its checkpointer's savers and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from logitstore.errors import TeacherError, UsageError
from logitstore.teachers import load_teacher
from logitstore.teachers.tap import Tap
from tests.frameworks.teacher_checks import (
    batched,
    check_teacher,
    forced,
    framework,
    heard,
    lattice,
    recordings,
)

framework("speechbrain")

SENTENCES = "the cat sat on the mat\na dog ate that hat\nthe hat sat on a dog\nthat mat the dog ate\n" * 5
LETTERS = " abdeghmnost"

FRONT = """
sample_rate: 16000
blank_index: 0
compute_features: !new:speechbrain.lobes.features.Fbank
    sample_rate: !ref <sample_rate>
    n_mels: 40
normalize: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
enc: !new:speechbrain.lobes.models.CRDNN.CRDNN
    input_shape: [null, null, 40]
    cnn_blocks: 1
    cnn_channels: (4,)
    inter_layer_pooling_size: (2,)
    time_pooling: True
    time_pooling_size: 4
    rnn_class: !name:speechbrain.nnet.RNN.LSTM
    rnn_layers: 1
    rnn_neurons: 8
    dnn_blocks: 1
    dnn_neurons: 16
"""
CTC = (
    FRONT
    + """
ctc_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: 13
log_softmax: !new:speechbrain.nnet.activations.Softmax
    apply_log: True
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    compute_features: !ref <compute_features>
    normalize: !ref <normalize>
    enc: !ref <enc>
    ctc_lin: !ref <ctc_lin>
    log_softmax: !ref <log_softmax>
asr: !new:torch.nn.ModuleList
    - [!ref <enc>, !ref <ctc_lin>]
tokenizer: !new:speechbrain.dataio.encoder.CTCTextEncoder
decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
    blank_id: !ref <blank_index>
modules:
    encoder: !ref <encoder>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        asr: !ref <asr>
        tokenizer: !ref <tokenizer>
    paths:
        asr: somebody/somewhere/asr.ckpt
        tokenizer: somebody/somewhere/tokenizer.ckpt
"""
)
TRANSDUCER = (
    FRONT
    + """
proj_enc: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: 12
ctc_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 12
    n_neurons: 30
emb: !new:speechbrain.nnet.embedding.Embedding
    num_embeddings: 30
    consider_as_one_hot: True
    blank_id: 0
dec: !new:speechbrain.nnet.RNN.GRU
    input_shape: [null, null, 29]
    hidden_size: 9
    num_layers: 1
proj_dec: !new:speechbrain.nnet.linear.Linear
    input_size: 9
    n_neurons: 12
Tjoint: !new:speechbrain.nnet.transducer.transducer_joint.Transducer_joint
    joint: sum
transducer_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 12
    n_neurons: 30
    bias: False
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    compute_features: !ref <compute_features>
    normalize: !ref <normalize>
    enc: !ref <enc>
    proj_enc: !ref <proj_enc>
decoder: !new:speechbrain.decoders.transducer.TransducerBeamSearcher
    decode_network_lst: [!ref <emb>, !ref <dec>, !ref <proj_dec>]
    tjoint: !ref <Tjoint>
    classifier_network: [!ref <transducer_lin>]
    blank_id: 0
    beam_size: 1
    nbest: 1
asr: !new:torch.nn.ModuleList
    - [!ref <enc>, !ref <proj_enc>, !ref <dec>, !ref <proj_dec>, !ref <transducer_lin>, !ref <ctc_lin>]
tokenizer: !new:sentencepiece.SentencePieceProcessor
modules:
    encoder: !ref <encoder>
    decoder: !ref <decoder>
    ctc_lin: !ref <ctc_lin>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        asr: !ref <asr>
        tokenizer: !ref <tokenizer>
"""
)


CODER = """
tokenizer: !new:sentencepiece.SentencePieceProcessor
modules:
    encoder: !ref <encoder>
    decoder: !ref <decoder>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        asr: !ref <asr>
        tokenizer: !ref <tokenizer>
"""
RNN = (
    FRONT
    + """
emb: !new:speechbrain.nnet.embedding.Embedding
    num_embeddings: 30
    embedding_dim: 8
dec: !new:speechbrain.nnet.RNN.AttentionalRNNDecoder
    enc_dim: 16
    input_size: 8
    rnn_type: gru
    attn_type: location
    hidden_size: 9
    attn_dim: 10
    num_layers: 1
    scaling: 1.0
    channels: 3
    kernel_size: 5
seq_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 9
    n_neurons: 30
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    compute_features: !ref <compute_features>
    normalize: !ref <normalize>
    enc: !ref <enc>
decoder: !new:speechbrain.decoders.S2SRNNBeamSearcher
    embedding: !ref <emb>
    decoder: !ref <dec>
    linear: !ref <seq_lin>
    bos_index: 1
    eos_index: 2
    min_decode_ratio: 0.0
    max_decode_ratio: 1.0
    beam_size: 2
asr: !new:torch.nn.ModuleList
    - [!ref <enc>, !ref <emb>, !ref <dec>, !ref <seq_lin>]
"""
    + CODER
)
TRANSFORMER = (
    FRONT
    + """
Transformer: !new:speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
    input_size: 16
    tgt_vocab: 30
    d_model: 16
    nhead: 2
    num_encoder_layers: 1
    num_decoder_layers: 1
    d_ffn: 24
    dropout: 0.1
    normalize_before: True
seq_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: 30
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    compute_features: !ref <compute_features>
    normalize: !ref <normalize>
    enc: !ref <enc>
    transformer_encoder: !new:speechbrain.lobes.models.transformer.TransformerASR.EncoderWrapper
        transformer: !ref <Transformer>
decoder: !new:speechbrain.decoders.S2STransformerBeamSearcher
    modules: [!ref <Transformer>, !ref <seq_lin>]
    bos_index: 1
    eos_index: 2
    min_decode_ratio: 0.0
    max_decode_ratio: 1.0
    beam_size: 2
asr: !new:torch.nn.ModuleList
    - [!ref <enc>, !ref <Transformer>, !ref <seq_lin>]
"""
    + CODER
)


def build(text: str, folder: Path) -> dict[str, Any]:
    """Random weights of one yaml, saved where its pretrainer looks for them."""
    from hyperpyyaml import load_hyperpyyaml
    from speechbrain.utils.checkpoints import torch_save

    torch.manual_seed(0)
    hparams = load_hyperpyyaml(text)
    (folder / "hyperparams.yaml").write_text(text)
    torch_save(hparams["asr"], folder / "asr.ckpt")
    for module in hparams["modules"].values():
        module.eval()
    return hparams


@pytest.fixture
def ctc(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    hparams = build(CTC, tmp_path)
    hparams["tokenizer"].insert_blank(index=0)
    hparams["tokenizer"].update_from_iterable(LETTERS, sequence_input=False)
    hparams["tokenizer"].save(str(tmp_path / "tokenizer.ckpt"))
    return tmp_path, hparams


def pieces(tmp_path: Path) -> None:
    """A SentencePiece model where a pretrainer looks for it."""
    import sentencepiece

    text = tmp_path / "text"
    text.write_text(SENTENCES)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=25,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "sp.model").rename(tmp_path / "tokenizer.ckpt")


@pytest.fixture
def transducer(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    pieces(tmp_path)
    return tmp_path, build(TRANSDUCER, tmp_path)


def test_a_ctc_folder(ctc: tuple[Path, dict[str, Any]]) -> None:
    folder, hparams = ctc
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
        got = heard(teacher, [audio])[0]
        assert got.shape == own.shape
        assert (got.log_softmax(-1) - own).abs().max() <= 1e-5
        assert (got.logsumexp(-1)).abs().max() > 1e-2  # logits, not the log-softmax behind them


def test_encoder_asr_says_the_same(ctc: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from speechbrain.inference.ASR import EncoderASR

    folder, _ = ctc
    text = (folder / "hyperparams.yaml").read_text().replace("somebody/somewhere", str(folder))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "hyperparams.yaml").write_text(text)
    model = EncoderASR.from_hparams(str(tmp_path / "own"), savedir=str(tmp_path / "saved"))
    teacher = load_teacher(f"speechbrain:{folder}")
    audio = recordings()[0]
    own = model.encode_batch(torch.from_numpy(audio)[None], torch.ones(1))[0]
    assert (heard(teacher, [audio])[0].log_softmax(-1) - own).abs().max() <= 1e-5


def test_a_batch_together_is_what_the_model_says_of_that_batch(ctc: tuple[Path, dict[str, Any]]) -> None:
    folder, hparams = ctc
    teacher = load_teacher(f"speechbrain:{folder},batch=together")
    audio = recordings()
    waves = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(a) for a in audio], batch_first=True)
    relative = torch.tensor([len(a) for a in audio]) / len(audio[0])
    with torch.inference_mode():
        own = hparams["encoder"](waves, relative)
    for got, said, r in zip(heard(teacher, audio), own, relative, strict=True):
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
    assert (heard(teacher, [audio])[0] - ctc).abs().max() <= 1e-5
    features, lengths = batched(teacher, [audio])
    with torch.inference_mode(), Tap(teacher.model, {"rnnt": teacher.describe().head("rnnt").module}) as tap:
        out = teacher.join(*teacher.transducer(teacher.forward(features, lengths), 0, labels))
        assert torch.equal(tap.take("rnnt")[0], out)


@pytest.mark.parametrize("kind", ["rnn", "transformer"])
def test_an_attention_decoder(kind: str, tmp_path: Path) -> None:
    pieces(tmp_path)
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
    assert (forced(teacher, [audio], labels)[0] - own).abs().max() <= 1e-4


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


def test_a_missing_checkpoint_is_named(ctc: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = ctc
    (folder / "asr.ckpt").unlink()
    with pytest.raises(TeacherError, match=r"asr\.ckpt is missing"):
        load_teacher(f"speechbrain:{folder}")


def test_a_yaml_without_weights_is_refused(ctc: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = ctc
    (folder / "train.yaml").write_text(CTC.partition("pretrainer")[0])
    with pytest.raises(TeacherError, match="no pretrainer"):
        load_teacher(f"speechbrain:{folder},hparams=train.yaml")


def test_a_head_that_no_checkpoint_fills_is_refused(ctc: tuple[Path, dict[str, Any]]) -> None:
    from hyperpyyaml import load_hyperpyyaml
    from speechbrain.utils.checkpoints import torch_save

    folder, _ = ctc
    text = CTC.replace("- [!ref <enc>, !ref <ctc_lin>]", "- [!ref <enc>]")
    (folder / "hyperparams.yaml").write_text(text)
    torch_save(load_hyperpyyaml(text)["asr"], folder / "asr.ckpt")
    with pytest.raises(TeacherError, match="no checkpoint fills the ctc head"):
        load_teacher(f"speechbrain:{folder}")


def test_a_wrong_ctc_path_lists_its_siblings(ctc: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = ctc
    with pytest.raises(TeacherError, match="Did you mean 'ctc_lin'"):
        load_teacher(f"speechbrain:{folder},ctc=encoder.ctc_lim.w")
    with pytest.raises(UsageError, match="neither alone nor together"):
        load_teacher(f"speechbrain:{folder},batch=some")


def test_audio_too_short(ctc: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="too short"):
        load_teacher(f"speechbrain:{ctc[0]}").features(recordings()[0][:300])


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
    assert found["driven"]["convention"] == "speechbrain"
    assert found["driven"]["encoder"] == "input:mods.decoder"
    teacher: Any = load_teacher(f"speechbrain:{folder}")
    check_lattices(store, lambda wav, labels: lattice(teacher, [audio(wav)], labels)[0])
