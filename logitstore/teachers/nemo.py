"""``nemo:FILE.nemo``: a NeMo CTC, RNN-T, TDT, HAT or hybrid model, of subwords or characters.

The blank is the last class. NeMo's ``joint()`` gives logits on a GPU and log-probabilities on a CPU; its
log_softmax is turned off here on both. The durations of a TDT joint are left out of V. A HAT joint has no
logits, and its head says so (``normalised``). ``batch=alone`` encodes each utterance by itself, for encoders
with padding that reaches into valid frames (``stacking`` subsampling counts frames by the batch). A ``.nemo``
file names the classes to build: load only files that you trust. Nothing is downloaded.
"""

from __future__ import annotations

import copy
import json
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .. import registry
from ..errors import TeacherError
from ..tokens.table import TokenTable
from ._one_by_one import EncoderTeacher, measured_shift, read_alone
from ._options import existing, read_where
from .joiners import (
    AdapterBase,
    JoinerAdapter,
    JoinerMethods,
    has_attributes,
    temporary_attributes,
    with_joiner_head,
)
from .protocol import Head, Teacher, TeacherSpec


def load(where: str) -> Teacher:
    """Restore a ``.nemo`` file on the CPU.

    Raises ``UsageError`` for a wrong path or where NeMo is missing, and ``TeacherError`` for a file that NeMo
    cannot restore or a model that is neither CTC nor transducer.
    """
    options = read_where(where, "model", ("batch",))
    path = existing(options["model"], "a .nemo file")
    with registry.needs("nemo"):
        from nemo.collections.asr.models import ASRModel
    try:
        model = ASRModel.restore_from(str(path), map_location="cpu")
    except Exception as e:
        raise TeacherError(f"NeMo cannot restore it: {type(e).__name__}: {e}", where=str(path)) from e
    return teacher_of(model, alone=read_alone(options, "together"))


def teacher_of(model: Any, *, alone: bool = False) -> Teacher:
    """Make the teacher of a NeMo model; raises ``TeacherError`` unless it is CTC or a transducer."""
    kind = NemoTransducer if hasattr(model, "joint") else NemoTeacher
    return kind(model, alone=alone)


class NemoTeacher(EncoderTeacher):
    """NeMo model with a convolutional CTC decoder, ``decoder`` or (in a hybrid) ``ctc_decoder``.

    Args:
        model: a NeMo ASR model.
        alone: encode each utterance without padding.
    """

    def __init__(self, model: Any, *, alone: bool = False) -> None:
        self.model: Any = model.eval()
        self.alone = alone
        self.ctc = next((n for n in ("ctc_decoder", "decoder") if _is_ctc(getattr(model, n, None))), "")
        if not self.ctc and not hasattr(model, "joint"):
            raise TeacherError(
                f"{type(model).__name__} has neither a CTC decoder nor a joint",
                why="Its attention decoder gives a row for each token of a text, not for each frame.",
            )
        self.rate = int(model.preprocessor._sample_rate)
        # Features are computed on the CPU in loader threads; the model's own preprocessor moves to the GPU
        # with it.
        self.preprocessor: Any = copy.deepcopy(model.preprocessor).cpu().eval()
        featurizer: Any = getattr(self.preprocessor, "featurizer", None)
        if featurizer is not None:
            featurizer.dither, featurizer.pad_to = 0.0, 0
        self._frame_shift = measured_shift(self, self.rate)

    @property
    def classes(self) -> int:
        """Number of classes V with the blank, without the durations of a TDT joint."""
        return int(getattr(self.model, self.ctc).num_classes_with_blank)

    def describe(self) -> TeacherSpec:
        from omegaconf import OmegaConf

        settings = OmegaConf.to_container(self.model.cfg.preprocessor, resolve=True)
        batch = "alone" if self.alone else "together"
        features = json.loads(
            json.dumps({**settings, "dither": 0.0, "pad_to": 0, "batch": batch}, default=str)
        )
        heads: tuple[Head, ...] = ()
        if self.ctc:
            heads = (Head("ctc", f"{self.ctc}.decoder_layers.0", self.classes - 1, "BVT"),)
        return TeacherSpec(type(self.model).__name__, self.rate, self._frame_shift, heads, features)

    def tokens(self) -> TokenTable:
        tokenizer = getattr(self.model, "tokenizer", None)
        if tokenizer is not None:
            pieces = [str(t) for t in tokenizer.ids_to_tokens(list(range(self.classes - 1)))]
        else:
            pieces = _vocabulary(self.model)
        seen: set[str] = set()
        for i, piece in enumerate(pieces):  # aggregate tokenizers of several languages repeat pieces
            pieces[i] = f"{piece}⟨{i}⟩" if piece in seen else piece
            seen.add(piece)
        return TokenTable((*pieces, "<blank>"), len(pieces))

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        features, lengths = self.preprocessor(
            input_signal=torch.from_numpy(audio)[None], length=torch.tensor([len(audio)])
        )
        if int(lengths[0]) < 2:
            raise ValueError(f"{len(audio)} samples are too short")
        value: torch.Tensor = features[0, :, : int(lengths[0])].T.float().contiguous()
        return value

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        encoded = self.model.encoder(audio_signal=features.transpose(1, 2), length=lengths)
        return encoded[0].transpose(1, 2), encoded[1]

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        # model.forward of a transducer runs the encoder only, so encoder and head are called one after the
        # other.
        enc, frames = self.encode_batch(features, lengths)
        output = {"enc": enc, "lengths": frames.long().clamp(max=enc.shape[1])}
        if self.ctc:
            output["ctc"] = getattr(self.model, self.ctc)(encoder_output=enc.transpose(1, 2))
        return output

    def log_probs(self, output: Any) -> dict[str, torch.Tensor]:
        return {"ctc": output["ctc"]} if self.ctc else {}

    def labels(self, text: str) -> list[int]:
        """Tokenise a text; raises ``ValueError`` for one that has no tokens."""
        return _labels(self.model, text)


