"""Transform coding of the inputs of a linear head: axes, prediction, and a step for every frame.

Rows h are transformed so that a unit of error along any axis costs the same divergence on average, and rotated to
the principal axes of a sample. Each row is predicted from the codes of the row before. Its step is the one with the
least bits + λ · nats: rows of which the teacher is sure bear a coarse one, others need a fine one. λ and the tables
of the entropy coder are fitted on a sample, by coding it a few times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._codes import CodeModel, zigzag
from ._rans import BITS, Tables
from .base import LinearHead, SidesSample

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float64]
Integers = NDArray[np.int64]

TEMPERATURES = (1.0, 2.0, 4.0)  # the sample's mean divergence keeps the budget at each of these
FLAT = 0.02  # weight of equal shares for all classes, for those that are improbable in the sample
MEASURED_ROWS = 3072  # most rows of the sample that divergences are measured on
FITTED_ROWS, SEGMENTS = 4096, 32  # rows that are coded to fit tables, in this many runs side by side
AIM = 0.85  # share of the budget to aim at: the rows of a corpus differ from a sample's
HALVINGS = 12  # of the interval that the one step for all rows is searched in
ROUNDS = 6  # in which λ and the tables follow each other
UNIT = 16  # units of the one step for all rows
STEPS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
SIZES = (
    0,
    1,
    2,
    3,
    4,
    6,
    8,
    12,
    16,
    24,
    32,
    48,
    64,
    80,
    96,
    128,
    160,
    192,
    256,
    320,
    384,
    512,
    640,
    768,
    1024,
    1536,
    2048,
)
MOST_TABLES, MOST_SYMBOLS = 48, 128
CAP = 4.0  # budgets that a row may lose, if any step loses less
NODES = 8  # nodes of a lattice that a row of either side is judged by
# Shares of the budget: nodes that do not judge a row lose more than those that do.
ENC_SHARE, DEC_SHARE = 0.4, 0.1
DRAWN = 8  # classes drawn from a node
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0.0)}
FLIP_BITS, CAP_BITS = 30.0, 1000.0  # price of another best class, and of each CAP beyond the cap


@dataclass(frozen=True, eq=False)
class Coder:
    """A code model with the bits that its symbols cost, for choosing the steps of rows.

    Attributes:
        model: constants of the codes.
        trade: λ, bits for a nat.
        cap: nats beyond which a row pays for its loss with more than λ.
    """

    model: CodeModel
    trade: float
    cap: float

    @classmethod
    def of(cls, constants: Mapping[str, NDArray[Any]], prefix: str = "") -> Coder:
        """Return the coder of a stream's constants."""
        trade, cap = (float(x) for x in constants[f"{prefix}trade"])
        return cls(CodeModel.of(constants, prefix), trade, cap)

    def constants(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that a store keeps."""
        return {"trade": np.array([self.trade, self.cap], np.float32), **self.model.constants()}

    @cached_property
    def costs(self) -> tuple[NDArray[np.float32], ...]:
        """Bits of steps, of sizes, and of residuals; an escape costs its word as well."""
        m = self.model
        tables = [Tables(t.astype(np.int64)).costs for t in (m.step_tables, m.size_tables, m.tables)]
        residual = tables[2].copy()
        residual[:, -1] += 16
        return tables[0], tables[1], residual

    def run(self, x: Float, losses: Losses) -> Run:
        """Code B sequences side by side.

        Args:
            x: (T, B, r) rows in units of a code.
            losses: nats that codes lose.
        """
        m, (step_bits, size_bits, code_bits) = self.model, self.costs
        count, many = x.shape[:2]
        width, steps, sizes = m.width, m.steps.astype(np.int64), m.sizes.astype(np.int64)
        q_axis, place = np.arange(len(steps)), np.arange(width)
        escape, last_size = m.tables.shape[1] - 1, len(sizes)
        contexts = m.contexts.astype(np.intp)
        out = Run.empty(count, many, width)
        step, size = np.full(many, len(steps)), np.full(many, last_size)
        each = np.arange(many)
        predicted = np.broadcast_to(m.begin.astype(np.float64), (many, width))
        for t in range(count):
            residual = np.rint((x[t] - predicted)[:, None] / steps[:, None])  # (B, Q, r)
            np.clip(residual, -32767, 32767, out=residual)
            used = np.where(residual != 0, place + 1, 0).max(-1)
            g = np.searchsorted(sizes, used)
            codes = predicted[:, None] + residual * steps[:, None]
            nats, flipped = losses(t, codes)
            symbols = np.minimum(zigzag(residual.astype(np.int64)), escape)
            cost = code_bits[contexts[q_axis, g], symbols]
            bits = (cost * (place < sizes[g][:, :, None])).sum(-1)
            bits += step_bits[step][:, q_axis] + size_bits[q_axis * (last_size + 1) + size[:, None], g]
            over = (nats.max(-1) / self.cap - 1).clip(0, 10)
            best = (bits + self.trade * nats.mean(-1) + FLIP_BITS * flipped + CAP_BITS * over).argmin(1)
            out.before[t] = step * (last_size + 1) + size
            step, size = best, g[each, best]
            out.step[t], out.size[t], out.residual[t] = step, size, residual[each, best]
            out.nats[t], out.bits[t] = nats[each, best], bits[each, best]
            chosen = codes[each, best]
            out.codes[t] = chosen
            predicted = np.floor(chosen @ m.prediction + 0.5)
        return out


@dataclass(frozen=True, eq=False)
class Run:
    """Result of coding T rows of B sequences.

    Attributes:
        step, size: (T, B) indices of steps and sizes.
        before: (T, B) step and size of the row before, as one number.
        residual: (T, B, r).
        codes: (T, B, r).
        nats: (T, B, 3) nats lost at each temperature.
        bits: (T, B) bits by the tables.
    """

    step: Integers
    size: Integers
    before: Integers
    residual: Integers
    codes: Integers
    nats: Float
    bits: Float

    @classmethod
    def empty(cls, count: int, many: int, width: int) -> Run:
        """Return arrays to be filled."""

        def zeros() -> Integers:
            return np.zeros((count, many), np.int64)

        def wide() -> Integers:
            return np.zeros((count, many, width), np.int64)

        nats = np.zeros((count, many, len(TEMPERATURES)))
        return cls(zeros(), zeros(), zeros(), wide(), wide(), nats, np.zeros((count, many)))


# Returns (B, Q, 3) nats that codes (B, Q, r) of frame t lose, and (B, Q) whether the best class changes, or
# at what share of nodes.
Losses = Callable[[int, Float], tuple[Float, NDArray[Any]]]


def row_losses(own: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Losses:
    """Return the losses of codes of a linear head against own logits.

    Only one exponential is taken of each logit: its squares serve the other temperatures.

    Args:
        own: (T, B, V) logits of the teacher.
        weight: (V, r) of the codes.
        bias: (V,).
    """
    turned, wide = np.ascontiguousarray(weight.T), weight.astype(np.float64)
    best = own.argmax(-1)

    def losses(t: int, codes: Float) -> tuple[Float, NDArray[np.bool_]]:
        logits = codes.astype(np.float32) @ turned + bias  # (B, Q, V)
        peak = logits.max(-1, keepdims=True)
        powers = np.exp((logits - peak) / np.float32(TEMPERATURES[-1]))
        nats = np.empty((*logits.shape[:2], len(TEMPERATURES)))
        mine = own[t].astype(np.float64)
        for n in reversed(range(len(TEMPERATURES))):
            temperature = TEMPERATURES[n]
            logp = mine / temperature
            logp -= logp.max(-1, keepdims=True)
            logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
            p = np.exp(logp)  # (B, V)
            mean = (codes @ (p @ wide)[:, :, None])[:, :, 0] + (p @ bias)[:, None]
            normaliser = np.log(powers.sum(-1, dtype=np.float64)) + peak[:, :, 0] / temperature
            nats[:, :, n] = (p * logp).sum(-1)[:, None] + normaliser - mean / temperature
            if n:
                np.square(powers, out=powers)
        return nats.clip(0.0), logits.argmax(-1) != best[t][:, None]

    return losses


def side_losses(
    own: NDArray[np.float32],
    beside: NDArray[np.float32],
    basis: Basis,
    head: tuple[NDArray[np.float32], NDArray[np.float32]],
    activation: str,
) -> Losses:
    """Return the losses of codes of one side of a lattice, averaged over some nodes of each row.

    Args:
        own: (T, B, n, V) logits of the teacher at n nodes of each row.
        beside: (T, B, n, J) the other side at these nodes.
        basis: axes of the coded side.
        head: weight (V, J) and bias (V,) behind the activation.
        activation: ``tanh`` or ``relu``.
    """
    weight, bias = np.ascontiguousarray(head[0].T), head[1]
    back, mean, function = (
        basis.back.astype(np.float32),
        basis.mean.astype(np.float32),
        ACTIVATIONS[activation],
    )
    best = own.argmax(-1)

    def losses(t: int, codes: Float) -> tuple[Float, Float]:
        rows = codes.astype(np.float32) @ back + mean  # (B, Q, J)
        logits = function(rows[:, :, None] + beside[t][:, None]) @ weight + bias  # (B, Q, n, V)
        powers = np.exp((logits - logits.max(-1, keepdims=True)) / np.float32(TEMPERATURES[-1]))
        nats = np.empty((*logits.shape[:2], len(TEMPERATURES)))
        for n in reversed(range(len(TEMPERATURES))):
            temperature = TEMPERATURES[n]
            logp = own[t].astype(np.float64) / temperature
            logp -= logp.max(-1, keepdims=True)
            logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
            p = np.exp(logp)  # (B, n, V)
            mine = np.einsum("bqnv,bnv->bqn", logits - logits.max(-1, keepdims=True), p) / temperature
            normaliser = np.log(powers.sum(-1, dtype=np.float64))
            nats[:, :, n] = ((p * logp).sum(-1)[:, None] + normaliser - mine).mean(-1)
            if n:
                np.square(powers, out=powers)
        return nats.clip(0.0), (logits.argmax(-1) != best[t][:, None]).mean(-1)

    return losses


def fit(
    weight: torch.Tensor, bias: torch.Tensor, sample: torch.Tensor, budget: float
) -> dict[str, NDArray[Any]]:
    """Return the constants of a head that a sample determines.

    Args:
        weight: (V, D) float64.
        bias: (V,) float64.
        sample: (N, D) float64 rows, those of an utterance one after the other.
        budget: nats per row that may be lost on average.

    Returns:
        ``mean`` (D,), ``axes`` (D, r): rows are coded as (h - mean) @ axes; ``weight`` (V, r), ``bias`` (V,):
        logits are codes @ weight.T + bias; ``trade`` (2,) is λ and the cap of a row; and the constants of
        :class:`CodeModel`.
    """
    some = _some(sample)
    own = some @ weight.T + bias
    basis = _basis(
        sample, _curvature(weight, bias, some), budget, lambda rows: _lost(own, rows @ weight.T + bias)
    )
    logits = basis.segments(sample) @ weight.T.cpu().numpy() + bias.cpu().numpy()
    new_weight, new_bias = basis.head(weight, bias)
    coder = _fit_coder(basis, sample, row_losses(logits.astype(np.float32), new_weight, new_bias), budget)
    return {**basis.constants(), "weight": new_weight, "bias": new_bias, **coder.constants()}


def fit_sides(head: LinearHead, sample: SidesSample, budget: float) -> dict[str, NDArray[Any]]:
    """Return the constants of a lattice's two sides, each with its prefix ``enc_`` or ``dec_``.

    Args:
        head: the layer behind the activation.
        sample: both sides of some utterances.
        budget: nats per node that may be lost on average.

    Returns:
        For each side ``mean`` (J,), ``axes`` (J, r), ``back`` (r, J): a side is codes @ back + mean; ``trade`` (2,)
        and the constants of :class:`CodeModel`.
    """
    made: dict[str, NDArray[Any]] = {}
    for name, rows, others, share in (("enc", 0, 1, ENC_SHARE), ("dec", 1, 0, DEC_SHARE)):
        side = [pair[rows] for pair in sample.sides]
        beside = _joined([nodes_beside(pair[others], len(pair[rows])) for pair in sample.sides])
        basis, coder = _fit_side(head, sample.activation, _joined(side), beside, share * budget)
        parts = {**basis.constants(), "back": basis.back.astype(np.float32), **coder.constants()}
        made |= {f"{name}_{part}": array for part, array in parts.items()}
    return made


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.cat([p.double().cpu() for p in parts])


def nodes_beside(others: torch.Tensor, count: int) -> torch.Tensor:
    """Return (N, n, J) rows of the other side, at nodes that are spread over the lattice."""
    import torch

    chosen = (torch.arange(count)[:, None] * 7 + torch.arange(NODES) * len(others) // NODES) % len(others)
    return others[chosen.to(others.device)]


def _fit_side(
    head: LinearHead, activation: str, side: torch.Tensor, beside: torch.Tensor, budget: float
) -> tuple[Basis, Coder]:
    import torch

    weight, bias = side.new_tensor(head.weight), side.new_tensor(head.bias)
    function = {"tanh": torch.tanh, "relu": torch.relu}[activation]
    some, near = _some(side), _some(beside)

    def logits(rows: torch.Tensor) -> torch.Tensor:
        return (function(rows[:, None] + near) @ weight.T + bias).flatten(0, 1)

    own = logits(some)
    joined = function(some[:, None] + near).flatten(0, 1)
    slope = 1 - joined.square() if activation == "tanh" else (joined > 0).to(joined.dtype)
    basis = _basis(side, _side_curvature(weight, own, slope), budget, lambda rows: _lost(own, logits(rows)))
    x, nodes = basis.segments(side), basis.segments(beside).astype(np.float32)
    exact = ACTIVATIONS[activation](x[:, :, None] + nodes) @ head.weight.T + head.bias
    losses = side_losses(exact.astype(np.float32), nodes, basis, (head.weight, head.bias), activation)
    return basis, _fit_coder(basis, side, losses, budget)


def _side_curvature(weight: torch.Tensor, own: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Return the (J, J) mean Fisher information of a side, from classes drawn from each node's distribution.

    Args:
        weight: (V, J).
        own: (N, V) logits of nodes.
        slope: (N, J) derivative of the activation there.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    even = weight - weight.mean(0)
    total = FLAT * (even.T @ even) / len(weight) * slope.square().mean()
    for temperature in TEMPERATURES:
        p = (own / temperature).softmax(-1)
        drawn = torch.multinomial(p, DRAWN, replacement=True, generator=generator)
        scores = (weight[drawn] - (p @ weight)[:, None]) * slope[:, None]
        scores = scores.flatten(0, 1)
        total = total + scores.T @ scores / len(scores) / temperature**2 / len(TEMPERATURES)
    return total


@dataclass(frozen=True, eq=False)
class Basis:
    """Axes of rows, in units of a code.

    Attributes:
        mean: (D,) mean of the sample.
        axes: (D, r); rows are (h - mean) @ axes.
        back: (r, D); rows of codes c are c @ back + mean again.
    """

    mean: Float
    axes: Float
    back: Float

    def rows(self, h: torch.Tensor) -> Float:
        """Return (N, r) rows of (N, D) inputs."""
        return np.asarray((h.double().cpu().numpy() - self.mean) @ self.axes)

    def head(
        self, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return weight (V, r) and bias (V,) of codes."""
        w = weight.cpu().numpy()
        return (w @ self.back.T).astype(np.float32), (w @ self.mean + bias.cpu().numpy()).astype(np.float32)

    def constants(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that only a writer needs."""
        return {"mean": self.mean.astype(np.float32), "axes": self.axes.astype(np.float32)}

    @staticmethod
    def segments(rows: torch.Tensor) -> NDArray[Any]:
        """Return (T, B, …) rows that are coded to fit tables: B stretches of a sample, side by side."""
        some = rows.cpu().numpy()
        many = min(SEGMENTS, max(1, len(some) // 32))
        long = max(1, min(len(some), FITTED_ROWS) // many)
        begin = np.arange(many) * (len(some) - long) // max(many - 1, 1)
        return np.asarray(some[begin + np.arange(long)[:, None]])


def _basis(
    sample: torch.Tensor, curvature: torch.Tensor, budget: float, lost: Callable[[torch.Tensor], float]
) -> Basis:
    """Return axes along which a unit of error costs the same, in units of 1/16 of the one step for all rows.

    Args:
        sample: (N, D) float64 rows.
        curvature: (D, D) mean Fisher information of a row.
        budget: nats per row that may be lost on average.
        lost: returns the mean nats that some rows (those of :func:`_some`) lose when they are replaced.
    """
    mean, some = sample.mean(0), _some(sample)
    centred = sample - mean
    root = _root(curvature)
    spread, turn = _eigen(root @ (centred.T @ centred) @ root)
    turn = turn[:, spread > 1e-10 * spread[0]]
    axes, back = root @ turn, turn.T @ root.inverse()
    parts = (some - mean) @ axes
    low, high = 1e-4, 1e2
    for _ in range(HALVINGS):
        step = (low * high) ** 0.5
        good = lost((parts / step).round() * step @ back + mean) <= AIM * budget
        low, high = (step, high) if good else (low, step)
    used = (centred @ axes).abs().amax(0) > low / 4
    used[0] = True
    unit = low / UNIT
    return Basis(*(_double(x) for x in (mean, axes[:, used] / unit, back[used] * unit)))


def _fit_coder(basis: Basis, sample: torch.Tensor, losses: Losses, budget: float) -> Coder:
    """Return the coder of rows along fitted axes: its prediction, its tables, and λ.

    Args:
        basis: axes of the rows.
        sample: (N, D) rows, those of an utterance one after the other.
        losses: losses of the rows of :meth:`Basis.segments`.
        budget: nats per row that may be lost on average.
    """
    x = basis.rows(sample)
    segments = basis.segments(sample.new_tensor(x))
    before, after = x[:-1], x[1:]
    noise = max(len(x), 1) * UNIT**2 / 12 * np.eye(x.shape[1])  # of codes, from which rows are predicted
    predict = np.asarray(np.linalg.solve(before.T @ before + noise, before.T @ after), np.float64)
    spread = np.asarray((after - before @ predict).std(0) if len(x) > 2 else x.std(0) + 1.0, np.float64)
    coder = Coder(
        _first_model(predict, np.asarray(segments[0].mean(0), np.float64), spread), 20 / budget, CAP * budget
    )
    for _ in range(ROUNDS):
        run = coder.run(segments, losses)
        lost = float(run.nats.mean((0, 1)).max())
        ratio = float(np.clip(lost / (AIM * budget), 0.3, 3.0))
        coder = replace(coder, model=_fitted(coder.model, run, spread), trade=coder.trade * ratio)
    return coder


def _first_model(predict: Float, begin: Float, spread: Float) -> CodeModel:
    """Return a model whose residuals have Laplacian tables of the spread of each axis."""
    width = len(begin)
    steps = np.array(STEPS)
    sizes = np.array([s for s in SIZES if s < width] + [width])
    scales = np.log2(np.maximum(spread / steps[:, None], 1e-3))  # (Q, r)
    return CodeModel(
        predict=np.clip(np.rint(predict * 256), -32768, 32767),
        begin=np.rint(begin),
        steps=steps,
        sizes=sizes,
        step_tables=_frequencies(np.ones((len(steps) + 1, len(steps)))),
        size_tables=_frequencies(np.ones((len(steps) * (len(sizes) + 1), len(sizes)))),
        **_by_scale(np.repeat(scales[:, None], len(sizes), 1), None),
    )


def _fitted(model: CodeModel, run: Run, spread: Float) -> CodeModel:
    """Return the model with the tables of a run; contexts with few residuals lean on those of their step."""
    q_many, g_many, width = len(model.steps), len(model.sizes), model.width
    step, size = run.step.reshape(-1), run.size.reshape(-1)
    residual = run.residual.reshape(-1, width)
    total, found = np.zeros((q_many, g_many, width)), np.zeros((q_many, g_many, 1))
    np.add.at(total, (step, size), np.abs(residual))
    np.add.at(found, (step, size), 1)
    laplacian = spread / model.steps[:, None] / 2**0.5
    by_step = (total.sum(1) + 4 * laplacian) / (found.sum(1) + 4)
    mean = (total + 8 * by_step[:, None]) / (found + 8)
    before_step, before_size = np.divmod(run.before.reshape(-1), g_many + 1)
    step_seen = np.zeros((q_many + 1, q_many))
    np.add.at(step_seen, (before_step, step), 1)
    size_seen = np.zeros((q_many, g_many + 1, g_many))
    np.add.at(size_seen, (step, before_size, size), 1)
    every = step_seen.sum(0) + 0.1
    by_step_size = size_seen.sum(1) + 2 * (size_seen.sum((0, 1)) + 0.1) / (size_seen.sum() + 1)
    by_step_size = by_step_size[:, None] / by_step_size.sum(-1)[:, None, None]
    return replace(
        model,
        step_tables=_frequencies(step_seen + 4 * every / every.sum()),
        size_tables=_frequencies((size_seen + 4 * by_step_size).reshape(-1, g_many)),
        **_by_scale(np.log2(np.maximum(mean * 2**0.5, 1e-3)), (step, size, residual)),
    )


def _by_scale(scales: Float, seen: tuple[Integers, Integers, Integers] | None) -> dict[str, NDArray[Any]]:
    """Return ``contexts`` and ``tables``: contexts of about the same spread share a table.

    Args:
        scales: (Q, G, r) log2 of the spread of the residuals of each context.
        seen: steps (N,), sizes (N,) and residuals (N, r) of a run; None for Laplacian tables.
    """
    low, high = max(-6.0, float(scales.min())), max(float(scales.max()), -5.0)
    many = int(min(MOST_TABLES, max(2, np.ceil((high - low) * 4))))
    contexts = np.rint((scales.clip(low, high) - low) / (high - low) * (many - 1)).astype(np.int64)
    spread = 2 ** (low + np.arange(many) * (high - low) / (many - 1))
    symbols = int(min(MOST_SYMBOLS, max(8, np.ceil(12 * spread[-1]))))
    size = (np.arange(symbols) + 1) // 2
    decay = np.exp(-(2**0.5) / np.maximum(spread, 0.05))[:, None]
    shape = (1 - decay) / (1 + decay) * decay**size
    shape[:, -1] = decay[:, 0] ** size[-1]
    weight = 64 * shape / shape.sum(1, keepdims=True)
    if seen is not None:
        step, place, residual = seen
        rows = contexts[step, place]
        np.add.at(weight, (rows, np.minimum(zigzag(residual), symbols - 1)), 1)
    return {"contexts": contexts, "tables": _frequencies(weight)}


def _frequencies(weights: Float) -> Integers:
    """Return (K, A) whole frequencies, at least 1, that sum to 4096 in each row."""
    share = weights / weights.sum(1, keepdims=True)
    spare = (1 << BITS) - weights.shape[1]
    whole = np.floor(share * spare).astype(np.int64)
    rest = spare - whole.sum(1)
    rank = np.argsort(np.argsort(whole - share * spare, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray(whole + 1 + (rank < rest[:, None]))


def _some(sample: torch.Tensor) -> torch.Tensor:
    return sample[:: -(-len(sample) // MEASURED_ROWS)]


def _curvature(weight: torch.Tensor, bias: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """Return the (D, D) mean Fisher information of h: a small error e of h costs eᵀ F e / 2 nats."""
    even = weight - weight.mean(0)
    total = FLAT * (even.T @ even) / len(weight)
    for temperature in TEMPERATURES:
        p = ((sample @ weight.T + bias) / temperature).softmax(-1)
        pw = p @ weight
        spread = (weight.T * p.mean(0)) @ weight - pw.T @ pw / len(p)
        total = total + spread / temperature**2 / len(TEMPERATURES)
    return total


def _root(square: torch.Tensor) -> torch.Tensor:
    """Return the symmetric root of a positive matrix, with eigenvalues of at least 1e-9 of the largest."""
    values, vectors = _eigen(square)
    return (vectors * values.clamp(min=1e-9 * float(values[0])).sqrt()) @ vectors.T


def _eigen(square: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvalues, largest first, and their vectors, each with its largest entry positive."""
    import torch

    values, vectors = torch.linalg.eigh((square + square.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * largest.sign()


def _lost(own: torch.Tensor, served: torch.Tensor) -> float:
    """Return the mean divergence of two sets of logits in nats, at the temperature where it is largest."""
    worst = 0.0
    for temperature in TEMPERATURES:
        p, q = ((x / temperature).float().log_softmax(-1) for x in (own, served))
        worst = max(worst, float((p.exp() * (p - q)).sum(-1).mean()))
    return worst


def _double(x: torch.Tensor) -> Float:
    return np.ascontiguousarray(x.cpu().numpy())
