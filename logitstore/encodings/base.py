"""Base classes of encodings: rows of one stream to named arrays, and back.

An encoding may lose information, unlike a compressor. One module of this package, or of a user's own, holds
one encoding: a frozen dataclass that derives from :class:`Encoding` or :class:`HeadEncoding`, its rows, and a
function ``parse(setting)``. It may also have ``PLANNED``, texts of encodings that ``logitstore plan`` is to
try. ``logitstore.testing`` has the conformance suites.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .. import registry
from ..errors import UsageError
from ..schema.kinds import StreamKind
from ..schema.lattice import Form
from ..schema.spec import Column, StreamSpec
from .rows import DecodedRows, Rows

if TYPE_CHECKING:  # only encoding needs torch; reading a store never loads it
    import torch
    from typing_extensions import TypeIs


# The array that encode() may return besides the columns: (N,) nats lost by each row, or (N, 4): nats at
# temperatures 1, 2 and 4, and 1 where the best class changes.
LOSS = "kl"
LOSS_TEMPERATURES = (1.0, 2.0, 4.0)

# Advice in error messages, so that no module outside this package names an encoding.
FOR_LOGITS = "dense, topk or nucleus"
FOR_CLASSES = f"{FOR_LOGITS}, or factored"
FOR_NUMBERS = "vectors or vectors:int8"


class StreamEncoding(ABC):
    """An encoding as a user asks for it; ``str()`` gives its name and settings, e.g. ``topk:16``.

    Attributes:
        numbers: True where rows are the numbers of a layer, not logits of classes.
        keeps_always: True where ``encode`` takes classes to keep in every row: the blank, and in a lattice
            the next label.
    """

    numbers: ClassVar[bool] = False
    keeps_always: ClassVar[bool] = False

    def check_stream(self, kind: StreamKind, form: Form | None) -> None:
        """Raise ``UsageError`` where the encoding cannot store a stream.

        Args:
            kind: kind of the stream; one with rows.
            form: lattice form of an ``rnnt`` stream; None for other kinds.
        """
        if self.numbers == kind.classes:
            raise UsageError(
                f"{self} is not for rows of {kind.axes[-1]}",
                do=f"Use {FOR_CLASSES if kind.classes else FOR_NUMBERS}.",
            )

    @abstractmethod
    def bound(self, stream: StreamSpec, constants: Mapping[str, NDArray[Any]]) -> Encoding | LatticeSides:
        """Return the encoding of a stream's rows, with the stream's settings and constants.

        Without constants, an encoding that needs some knows its columns and nothing else.
        """


class Encoding(StreamEncoding):
    """Rows (N, V) of float32 logits, or (N, D) numbers of a layer, to named arrays and back.

    Attributes:
        ragged: names of the arrays that hold any number of items per row, row after row. The first axis of
            all others is N.
    """

    ragged: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def columns(self, classes: int) -> tuple[Column, ...]:
        """Return the arrays for V classes, or D numbers; raises ``UsageError`` where settings do not fit."""

    @abstractmethod
    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode (N, V) float32 logits at once, on their device; the logits are not changed.

        With :attr:`keeps_always` there is a second parameter ``always``, (N, F) int64 classes to keep, or
        None. The result may hold ``kl`` beside the columns: (N,) nats that each row loses.
        """

    @abstractmethod
    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> DecodedRows:
        """Decode the stored arrays (read-only numpy views); raises ``FormatError`` for impossible ones."""

    def decode_many(
        self, records: Sequence[Mapping[str, NDArray[Any]]], classes: int
    ) -> Sequence[DecodedRows]:
        """Decode several records; a subclass may decode them together, which is faster."""
        return [self.decode(arrays, classes) for arrays in records]

    def bound(self, stream: StreamSpec, constants: Mapping[str, NDArray[Any]]) -> Encoding:
        return self


@dataclass(frozen=True, eq=False)
class LinearHead:
    """The last layer of a teacher: logits are ``rows @ weight.T + bias``.

    Attributes:
        weight: (V, D) float32.
        bias: (V,) float32.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def width(self) -> int:
        """D."""
        return int(self.weight.shape[1])


@dataclass(frozen=True, eq=False)
class SidesSample:
    """Both sides of an additive joiner, of some utterances.

    Attributes:
        sides: (T, J) of the encoder and (U+1, J) of the decoder, of each utterance.
        activation: ``tanh`` or ``relu``, between their sum and the head.
    """

    sides: Sequence[tuple[torch.Tensor, torch.Tensor]]
    activation: str


class HeadEncoding(StreamEncoding):
    """An encoding of the input of a linear head; the head itself is stored once per store.

    ``prepare`` makes the constants that the store keeps; ``bound`` gives the encoding of rows
    (:class:`HeadRowsEncoding`), or of a lattice (:class:`LatticeSides`).
    """

    @property
    @abstractmethod
    def needs_sample(self) -> bool:
        """True where ``prepare`` needs rows of the teacher."""

    @abstractmethod
    def prepare(self, head: LinearHead, sample: torch.Tensor | SidesSample | None) -> dict[str, NDArray[Any]]:
        """Return the arrays that are stored once, by name.

        Args:
            head: the teacher's last layer.
            sample: where :attr:`needs_sample`, (N, D) inputs of the head, those of an utterance one after the
                other, or of a lattice its two sides; else None.
        """

    @abstractmethod
    def made_from(self, head: LinearHead, constants: Mapping[str, NDArray[Any]]) -> bool:
        """Tell whether stored constants were made from this head, whatever the sample was."""


class HeadRowsEncoding(Encoding):
    """Encoding of the (N, D) inputs of a linear head.

    Attributes:
        constants: arrays that the store keeps once; empty where only the columns are asked for.
    """

    constants: Mapping[str, NDArray[Any]]

    @abstractmethod
    def encode(self, rows: torch.Tensor, own: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Encode (N, D) float32 inputs; given their (N, V) logits ``own``, ``kl`` is the loss of each row."""


