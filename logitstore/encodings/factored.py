"""``factored``: what goes into a linear head instead of what comes out, and the head once per store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NonFinite, UsageError
from ..schema.spec import Column, StreamSpec
from . import _rice, _transform
from .base import LOSS, Encoding, LatticeSides, LinearHead, row_loss
from .rows import Factored, FactoredLattice

if TYPE_CHECKING:
    import torch

Constants = Mapping[str, NDArray[Any]]
NARROW = {"int8": 8, "int6": 6, "int4": 4}
SMALLEST, LARGEST = 1e-6, 1.0
SEED = 20  # of the rotation; it is stored, so any other does as well


@dataclass(frozen=True)
class FactoredEncoding:
    """Asks for a head: ``prepare`` makes what is stored once, ``bound`` gives the encoding of rows.

    Attributes:
        setting: empty (float16), ``int8``, ``int6``, ``int4``, or a budget in nats.
    """

    setting: str = ""

    def __str__(self) -> str:
        return f"factored:{self.setting}" if self.setting else "factored"

    @property
    def budget(self) -> float | None:
        """Nats a row, on average, that transform coding may lose."""
        return None if not self.setting or self.setting in NARROW else float(self.setting)

    @property
    def needs_sample(self) -> bool:
        return self.budget is not None

    def prepare(self, head: LinearHead, sample: torch.Tensor | None) -> dict[str, NDArray[Any]]:
        """The store's constants; ``sample`` is (N, D) rows of the teacher where one is needed."""
        if self.budget is not None:
            assert sample is not None
            device = sample.device
            weight, bias = (sample.new_tensor(x).double().to(device) for x in (head.weight, head.bias))
            return _transform.fit(weight, bias, sample.double(), self.budget)
        if not self.setting:
            return {"weight": head.weight, "bias": head.bias}
        gauss = np.random.default_rng(SEED).standard_normal((head.width, head.width))
        axes, upper = np.linalg.qr(gauss)
        axes = axes * np.sign(np.diag(upper))  # uniform over all rotations (Mezzadri 2007)
        weight = (head.weight.astype(np.float64) @ axes).astype(np.float32)
        return {"axes": axes.astype(np.float32), "weight": weight, "bias": head.bias}

    def bound(self, stream: StreamSpec, constants: Constants) -> Encoding | LatticeSides:
        """The encoding of a stream's rows; without constants it knows its columns and nothing else."""
        if stream.kind == "rnnt":
            if self.setting:
                raise UsageError(
                    f"{self} of a lattice",
                    why="An activation stands between its two sides and the head: they are kept at 16 bits.",
                    do="rnnt=factored.",
                )
            return Sides(stream.width, stream.activation, constants)
        if self.budget is not None:
            return Coded(constants)
        if self.setting:
            return Narrow(NARROW[self.setting], stream.width, constants)
        return Half(stream.width, constants)