class NemoTransducer(JoinerMethods, NemoTeacher):
    """NeMo model with a prediction network and a joint, with or without a CTC decoder."""

    @cached_property
    def joiner(self) -> JoinerAdapter:
        """Adapter of the joint."""
        return NemoJoiner(self.model)

    @property
    def classes(self) -> int:
        return self.joiner.classes

    def describe(self) -> TeacherSpec:
        return with_joiner_head(super().describe(), self.joiner)


class NemoJoiner(AdapterBase):
    """Joiner adapter of a prediction network and its joint; the blank is the last class."""

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """Tell whether the joint has NeMo's projections and its owner a ``decoder`` that predicts."""
        methods = ("project_encoder", "project_prednet", "joint_after_projection", "joint_net")
        decoder = getattr(owner, "decoder", None)
        return has_attributes(joint, *methods) and has_attributes(decoder, "predict")

    def __init__(self, owner: Any, name: str = "joint", blank: int | None = None) -> None:
        joint = getattr(owner, name)
        self.classes = int(joint.num_classes_with_blank - joint.num_extra_outputs)
        self.normalised = hasattr(joint, "blank_pred")
        # Settings of the joint while it runs here: plain logits, or HAT's full distribution.
        self._settings = {"return_hat_ilm" if self.normalised else "log_softmax": False}
        head = "joint_after_projection()" if self.normalised else f"joint_net.{len(joint.joint_net) - 1}"
        super().__init__(owner, name, blank, head)
        self.width = int(getattr(joint.enc, "in_features", 0))

    def own_blank(self) -> int:
        return self.classes - 1

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.joint.project_encoder(enc[None])[0]
        return value

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        ids = torch.tensor([labels], dtype=torch.long, device=device)
        predicted = self.owner.decoder.predict(ids, add_sos=True)[0]
        value: torch.Tensor = self.joint.project_prednet(predicted)[0]
        return value

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        with temporary_attributes(self.joint, **self._settings):
            logits: torch.Tensor = self.joint.joint_after_projection(enc[None], dec[None])[0]
        return logits[..., : self.classes]

    def labels(self, text: str) -> list[int]:
        """Tokenise a text; raises ``ValueError`` for one that has no tokens."""
        return _labels(self.owner, text)


JOINER = NemoJoiner


def _is_ctc(decoder: Any) -> bool:
    layers = getattr(decoder, "decoder_layers", None)
    return isinstance(layers, nn.Sequential) and isinstance(layers[0], nn.Conv1d)


def _vocabulary(model: Any) -> list[str]:
    """Return the characters of a model without a tokenizer, in the order of their ids."""
    owner = model.joint if hasattr(model, "joint") else model.decoder
    return [str(token) for token in owner.vocabulary]


def _labels(model: Any, text: str) -> list[int]:
    """Tokenise a text by a model's tokenizer or characters; raises ``ValueError`` for unknown pieces."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        known = {token: i for i, token in enumerate(_vocabulary(model))}
        if unknown := [c for c in text if c not in known]:
            raise ValueError(f"{text!r} does not tokenise: {unknown[0]!r} is not in the vocabulary")
        return [known[c] for c in text]
    ids = [int(i) for i in tokenizer.text_to_ids(text)]
    if getattr(tokenizer, "unk_id", None) in ids:
        raise ValueError(f"{text!r} does not tokenise: it becomes {ids}")
    return ids
