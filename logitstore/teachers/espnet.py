"""``espnet:DIR``: an ESPnet2 ASR experiment, ``config.yaml`` and a ``.pth`` of averaged weights.

Options: ``config=FILE``, ``model=FILE`` (found in the folder where there is no doubt), ``bpe=FILE``,
``batch=together``. CTC, transducer or both, of the tasks ``asr`` and ``asr_transducer``, which the config
tells apart. Weights are read without running pickled code.

Each utterance is encoded alone unless ``batch=together``, which is faster on a GPU: convolutions inside a
conformer see what stands after a recording.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from ._one_by_one import measured_shift, one_by_one, read_alone
from ._options import existing, read_where
from .joiners import AdapterBase, JoinerAdapter, has, sides, takes
from .protocol import Head, Teacher, TeacherSpec, twin

OPTIONS = ("config", "model", "bpe", "batch")
BEST = ("valid.acc.ave.pth", "valid.loss.ave.pth", "valid.cer_transducer.ave.pth", "valid.cer_ctc.ave.pth")


def load(where: str) -> Teacher:
    """Build the model that the config describes and fill it.

    Raises ``UsageError`` for wrong paths and options or where ESPnet is missing, and ``TeacherError`` where
    the model cannot be built, the weights do not fit, or dropout would be live.
    """
    asked = read_where(where, "exp", OPTIONS)
    exp = existing(asked["exp"], "an ESPnet experiment folder")
    config = existing(asked.get("config", exp / "config.yaml"), "its config.yaml")
    weights = existing(asked["model"], "the weights") if "model" in asked else _weights_in(exp)
    with registry.needs("espnet"):
        import yaml
        from espnet2.tasks.asr import ASRTask
    said = yaml.safe_load(config.read_text(encoding="utf-8"))
    _find_files(said, config.resolve().parent)
    if "bpe" in asked:
        said["bpemodel"] = str(existing(asked["bpe"], "the BPE model"))
    try:
        with _no_transducer_loss():
            other = is_transducer_task(said)
            model = build(said) if other else ASRTask.build_model(argparse.Namespace(**said))
    except Exception as e:
        raise TeacherError(f"building it failed with {type(e).__name__}: {e}", where=str(config)) from e
    state = read_checkpoint(weights)
    fill(model, state.get("module", state), str(weights))
    kind = EspnetTeacher if getattr(model, "joint_network", None) is None else EspnetTransducer
    return kind(model, said, alone=read_alone(asked))


def refuse_live_dropout(ctc: Any) -> None:
    """Raise ``TeacherError`` for a CTC module whose ``F.dropout`` drops in eval too.

    ESPnet, WeNet and FunASR write ``F.dropout(hs, self.dropout_rate)``; ``training=True`` is its default.
    """
    rate = float(getattr(ctc, "dropout_rate", 0.0) or 0.0)
    if rate > 0:
        raise TeacherError(
            f"{type(ctc).__name__} has dropout_rate {rate:g}",
            why="Its forward calls F.dropout without training=: it drops in eval mode too, each time anew.",
            do="Set ctc_conf.dropout_rate to 0.0 in the config: no weight depends on it.",
        )


class EspnetTeacher:
    """A model with ``encode`` and ``ctc.ctc_lo``, or the auxiliary ``ctc_lin``, or an attention decoder.

    Args:
        model: an ``ESPnetASRModel`` or ``ESPnetASRTransducerModel``.
        config: what its config.yaml says.
        alone: encode utterance by utterance, so that no padding reaches into an utterance's frames.
    """

    def __init__(self, model: Any, config: Mapping[str, Any], *, alone: bool = True) -> None:
        self.asr, self.config, self.alone = model.eval(), config, alone
        self.model: Any = model
        self._ctc_path = "ctc_lin" if hasattr(model, "ctc_lin") else "ctc.ctc_lo"  # asr_transducer, asr
        self.ctc: Any = getattr(model, self._ctc_path.partition(".")[0], None)
        self.blank = int(getattr(model, "blank_id", 0))  # asr_transducer knows no other than 0
        transducer = getattr(model, "joint_network", None) is not None
        self._decoder_path = "" if transducer else _decoder_head(model)
        if self.ctc is not None:
            refuse_live_dropout(self.ctc)
        elif not transducer and not self._decoder_path:
            raise TeacherError("it has neither a CTC layer nor a joint network nor an attention decoder")
        encoder = model.encoder
        if self.ctc is not None and (
            getattr(encoder, "interctc_use_conditioning", False) or getattr(encoder, "ctc_trim", False)
        ):
            # The encoder calls the layer too, for itself. Its twin says the answer alone.
            self.model = nn.ModuleDict({"asr": model, "ctc_head": twin(self.ctc.ctc_lo)}).eval()
            self._ctc_path = "ctc_head"
        self._prefix = "asr." if self.model is not model else ""
        frontend = config.get("frontend_conf") or {}
        fs = str(frontend.get("fs", 16000)).lower()
        self.rate = round(float(fs.removesuffix("k")) * (1000 if fs.endswith("k") else 1))
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
        """(samples, 1): the frontend is a part of the model."""
        if len(audio) < 4 * self._frame_shift:
            raise ValueError(f"{len(audio)} samples are too short for the encoder")
        peak = float(np.abs(audio).max())
        if self.volume is not None and peak > 0:
            audio = audio * np.float32(self.volume / peak)
        return torch.from_numpy(audio)[:, None]

    def _encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        enc, frames = self.asr.encode(features[..., 0], lengths)
        enc = enc[0] if isinstance(enc, tuple) else enc  # with the outputs of its middle layers
        return enc, frames.long().clamp(max=enc.shape[1])

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        if self.alone:
            enc, frames = one_by_one(lambda x, n: self._encode(x, n)[0], features, lengths)
        else:
            enc, frames = self._encode(features, lengths)
        output = {"enc": enc, "lengths": frames}
        if self.ctc is not None:  # not ctc.forward, which is the loss
            output["ctc"] = self.model.get_submodule(self._ctc_path)(enc)
        return output

    def lengths(self, output: Any) -> torch.Tensor:
        lengths: torch.Tensor = output["lengths"]
        return lengths

    def log_probs(self, output: Any) -> dict[str, torch.Tensor]:
        """What the model itself says, for the self-check."""
        return {"ctc": output["ctc"].float().log_softmax(-1)} if self.ctc is not None else {}

    def labels(self, text: str) -> list[int]:
        """Token ids of a text by the config's own tokenizer; raises ``ValueError`` for unknown ones."""
        from espnet2.text.build_tokenizer import build_tokenizer

        keys = ("token_type", "bpemodel", "non_linguistic_symbols", "g2p")
        given = {("g2p_type" if k == "g2p" else k): self.config.get(k) for k in keys}
        pieces = build_tokenizer(**given).text2tokens(text)
        known = {t: i for i, t in enumerate(self.asr.token_list)}
        if unknown := [p for p in pieces if p not in known]:
            raise ValueError(f"{text!r} does not tokenise: {unknown[0]!r} is not in the token list")
        return [known[p] for p in pieces]

    def decode(self, output: Any, b: int, labels: list[int]) -> None:
        """Teacher forcing as in training: the start, a language where the model has one, then the labels."""
        n = output["lengths"][b : b + 1]
        language = getattr(self.asr, "lang_token_id", None)
        prompt = [int(self.asr.sos), *([] if language is None else language.flatten().tolist())]
        ids = torch.tensor([[*prompt, *labels[:-1]]], device=n.device)
        length = torch.tensor([ids.shape[1]], device=n.device)
        self.asr.decoder(output["enc"][b : b + 1, : int(n)], n, ids, length)