class _Head:
    """What the three forms share: logits are one product with the stored weight."""

    constants: Constants
    _on: dict[str, torch.Tensor]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_on", {})

    def on(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A constant where the rows are, in float32; moved there once."""
        if name not in self._on or self._on[name].device != like.device:
            self._on[name] = like.new_tensor(np.array(self.constants[name]))
        return self._on[name]

    def loss(self, own: torch.Tensor | None, code: torch.Tensor) -> dict[str, torch.Tensor]:
        """Nats that rows lose at temperature 1: the teacher's own logits against those of their codes."""
        if own is None:
            return {}
        return {LOSS: row_loss(own, code @ self.on("weight", code).T + self.on("bias", code))}

    def rows(self, code: NDArray[Any]) -> Factored:
        return Factored(code, self.constants["weight"], self.constants["bias"])


@dataclass(frozen=True, eq=False)
class Half(_Head):
    """(N, D) float16."""

    width: int
    constants: Constants = field(default_factory=dict)

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (Column("h", "float16", (self.width,), "the head's input: logits are h @ weight.T + bias"),)

    def encode(self, rows: torch.Tensor, own: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        h = rows.half()
        if not bool(h.isfinite().all()):
            raise NonFinite(
                f"what goes into the head reaches {float(rows.abs().max()):g}, beyond float16",
                do="Use factored:int8, which has a scale for every row.",
            )
        return {"h": h, **self.loss(own, h.float())}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Factored:
        return self.rows(arrays["h"])


@dataclass(frozen=True, eq=False)
class Narrow(_Head):
    """(N, D) integers of 8, 6 or 4 bits after a rotation that spreads a row's energy, and a scale a row."""

    bits: int
    width: int
    constants: Constants = field(default_factory=dict)

    def columns(self, classes: int) -> tuple[Column, ...]:
        size = -(-self.width * self.bits // 8)
        return (
            Column("code", "uint8", (size,), f"integers of {self.bits} bits in two's complement, packed"),
            Column("scale", "float16", (), "logits are integers · scale @ weight.T + bias"),
        )

    def encode(self, rows: torch.Tensor, own: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        most = (1 << (self.bits - 1)) - 1
        turned = rows @ self.on("axes", rows)
        # rounded up, so that the largest still fits
        scale = ((turned.abs().amax(-1) / most) * (1 + 2**-10)).clamp(min=2**-24).half()
        if not bool(scale.isfinite().all()):
            raise NonFinite(f"what goes into the head reaches {float(rows.abs().max()):g}")
        step = scale.float()[:, None]
        code = (turned / step).round().clamp(-most, most)
        return {"code": narrow(code, self.bits), "scale": scale, **self.loss(own, code * step)}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Factored:
        code = widen(arrays["code"], self.bits, self.width).astype(np.float32)
        return self.rows(code * arrays["scale"].astype(np.float32)[:, None])


@dataclass(frozen=True, eq=False)
class Coded(_Head):
    """Small integers along a few axes, as bits: an utterance's, one piece after the other."""

    constants: Constants = field(default_factory=dict)

    ragged = frozenset({"code"})

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (Column("code", "uint8", (), "integers (SPEC E16): logits are integers @ weight.T + bias"),)

    def encode(self, rows: torch.Tensor, own: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        import torch

        centred = rows - self.on("mean", rows)
        code = (centred @ self.on("axes", rows)).round().clamp(-_rice.MOST, _rice.MOST)
        packed = _rice.pack(code.cpu().numpy().astype(np.int64), self.constants["rice"])
        return {"code": torch.from_numpy(packed), **self.loss(own, code)}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Factored:
        codes = _rice.unpack(arrays["code"], self.constants["rice"])
        return self.rows(codes.astype(np.int16))


@dataclass(frozen=True, eq=False)
class Sides:
    """Both sides of a lattice: (T, J) as 16-bit integers with a scale a row, (U+1, J) as they are.

    Logits of node (t, u) are head(activation(enc[t] + dec[u])), as in an RNN transducer's additive joiner
    (Graves 2012; Graves, Mohamed and Hinton 2013). There are many frames to a label, so that exact labels
    cost little, and half of the error goes.
    """

    width: int
    activation: str
    constants: Constants = field(default_factory=dict)

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (
            Column("enc", "int16", (self.width,), "what each frame gives to the joiner, over its scale"),
            Column("scale", "float32", (), "of each frame"),
            Column("dec", "float32", (self.width,), "what each label position gives to the joiner"),
        )

    def encode_sides(self, enc: torch.Tensor, dec: torch.Tensor) -> dict[str, torch.Tensor]:
        """(T, J) and (U+1, J) float32."""
        scale = (enc.abs().amax(-1) / 32767).clamp(min=1e-30)
        code = (enc / scale[:, None]).round().clamp(-32767, 32767).short()
        return {"enc": code, "scale": scale, "dec": dec}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> FactoredLattice:
        enc = arrays["enc"].astype(np.float32) * arrays["scale"][:, None]
        weight, bias = self.constants["weight"], self.constants["bias"]
        return FactoredLattice(enc, arrays["dec"], self.activation, weight, bias)


def parse(setting: str | None) -> FactoredEncoding:
    """``factored``, ``factored:int8``, ``int6``, ``int4`` or ``factored:KL``."""
    if setting is None or setting in NARROW:
        return FactoredEncoding(setting or "")
    try:
        budget = float(setting)
    except ValueError:
        budget = float("nan")
    if not SMALLEST <= budget <= LARGEST:
        raise UsageError(
            f"factored:{setting} is neither a width nor a budget",
            do=f"factored, {', '.join(f'factored:{n}' for n in NARROW)}, or nats a row: factored:1e-3.",
        )
    return FactoredEncoding(f"{budget:g}")


def narrow(code: torch.Tensor, bits: int) -> torch.Tensor:
    """(N, D) whole numbers as (N, ⌈D · bits / 8⌉) uint8."""
    import torch

    raw = code.cpu().numpy().astype(np.int8).view(np.uint8)
    if bits < 8:
        each = np.unpackbits(raw[:, :, None], axis=2)[:, :, 8 - bits :]
        raw = np.packbits(each.reshape(len(raw), -1), axis=1)
    return torch.from_numpy(raw)


def widen(packed: NDArray[Any], bits: int, width: int) -> NDArray[np.int8]:
    """(N, D) int8 again."""
    if bits == 8:
        return np.ascontiguousarray(packed).view(np.int8)
    each = np.unpackbits(packed, axis=1)[:, : width * bits].reshape(len(packed), width, bits)
    value = np.packbits(each, axis=2)[:, :, 0].view(np.int8)  # in the highest bits of its byte
    return np.asarray(value >> (8 - bits), np.int8)
