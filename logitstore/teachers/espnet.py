"""``espnet:DIR``: an ESPnet2 ASR experiment, ``config.yaml`` and a ``.pth`` of averaged weights.

Options: ``config=FILE``, ``model=FILE`` (found in the folder where there is one candidate), ``bpe=FILE``,
    ``batch=together``. The model has a CTC layer, a transducer, an attention decoder, or several of them, and
    is of the
task ``asr`` or ``asr_transducer``; the config tells which. Weights are read without running pickled code.

Each utterance is encoded alone unless ``batch=together``, which is faster on a GPU: the convolutions inside a
conformer see the padding behind a recording.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from ._one_by_one import EncoderTeacher, measured_shift, read_alone
from ._options import existing, read_where
from .joiners import (
    AdapterBase,
    JoinerAdapter,
    JoinerMethods,
    has_attributes,
    takes_parameter,
    with_joiner_head,
)
from .protocol import Head, Teacher, TeacherSpec, copy_without_hooks

OPTIONS = ("config", "model", "bpe", "batch")
BEST = ("valid.acc.ave.pth", "valid.loss.ave.pth", "valid.cer_transducer.ave.pth", "valid.cer_ctc.ave.pth")


def load(where: str) -> Teacher:
    """Build the model that the config describes and load its weights.

    Raises ``UsageError`` for wrong paths and options or where ESPnet is missing, and ``TeacherError`` where
    the model cannot be built, the weights do not fit, or dropout would be active.
    """
    options = read_where(where, "exp", OPTIONS)
    exp = existing(options["exp"], "an ESPnet experiment folder")
    config_file = existing(options.get("config", exp / "config.yaml"), "its config.yaml")
    weights = existing(options["model"], "the weights") if "model" in options else _weights_in(exp)
    with registry.needs("espnet"):
        import yaml
        from espnet2.tasks.asr import ASRTask
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    _find_files(config, config_file.resolve().parent)
    if "bpe" in options:
        config["bpemodel"] = str(existing(options["bpe"], "the BPE model"))
    try:
        with _transducer_loss_stub():
            if _is_transducer_task(config):
                model = _build_transducer_task(config)
            else:
                model = ASRTask.build_model(argparse.Namespace(**config))
    except Exception as e:
        raise TeacherError(
            f"ESPnet cannot build the model: {type(e).__name__}: {e}", where=str(config_file)
        ) from e
    state = read_checkpoint(weights)
    fill(model, state.get("module", state), str(weights))
    kind = EspnetTeacher if getattr(model, "joint_network", None) is None else EspnetTransducer
    return kind(model, config, alone=read_alone(options))


class EspnetTeacher(EncoderTeacher):
    """ESPnet model with a CTC layer, ``ctc.ctc_lo`` or ``ctc_lin``, or an attention decoder.

    Args:
        model: an ``ESPnetASRModel`` or ``ESPnetASRTransducerModel``.
        config: contents of its config.yaml.
        alone: encode each utterance without padding.
    """

    def __init__(self, model: Any, config: Mapping[str, Any], *, alone: bool = True) -> None:
        self.asr, self.config, self.alone = model.eval(), config, alone
        self.model: Any = model
        # The task asr_transducer calls its CTC layer ctc_lin and knows no blank other than 0.
        self._ctc_path = "ctc_lin" if hasattr(model, "ctc_lin") else "ctc.ctc_lo"
        self.ctc: Any = getattr(model, self._ctc_path.partition(".")[0], None)
        self.blank = int(getattr(model, "blank_id", 0))
        transducer = getattr(model, "joint_network", None) is not None
        self._decoder_path = "" if transducer else _decoder_head(model)
        if self.ctc is not None:
            refuse_active_dropout(self.ctc)
        elif not transducer and not self._decoder_path:
            raise TeacherError(
                "the model has neither a CTC layer nor a joint network nor an attention decoder"
            )
        encoder = model.encoder
        encoder_calls_ctc = getattr(encoder, "interctc_use_conditioning", False) or getattr(
            encoder, "ctc_trim", False
        )
        if self.ctc is not None and encoder_calls_ctc:
            # The copy runs once a batch, on the encoder's output alone; a tap on the layer itself would also
            # see the calls inside the encoder.
            head = copy_without_hooks(self.ctc.ctc_lo)
            self.model = nn.ModuleDict({"asr": model, "ctc_head": head}).eval()
            self._ctc_path = "ctc_head"
        self._prefix = "asr." if self.model is not model else ""
        self.rate = _sample_rate(config)
        self.volume = config.get("speech_volume_normalize")
        self._frame_shift = 1
        self._frame_shift = measured_shift(self, self.rate)

    def describe(self) -> TeacherSpec:
        keep = ("frontend", "frontend_conf", "normalize", "speech_volume_normalize", "preencoder")
        features = {k: self.config.get(k) for k in keep if self.config.get(k) is not None}
        features["batch"] = "alone" if self.alone else "together"
        heads = (Head("ctc", self._ctc_path, self.blank),) if self.ctc is not None else ()
        if self._decoder_path:
            path, end = f"{self._prefix}{self._decoder_path}", int(self.asr.eos)
            heads = (*heads, Head("seq2seq", path, self.blank, end=end))
        name = f"ESPnet {type(self.asr.encoder).__name__}"
        return TeacherSpec(name, self.rate, self._frame_shift, heads, features)

    def tokens(self) -> TokenTable:
        return TokenTable(tuple(str(t) for t in self.asr.token_list), self.blank)

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """Return the samples as (samples, 1): the frontend is a part of the model."""
        if len(audio) < 4 * self._frame_shift:
            raise ValueError(f"{len(audio)} samples are too short for the encoder")
        peak = float(np.abs(audio).max())
        if self.volume is not None and peak > 0:
            audio = audio * np.float32(self.volume / peak)
        return torch.from_numpy(audio)[:, None]

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        enc, frames = self.asr.encode(features[..., 0], lengths)
        # With intermediate CTC the encoder gives its last output and a list of those in between.
        enc = enc[0] if isinstance(enc, tuple) else enc
        return enc, frames.long().clamp(max=enc.shape[1])

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        enc, frames = self.encode_batch(features, lengths)
        output = {"enc": enc, "lengths": frames}
        if self.ctc is not None:  # ctc.forward computes the loss, so the layer is called directly
            output["ctc"] = self.model.get_submodule(self._ctc_path)(enc)
        return output

    def log_probs(self, output: Any) -> dict[str, torch.Tensor]:
        return {"ctc": output["ctc"].float().log_softmax(-1)} if self.ctc is not None else {}

    def labels(self, text: str) -> list[int]:
        """Tokenise a text as the config says; raises ``ValueError`` for a piece outside the token list."""
        from espnet2.text.build_tokenizer import build_tokenizer

        keys = ("token_type", "bpemodel", "non_linguistic_symbols", "g2p")
        given = {("g2p_type" if k == "g2p" else k): self.config.get(k) for k in keys}
        pieces = build_tokenizer(**given).text2tokens(text)
        known = {t: i for i, t in enumerate(self.asr.token_list)}
        if unknown := [p for p in pieces if p not in known]:
            raise ValueError(f"{text!r} does not tokenise: {unknown[0]!r} is not in the token list")
        return [known[p] for p in pieces]

    def decode(self, output: Any, b: int, labels: list[int]) -> None:
        """Run the decoder as in training: start token, language token where there is one, labels."""
        n = output["lengths"][b : b + 1]
        language = getattr(self.asr, "lang_token_id", None)
        prompt = [int(self.asr.sos), *([] if language is None else language.flatten().tolist())]
        ids = torch.tensor([[*prompt, *labels[:-1]]], device=n.device)
        length = torch.tensor([ids.shape[1]], device=n.device)
        self.asr.decoder(output["enc"][b : b + 1, : int(n)], n, ids, length)


class EspnetTransducer(JoinerMethods, EspnetTeacher):
    """ESPnet model with a transducer decoder and ``joint_network``, with or without a CTC layer."""

    @cached_property
    def joiner(self) -> JoinerAdapter:
        """Adapter of the joint network."""
        return EspnetJoiner(self.asr, blank=self.blank)

    def describe(self) -> TeacherSpec:
        return with_joiner_head(super().describe(), self.joiner, self._prefix)


class EspnetJoiner(AdapterBase):
    """Joiner adapter of a transducer decoder and its joint network."""

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """Tell whether the joiner has ``lin_enc``, ``lin_dec``, ``lin_out`` and its owner a ``decoder``."""
        return (
            has_attributes(joint, "lin_enc", "lin_dec", "lin_out")
            and takes_parameter(joint, "no_projection")
            and has_attributes(owner, "decoder")
        )

    def __init__(self, owner: Any, name: str = "joint_network", blank: int | None = None) -> None:
        super().__init__(owner, name, blank, "lin_out")
        self.classes, self.width = int(self.joint.lin_out.out_features), int(self.joint.lin_enc.in_features)
        if getattr(owner, "postencoder", None) is not None:
            self.encoder = "postencoder"

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.joint.lin_enc(enc)
        return value

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        predicted = _run_prediction(self.owner.decoder, self.with_blank(labels, device))
        value: torch.Tensor = self.joint.lin_dec(predicted)
        return value

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.joint(enc[None, :, None], dec[None, None], no_projection=True)
        return logits[0]


JOINER = EspnetJoiner


def _run_prediction(decoder: Any, ids: torch.Tensor) -> torch.Tensor:
    """Run a prediction network on ids (1, U+1): (U+1, D).

    RWKV's forward is a CUDA kernel for training, so RWKV is run label by label, as ESPnet's search runs it.
    """
    decoder.set_device(ids.device)
    if not hasattr(decoder, "rwkv_blocks"):
        predicted: torch.Tensor = decoder(ids)[0]
        return predicted
    state, rows = decoder.init_state(1), []
    for label in ids[0]:
        row, state = decoder.inference(label[None, None], state)
        rows.append(row[0, 0])
    return torch.stack(rows)


def refuse_active_dropout(ctc: Any) -> None:
    """Raise ``TeacherError`` for a CTC module with dropout that is active in eval mode too.

    ESPnet, WeNet and FunASR write ``F.dropout(hs, self.dropout_rate)``; its argument ``training`` is True by
    default.
    """
    rate = float(getattr(ctc, "dropout_rate", 0.0) or 0.0)
    if rate > 0:
        raise TeacherError(
            f"{type(ctc).__name__} has dropout_rate {rate:g}",
            why="Its forward calls F.dropout without training=, which drops in eval mode too, so every "
            "forward gives other logits.",
            do="Set ctc_conf.dropout_rate to 0.0 in the config: no weight depends on it.",
        )


def _decoder_head(model: Any) -> str:
    """Return the path of a decoder's last layer: ``output_layer`` in transformers, ``output`` in RNNs."""
    decoder = getattr(model, "decoder", None)
    for name in ("output_layer", "output"):
        if isinstance(getattr(decoder, name, None), nn.Linear):
            return f"decoder.{name}"
    return ""


