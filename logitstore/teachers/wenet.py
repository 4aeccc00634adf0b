"""``wenet:DIR``: a WeNet experiment, ``train.yaml`` and ``final.pt`` (or ``avg_N.pt``).

WeNet is not on a package index: run with a clone of it on ``PYTHONPATH``. Options: ``config=FILE``,
``model=FILE``, ``units=FILE`` (the symbol table), ``chunk=N`` (decoding chunk size, whole recordings if not
given), ``batch=together``. CTC, transducer and HAT; weights are read without running pickled code.

Any other model of the same conventions: ``WenetTeacher(model, tokens, features)``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
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
from ._one_by_one import measured_shift, one_by_one, read_alone
from ._options import existing, read_where
from .espnet import refuse_live_dropout
from .joiners import AdapterBase, JoinerAdapter, has, sides, takes
from .protocol import Head, Teacher, TeacherSpec

OPTIONS = ("config", "model", "units", "chunk", "batch")
CLONE = "Put a clone of WeNet on PYTHONPATH; pip has none."


def load(where: str) -> Teacher:
    """Build the model that the config describes and fill it.

    Raises ``UsageError`` for wrong paths and options or where WeNet is missing, and ``TeacherError`` where
    the model cannot be built, the weights do not fit, or the features are not Kaldi's filterbank.
    """
    asked = read_where(where, "exp", OPTIONS)
    exp = existing(asked["exp"], "a WeNet experiment folder")
    config = existing(asked.get("config", exp / "train.yaml"), "its train.yaml")
    weights = existing(asked.get("model", exp / "final.pt"), "the weights: model=FILE")
    with registry.needs("wenet", CLONE):
        import yaml
        from wenet.utils.init_model import init_model
    said = yaml.safe_load(config.read_text(encoding="utf-8"))
    _find_files(said, config.resolve().parent)
    features = _features(said, str(config))
    units = asked.get("units") or (said.get("tokenizer_conf") or {}).get("symbol_table_path")
    if not units:
        raise UsageError(f"{config} names no symbol table", where="--teacher", do="Say units=FILE.")
    blank = int((said.get("ctc_conf") or {}).get("ctc_blank_id", 0))
    tokens = TokenTable.read(existing(units, "the symbol table: units=FILE"), blank)
    try:
        model, _ = init_model(argparse.Namespace(checkpoint=None), dict(said))
    except Exception as e:
        raise TeacherError(f"building it failed with {type(e).__name__}: {e}", where=str(config)) from e
    fill(model, read_checkpoint(weights), str(weights))
    kind = WenetTeacher if getattr(model, "joint", None) is None else WenetTransducer
    return kind(
        model,
        tokens,
        features,
        encode_text=_tokenizer(said),
        alone=read_alone(asked),
        chunk=int(asked.get("chunk", -1)),
    )


class WenetTeacher:
    """A model with ``encoder(x, lengths, …)`` giving (B, T, D) and a mask (B, 1, T), and ``ctc.ctc_lo``.

    Args:
        model: a WeNet ``ASRModel`` or one like it.
        tokens: the symbol table, blank included.
        features: ``audio → (T0, F)``.
        encode_text: text → ids.
        alone: encode utterance by utterance, so that no padding reaches into an utterance's frames.
        chunk: frames a chunk; -1 for whole recordings.
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
            refuse_live_dropout(self.ctc)
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
        return TeacherSpec(
            f"WeNet {type(self.model).__name__}", self.rate, self._frame_shift, heads, settings
        )

    def tokens(self) -> TokenTable:
        return self.table

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        value = self.compute(audio)
        if len(value) < 7:
            raise ValueError(f"{len(audio)} samples are too short for one frame of the encoder")
        return value

    def _encode(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Without a chunk size an encoder trained with dynamic chunks draws one at random.
        enc, mask = self.model.encoder(
            x, lengths, decoding_chunk_size=self.chunk, num_decoding_left_chunks=-1
        )
        return enc, mask.squeeze(1).sum(1).long().clamp(max=enc.shape[1])

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        if self.alone:
            enc, frames = one_by_one(lambda x, n: self._encode(x, n)[0], features, lengths)
        else:
            enc, frames = self._encode(features, lengths)
        output = {"enc": enc, "lengths": frames}
        if self.ctc is not None:  # not ctc.forward, which is the loss
            output["ctc"] = self.ctc.log_softmax(enc)
        return output

    def lengths(self, output: Any) -> torch.Tensor:
        lengths: torch.Tensor = output["lengths"]
        return lengths

    def log_probs(self, output: Any) -> dict[str, torch.Tensor]:
        """What the model itself says, for the self-check."""
        return {"ctc": output["ctc"]} if self.ctc is not None else {}

    def labels(self, text: str) -> list[int]:
        """Token ids of a text by the config's own tokenizer; raises ``ValueError`` for unknown ones."""
        if self.encode_text is None:
            raise ValueError("this teacher has no tokenizer: give tokens in the manifest")
        ids = [int(i) for i in self.encode_text(text)]
        if any(self.table[i] == "<unk>" or i == self.table.blank for i in ids):
            raise ValueError(f"{text!r} does not tokenise: it becomes {ids}")
        return ids

    def decode(self, output: Any, b: int, labels: list[int]) -> None:
        """Teacher forcing as in training; of a bidirectional decoder, left to right."""
        enc = output["enc"][b : b + 1, : int(output["lengths"][b])]
        seen = torch.ones(1, 1, enc.shape[1], dtype=torch.bool, device=enc.device)
        ids = torch.tensor([[int(self.model.sos), *labels[:-1]]], device=enc.device)
        length = torch.tensor([ids.shape[1]], device=enc.device)
        self.model.decoder(enc, seen, ids, length, ids, 0.0)


def _decoder_head(model: Any) -> str:
    """Path of an attention decoder's last layer; empty where there is none that begins with ``sos`` alone."""
    decoder = getattr(model, "decoder", None)
    if type(model).__name__ == "Whisper" or decoder is None:
        return ""
    for name in ("left_decoder.output_layer", "output_layer"):
        owner, _, last = f"decoder.{name}".rpartition(".")
        found: Any = dict(model.named_modules()).get(owner)
        if isinstance(getattr(found, last, None), nn.Linear):
            return f"{owner}.{last}"
    return ""


class WenetTransducer(WenetTeacher):
    """A model with ``predictor`` and ``joint``; a HAT joint has no logits, and its head says so."""

    def describe(self) -> TeacherSpec:
        spec, drive = super().describe(), self.drive
        head = Head("rnnt", drive.head, drive.blank, normalised=drive.normalised)
        return replace(spec, heads=(*spec.heads, head))

    @cached_property
    def drive(self) -> JoinerAdapter:
        """Of its joint."""
        return WenetJoiner(self.model, blank=self.table.blank)

    def transducer(self, output: Any, b: int, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return sides(self.drive, output["enc"][b, : int(output["lengths"][b])], labels)

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        return self.drive.join(enc, dec)


def _features(config: Mapping[str, Any], where: str) -> Fbank:
    data = config.get("dataset_conf") or {}
    given = dict(data.get("fbank_conf") or {})
    kind = data.get("feats_type", "fbank")
    frames = (given.get("frame_length", 25), given.get("frame_shift", 10), given.get("window_type", "povey"))
    if kind != "fbank" or frames != (25, 10, "povey"):
        raise TeacherError(
            f"features of kind {kind} with frames of {frames}",
            where=where,
            do="Kaldi's filterbank alone is computed here; make others in a FILE.py:NAME teacher.",
        )
    rate = int((data.get("resample_conf") or {}).get("resample_rate", 16000))
    return Fbank(rate, int(given.get("num_mel_bins", 23)), scale=32768.0)


def _find_files(config: dict[str, Any], folder: Path) -> None:
    """Turn the config's paths, which count from the recipe's folder, into ones that exist."""
    places = [Path(), folder, *folder.parents]
    for section in ("cmvn_conf", "tokenizer_conf"):
        conf = dict(config.get(section) or {})
        for key, value in conf.items():
            if isinstance(value, str) and (key.endswith(("_path", "_file"))):
                tried = [place / value for place in places] + [folder / Path(value).name]
                conf[key] = str(next((p for p in tried if p.is_file()), value))
        if conf:
            config[section] = conf


def _tokenizer(config: Mapping[str, Any]) -> Callable[[str], list[int]] | None:
    if "tokenizer" not in config:
        return None
    with registry.needs("wenet", CLONE):
        from wenet.utils.init_tokenizer import init_tokenizer
    tokenizer: Any = init_tokenizer(config)
    return lambda text: [int(i) for i in tokenizer.tokenize(text)[1]]


class WenetJoiner(AdapterBase):
    """A predictor and its joint."""

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """A ``joint`` that can be told not to project, and a ``predictor``."""
        return has(owner, "predictor") and takes(joint, "pre_project")

    def __init__(self, owner: Any, name: str = "joint", blank: int | None = None) -> None:
        joint = getattr(owner, name)
        self.normalised = getattr(joint, "ffn_out", None) is None
        super().__init__(owner, name, blank, "" if self.normalised else "ffn_out")
        linears = [m for m in joint.modules() if isinstance(m, nn.Linear)]  # of HAT, the tokens' comes last
        self.classes = linears[-1].out_features + 1 if self.normalised else int(joint.ffn_out.out_features)
        self.width = int(joint.enc_ffn.in_features) if has(joint, "enc_ffn") else 0

    def own_blank(self) -> int:
        return int(getattr(self.owner, "blank", 0))

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.joint.enc_ffn(enc) if has(self.joint, "enc_ffn") else enc
        return value

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        dec: torch.Tensor = self.owner.predictor(self.begun(labels, device))[0]
        return self.joint.pred_ffn(dec) if has(self.joint, "enc_ffn") else dec

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.joint(enc[None], dec[None], pre_project=False)
        return logits[0]


JOINER = WenetJoiner
