"""Small SpeechBrain models, built from a yaml and written by its checkpointer's savers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

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
    """Build the modules of a yaml with random weights, saved where its pretrainer looks for them."""
    from hyperpyyaml import load_hyperpyyaml
    from speechbrain.utils.checkpoints import torch_save

    torch.manual_seed(0)
    hparams = load_hyperpyyaml(text)
    (folder / "hyperparams.yaml").write_text(text)
    torch_save(hparams["asr"], folder / "asr.ckpt")
    for module in hparams["modules"].values():
        module.eval()
    return hparams


def build_ctc(folder: Path) -> dict[str, Any]:
    """Build the CTC model with its tokenizer in a folder."""
    hparams = build(CTC, folder)
    hparams["tokenizer"].insert_blank(index=0)
    hparams["tokenizer"].update_from_iterable(LETTERS, sequence_input=False)
    hparams["tokenizer"].save(str(folder / "tokenizer.ckpt"))
    return hparams


def write_pieces(folder: Path) -> None:
    """Train a SentencePiece model where a pretrainer looks for it."""
    import sentencepiece

    text = folder / "text"
    text.write_text(SENTENCES)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "sp"),
        vocab_size=25,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    (folder / "sp.model").rename(folder / "tokenizer.ckpt")