def _sample_rate(config: Mapping[str, Any]) -> int:
    """Read the frontend's sample rate, written ``16000`` or ``16k``; 16000 Hz where the config gives none."""
    text = str((config.get("frontend_conf") or {}).get("fs", 16000)).lower()
    return round(float(text.removesuffix("k")) * (1000 if text.endswith("k") else 1))


def _weights_in(exp: Path) -> Path:
    """Return the averaged weights of an experiment: the best by ESPnet's usual names, or the only file."""
    found = sorted(f.name for f in exp.glob("*.pth") if f.name != "checkpoint.pth")
    best = [name for name in BEST if name in found]
    if not best and len(found) == 1:
        best = found
    if not best:
        raise UsageError(
            f"{exp} holds {len(found)} files of weights",
            do=f"Name one with model=FILE: {', '.join(found) or 'none'}.",
        )
    return exp / best[0]


def _find_files(config: dict[str, Any], folder: Path) -> None:
    """Replace the config's paths, which are relative to the recipe's folder, by paths that exist."""
    places = [Path(), folder, *folder.parents]

    def find(path: str) -> str:
        candidates = [place / path for place in places] + [folder / Path(path).name]
        return str(next((p for p in candidates if p.is_file()), path))

    for key in ("token_list", "bpemodel", "non_linguistic_symbols"):
        if isinstance(config.get(key), str):
            config[key] = find(config[key])
    stats = (config.get("normalize_conf") or {}).get("stats_file")
    if stats:
        config["normalize_conf"] = {**config["normalize_conf"], "stats_file": find(stats)}


