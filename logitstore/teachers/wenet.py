"""``wenet:DIR``: a WeNet experiment, ``train.yaml`` and ``final.pt`` (or ``avg_N.pt``).

WeNet is in no package index: run with a clone of it on ``PYTHONPATH``. Options: ``config=FILE``,
``model=FILE``, ``units=FILE`` (the symbol table), ``chunk=N`` (decoding chunk size; whole recordings where it
is not given), ``batch=together``. The model has a CTC layer, a transducer (HAT too), an attention decoder, or
several of them. Weights are read without running pickled code.

For any other model with the same methods and modules: ``WenetTeacher(model, tokens, features)``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .. import registry
from ..errors import TeacherError, UsageError
from ..tokens.table import TokenTable
from ._checkpoints import fill, read_checkpoint
from ._fbank import Fbank
from ._one_by_one import EncoderTeacher, measured_shift, read_alone
from ._options import existing, read_where
from .espnet import refuse_active_dropout
from .joiners import (
    AdapterBase,
    JoinerAdapter,
    JoinerMethods,
    has_attributes,
    takes_parameter,
    with_joiner_head,
)
from .protocol import Head, Teacher, TeacherSpec

OPTIONS = ("config", "model", "units", "chunk", "batch")
CLONE = "Put a clone of WeNet on PYTHONPATH; it is in no package index."
FBANK_FRAMES = (25, 10, "povey")  # frame length and shift in ms, and window, of Fbank


def load(where: str) -> Teacher:
    """Build the model that the config describes and load its weights.

    Raises ``UsageError`` for wrong paths and options or where WeNet is missing, and ``TeacherError`` where
    the model cannot be built, the weights do not fit, or the features are not Kaldi's filterbank.
    """
    options = read_where(where, "exp", OPTIONS)
    exp = existing(options["exp"], "a WeNet experiment folder")
    config_file = existing(options.get("config", exp / "train.yaml"), "its train.yaml")
    weights = existing(options.get("model", exp / "final.pt"), "the weights: model=FILE")
    with registry.needs("wenet", CLONE):
        import yaml
        from wenet.utils.init_model import init_model
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    _find_files(config, config_file.resolve().parent)
    features = _features(config, str(config_file))
    units = options.get("units") or (config.get("tokenizer_conf") or {}).get("symbol_table_path")
    if not units:
        raise UsageError(
            f"{config_file} names no symbol table", where="--teacher", do="Name it with units=FILE."
        )
    blank = int((config.get("ctc_conf") or {}).get("ctc_blank_id", 0))
    tokens = TokenTable.read(existing(units, "the symbol table: units=FILE"), blank)
    try:
        model, _ = init_model(argparse.Namespace(checkpoint=None), dict(config))
    except Exception as e:
        raise TeacherError(
            f"WeNet cannot build the model: {type(e).__name__}: {e}", where=str(config_file)
        ) from e
    fill(model, read_checkpoint(weights), str(weights))
    kind = WenetTeacher if getattr(model, "joint", None) is None else WenetTransducer
    return kind(
        model,
        tokens,
        features,
        encode_text=_tokenizer(config),
        alone=read_alone(options),
        chunk=int(options.get("chunk", -1)),
    )


class WenetTeacher(EncoderTeacher):
    """WeNet model with an encoder that gives (B, T, D) and a mask (B, 1, T), and a CTC head ``ctc.ctc_lo``.

    Args:
        model: a WeNet ``ASRModel``, or one with the same modules.
        tokens: the symbol table with the blank.
        features: filterbank, from audio to (T0, F).
        encode_text: tokenizer, from text to ids; None where the manifest has token ids.
        alone: encode each utterance without padding.
        chunk: frames of a decoding chunk; -1 for whole recordings.
    """

    def __init__(
        self,
        model: Any,
        tokens: TokenTable,
        features: Fbank,
        *,
        encode_text: Callable[[str], list[int]] | None = None,
        alone: bool = True,
        chunk: int = -1,
    ) -> None:
        self.model, self.table, self.compute = model.eval(), tokens, features
        self.encode_text, self.alone, self.chunk = encode_text, alone, chunk
        self.ctc: Any = getattr(model, "ctc", None)
        if self.ctc is not None:
            refuse_active_dropout(self.ctc)
        elif getattr(model, "joint", None) is None and not _decoder_head(model):
            raise TeacherError(f"{type(model).__name__} has neither ctc nor joint nor an attention decoder")
        self.rate = features.sample_rate
        self._frame_shift = measured_shift(self, self.rate)

    def describe(self) -> TeacherSpec:
        settings = {**self.compute.to_json(), "chunk": self.chunk}
        settings["batch"] = "alone" if self.alone else "together"
        heads = (Head("ctc", "ctc.ctc_lo", self.table.blank),) if self.ctc is not None else ()
        if path := _decoder_head(self.model):
            heads = (*heads, Head("seq2seq", path, self.table.blank, end=int(self.model.eos)))
        name = f"WeNet {type(self.model).__name__}"
        return TeacherSpec(name, self.rate, self._frame_shift, heads, settings)

    def tokens(self) -> TokenTable:
        return self.table

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        value = self.compute(audio)
        if len(value) < 7:
            raise ValueError(f"{len(audio)} samples are too short for one frame of the encoder")
        return value

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Without a chunk size, an encoder trained with dynamic chunks draws a random one.
        enc, mask = self.model.encoder(
            features, lengths, decoding_chunk_size=self.chunk, num_decoding_left_chunks=-1
        )
        return enc, mask.squeeze(1).sum(1).long().clamp(max=enc.shape[1])

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        enc, frames = self.encode_batch(features, lengths)
        output = {"enc": enc, "lengths": frames}
        if self.ctc is not None:  # ctc.forward computes the loss
            output["ctc"] = self.ctc.log_softmax(enc)
        return output

    def log_probs(self, output: Any) -> dict[str, torch.Tensor]:
        return {"ctc": output["ctc"]} if self.ctc is not None else {}

    def labels(self, text: str) -> list[int]:
        """Tokenise a text by the config's tokenizer; raises ``ValueError`` for unknown pieces."""
        if self.encode_text is None:
            raise ValueError("this teacher has no tokenizer: give tokens in the manifest")
        ids = [int(i) for i in self.encode_text(text)]
        if any(self.table[i] == "<unk>" or i == self.table.blank for i in ids):
            raise ValueError(f"{text!r} does not tokenise: it becomes {ids}")
        return ids

    def decode(self, output: Any, b: int, labels: list[int]) -> None:
        """Run the decoder as in training, a bidirectional one from left to right."""
        enc = output["enc"][b : b + 1, : int(output["lengths"][b])]
        mask = torch.ones(1, 1, enc.shape[1], dtype=torch.bool, device=enc.device)
        ids = torch.tensor([[int(self.model.sos), *labels[:-1]]], device=enc.device)
        length = torch.tensor([ids.shape[1]], device=enc.device)
        self.model.decoder(enc, mask, ids, length, ids, 0.0)


