"""Search for the tensor that holds the valid lengths of a batch.

1. Candidates are tensors among the inputs and outputs of the modules that ran for this batch, and among the
   variables of the program at the moment the captured module runs (``possible_lengths``).
2. Each is read in one of three forms (``candidates``): counts, one integer per utterance, the longest as long
   as the batch; masks, (B, T) or (B, 1, T), of the valid or of the padded frames; shares of the longest
   utterance, as SpeechBrain has them.
3. ``choose`` takes the likeliest: exact counts before masks before shares before counts that nearly fit.
   Where candidates disagree, an error lists them. A mask or shares that mark no padding at all count only
   where the model's input shows that there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import LengthError
from .program import INTEGERS, frames

SHORT = 0.1  # share of T by which the longest utterance may be shorter: right context, stacked frames
MAX_UTTERANCES = 4096
MAX_RATIO = 16  # input frames of one output frame
MAX_MASK = 100 * MAX_UTTERANCES
COUNTS, MASK, SHARES = "counts", "mask", "shares"


@dataclass(frozen=True)
class FoundLengths:
    """Valid lengths of a batch.

    Attributes:
        expression: expression that gives them again in later batches.
        values: (B,) valid frames.
        form: ``counts``, ``mask`` or ``shares``.
    """

    expression: str
    values: tuple[int, ...]
    form: str = COUNTS


def possible_lengths(value: Any, expression: str, depth: int = 2) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (expression, tensor) of the tensors in a value that are shaped as lengths or masks.

    Args:
        value: a tensor, or mappings and lists of tensors.
        expression: expression of the value.
        depth: levels of mappings and lists to enter.
    """
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            return
        is_list = value.dim() == 1 and 0 < len(value) <= MAX_UTTERANCES and value.dtype != torch.bool
        is_mask = (
            2 <= value.dim() <= 4
            and value.numel() == value.shape[0] * max(value.shape[1:], default=0)
            and 0 < value.numel() <= MAX_MASK
        )
        if is_list or is_mask:
            yield expression, value
    elif depth and isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str):
                yield from possible_lengths(inner, f'{expression}["{key}"]', depth - 1)
    elif depth and isinstance(value, list | tuple) and len(value) <= 16:
        for i, inner in enumerate(value):
            yield from possible_lengths(inner, f"{expression}[{i}]", depth - 1)


def variables() -> Iterator[tuple[str, Any]]:
    """Yield the variables of the program, innermost function first, each name once."""
    seen: set[str] = set()
    for frame in frames():
        for name, value in list(frame.f_locals.items()):
            if name not in seen and name.isidentifier():
                yield name, value
            seen.add(name)


def possible_lengths_in_variables() -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of the program's variables that are shaped as lengths or masks."""
    for name, value in variables():
        if isinstance(value, torch.Tensor):
            yield from possible_lengths(value, name)


def candidates(
    tensors: Iterable[tuple[str, torch.Tensor]], count: int, max_frames: int
) -> list[FoundLengths]:
    """Return the tensors that can be the lengths of a batch, the likeliest first.

    Args:
        tensors: (expression, tensor) pairs.
        count: B.
        max_frames: T.
    """
    found = [f for e, x in tensors for f in [_read(e, x, count, max_frames)] if f is not None]
    return sorted(found, key=lambda f: _tier(f, max_frames))


