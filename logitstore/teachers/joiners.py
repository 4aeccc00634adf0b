"""A drive: how one framework's joiner is run over a whole lattice, given its encoder's output and labels.

The teachers of ``logitstore.teachers`` run their models by these, and ``capture`` a recipe's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from .. import registry
from ..errors import TapPathError
from .tap import find_module


class JoinerAdapter(Protocol):
    """A transducer's prediction network and joiner.

    Attributes:
        model: that tap paths start from.
        head: path below it of what gives the logits, as ``Tap`` takes it; empty: ask ``join``.
        normalised: log-probabilities are all there is (HAT).
        classes: V, the durations of a TDT joint left out.
        blank: its id.
        encoder: module, below the joiner's owner, whose output ``project`` takes; empty: the owner itself.
        side: ``output`` of that module, or ``input``: its first argument.
        width: D of what ``project`` takes; 0 where nothing says it.
    """

    model: nn.Module
    head: str
    normalised: bool
    classes: int
    blank: int
    encoder: str
    side: str
    width: int

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        """(T, D) of the encoder → (T, J)."""

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        """U label ids → (U+1, J), the first row before any label."""

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        """(t, J) and (U+1, J) → (t, U+1, V)."""


class Convention(Protocol):
    """The joiner adapter class of a framework: ``JOINER`` of its module."""

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """Whether ``joint``, a child of ``owner``, and its neighbours are shaped as this convention's."""

    def __call__(self, owner: Any, name: str, blank: int | None) -> JoinerAdapter:
        """The adapter of the joiner ``name`` below its owner."""


@dataclass(frozen=True)
class FoundJoiner:
    """A drive, the convention that fits, and where the joiner and its owner are below the model."""

    name: str
    owner: str
    joint: str
    drive: JoinerAdapter

    @property
    def encoder(self) -> str:
        """Where the encoder's output is, as ``--encoder`` takes it."""
        path = ".".join(p for p in (self.owner, self.drive.encoder) if p)
        return f"input:{path}" if self.drive.side == "input" else path


def find(model: nn.Module, path: str, blank: int | None = None) -> FoundJoiner | None:
    """The drive of the joiner at a path, or of the one that has its output layer there; None: none is known.

    Args:
        model: that the path starts from.
        path: ``joiner``, ``joiner.output_linear``, ``joint.joint_net.2``, ...
        blank: id of the blank; None: as the model says.
    """
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        above = ".".join(parts[: n - 1])
        try:
            owner, joint = find_module(model, above), find_module(model, ".".join(parts[:n]))
        except TapPathError:
            continue
        for name, known in _conventions():
            if known.fits(owner, joint):
                drive = known(owner, parts[n - 1], blank)
                return FoundJoiner(name, above, ".".join(parts[:n]), drive)
    return None


def search(model: nn.Module) -> list[FoundJoiner]:
    """The drives of all joiners in a model whose convention is known."""
    found = []
    for path, owner in model.named_modules():
        for child, joint in owner.named_children():
            name = next((n for n, known in _conventions() if known.fits(owner, joint)), "")
            if name and (one := find(model, f"{path}.{child}" if path else child)) is not None:
                found.append(one)
    return found


def _conventions() -> list[tuple[str, Convention]]:
    return [(n, registry.load("joiners", n).JOINER) for n in registry.names("joiners")]


class AdapterBase:
    """What most drives say of themselves; see :class:`JoinerAdapter`."""

    normalised, encoder, side = False, "encoder", "output"

    def __init__(self, owner: Any, name: str, blank: int | None, head: str) -> None:
        self.model, self.owner = owner, owner
        self.joint: Any = find_module(owner, name)
        self.blank = self.own_blank() if blank is None else blank
        self.head = f"{name}.{head}" if head else name

    def own_blank(self) -> int:
        """As the model says."""
        return int(getattr(self.owner, "blank_id", 0))

    def begun(self, labels: list[int], device: torch.device) -> torch.Tensor:
        """(1, U+1) labels behind the blank that begins them."""
        return torch.tensor([[self.blank, *labels]], device=device)


def sides(drive: JoinerAdapter, enc: torch.Tensor, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, D) of the encoder and U labels → (T, J) and (U+1, J), which ``join`` takes."""
    return drive.project(enc), drive.predict(labels, enc.device)


def has(module: Any, *names: str) -> bool:
    """Whether a module has all of these, none of them None."""
    return all(getattr(module, n, None) is not None for n in names)


def takes(module: nn.Module, parameter: str) -> bool:
    """Whether a module's forward has a parameter of this name."""
    try:
        return parameter in inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # scripted
        return False


@contextmanager
def held(module: Any, **values: Any) -> Iterator[None]:
    """Attributes of a module, set for a while: afterwards its recipe finds what it left."""
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
