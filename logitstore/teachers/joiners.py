"""Joiner adapters: how a framework's prediction network and joiner run over a whole RNN-T lattice.

Each framework module holds one adapter class and names it ``JOINER``. The framework's teacher runs its own
model through the adapter; ``capture`` finds the adapter of a model that somebody else's program built.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from .. import registry
from ..errors import TapPathError
from ..schema.spec import Head, TeacherSpec
from .tap import find_module


class JoinerAdapter(Protocol):
    """Prediction network and joiner of one transducer, behind one interface.

    Attributes:
        model: module that ``head`` starts from.
        head: path of the module that gives the logits, as ``Tap`` takes it; empty where ``join`` returns
            the only tensor there is.
        normalised: true where the joiner gives log-probabilities only (HAT), so that no logits exist.
        classes: number of classes V, without the durations of a TDT joiner.
        blank: id of the blank.
        encoder: path, below the joiner's owner, of the module before ``project``; empty
            for the owner itself.
        side: ``output`` where ``project`` takes that module's output, ``input`` where it takes its first
            argument.
        width: number of features D that ``project`` takes; 0 where the model does not say.
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
        """Project (T, D) frames of the encoder to (T, J)."""

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        """Run the prediction network on U label ids: (U+1, J), row u after the first u labels."""

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        """Join (t, J) projected frames with (U+1, J) projected label positions: (t, U+1, V) logits."""


class JoinerConvention(Protocol):
    """Joiner adapter class of a framework, as its module's ``JOINER`` names it."""

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """Tell whether ``joint``, a child of ``owner``, follows this framework's convention."""

    def __call__(self, owner: Any, name: str, blank: int | None) -> JoinerAdapter:
        """Make the adapter of the joiner called ``name`` below its owner."""


class AdapterBase:
    """Common part of most joiner adapters; see :class:`JoinerAdapter` for the attributes.

    Args:
        owner: module that holds the joiner and the prediction network.
        name: path of the joiner below the owner.
        blank: id of the blank; None to ask the model.
        head: path of the output layer below the joiner; empty for the joiner itself.
    """

    normalised, encoder, side, width = False, "encoder", "output", 0

    def __init__(self, owner: Any, name: str, blank: int | None, head: str) -> None:
        self.model, self.owner = owner, owner
        self.joint: Any = find_module(owner, name)
        self.blank = self.own_blank() if blank is None else blank
        self.head = f"{name}.{head}" if head else name

    def own_blank(self) -> int:
        """Return the blank's id as the model declares it."""
        return int(getattr(self.owner, "blank_id", 0))

    def with_blank(self, labels: list[int], device: torch.device) -> torch.Tensor:
        """Return (1, U+1) label ids with the blank in front, as most prediction networks start."""
        return torch.tensor([[self.blank, *labels]], device=device)


class JoinerMethods:
    """Methods ``transducer`` and ``join`` of a framework's teacher, by its joiner adapter.

    ``forward`` of the teacher gives a dict with the encoder's output ``enc`` (B, T, D) and ``lengths`` (B,).
    """

    @property
    def joiner(self) -> JoinerAdapter:
        """Adapter of the model's joiner."""
        raise NotImplementedError

    def transducer(self, output: Any, b: int, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return sides(self.joiner, output["enc"][b, : int(output["lengths"][b])], labels)

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        return self.joiner.join(enc, dec)


@dataclass(frozen=True)
class FoundJoiner:
    """Joiner that was found in a model.

    Attributes:
        name: framework of the convention that fits, e.g. ``icefall``.
        owner: path of the module that holds the joiner; empty for the model itself.
        joint: path of the joiner.
        adapter: joiner adapter.
    """

    name: str
    owner: str
    joint: str
    adapter: JoinerAdapter

    @property
    def encoder(self) -> str:
        """Path of the module that gives the encoder's output, as ``--encoder`` takes it."""
        path = ".".join(p for p in (self.owner, self.adapter.encoder) if p)
        return f"input:{path}" if self.adapter.side == "input" else path


def find_joiner(model: nn.Module, path: str, blank: int | None = None) -> FoundJoiner | None:
    """Return the joiner at a path or above it; None where no convention fits.

    Args:
        model: module that the path starts from.
        path: e.g. ``joiner``, ``joiner.output_linear`` or ``joint.joint_net.2``.
        blank: id of the blank; None to ask the model.
    """
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        above, joint_path = ".".join(parts[: n - 1]), ".".join(parts[:n])
        try:
            owner, joint = find_module(model, above), find_module(model, joint_path)
        except TapPathError:
            continue
        for name, convention in _conventions():
            if convention.fits(owner, joint):
                return FoundJoiner(name, above, joint_path, convention(owner, parts[n - 1], blank))
    return None


def find_joiners(model: nn.Module) -> list[FoundJoiner]:
    """Return every joiner of a model that follows a known convention."""
    found = []
    for path, owner in model.named_modules():
        for child, joint in owner.named_children():
            if any(convention.fits(owner, joint) for _, convention in _conventions()):
                one = find_joiner(model, f"{path}.{child}" if path else child)
                if one is not None:
                    found.append(one)
    return found


def _conventions() -> list[tuple[str, JoinerConvention]]:
    return [(name, registry.load("joiners", name).JOINER) for name in registry.names("joiners")]


def sides(joiner: JoinerAdapter, enc: torch.Tensor, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Project (T, D) frames and U labels to the two sides that ``join`` takes: (T, J) and (U+1, J)."""
    return joiner.project(enc), joiner.predict(labels, enc.device)


def with_joiner_head(spec: TeacherSpec, joiner: JoinerAdapter, prefix: str = "") -> TeacherSpec:
    """Return a teacher's description with the ``rnnt`` head of its joiner added.

    Args:
        spec: description without that head.
        joiner: adapter of the joiner.
        prefix: path, with a dot at its end, from the teacher's model to the adapter's; empty for the same
            module.
    """
    head = Head("rnnt", f"{prefix}{joiner.head}", joiner.blank, normalised=joiner.normalised)
    return replace(spec, heads=(*spec.heads, head))


def has_attributes(module: Any, *names: str) -> bool:
    """Tell whether a module has every attribute of these names, none of them None."""
    return all(getattr(module, name, None) is not None for name in names)


def takes_parameter(module: nn.Module, parameter: str) -> bool:
    """Tell whether a module's forward has a parameter of this name; false for a scripted module."""
    try:
        return parameter in inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return False


@contextmanager
def temporary_attributes(module: Any, **values: Any) -> Iterator[None]:
    """Set attributes of a module for the length of a ``with`` block and restore them afterwards."""
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
