"""Which tensor says how many frames of each utterance are valid.

Looked for among what modules were given and returned in this batch and among the variables of the user's
program at the moment the tapped module runs. Three forms are known: an integer an utterance, the longest as
long as the batch; a mask of frames, (B, T) or (B, 1, T), whichever of valid and padded frames it marks; a
share of the longest an utterance, as SpeechBrain has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import LengthError
from .program import INTEGERS, frames

SHORT = 0.1  # of T that the longest utterance may lack: right context, stacked frames
LONGEST = 4096  # utterances, or frames of a mask's row a hundred times that
COUNTS, MASK, SHARES = "counts", "mask", "shares"


@dataclass(frozen=True)
class Lengths:
    """(B,) valid frames, the expression that finds them again, and what says so."""

    expression: str
    values: tuple[int, ...]
    form: str = COUNTS


def signs(value: Any, expression: str, depth: int = 2) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors, in something a module was given or returned, that could say lengths."""
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            return
        flat = value.dim() == 1 and 0 < len(value) <= LONGEST
        wide = 2 <= value.dim() <= 4 and value.numel() == value.shape[0] * max(value.shape[1:], default=0)
        if (flat and value.dtype != torch.bool) or (wide and 0 < value.numel() <= 100 * LONGEST):
            yield expression, value
    elif depth and isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str):
                yield from signs(inner, f'{expression}["{key}"]', depth - 1)
    elif depth and isinstance(value, list | tuple) and len(value) <= 16:
        for i, inner in enumerate(value):
            yield from signs(inner, f"{expression}[{i}]", depth - 1)


def variables() -> Iterator[tuple[str, Any]]:
    """Variables of the user's program, innermost frame first, each name once."""
    seen: set[str] = set()
    for frame in frames():
        for name, value in list(frame.f_locals.items()):
            if name not in seen and name.isidentifier():
                yield name, value
            seen.add(name)


def in_variables() -> Iterator[tuple[str, torch.Tensor]]:
    """Signs among the variables of the user's program."""
    for name, value in variables():
        if isinstance(value, torch.Tensor):
            yield from signs(value, name)


def candidates(of: Iterable[tuple[str, torch.Tensor]], count: int, frames_: int) -> list[Lengths]:
    """Those that can be the lengths of ``count`` utterances padded to ``frames_``, the likeliest first."""
    found = [f for e, x in of for f in [_read(e, x, count, frames_)] if f is not None]
    return sorted(found, key=lambda f: _tier(f, frames_))


def _tier(found: Lengths, frames_: int) -> int:
    """Exact numbers, masks, shares; numbers that nearly fit last."""
    if found.form == COUNTS:
        return 0 if max(found.values) == frames_ else 3
    return 1 if found.form == MASK else 2


def _read(expression: str, tensor: torch.Tensor, b: int, t: int) -> Lengths | None:
    if tensor.dim() != 1:
        return _mask(expression, tensor, b, t)
    if len(tensor) != b:
        return None
    values = tensor.tolist()
    if tensor.dtype in INTEGERS:
        fits = min(values) >= 0 and (1 - SHORT) * t <= max(values) <= t
        return Lengths(expression, tuple(values)) if fits else None
    if tensor.is_floating_point() and min(values) > 0 and 1 - 1e-4 < max(values) <= 1 + 1e-4:
        return Lengths(f"({expression} * T).round()", tuple(round(v * t) for v in values), SHARES)
    return None


def _mask(expression: str, tensor: torch.Tensor, b: int, t: int) -> Lengths | None:
    """Lengths by a mask that marks, in every row, the first frames or all that follow them.

    Which of the two it marks, the first frames say: these are valid in every utterance.
    """
    if tensor.shape[0] != b or tensor.numel() != b * t or t not in tensor.shape[1:]:
        return None
    rows = tensor.detach().reshape(b, t)
    if rows.dtype != torch.bool:
        if not bool(((rows == 0) | (rows == 1)).all()):
            return None
        rows = rows != 0
    padded = not bool(rows[:, 0].any())
    if not (padded or bool(rows[:, 0].all())):
        return None
    valid = ~rows if padded else rows
    values = tuple(valid.sum(1).tolist())
    if not (valid[:, 1:] <= valid[:, :-1]).all() or max(values) < (1 - SHORT) * t:
        return None
    marked = f"{expression}.reshape(B, T).sum(1)"
    return Lengths(f"T - {marked}" if padded else marked, values, MASK)


