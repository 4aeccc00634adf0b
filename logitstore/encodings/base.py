"""What an encoding is: it may lose information, and says which arrays hold the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .. import registry
from ..errors import UsageError
from ..schema.spec import Column, StreamSpec
from .rows import Rows

if TYPE_CHECKING:  # only encoding runs torch; reading a store never loads it
    import torch


LOSS = "kl"  # what encode() may give besides the columns: (N,) nats that each row loses


class Encoding(Protocol):
    """Rows (N, V) of float32 logits to named arrays whose first axis is N, and back.

    An encoding is a frozen dataclass; ``str()`` of it is its name and settings as the user writes them.
    Arrays that it names in ``ragged``, where it has that, hold any number of items a row, row after row.
    """

    def columns(self, classes: int) -> tuple[Column, ...]:
        """The arrays of V classes; raises ``UsageError`` where the settings do not fit V."""

    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode a whole slice at once, on the device that holds it."""

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Rows:
        """The rows again, from numpy views of the stored arrays."""


@runtime_checkable
class KeepsAlways(Protocol):
    """An encoding that drops classes, but never some: the blank, and in a lattice the next label."""

    keeps_always: bool

    def encode(self, logits: torch.Tensor, always: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """As :meth:`Encoding.encode`; ``always`` is (N, F) int64 classes to keep in any case."""


@runtime_checkable
class KeepsTail(Protocol):
    """A frozen dataclass that stores the mass it leaves out, at more or fewer temperatures."""

    tail_points: int


@dataclass(frozen=True, eq=False)
class LinearHead:
    """The last layer of a teacher: logits are rows @ weight.T + bias.

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


@runtime_checkable
class HeadEncoding(Protocol):
    """An encoding of what goes into a linear head; the head itself is stored once.

    It is not an :class:`Encoding` yet: ``bound`` gives one, for a head of a certain width and the constants
    that ``prepare`` made and the store keeps.
    """

    @property
    def needs_sample(self) -> bool:
        """Whether ``prepare`` looks at rows of the teacher."""

    def prepare(self, head: LinearHead, sample: torch.Tensor | None) -> dict[str, NDArray[Any]]:
        """What is stored once, by name."""

    def bound(self, stream: StreamSpec, constants: Mapping[str, NDArray[Any]]) -> Encoding | LatticeSides:
        """The encoding of a stream's rows; without constants it knows its columns, and no more."""


@runtime_checkable
class HeadRows(Protocol):
    """What :meth:`HeadEncoding.bound` gives."""

    constants: Mapping[str, NDArray[Any]]

    def encode(self, rows: torch.Tensor, own: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """(N, D) rows; ``own`` (N, V) logits, where what is lost is to be measured."""


@runtime_checkable
class LatticeSides(Protocol):
    """What :meth:`HeadEncoding.bound` gives for a lattice: both sides of it, not its nodes."""

    def columns(self, classes: int) -> tuple[Column, ...]:
        """The arrays."""

    def encode_sides(self, enc: torch.Tensor, dec: torch.Tensor) -> dict[str, torch.Tensor]:
        """(T, J) and (U+1, J) numbers, which an activation of their sums and the head join."""

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Rows:
        """The rows of all T · (U+1) nodes."""


def parse_encoding(text: str) -> Encoding | HeadEncoding:
    """The encoding written ``name`` or ``name:setting``, e.g. ``dense``, ``topk:16``.

    Raises ``UnknownName`` or ``UsageError``.
    """
    name, found, setting = text.partition(":")
    parse = registry.load("encodings", name).parse
    encoding: Encoding | HeadEncoding = parse(setting if found else None)
    return encoding


def no_setting(name: str, setting: str | None) -> None:
    """Refuse a setting where an encoding takes none."""
    if setting is not None:
        raise UsageError(f"{name} takes no setting, but got {setting!r}")


def log_normaliser(logits: torch.Tensor) -> torch.Tensor:
    """(N,) log Σ exp of each row; three times as fast on a CPU as ``torch.logsumexp``."""
    peak = logits.amax(-1, keepdim=True)
    return (logits - peak).exp_().sum(-1).log_() + peak[:, 0]


def row_loss(own: torch.Tensor, served: torch.Tensor) -> torch.Tensor:
    """(N,) Kullback-Leibler divergence of two rows of logits, in nats, at temperature 1; float64."""
    p = own.double().log_softmax(-1)
    return (p.exp() * (p - served.double().log_softmax(-1))).sum(-1).clamp_(min=0.0)
