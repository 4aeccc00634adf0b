"""Protocol of a teacher: the methods by which logitstore runs a trained recogniser.

A teacher is any object with these methods; it need not inherit from anything. ``describe`` names the modules
to tap. ``features``, ``forward`` and ``lengths`` run the model as its own decoding script does. A transducer
adds ``labels``, ``transducer`` and ``join``, so that the joiner runs on slices of frames and [B, T, U, V]
never exists in memory. An attention decoder adds ``labels`` and ``decode``. A recogniser that gives texts and
no logits is a ``Transcriber``.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .. import registry
from ..errors import TeacherError
from ..schema.kinds import kind_of
from ..schema.spec import Head, TeacherSpec
from ..tokens.table import TokenTable
from .tap import Tap

__all__ = [
    "Head",
    "Seq2Seq",
    "Teacher",
    "TeacherSpec",
    "Transcriber",
    "Transducer",
    "check_deterministic",
    "check_protocol",
    "copy_without_hooks",
    "load_teacher",
    "weights_sha256",
]


@runtime_checkable
class Teacher(Protocol):
    """Trained recogniser with at least one head of logits.

    Optional methods: ``log_probs(output)`` gives the model's own log-probabilities by stream, (B, T, V), for
    a check of the tapped logits. ``labels(text)`` gives the token ids of a text and raises ``ValueError`` for
    one that does not tokenise. ``text(ids)`` gives the text of token ids where joining the tokens of the
    table does not spell it (phonemes, numbered units, codes).

    Attributes:
        model: root module that the paths of the heads start from; logitstore puts it into eval mode.
    """

    model: nn.Module

    def describe(self) -> TeacherSpec:
        """Return name, sample rate (Hz), frame shift (samples), heads and settings of the features."""

    def tokens(self) -> TokenTable:
        """Return the token table of the heads' V classes."""

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """Compute (T0, F) float32 features on the CPU from (samples,) float32 in [-1, 1].

        The samples are at the teacher's rate. Called in loader threads. Raise ``ValueError`` for audio that
        is too short.
        """

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        """Run encoder and CTC head on a padded batch (B, T0, F) and (B,) int64 lengths, on the device."""

    def lengths(self, output: Any) -> torch.Tensor:
        """Return (B,) valid teacher frames of the output of ``forward``."""