class LatticeSides(ABC):
    """Encoding of both sides of a lattice's joiner, in place of its T · (U+1) nodes."""

    @abstractmethod
    def columns(self, classes: int) -> tuple[Column, ...]:
        """Return the arrays for V classes."""

    @abstractmethod
    def encode_sides(self, enc: torch.Tensor, dec: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode (T, J) and (U+1, J) float32, with node (t, u) = head(activation(enc[t] + dec[u]))."""

    def decode_many(self, records: Sequence[Mapping[str, NDArray[Any]]], classes: int) -> Sequence[Rows]:
        """Decode several records; a subclass may decode them together, which is faster."""
        return [self.decode(arrays, classes) for arrays in records]

    @abstractmethod
    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Rows:
        """Decode the rows of all T · (U+1) nodes."""


def parse_encoding(text: str) -> Encoding | HeadEncoding:
    """Return the encoding written ``name`` or ``name:setting``, e.g. ``dense``, ``topk:16``.

    Raises:
        UnknownName: no encoding of that name.
        UsageError: a setting that the encoding does not have.
    """
    name, has_setting, setting = text.partition(":")
    encoding = registry.load("encodings", name).parse(setting if has_setting else None)
    if not isinstance(encoding, Encoding | HeadEncoding):
        raise UsageError(
            f"parse() of the encoding {name!r} gives a {type(encoding).__name__}",
            do="Derive it from logitstore.encodings.Encoding or HeadEncoding.",
        )
    return encoding


def stores_head(encoding: object) -> TypeIs[HeadEncoding]:
    """Tell whether an encoding stores the input of a linear head and needs that head."""
    return isinstance(encoding, HeadEncoding)


def stores_sides(encoding: object) -> TypeIs[LatticeSides]:
    """Tell whether a bound encoding stores both sides of a lattice."""
    return isinstance(encoding, LatticeSides)


def takes_head_inputs(encoding: object) -> TypeIs[HeadRowsEncoding]:
    """Tell whether a bound encoding stores the inputs of a linear head."""
    return isinstance(encoding, HeadRowsEncoding)


def encode_logits(
    encoding: Encoding, logits: torch.Tensor, always: Callable[[], torch.Tensor | None]
) -> dict[str, torch.Tensor]:
    """Encode (N, V) logits, with the classes to keep in every row where the encoding takes them.

    Args:
        encoding: one that stores logits.
        logits: (N, V) float32.
        always: returns (N, F) int64 classes to keep, or None; called only where they are needed.
    """
    encode: Callable[..., dict[str, torch.Tensor]] = encoding.encode
    return encode(logits, always()) if encoding.keeps_always else encode(logits)


def no_setting(name: str, setting: str | None) -> None:
    """Raise ``UsageError`` for a setting of an encoding that takes none."""
    if setting is not None:
        raise UsageError(f"{name} takes no setting, but got {setting!r}", do=f"Write {name}.")


def log_normaliser(logits: torch.Tensor) -> torch.Tensor:
    """Return (N,) log Σ exp of each row; three times as fast on a CPU as ``torch.logsumexp``."""
    peak = logits.amax(-1, keepdim=True)
    return (logits - peak).exp_().sum(-1).log_() + peak[:, 0]


def row_losses(own: torch.Tensor, served: torch.Tensor) -> torch.Tensor:
    """Return (N, 4) float64: nats lost at temperatures 1, 2 and 4, and 1 where the best class changes."""
    import torch

    nats = [row_loss(own / t, served / t) for t in LOSS_TEMPERATURES]
    return torch.stack([*nats, (own.argmax(-1) != served.argmax(-1)).double()], 1)


def row_loss(own: torch.Tensor, served: torch.Tensor) -> torch.Tensor:
    """Return (N,) float64 KL(own ‖ served) of two sets of (N, V) logits at temperature 1, in nats."""
    p = own.double().log_softmax(-1)
    return (p.exp() * (p - served.double().log_softmax(-1))).sum(-1).clamp_(min=0.0)
