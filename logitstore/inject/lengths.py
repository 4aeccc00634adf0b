"""Which tensor holds the valid lengths of a batch: an integer an utterance, the longest as long as the batch.

Looked for among what modules returned in this batch and among the variables of the user's program at the
moment the tapped module runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import LengthError
from .surroundings import INTEGERS, frames

SHORT = 0.1  # of T that the longest utterance may lack: right context, stacked frames


@dataclass(frozen=True)
class Lengths:
    """(B,) valid frames and the expression that finds them again."""

    expression: str
    values: tuple[int, ...]


def vectors(value: Any, expression: str, depth: int = 2) -> Iterator[tuple[str, torch.Tensor]]:
    """Integer vectors in something a module returned."""
    if isinstance(value, torch.Tensor):
        if value.dim() == 1 and value.dtype in INTEGERS and 0 < len(value) <= 4096:
            yield expression, value
    elif depth and isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str):
                yield from vectors(inner, f'{expression}["{key}"]', depth - 1)
    elif depth and isinstance(value, list | tuple) and len(value) <= 16:
        for i, inner in enumerate(value):
            yield from vectors(inner, f"{expression}[{i}]", depth - 1)


def in_variables() -> Iterator[tuple[str, torch.Tensor]]:
    """Integer vectors among the variables of the user's program, innermost frame first."""
    seen: set[str] = set()
    for frame in frames():
        for name, value in list(frame.f_locals.items()):
            if name not in seen and isinstance(value, torch.Tensor) and name.isidentifier():
                yield from vectors(value, name)
            seen.add(name)


def candidates(of: Iterator[tuple[str, torch.Tensor]], count: int, frames_: int) -> list[Lengths]:
    """Those that can be the lengths of ``count`` utterances padded to ``frames_``; exact ones first."""
    found = []
    for expression, tensor in of:
        if len(tensor) != count:
            continue
        values = tuple(int(v) for v in tensor.tolist())
        longest = max(values)
        if min(values) >= 0 and (1 - SHORT) * frames_ <= longest <= frames_:
            found.append(Lengths(expression, values))
    return sorted(found, key=lambda f: max(f.values) != frames_)


def choose(found: list[Lengths], count: int, frames_: int, where: str) -> Lengths:
    """The lengths; raises ``LengthError`` listing them where they disagree, or saying that there are none."""
    exact = [f for f in found if max(f.values) == frames_] or found
    if len({f.values for f in exact}) == 1:
        return exact[0]
    if not found and count == 1:
        return Lengths("[T]", (frames_,))
    if not found:
        raise LengthError(
            f"nothing holds the valid lengths of {count} utterances in {frames_} frames",
            where=where,
            why="Padding must never be stored as speech.",
            do="Say where they are: --lengths EXPR, e.g. a variable of your program at that moment.",
        )
    raise LengthError(
        "several tensors could hold the valid lengths: "
        + "; ".join(f"{f.expression} = {list(f.values)[:4]}" for f in exact),
        where=where,
        do=f"Say which: --lengths '{exact[0].expression}'.",
    )