def ratio_lengths(
    values: Iterable[tuple[str, str, Any]], count: int, max_frames: int
) -> Iterator[FoundLengths]:
    """Yield input lengths over a whole ratio, such as ``batch["width"] // 8``, that give T exactly.

    Args:
        values: (name, expression, value) of everything in the batch.
        count: B.
        max_frames: T.
    """
    for _, expression, value in values:
        if not isinstance(value, torch.Tensor) or value.dtype not in INTEGERS or value.shape != (count,):
            continue
        longest, shortest = int(value.max()), int(value.min())
        ratio = longest // max_frames if max_frames else 0
        if 2 <= ratio <= MAX_RATIO and longest == ratio * max_frames and shortest >= ratio:
            yield FoundLengths(f"{expression} // {ratio}", tuple((value // ratio).tolist()))


def _tier(found: FoundLengths, max_frames: int) -> int:
    """Return 0 for exact counts, 1 for masks, 2 for shares, 3 for counts that nearly fit."""
    if found.form == COUNTS:
        return 0 if max(found.values) == max_frames else 3
    return 1 if found.form == MASK else 2


def _read(expression: str, tensor: torch.Tensor, b: int, t: int) -> FoundLengths | None:
    """Read a tensor as the lengths of B utterances in T frames; None where it cannot be."""
    if tensor.dim() != 1:
        return _read_mask(expression, tensor, b, t)
    if len(tensor) != b:
        return None
    values = tensor.tolist()
    if tensor.dtype in INTEGERS:
        fits = min(values) >= 0 and (1 - SHORT) * t <= max(values) <= t
        return FoundLengths(expression, tuple(values)) if fits else None
    if tensor.is_floating_point() and min(values) > 0 and 1 - 1e-4 < max(values) <= 1 + 1e-4:
        return FoundLengths(f"({expression} * T).round()", tuple(round(v * t) for v in values), SHARES)
    return None


def _read_mask(expression: str, tensor: torch.Tensor, b: int, t: int) -> FoundLengths | None:
    """Read a mask that marks, in each row, the first frames or all frames after them.

    The first frame of each utterance is valid: it shows which of the two the mask marks.
    """
    if tensor.shape[0] != b or tensor.numel() != b * t or t not in tensor.shape[1:]:
        return None
    rows = tensor.detach().reshape(b, t)
    if rows.dtype != torch.bool:
        if not bool(((rows == 0) | (rows == 1)).all()):
            return None
        rows = rows != 0
    marks_padding = not bool(rows[:, 0].any())
    if not (marks_padding or bool(rows[:, 0].all())):
        return None
    valid = ~rows if marks_padding else rows
    values = tuple(valid.sum(1).tolist())
    if not (valid[:, 1:] <= valid[:, :-1]).all() or max(values) < (1 - SHORT) * t:
        return None
    marked = f"{expression}.reshape(B, T).sum(1)"
    return FoundLengths(f"T - {marked}" if marks_padding else marked, values, MASK)


def choose(
    found: list[FoundLengths], count: int, max_frames: int, where: str, inputs: Iterable[torch.Tensor] = ()
) -> FoundLengths:
    """Return the likeliest candidate.

    Args:
        found: candidates.
        count: B.
        max_frames: T.
        where: location for messages.
        inputs: tensors that may be the model's input: features, or their lengths. Masks and shares that mark
            no padding are believed only where one of these agrees.

    Raises ``LengthError`` where there is no candidate, or where several disagree; these are listed.
    """
    given = list(inputs)
    found = [f for f in found if f.form == COUNTS or count == 1 or _is_informative(f, max_frames, given)]
    supported = [f for f in found if f.form == SHARES and agrees(f.values, max_frames, given)]
    found = [f for f in found if f.form != SHARES or f in supported or not supported]
    if not found and count == 1:
        return FoundLengths("[T]", (max_frames,))
    if not found:
        raise LengthError(
            f"nothing holds the valid lengths of {count} utterances in {max_frames} frames",
            where=where,
            why="Padding must never be stored as speech.",
            do="Say where they are: --lengths EXPR, e.g. a variable of your program at that moment.",
        )
    best = min(_tier(f, max_frames) for f in found)
    chosen = next(f for f in found if _tier(f, max_frames) == best)
    against = [f for f in found if _contradicts(f, chosen, best, max_frames)]
    if not against:
        # Of candidates with the same values, the first that was given: variables come first.
        return next(f for f in found if f.values == chosen.values)
    raise LengthError(
        "several tensors could hold the valid lengths: "
        + "; ".join(f"{f.expression} = {list(f.values)[:4]}" for f in (chosen, *against)),
        where=where,
        do=f"Say which: --lengths '{chosen.expression}'.",
    )


def _contradicts(other: FoundLengths, chosen: FoundLengths, best: int, max_frames: int) -> bool:
    """Return whether a candidate contradicts the chosen one.

    Counts that only nearly fit do not, nor do shares where counts or a mask are chosen: shares may be of
    tokens.
    """
    nearly_fits = _tier(other, max_frames) == 3 != best
    other_shares = other.form == SHARES != chosen.form
    return not (nearly_fits or other_shares) and other.values != chosen.values


def _is_informative(found: FoundLengths, max_frames: int, inputs: list[torch.Tensor]) -> bool:
    """Return whether a mask or shares mark some padding, or the model's input agrees that there is none."""
    return min(found.values) < max_frames or agrees(found.values, max_frames, inputs)


def agrees(values: tuple[int, ...], max_frames: int, inputs: Iterable[torch.Tensor]) -> bool:
    """Return whether lengths in frames are proportional to the lengths of one of the model's inputs."""
    for tensor in inputs:
        lengths = input_lengths(tensor, len(values), max_frames)
        if lengths is None or max(lengths) <= 0:
            continue
        if proportional(values, lengths, max_frames):
            return True
    return False


def proportional(values: Sequence[int], lengths: Sequence[int], max_frames: int) -> bool:
    """Return whether lengths in frames are proportional to lengths of the model's input, in this order."""
    tolerance, longest = 2 + 0.02 * max_frames, max(lengths)
    return all(abs(v - max_frames * n / longest) <= tolerance for v, n in zip(values, lengths, strict=True))


def input_lengths(tensor: torch.Tensor, b: int, t: int) -> list[int] | None:
    """Return (B,) lengths of the model's input.

    Args:
        tensor: lengths of features, (B,); or zero-padded features, (B, T0) or (B, T0, F) with T0 ≥ T.
        b: B.
        t: T of the model's output.

    None where the tensor is neither, or is padded with something else than zeros.
    """
    if tensor.dim() == 0 or tensor.shape[0] != b:
        return None
    if tensor.dim() == 1:
        is_longer = tensor.dtype in INTEGERS and int(tensor.max()) > t
        return tensor.tolist() if is_longer else None
    if tensor.dim() > 3 or tensor.shape[1] < t:
        return None
    nonzero = (tensor != 0).reshape(b, tensor.shape[1], -1).any(-1)
    lengths = [int(row.nonzero()[-1]) + 1 if bool(row.any()) else 0 for row in nonzero]
    may_be_padded = tensor.is_floating_point() and min(lengths) == tensor.shape[1]
    return None if may_be_padded else lengths