def choose(
    found: list[Lengths], count: int, frames_: int, where: str, inputs: Iterable[torch.Tensor] = ()
) -> Lengths:
    """The lengths; raises ``LengthError`` listing them where they disagree, or saying that there are none.

    Args:
        found: candidates.
        count: B.
        frames_: T.
        where: for messages.
        inputs: what the model was given: features, their lengths. A mask or shares that say nothing (all
            utterances as long as the batch) count only where these say so too.
    """
    given = list(inputs)
    found = [f for f in found if f.form == COUNTS or count == 1 or _tells(f, frames_, given)]
    supported = [f for f in found if f.form == SHARES and agrees(f.values, frames_, given)]
    found = [f for f in found if f.form != SHARES or f in supported or not supported]
    if not found and count == 1:
        return Lengths("[T]", (frames_,))
    if not found:
        raise LengthError(
            f"nothing holds the valid lengths of {count} utterances in {frames_} frames",
            where=where,
            why="Padding must never be stored as speech.",
            do="Say where they are: --lengths EXPR, e.g. a variable of your program at that moment.",
        )
    best = min(_tier(f, frames_) for f in found)
    chosen = next(f for f in found if _tier(f, frames_) == best)
    against = [f for f in found if _against(f, chosen, best, frames_)]
    if (
        not against
    ):  # of those that say the same, the first that was given: a variable, for people can read it
        return next(f for f in found if f.values == chosen.values)
    raise LengthError(
        "several tensors could hold the valid lengths: "
        + "; ".join(f"{f.expression} = {list(f.values)[:4]}" for f in (chosen, *against)),
        where=where,
        do=f"Say which: --lengths '{chosen.expression}'.",
    )


def _against(other: Lengths, chosen: Lengths, best: int, frames_: int) -> bool:
    """Whether one candidate speaks against another.

    Not where it nearly fits alone, nor shares against numbers or masks: tokens have shares too.
    """
    weak = _tier(other, frames_) == 3 != best or (other.form == SHARES != chosen.form)
    return not weak and other.values != chosen.values


def _tells(found: Lengths, frames_: int, inputs: list[torch.Tensor]) -> bool:
    return min(found.values) < frames_ or agrees(found.values, frames_, inputs)


def agrees(values: tuple[int, ...], frames_: int, inputs: Iterable[torch.Tensor]) -> bool:
    """Whether the lengths of features, or where these are padded with zeros, are as lengths in frames say."""
    return any(
        max(lengths) > 0
        and all(
            abs(v - frames_ * n / max(lengths)) <= 2 + 0.02 * frames_
            for v, n in zip(values, lengths, strict=True)
        )
        for tensor in inputs
        for lengths in [_input_lengths(tensor, len(values), frames_)]
        if lengths is not None
    )


def _input_lengths(tensor: torch.Tensor, b: int, t: int) -> list[int] | None:
    """(B,) lengths of features that are these, or that these are the lengths of."""
    if tensor.dim() == 0 or tensor.shape[0] != b:
        return None
    if tensor.dim() == 1:
        longer = tensor.dtype in INTEGERS and int(tensor.max()) > t
        return tensor.tolist() if longer else None
    if tensor.dim() > 3 or tensor.shape[1] < t:
        return None
    heard = (tensor != 0).reshape(b, tensor.shape[1], -1).any(-1)
    lengths = [int(row.nonzero()[-1]) + 1 if bool(row.any()) else 0 for row in heard]
    # Features that end in no zeros may be padded with something else.
    return None if tensor.is_floating_point() and min(lengths) == tensor.shape[1] else lengths
