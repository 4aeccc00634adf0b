"""``nemo:FILE.nemo``: a NeMo CTC, RNN-T, TDT, HAT or hybrid model, of subwords or characters.

The blank is the last class. ``joint()`` gives logits on a GPU and log-probabilities on a CPU; here its
log_softmax is off on both. The durations of a TDT joint are left out of V; a HAT joint has no logits, and its
head says so. ``batch=alone`` encodes each utterance by itself, for encoders whose padding leaks (``stacking``
subsampling counts frames by the batch). A ``.nemo`` file names the classes to build: load only what you
trust. Nothing is downloaded.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .. import registry
from ..errors import TeacherError
from ..tokens.table import TokenTable
from ._one_by_one import measured_shift, one_by_one, read_alone
from ._options import existing, read_where
from .joiners import AdapterBase, JoinerAdapter, has, held, sides
from .protocol import Head, Teacher, TeacherSpec


def load(where: str) -> Teacher:
    """Restore a ``.nemo`` file on the CPU.

    Raises ``UsageError`` for a wrong path or where NeMo is missing, and ``TeacherError`` for a file that NeMo
    cannot restore or a model that is neither CTC nor transducer.
    """
    asked = read_where(where, "model", ("batch",))
    path = existing(asked["model"], "a .nemo file")
    with registry.needs("nemo"):
        from nemo.collections.asr.models import ASRModel
    try:
        model = ASRModel.restore_from(str(path), map_location="cpu")
    except Exception as e:
        raise TeacherError(f"NeMo cannot restore it: {type(e).__name__}: {e}", where=str(path)) from e
    return teacher_of(model, alone=read_alone(asked, "together"))


def teacher_of(model: Any, *, alone: bool = False) -> Teacher:
    """The teacher of a NeMo model; raises ``TeacherError`` for one that is neither CTC nor transducer."""
    return (NemoTransducer if hasattr(model, "joint") else NemoTeacher)(model, alone=alone)


class NemoTeacher:
    """A model with a convolutional CTC decoder, ``decoder`` or (in a hybrid) ``ctc_decoder``."""

    def __init__(self, model: Any, *, alone: bool = False) -> None:
        self.model: Any = model.eval()
        self.alone = alone
        self.ctc = next((n for n in ("ctc_decoder", "decoder") if _is_ctc(getattr(model, n, None))), "")
        if not self.ctc and not hasattr(model, "joint"):
            raise TeacherError(
                f"{type(model).__name__} has neither a CTC decoder nor a joint",
                why="Attention decoders answer per token of a text, not per frame.",
            )
        self.rate = int(model.preprocessor._sample_rate)
        # One's own, on the CPU: it runs in loader threads, and the model's moves to the GPU with it.
        self.preprocessor: Any = copy.deepcopy(model.preprocessor).cpu().eval()
        featurizer: Any = getattr(self.preprocessor, "featurizer", None)
        if featurizer is not None:
            featurizer.dither, featurizer.pad_to = 0.0, 0
        self._frame_shift = measured_shift(self, self.rate)

    @property
    def classes(self) -> int:
        """V, the blank included, the durations of a TDT joint not."""
        return int(getattr(self.model, self.ctc).num_classes_with_blank)

    def describe(self) -> TeacherSpec:
        from omegaconf import OmegaConf

        settings = OmegaConf.to_container(self.model.cfg.preprocessor, resolve=True)
        said = {**settings, "dither": 0.0, "pad_to": 0, "batch": "alone" if self.alone else "together"}
        features = json.loads(json.dumps(said, default=str))
        heads: tuple[Head, ...] = ()
        if self.ctc:
            heads = (Head("ctc", f"{self.ctc}.decoder_layers.0", self.classes - 1, "BVT"),)
        return TeacherSpec(type(self.model).__name__, self.rate, self._frame_shift, heads, features)

    def tokens(self) -> TokenTable:
        tokenizer = getattr(self.model, "tokenizer", None)
        if tokenizer is not None:
            pieces = [str(t) for t in tokenizer.ids_to_tokens(list(range(self.classes - 1)))]
        else:
            owner = self.model.joint if hasattr(self.model, "joint") else self.model.decoder
            pieces = [str(t) for t in owner.vocabulary]
        seen: set[str] = set()
        for i, piece in enumerate(pieces):  # tokenizers of several languages repeat pieces
            pieces[i] = f"{piece}⟨{i}⟩" if piece in seen else piece
            seen.add(piece)
        return TokenTable((*pieces, "<blank>"), len(pieces))

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        given, lengths = self.preprocessor(
            input_signal=torch.from_numpy(audio)[None], length=torch.tensor([len(audio)])
        )
        if int(lengths[0]) < 2:
            raise ValueError(f"{len(audio)} samples are too short")
        value: torch.Tensor = given[0, :, : int(lengths[0])].T.float().contiguous()
        return value

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        # The encoder, then the head: a transducer's own forward runs the encoder alone.
        if self.alone:
            enc, frames = one_by_one(lambda x, n: self._encode(x, n)[0], features, lengths)
        else:
            enc, frames = self._encode(features, lengths)
        enc = enc.transpose(1, 2)  # NeMo's heads want (B, D, T)
        output = {"enc": enc, "lengths": frames.long().clamp(max=enc.shape[2])}
        if self.ctc:
            output["ctc"] = getattr(self.model, self.ctc)(encoder_output=enc)
        return output

    def _encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        said = self.model.encoder(audio_signal=features.transpose(1, 2), length=lengths)
        return said[0].transpose(1, 2), said[1]

    def lengths(self, output: Any) -> torch.Tensor:
        lengths: torch.Tensor = output["lengths"]
        return lengths

    def log_probs(self, output: Any) -> dict[str, torch.Tensor]:
        """What the model itself says, for the self-check."""
        return {"ctc": output["ctc"]} if self.ctc else {}

    def labels(self, text: str) -> list[int]:
        """Token ids of a text; raises ``ValueError`` for one that has no tokens."""
        return labels_of(self.model, text)


class NemoTransducer(NemoTeacher):
    """A model with a prediction network and a joint, and perhaps a CTC decoder beside them."""

    def __init__(self, model: Any, *, alone: bool = False) -> None:
        super().__init__(model, alone=alone)
        self.drive: JoinerAdapter = NemoJoiner(model)

    @property
    def classes(self) -> int:
        return self.drive.classes

    def describe(self) -> TeacherSpec:
        spec, drive = super().describe(), self.drive
        head = Head("rnnt", drive.head, drive.blank, normalised=drive.normalised)
        return replace(spec, heads=(*spec.heads, head))

    def transducer(self, output: Any, b: int, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return sides(self.drive, output["enc"][b, :, : int(output["lengths"][b])].T, labels)

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        return self.drive.join(enc, dec)


def _is_ctc(decoder: Any) -> bool:
    layers = getattr(decoder, "decoder_layers", None)
    return isinstance(layers, nn.Sequential) and isinstance(layers[0], nn.Conv1d)


class NemoJoiner(AdapterBase):
    """A prediction network and its joint; the blank is the last class."""

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """Both projections beside ``joint_after_projection``, and a ``decoder`` that predicts."""
        methods = has(joint, "project_encoder", "project_prednet", "joint_after_projection", "joint_net")
        return methods and has(getattr(owner, "decoder", None), "predict")

    def __init__(self, owner: Any, name: str = "joint", blank: int | None = None) -> None:
        joint = getattr(owner, name)
        self.classes = int(joint.num_classes_with_blank - joint.num_extra_outputs)
        self.normalised = hasattr(joint, "blank_pred")
        self._plain = {"return_hat_ilm" if self.normalised else "log_softmax": False}
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
        said = self.owner.decoder.predict(ids, add_sos=True)[0]
        value: torch.Tensor = self.joint.project_prednet(said)[0]
        return value

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        with held(self.joint, **self._plain):
            logits: torch.Tensor = self.joint.joint_after_projection(enc[None], dec[None])[0]
        return logits[..., : self.classes]

    def labels(self, text: str) -> list[int]:
        """Token ids of a text; raises ``ValueError`` for one that has none."""
        return labels_of(self.owner, text)


def labels_of(model: Any, text: str) -> list[int]:
    """Token ids by a NeMo model's own tokenizer; raises ``ValueError`` for a text that has none."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        owner = model.joint if hasattr(model, "joint") else model.decoder
        known = {str(t): i for i, t in enumerate(owner.vocabulary)}
        if unknown := [c for c in text if c not in known]:
            raise ValueError(f"{text!r} does not tokenise: {unknown[0]!r} is not in the vocabulary")
        return [known[c] for c in text]
    ids = [int(i) for i in tokenizer.text_to_ids(text)]
    if getattr(tokenizer, "unk_id", None) in ids:
        raise ValueError(f"{text!r} does not tokenise: it becomes {ids}")
    return ids


JOINER = NemoJoiner
