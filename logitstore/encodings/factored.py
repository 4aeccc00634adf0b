"""``factored``: the input of a linear head in place of its logits, and the head once per store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import NonFinite, UsageError
from ..schema.kinds import StreamKind
from ..schema.lattice import Form
from ..schema.spec import Column, StreamSpec
from . import _transform
from ._transform import ACTIVATIONS, Coder
from .base import (
    LOSS,
    Encoding,
    HeadEncoding,
    HeadRowsEncoding,
    LatticeSides,
    LinearHead,
    SidesSample,
    row_losses,
)
from .rows import Float, HeadInputs, Rows, Tempered, every_class

if TYPE_CHECKING:
    import torch

Constants = Mapping[str, NDArray[Any]]
INT8, STEPS = "int8", 127
SMALLEST, LARGEST = 1e-6, 1.0  # nats
SEED = 20  # seed of the rotation, which is stored: any other serves as well
CLOSE = 1e-4  # relative and absolute tolerance of two heads that are the same


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
        """Raise ``UsageError`` unless the setting is one that a lattice can have: none, or a budget."""
        if self.setting == INT8:
            raise UsageError(
                f"{self} of a lattice",
                why="An activation stands between its two sides and the head; one byte a number is not tried there.",
                do="Use factored, which is exact, or name the nats that a node may lose: factored:1e-3.",
            )

    def prepare(self, head: LinearHead, sample: torch.Tensor | SidesSample | None) -> dict[str, NDArray[Any]]:
        if self.budget is not None:
            assert sample is not None
            if isinstance(sample, SidesSample):
                sides = _transform.fit_sides(head, sample, self.budget)
                return {"weight": head.weight, "bias": head.bias, **sides}
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
        if "enc_back" in constants:
            made = {"weight": head.weight, "bias": head.bias}
            return all(np.allclose(array, constants[name], CLOSE, CLOSE) for name, array in made.items())
        if self.budget is None:
            made = self.prepare(head, None)
            return all(np.allclose(array, constants[name], CLOSE, CLOSE) for name, array in made.items())
        # The axes come from a sample; the logits of the mean row depend on the head alone (SPEC E16).
        logits = head.weight.astype(np.float64) @ constants["mean"] + head.bias
        return bool(np.allclose(logits, constants["bias"], CLOSE, CLOSE))

    def bound(self, stream: StreamSpec, constants: Constants) -> Encoding | LatticeSides:
        if stream.kind == "rnnt":
            self._require_lattice_setting()
            if self.budget is not None:
                return FactoredSideCodes(stream.activation, constants)
            return FactoredSides(stream.width, stream.activation, constants)
        if self.budget is not None:
            return FactoredCodes(constants)
        if self.setting:
            return FactoredInt8(stream.width, constants)
        return FactoredFloat16(stream.width, constants)


class _LinearRows(HeadRowsEncoding):
    """Shared parts of the forms: logits are one product of the codes with the stored weight."""

    _on: dict[str, torch.Tensor]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_on", {})

    def on(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Return a constant on the device of ``like``, in float32; it is moved there once."""
        if name not in self._on or self._on[name].device != like.device:
            self._on[name] = like.new_tensor(np.array(self.constants[name]))
        return self._on[name]

    def loss(self, own: torch.Tensor | None, code: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``kl``, the nats that rows lose; empty without the teacher's logits."""
        if own is None:
            return {}
        return {LOSS: row_losses(own, code @ self.on("weight", code).T + self.on("bias", code))}

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
    """Whole numbers along a few axes, predicted and entropy coded, one piece per encoded slice (SPEC E16)."""

    constants: Constants = field(default_factory=dict)

    ragged: ClassVar[frozenset[str]] = frozenset({"coded"})

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (
            Column(
                "coded", "uint8", (), "entropy-coded integers (SPEC E16): logits are they @ weight.T + bias"
            ),
        )

    @cached_property
    def _coder(self) -> Coder:
        return Coder.of(self.constants)

    def encode(self, rows: torch.Tensor, own: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        import torch

        c = self.constants
        x = (rows.cpu().numpy().astype(np.float64) - c["mean"]) @ c["axes"].astype(np.float64)
        logits = x @ c["weight"].T.astype(np.float64) + c["bias"] if own is None else own.cpu().numpy()
        losses = _transform.row_losses(logits.astype(np.float32)[:, None], c["weight"], c["bias"])
        run = self._coder.run(x[:, None], losses)
        packed = self._coder.model.pack(run.step[:, 0], run.size[:, 0], run.residual[:, 0])
        code = rows.new_tensor(run.codes[:, 0].astype(np.float32))
        return {"coded": torch.from_numpy(packed), **self.loss(own, code)}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> Factored:
        return self.decode_many([arrays], classes)[0]

    def decode_many(self, records: Sequence[Mapping[str, NDArray[Any]]], classes: int) -> list[Factored]:
        return [
            self.rows(c.astype(np.float32)) for c in self._coder.model.unpack([r["coded"] for r in records])
        ]


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


@dataclass(frozen=True, eq=False)
class FactoredSideCodes(LatticeSides):
    """Both sides of a lattice as whole numbers along a few axes, predicted and entropy coded (SPEC E17).

    The decoder's side is coded like the encoder's: a row of a label position costs about as much as a frame, and
    there are many frames to a label.
    """

    activation: str
    constants: Constants = field(default_factory=dict)

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (
            Column(
                "enc_coded",
                "uint8",
                (),
                "entropy-coded integers of each frame (SPEC E16): @ enc_back + enc_mean",
            ),
            Column(
                "dec_coded",
                "uint8",
                (),
                "entropy-coded integers of each label position: @ dec_back + dec_mean",
            ),
        )

    @cached_property
    def _coders(self) -> dict[str, Coder]:
        return {side: Coder.of(self.constants, f"{side}_") for side in ("enc", "dec")}

    def encode_sides(self, enc: torch.Tensor, dec: torch.Tensor) -> dict[str, torch.Tensor]:
        import torch

        return {
            "enc_coded": torch.from_numpy(self._packed("enc", enc.cpu(), dec.cpu())),
            "dec_coded": torch.from_numpy(self._packed("dec", dec.cpu(), enc.cpu())),
        }

    def _packed(self, side: str, rows: torch.Tensor, others: torch.Tensor) -> NDArray[np.uint8]:
        """Return the codes of one side as bytes."""
        c, coder = self.constants, self._coders[side]
        basis = _transform.Basis(
            *(c[f"{side}_{part}"].astype(np.float64) for part in ("mean", "axes", "back"))
        )
        beside = _transform.nodes_beside(others, len(rows)).numpy()
        joined = ACTIVATIONS[self.activation](rows.numpy()[:, None] + beside)
        own = (joined @ c["weight"].T + c["bias"]).astype(np.float32)
        head = c["weight"], c["bias"]
        losses = _transform.side_losses(own[:, None], beside[:, None], basis, head, self.activation)
        run = coder.run(basis.rows(rows)[:, None], losses)
        return coder.model.pack(run.step[:, 0], run.size[:, 0], run.residual[:, 0])

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> FactoredLattice:
        return self.decode_many([arrays], classes)[0]

    def decode_many(
        self, records: Sequence[Mapping[str, NDArray[Any]]], classes: int
    ) -> list[FactoredLattice]:
        c, sides = self.constants, {}
        for side, coder in self._coders.items():
            codes = coder.model.unpack([r[f"{side}_coded"] for r in records])
            sides[side] = [x.astype(np.float32) @ c[f"{side}_back"] + c[f"{side}_mean"] for x in codes]
        return [
            FactoredLattice(enc, dec, self.activation, c["weight"], c["bias"])
            for enc, dec in zip(sides["enc"], sides["dec"], strict=True)
        ]


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
