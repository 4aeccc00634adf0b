"""``factored``: the input of a linear head in place of its logits, and the head once per store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import NonFinite, UsageError
from ..schema.kinds import StreamKind
from ..schema.lattice import Form
from ..schema.spec import Column, StreamSpec
from . import _rice, _transform
from .base import (
    LOSS,
    Encoding,
    HeadEncoding,
    HeadRowsEncoding,
    LatticeSides,
    LinearHead,
    row_loss,
)
from .rows import Float, HeadInputs, Rows, Tempered, every_class

if TYPE_CHECKING:
    import torch

Constants = Mapping[str, NDArray[Any]]
INT8, STEPS = "int8", 127
SMALLEST, LARGEST = 1e-6, 1.0  # nats
SEED = 20  # seed of the rotation, which is stored: any other serves as well
CLOSE = 1e-4  # relative and absolute tolerance of two heads that are the same
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0.0)}


@dataclass(frozen=True, eq=False)
class Factored(Rows):
    """Rows as the inputs of a linear head, and the head: every class, at every temperature.

    Attributes:
        h: (N, D) numbers.
        weight: (V, D) float32.
        bias: (V,) float32.
    """

    h: NDArray[Any]
    weight: Float
    bias: Float

    @property
    def classes(self) -> int:
        return len(self.bias)

    def __len__(self) -> int:
        return len(self.h)

    def take(self, index: NDArray[np.int64]) -> Factored:
        return Factored(self.h[index], self.weight, self.bias)

    def logits(self) -> Float:
        """Return (N, V) float32 logits."""
        return np.asarray(self.h.astype(np.float32) @ self.weight.T + self.bias, np.float32)

    def at(self, temperature: float = 1.0) -> Tempered:
        return every_class(self.logits(), temperature)

    def head(self) -> HeadInputs:
        return HeadInputs(self.h, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class FactoredLattice(Rows):
    """Lattice nodes as their joiner makes them: head(activation(enc[t] + dec[u])).

    Attributes:
        enc: (T, J) float32.
        dec: (U+1, J) float32.
        activation: ``tanh`` or ``relu``.
        weight: (V, J) float32.
        bias: (V,) float32.
        nodes: (N,) int64 t · (U+1) + u of the rows; None for all of them.
    """

    enc: Float
    dec: Float
    activation: str
    weight: Float
    bias: Float
    nodes: NDArray[np.int64] | None = None

    @property
    def classes(self) -> int:
        return len(self.bias)

    def __len__(self) -> int:
        return len(self.enc) * len(self.dec) if self.nodes is None else len(self.nodes)

    def take(self, index: NDArray[np.int64]) -> FactoredLattice:
        nodes = index if self.nodes is None else self.nodes[index]
        return FactoredLattice(self.enc, self.dec, self.activation, self.weight, self.bias, nodes)

    def logits(self) -> Float:
        """Return (N, V) float32 logits."""
        nodes = np.arange(len(self)) if self.nodes is None else self.nodes
        t, u = np.divmod(nodes, len(self.dec))
        joined = ACTIVATIONS[self.activation](self.enc[t] + self.dec[u])
        return np.asarray(joined @ self.weight.T + self.bias, np.float32)

    def at(self, temperature: float = 1.0) -> Tempered:
        return every_class(self.logits(), temperature)

    def head(self) -> HeadInputs | None:
        """Return both sides of the lattice; None where only some of its nodes were taken."""
        if self.nodes is not None:
            return None
        return HeadInputs(self.enc, self.weight, self.bias, self.dec, self.activation)


@dataclass(frozen=True)
class FactoredEncoding(HeadEncoding):
    """Inputs of a head, at a width or within a budget of nats.

    Attributes:
        setting: empty (float16), ``int8``, or a budget in nats per row.
    """

    setting: str = ""

    def __str__(self) -> str:
        return f"factored:{self.setting}" if self.setting else "factored"

    @property
    def budget(self) -> float | None:
        """Nats per row, on average, that transform coding may lose; None for a fixed width."""
        return float(self.setting) if self.setting not in ("", INT8) else None

    @property
    def needs_sample(self) -> bool:
        return self.budget is not None

    def check_stream(self, kind: StreamKind, form: Form | None) -> None:
        super().check_stream(kind, form)
        if form is None:
            return
        if not form.whole:
            raise UsageError(
                "factored keeps the two sides of the whole lattice",
                do="Leave the form out, or choose another encoding for it.",
            )
        self._require_lattice_setting()

    def _require_lattice_setting(self) -> None:
        """Raise ``UsageError`` unless the setting is one that a lattice can have: none."""
        if self.setting:
            raise UsageError(
                f"{self} of a lattice",
                why="An activation stands between its two sides and the head: they are kept at 16 bits.",
                do="Use factored without a setting.",
            )

    def prepare(self, head: LinearHead, sample: torch.Tensor | None) -> dict[str, NDArray[Any]]:
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

    def made_from(self, head: LinearHead, constants: Constants) -> bool:
        if self.budget is None:
            made = self.prepare(head, None)
            return all(np.allclose(array, constants[name], CLOSE, CLOSE) for name, array in made.items())
        # The axes come from a sample; the logits of the mean row depend on the head alone (SPEC E16).
        logits = head.weight.astype(np.float64) @ constants["mean"] + head.bias
        return bool(np.allclose(logits, constants["bias"], CLOSE, CLOSE))

    def bound(self, stream: StreamSpec, constants: Constants) -> Encoding | LatticeSides:
        if stream.kind == "rnnt":
            self._require_lattice_setting()
            return FactoredSides(stream.width, stream.activation, constants)
        if self.budget is not None:
            return FactoredCodes(constants)
        if self.setting:
            return FactoredInt8(stream.width, constants)
        return FactoredFloat16(stream.width, constants)


class _LinearRows(HeadRowsEncoding):
    """Shared parts of the three forms: logits are one product of the codes with the stored weight."""

    _on: dict[str, torch.Tensor]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_on", {})

    def on(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Return a constant on the device of ``like``, in float32; it is moved there once."""
        if name not in self._on or self._on[name].device != like.device:
            self._on[name] = like.new_tensor(np.array(self.constants[name]))
        return self._on[name]

    def loss(self, own: torch.Tensor | None, code: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``kl``, the nats that rows lose at temperature 1; empty without the teacher's logits."""
        if own is None:
            return {}
        return {LOSS: row_loss(own, code @ self.on("weight", code).T + self.on("bias", code))}

    def rows(self, code: NDArray[Any]) -> Factored:
        """Return (N, D) decoded codes as rows."""
        return Factored(code, self.constants["weight"], self.constants["bias"])


@dataclass(frozen=True, eq=False)
class FactoredFloat16(_LinearRows):
    """(N, D) float16 inputs of the head."""

    width: int
    constants: Constants = field(default_factory=dict)

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (Column("h", "float16", (self.width,), "the head's input: logits are h @ weight.T + bias"),)

    def encode(self, rows: torch.Tensor, own: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        h = rows.half()
        if not bool(h.isfinite().all()):
            raise NonFinite(
                f"the input of the head reaches {float(rows.abs().max()):g}, beyond float16",
                do="Use factored:int8, which has a scale for every row.",
            )
        return {"h": h, **self.loss(own, h.float())}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Factored:
        return self.rows(arrays["h"])


@dataclass(frozen=True, eq=False)
class FactoredInt8(_LinearRows):
    """(N, D) int8 after a rotation that spreads a row's energy, and a scale per row."""

    width: int
    constants: Constants = field(default_factory=dict)

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (
            Column("code", "int8", (self.width,), "the head's input, rotated, over its scale"),
            Column("scale", "float32", (), "of each row: logits are code · scale @ weight.T + bias"),
        )

    def encode(self, rows: torch.Tensor, own: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        turned = rows @ self.on("axes", rows)
        scale = (turned.abs().amax(-1) / STEPS).clamp(min=1e-38)
        code = (turned / scale[:, None]).round().clamp(-STEPS, STEPS)
        return {"code": code.char(), "scale": scale, **self.loss(own, code * scale[:, None])}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Factored:
        return self.rows(arrays["code"].astype(np.float32) * arrays["scale"][:, None])


@dataclass(frozen=True, eq=False)
class FactoredCodes(_LinearRows):
    """Small integers along a few axes as bits, one piece per encoded slice (SPEC E16)."""

    constants: Constants = field(default_factory=dict)

    ragged: ClassVar[frozenset[str]] = frozenset({"code"})

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
class FactoredSides(LatticeSides):
    """Both sides of a lattice: (T, J) as 16-bit integers with a scale per row, (U+1, J) as float32.

    The logits of node (t, u) are head(activation(enc[t] + dec[u])), as in the additive joiner of an RNN
    transducer (Graves 2012; Graves, Mohamed and Hinton 2013). A lattice has many frames per label, so that
    exact label positions cost little and halve the error.
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
        scale = (enc.abs().amax(-1) / 32767).clamp(min=1e-30)
        code = (enc / scale[:, None]).round().clamp(-32767, 32767).short()
        return {"enc": code, "scale": scale, "dec": dec}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> FactoredLattice:
        enc = arrays["enc"].astype(np.float32) * arrays["scale"][:, None]
        weight, bias = self.constants["weight"], self.constants["bias"]
        return FactoredLattice(enc, arrays["dec"], self.activation, weight, bias)


def parse(setting: str | None) -> FactoredEncoding:
    """Return the encoding ``factored``, ``factored:int8`` or ``factored:KL``."""
    if setting is None or setting == INT8:
        return FactoredEncoding(setting or "")
    try:
        budget = float(setting)
    except ValueError:
        budget = float("nan")
    if not SMALLEST <= budget <= LARGEST:
        raise UsageError(
            f"factored:{setting} is neither a width nor a budget",
            do="Write factored, factored:int8, or the nats that a row may lose: factored:1e-3.",
        )
    return FactoredEncoding(f"{budget:g}")