def _is_transducer_task(config: Mapping[str, Any]) -> bool:
    """Tell whether a config is of the task ``asr_transducer``; the task ``asr`` writes ``joint_net_conf``."""
    return "joint_network_conf" in config


def _build_transducer_task(config: Mapping[str, Any]) -> Any:
    """Build a model of the task ``asr_transducer`` as ``asr_transducer_inference`` does, weights random."""
    from espnet2.tasks.asr_transducer import ASRTransducerTask

    with _no_rwkv_kernel():
        model: Any = ASRTransducerTask.build_model(argparse.Namespace(**config))
    # Otherwise the encoder draws a random chunk size in every forward, in eval mode too.
    model.encoder.dynamic_chunk_training = False
    return model


@contextmanager
def _no_rwkv_kernel() -> Iterator[None]:
    """Keep RWKV's constructor from compiling its training kernel, which fails without a GPU or a compiler."""
    from espnet2.asr_transducer.decoder.modules.rwkv import attention

    compile_kernel = attention.load_wkv_kernel
    attention.load_wkv_kernel = lambda context_size: None
    try:
        yield
    finally:
        attention.load_wkv_kernel = compile_kernel


@contextmanager
def _transducer_loss_stub() -> Iterator[None]:
    """Provide a stub of ``warprnnt_pytorch``, which constructors import and only training uses."""
    name = "warprnnt_pytorch"
    try:
        __import__(name)
        yield
        return
    except ImportError:
        pass
    stub = types.ModuleType(name)
    stub.RNNTLoss = _StubLoss  # type: ignore[attr-defined]
    sys.modules[name] = stub
    try:
        yield
    finally:
        del sys.modules[name]


class _StubLoss(nn.Module):
    """Loss module that is constructed and never called."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