@runtime_checkable
class Transducer(Teacher, Protocol):
    """Teacher with an RNN-T head ``rnnt``."""

    def labels(self, text: str) -> list[int]:
        """Tokenise a text; raise ``ValueError`` for one that does not tokenise."""

    def transducer(self, output: Any, b: int, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the projected encoder (T, J) of utterance b, valid frames only, and decoder (U+1, J)."""

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        """Join a slice (t, J) of frames with all (U+1, J) label positions: (t, U+1, V) logits."""


@runtime_checkable
class Seq2Seq(Teacher, Protocol):
    """Teacher with an attention decoder; ``end`` of its head ``seq2seq`` is the token that ends a text.

    Optional: ``most_labels``, the number of labels at which the greedy search stops, and
        ``padded_frames(output)``, the
    frames of a batch where padding goes far beyond the longest utterance.
    """

    def labels(self, text: str) -> list[int]:
        """Tokenise a text, without the end token; raise ``ValueError`` for one that does not tokenise."""

    def decode(self, output: Any, b: int, labels: list[int]) -> Any:
        """Run the decoder once on utterance b, with these labels as its inputs (teacher forcing).

        The decoder takes its own prompt and all ``labels`` but the last, which is the end token. Of the rows
        that the head gives, the last U = len(labels) are kept: row u is the distribution of ``labels[u]``.
        """


@runtime_checkable
class Transcriber(Protocol):
    """Recogniser without logits that gives a text for every recording, for ``--stream text``.

    ``stored_transcript(utt_id)`` in place of ``transcribe`` looks texts up by id; no recording is opened
    then.
    """

    def describe(self) -> TeacherSpec:
        """Return the name and the rate (Hz) that recordings are resampled to; no heads."""

    def transcribe(self, audio: NDArray[np.float32]) -> str | tuple[str, float]:
        """Return the text of (samples,) float32 in [-1, 1], with its log-probability where it is known."""


def load_teacher(text: str) -> Teacher:
    """Load a teacher by its name on the command line.

    ::

        load_teacher("nemo:stt_en_fastconformer.nemo")
        load_teacher("icefall:zipformer/exp,epoch=30,avg=9,model=zipformer/train.py:get_model")
        load_teacher("teacher.py:load")

    Args:
        text: ``FRAMEWORK:WHERE``, where ``WHERE`` is a path and perhaps options (``,name=value``); or
            ``FILE.py:NAME``, a function in your own file that returns an object with the methods of
            :class:`Teacher`. Frameworks are ``espnet``, ``huggingface``, ``icefall``, ``nemo``,
            ``speechbrain``, ``wenet`` and those that installed packages add.

    Returns:
        The teacher, its model on the CPU with weights loaded. Nothing is downloaded.

    Raises:
        UsageError: an unknown framework, a wrong path or option, or a framework that is not installed.
        TeacherError: the model cannot be built, its weights do not fit, or the object lacks a method.
    """
    name, found, where = text.partition(":")
    if name.endswith(".py") or not found:
        name, where = "script", text
    teacher: Teacher = registry.load("teachers", name).load(where)
    return teacher


def check_protocol(teacher: Any, where: str) -> Teacher:
    """Return a teacher that has every required method; raises ``TeacherError`` naming those that are missing.

    A ``Transcriber`` is returned as a teacher of a ``text`` stream.
    """
    gives_text = hasattr(teacher, "transcribe") or hasattr(teacher, "stored_transcript")
    if gives_text and hasattr(teacher, "describe") and not hasattr(teacher, "forward"):
        teacher = TranscriberTeacher(teacher)
    needed = ("model", "describe", "tokens", "features", "forward", "lengths")
    missing = [m for m in needed if not hasattr(teacher, m)]
    if missing:
        raise TeacherError(
            f"{type(teacher).__name__} has no {', '.join(missing)}",
            where=where,
            do="logitstore.teachers.protocol documents the protocol.",
        )
    checked: Teacher = teacher
    return checked


def check_deterministic(teacher: Teacher, features: torch.Tensor, lengths: torch.Tensor) -> None:
    """Raise ``TeacherError`` unless two forwards of one batch give the same logits.

    ESPnet, FunASR and WeNet call ``F.dropout`` without ``training=``, which drops in eval mode too.

    Args:
        teacher: a teacher with its model in eval mode.
        features: (B, T0, F), as for ``forward``.
        lengths: (B,).
    """
    first, second = (_logits(teacher, features, lengths) for _ in range(2))
    for stream, a in first.items():
        a, b = a.float(), second[stream].float()
        if a.shape != b.shape or bool((a - b).abs().max() > 1e-3 * a.abs().max().clamp(min=1)):
            raise TeacherError(
                "two forwards of one batch differ",
                where=f"{type(teacher).__name__}, {stream}",
                why="Dropout that is active in eval mode gives other targets in every forward.",
                do="Call model.eval(), and set the rate of functional dropout (dropout_rate) to 0.",
            )


def _logits(teacher: Teacher, features: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run a teacher once: by stream, the logits of its heads; of a joiner or decoder those without labels."""
    spec = teacher.describe()
    heads = {h.stream: h for h in spec.heads if kind_of(h.stream).tapped}
    with torch.inference_mode(), Tap(teacher.model, {s: h.module for s, h in heads.items()}) as tap:
        output = teacher.forward(features, lengths)
        logits = {s: tap.take(s) for s in heads}
        if spec.head("rnnt") and isinstance(teacher, Transducer):
            enc, dec = teacher.transducer(output, 0, [])
            logits["rnnt"] = teacher.join(enc, dec)
    head = spec.head("seq2seq")
    if head is not None:
        decoder: Any = teacher
        with torch.inference_mode(), Tap(teacher.model, {"seq2seq": head.module}) as tap:
            decoder.decode(output, 0, [head.blank if head.end is None else head.end])
            logits["seq2seq"] = tap.take("seq2seq")
    return logits


def copy_without_hooks(module: nn.Module) -> nn.Module:
    """Return a module that shares the parameters of another and none of its hooks.

    For a head that its model calls several times a batch: the copy is called once, so that a tap takes that
    call only.
    """
    other = copy.copy(module)
    other._forward_hooks = type(module._forward_hooks)()
    other._forward_pre_hooks = type(module._forward_pre_hooks)()
    return other


def weights_sha256(model: nn.Module) -> str:
    """Compute ``sha256:`` and a digest over names, dtypes, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return "sha256:" + digest.hexdigest()


NO_TOKENS = TokenTable(("<blk>",), 0)


class TranscriberTeacher:
    """Teacher of a ``text`` stream, made from a recogniser without logits.

    Its frames are those of the frame shift that the recogniser describes; they serve as lengths only.

    Attributes:
        model: an empty module.
        needs_audio: false where texts are looked up by id, so that recordings need not exist.

    Args:
        transcriber: an object with the methods of :class:`Transcriber`.
    """

    def __init__(self, transcriber: Any) -> None:
        self.transcriber = transcriber
        self.model: nn.Module = nn.Module()
        self.needs_audio = not hasattr(transcriber, "stored_transcript")

    def __getattr__(self, name: str) -> Any:
        if name in ("transcribe", "stored_transcript"):
            return getattr(self.transcriber, name)
        raise AttributeError(name)

    def describe(self) -> TeacherSpec:
        spec: TeacherSpec = self.transcriber.describe()
        return spec

    def tokens(self) -> TokenTable:
        """Return a table of the blank alone: a ``text`` stream has no classes."""
        return NO_TOKENS

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        return torch.zeros(max(1, round(len(audio) / self.describe().frame_shift)), 1)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return lengths

    def lengths(self, output: torch.Tensor) -> torch.Tensor:
        return output