class WenetTransducer(JoinerMethods, WenetTeacher):
    """WeNet model with ``predictor`` and ``joint``; a HAT joint has no logits, and its head says so."""

    @cached_property
    def joiner(self) -> JoinerAdapter:
        """Adapter of the joint."""
        return WenetJoiner(self.model, blank=self.table.blank)

    def describe(self) -> TeacherSpec:
        return with_joiner_head(super().describe(), self.joiner)


class WenetJoiner(AdapterBase):
    """Joiner adapter of a predictor and its joint."""

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """Tell whether the joint can be told not to project and its owner has a ``predictor``."""
        return has_attributes(owner, "predictor") and takes_parameter(joint, "pre_project")

    def __init__(self, owner: Any, name: str = "joint", blank: int | None = None) -> None:
        joint = getattr(owner, name)
        self.normalised = getattr(joint, "ffn_out", None) is None
        super().__init__(owner, name, blank, "" if self.normalised else "ffn_out")
        if self.normalised:  # HAT: the last Linear gives the tokens, another one the blank
            linears = [m for m in joint.modules() if isinstance(m, nn.Linear)]
            self.classes = linears[-1].out_features + 1
        else:
            self.classes = int(joint.ffn_out.out_features)
        self.width = int(joint.enc_ffn.in_features) if has_attributes(joint, "enc_ffn") else 0

    def own_blank(self) -> int:
        return int(getattr(self.owner, "blank", 0))

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.joint.enc_ffn(enc) if has_attributes(self.joint, "enc_ffn") else enc
        return value

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        dec: torch.Tensor = self.owner.predictor(self.with_blank(labels, device))[0]
        return self.joint.pred_ffn(dec) if has_attributes(self.joint, "enc_ffn") else dec

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.joint(enc[None], dec[None], pre_project=False)
        return logits[0]


JOINER = WenetJoiner


def _decoder_head(model: Any) -> str:
    """Return the path of a decoder's last layer; empty for Whisper's, which needs more than ``sos``."""
    decoder = getattr(model, "decoder", None)
    if type(model).__name__ == "Whisper" or decoder is None:
        return ""
    modules = dict(model.named_modules())
    for owner in ("decoder.left_decoder", "decoder"):
        if isinstance(getattr(modules.get(owner), "output_layer", None), nn.Linear):
            return f"{owner}.output_layer"
    return ""


def _features(config: Mapping[str, Any], where: str) -> Fbank:
    """Make the filterbank that a config describes; raises ``TeacherError`` for any other kind of features."""
    data = config.get("dataset_conf") or {}
    fbank = dict(data.get("fbank_conf") or {})
    kind = data.get("feats_type", "fbank")
    frames = (fbank.get("frame_length", 25), fbank.get("frame_shift", 10), fbank.get("window_type", "povey"))
    if kind != "fbank" or frames != FBANK_FRAMES:
        raise TeacherError(
            f"features of kind {kind} with frames of {frames}",
            where=where,
            why="Only Kaldi's filterbank is computed here.",
            do="Write a teacher FILE.py:NAME that computes these features.",
        )
    rate = int((data.get("resample_conf") or {}).get("resample_rate", 16000))
    return Fbank(rate, int(fbank.get("num_mel_bins", 23)), scale=32768.0)


def _find_files(config: dict[str, Any], folder: Path) -> None:
    """Replace the config's paths, which are relative to the recipe's folder, by paths that exist."""
    places = [Path(), folder, *folder.parents]
    for section in ("cmvn_conf", "tokenizer_conf"):
        conf = dict(config.get(section) or {})
        for key, value in conf.items():
            if isinstance(value, str) and (key.endswith(("_path", "_file"))):
                candidates = [place / value for place in places] + [folder / Path(value).name]
                conf[key] = str(next((p for p in candidates if p.is_file()), value))
        if conf:
            config[section] = conf


def _tokenizer(config: Mapping[str, Any]) -> Callable[[str], list[int]] | None:
    if "tokenizer" not in config:
        return None
    with registry.needs("wenet", CLONE):
        from wenet.utils.init_tokenizer import init_tokenizer
    tokenizer: Any = init_tokenizer(config)
    return lambda text: [int(i) for i in tokenizer.tokenize(text)[1]]