def _decoder_head(model: Any) -> str:
    """Path of an attention decoder's last layer: of transformers ``output_layer``, of RNNs ``output``."""
    decoder = getattr(model, "decoder", None)
    for name in ("output_layer", "output"):
        if isinstance(getattr(decoder, name, None), nn.Linear):
            return f"decoder.{name}"
    return ""


class EspnetTransducer(EspnetTeacher):
    """A model with a transducer decoder and ``joint_network``, and perhaps CTC beside them."""

    def describe(self) -> TeacherSpec:
        spec = super().describe()
        head = Head("rnnt", f"{self._prefix}joint_network.lin_out", self.blank)
        return replace(spec, heads=(*spec.heads, head))

    @cached_property
    def drive(self) -> JoinerAdapter:
        """Of its joint network."""
        return EspnetJoiner(self.asr, blank=self.blank)

    def transducer(self, output: Any, b: int, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return sides(self.drive, output["enc"][b, : int(output["lengths"][b])], labels)

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        return self.drive.join(enc, dec)


def _weights_in(exp: Path) -> Path:
    found = sorted(f.name for f in exp.glob("*.pth") if f.name != "checkpoint.pth")
    best = [n for n in BEST if n in found] or (found if len(found) == 1 else [])
    if not best:
        raise UsageError(
            f"{exp} holds {len(found)} files of weights", do=f"Say model=FILE: {', '.join(found) or 'none'}."
        )
    return exp / best[0]


def _find_files(config: dict[str, Any], folder: Path) -> None:
    """Turn the config's paths, which count from the recipe's folder, into ones that exist."""
    places = [Path(), folder, *folder.parents]

    def find(path: str) -> str:
        tried = [place / path for place in places] + [folder / Path(path).name]
        return str(next((p for p in tried if p.is_file()), path))

    for owner, key in ((config, "token_list"), (config, "bpemodel"), (config, "non_linguistic_symbols")):
        if isinstance(owner.get(key), str):
            owner[key] = find(owner[key])
    stats = (config.get("normalize_conf") or {}).get("stats_file")
    if stats:
        config["normalize_conf"] = {**config["normalize_conf"], "stats_file": find(stats)}


@contextmanager
def _no_transducer_loss() -> Iterator[None]:
    """Constructors of transducers import a loss that has to be compiled, and that only training uses."""
    name = "warprnnt_pytorch"
    try:
        __import__(name)
        yield
        return
    except ImportError:
        pass
    stub = types.ModuleType(name)
    stub.RNNTLoss = _NoLoss  # type: ignore[attr-defined]
    sys.modules[name] = stub
    try:
        yield
    finally:
        del sys.modules[name]


class _NoLoss(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()


class EspnetJoiner(AdapterBase):
    """A transducer decoder and its joint network."""

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """``lin_enc`` and ``lin_dec`` beside ``lin_out``, and a ``decoder``."""
        return (
            has(joint, "lin_enc", "lin_dec", "lin_out")
            and takes(joint, "no_projection")
            and has(owner, "decoder")
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
        value: torch.Tensor = self.joint.lin_dec(predicted(self.owner.decoder, self.begun(labels, device)))
        return value

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.joint(enc[None, :, None], dec[None, None], no_projection=True)
        return logits[0]


def predicted(decoder: Any, ids: torch.Tensor) -> torch.Tensor:
    """What a prediction network says: (1, U+1) → (U+1, D).

    RWKV's forward is a CUDA kernel for training; like ESPnet's search, it is asked label by label instead.
    """
    decoder.set_device(ids.device)
    if not hasattr(decoder, "rwkv_blocks"):
        said: torch.Tensor = decoder(ids)[0]
        return said
    state, rows = decoder.init_state(1), []
    for label in ids[0]:
        row, state = decoder.inference(label[None, None], state)
        rows.append(row[0, 0])
    return torch.stack(rows)


JOINER = EspnetJoiner


def is_transducer_task(config: Mapping[str, Any]) -> bool:
    """Whether a config.yaml is of that task: the other one writes ``joint_net_conf``."""
    return "joint_network_conf" in config


def build(config: Mapping[str, Any]) -> Any:
    """The model, random weights, as ``asr_transducer_inference`` has it."""
    from espnet2.tasks.asr_transducer import ASRTransducerTask

    with _no_kernel():
        model: Any = ASRTransducerTask.build_model(argparse.Namespace(**config))
    # Otherwise the encoder draws a chunk size in every forward, in eval mode too.
    model.encoder.dynamic_chunk_training = False
    return model


@contextmanager
def _no_kernel() -> Iterator[None]:
    """RWKV's constructor compiles its training kernel, and fails where there is no GPU or no compiler."""
    from espnet2.asr_transducer.decoder.modules.rwkv import attention

    compile_kernel = attention.load_wkv_kernel
    attention.load_wkv_kernel = lambda context_size: None
    try:
        yield
    finally:
        attention.load_wkv_kernel = compile_kernel
