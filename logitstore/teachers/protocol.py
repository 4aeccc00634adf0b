"""The protocol between logitstore and somebody's trained model.

A teacher is any object with these methods; it need not inherit from anything. ``describe`` names the modules
to tap; ``features``, ``forward`` and ``lengths`` run the model as its own decoding script does. A transducer
adds ``labels``, ``transducer`` and ``join``, so that the joiner can be driven slice by slice and
[B, T, U, V] never exists; an attention decoder adds ``labels`` and ``decode``. What writes down text and no
more is a ``Transcriber``.
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
    "check_protocol",
    "check_steady",
    "load_teacher",
    "twin",
    "weights_sha256",
]


@runtime_checkable
class Teacher(Protocol):
    """A trained recogniser.

    Attributes:
        model: the root that tap paths start from; put to eval by logitstore.
    """

    model: nn.Module

    def describe(self) -> TeacherSpec:
        """Name, sample rate (Hz), frame shift (samples), heads to tap, feature settings."""

    def tokens(self) -> TokenTable:
        """The token table that the heads' V classes stand for."""

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """(samples,) float32 in [-1, 1] at the teacher's rate → (T0, F) float32 on the CPU.

        Runs in loader threads. Raise ``ValueError`` for audio that is too short.
        """

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        """(B, T0, F) zero-padded and (B,) int64, on the model's device. Runs the encoder and the CTC head."""

    def lengths(self, output: Any) -> torch.Tensor:
        """(B,) valid teacher frames of what ``forward`` gave."""


@runtime_checkable
class Transducer(Teacher, Protocol):
    """A teacher with an RNN-T branch.

    ``log_probs(output) -> dict`` of (B, T, V) by stream is optional: what the model itself says, for the
    self-check.
    """

    def labels(self, text: str) -> list[int]:
        """Token ids of a text; raise ``ValueError`` where it does not tokenise."""

    def transducer(self, output: Any, b: int, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected encoder (T, J) of utterance b, valid frames only, and projected decoder (U+1, J)."""

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        """One slice (t, J) of frames against all (U+1, J) label positions → (t, U+1, V)."""


@runtime_checkable
class Seq2Seq(Teacher, Protocol):
    """A teacher with an attention decoder; its head ``seq2seq`` names the token that ends a text, ``end``.

    ``most_labels``, the number of labels at which the decoder's own greedy search stops, and
    ``padded_frames(output) -> int``, frames of a batch where padding goes far beyond the longest utterance,
    are optional.
    """

    def labels(self, text: str) -> list[int]:
        """Token ids of a text, without its end; raise ``ValueError`` where it does not tokenise."""

    def decode(self, output: Any, b: int, labels: list[int]) -> Any:
        """Run the decoder once on utterance b of what ``forward`` gave, so that the head says these labels.

        It sees its own prompt and all ``labels`` but the last, which is the end. Of the rows that the head
        gives the last U = len(labels) count: row u is what ``labels[u]`` is drawn from.
        """


@runtime_checkable
class Transcriber(Protocol):
    """A black box: neither model nor logits, but a text for every recording; for ``--stream text``.

    ``wrote(utt_id)`` instead of ``transcribe`` looks up what was written before; no recording is opened then.
    """

    def describe(self) -> TeacherSpec:
        """Name, and the rate (Hz) that recordings are brought to; no heads."""

    def transcribe(self, audio: NDArray[np.float32]) -> str | tuple[str, float]:
        """(samples,) float32 in [-1, 1] → the text, and the natural logarithm of its probability if known."""


def load_teacher(text: str) -> Teacher:
    """The teacher written ``FILE.py:NAME`` or ``FRAMEWORK:WHERE``, e.g. ``nemo:model.nemo``.

    Raises ``UsageError`` for something that is neither, ``TeacherError`` where loading fails.
    """
    name, found, where = text.partition(":")
    if name.endswith(".py") or not found:
        name, where = "script", text
    teacher: Teacher = registry.load("teachers", name).load(where)
    return teacher


def check_protocol(teacher: Any, where: str) -> Teacher:
    """The teacher, a black box as one; raises ``TeacherError`` unless it has what every teacher has."""
    writes = hasattr(teacher, "transcribe") or hasattr(teacher, "wrote")
    if writes and hasattr(teacher, "describe") and not hasattr(teacher, "forward"):
        teacher = BlackBox(teacher)
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


def check_steady(teacher: Teacher, features: torch.Tensor, lengths: torch.Tensor) -> None:
    """Raise ``TeacherError`` unless two forwards of one batch say the same.

    ESPnet, FunASR and WeNet call ``F.dropout`` without ``training=``: it drops in eval too.

    Args:
        teacher: with its model in eval mode.
        features: (B, T0, F), as for ``forward``.
        lengths: (B,).
    """
    one, two = (_said(teacher, features, lengths) for _ in range(2))
    for name, a in one.items():
        a, b = a.float(), two[name].float()
        if a.shape != b.shape or bool((a - b).abs().max() > 1e-3 * a.abs().max().clamp(min=1)):
            raise TeacherError(
                "two forwards of one batch differ",
                where=f"{type(teacher).__name__}, {name}",
                why="Dropout that is live in eval mode makes every target another one.",
                do="Call model.eval(), and set the rate of functional dropout (dropout_rate) to 0.",
            )


def _said(teacher: Teacher, features: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
    spec = teacher.describe()
    heads = {h.stream: h for h in spec.heads if kind_of(h.stream).tapped}
    with torch.inference_mode(), Tap(teacher.model, {s: h.module for s, h in heads.items()}) as tap:
        output = teacher.forward(features, lengths)
        said = {s: tap.take(s) for s in heads}
        if spec.head("rnnt") and isinstance(teacher, Transducer):
            enc, dec = teacher.transducer(output, 0, [])
            said["rnnt"] = teacher.join(enc, dec)
    head = spec.head("seq2seq")
    if head is not None:
        decoder: Any = teacher
        with torch.inference_mode(), Tap(teacher.model, {"seq2seq": head.module}) as tap:
            decoder.decode(output, 0, [head.blank if head.end is None else head.end])
            said["seq2seq"] = tap.take("seq2seq")
    return said


def twin(head: nn.Module) -> nn.Module:
    """A second module with the same parameters: called for the answer alone, so that a tap sees it alone."""
    other = copy.copy(head)
    other._forward_hooks = type(head._forward_hooks)()
    other._forward_pre_hooks = type(head._forward_pre_hooks)()
    return other


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return "sha256:" + digest.hexdigest()


NO_TOKENS = TokenTable(("<blk>",), 0)


class BlackBox:
    """Anything with ``describe`` and ``transcribe`` or ``wrote``, as a teacher of a ``text`` stream.

    Its frames are those of the shift that it describes: nothing but lengths is made of them.

    Args:
        box: keeps the protocol of ``logitstore.teachers.protocol.Transcriber``.
    """

    def __init__(self, box: Any) -> None:
        self.box = box
        self.model: nn.Module = nn.Module()
        self.hears = not hasattr(box, "wrote")  # otherwise recordings need not even be there

    def __getattr__(self, name: str) -> Any:
        if name in ("transcribe", "wrote"):
            return getattr(self.box, name)
        raise AttributeError(name)

    def describe(self) -> TeacherSpec:
        spec: TeacherSpec = self.box.describe()
        return spec

    def tokens(self) -> TokenTable:
        """Of a single token: no row of such a store has a class."""
        return NO_TOKENS

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        return torch.zeros(max(1, round(len(audio) / self.describe().frame_shift)), 1)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return lengths

    def lengths(self, output: torch.Tensor) -> torch.Tensor:
        return output
