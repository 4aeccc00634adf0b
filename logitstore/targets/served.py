"""Token errors of targets as a student at another frame rate is served them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import Tempered
from ..tokens.transcript import edit_distance
from . import frames
from .decode import decode, forced_rnnt, greedy_ctc, on_grid
from .frames import Method, Ramp
from .resample import RowEvidence, resample_stream
from .target import Target


@dataclass(frozen=True)
class ServedErrors:
    """Greedy decodes of one stream's targets at another rate, compared with those of its stored rows.

    Attributes:
        stream: name of the stream.
        method: resampling method, the stream's default.
        utterances: number of utterances that were compared.
        tokens: number of tokens in the decodes of the stored rows.
        errors: number of tokens that differ (edit distance).
        unfit: number of utterances whose tokens do not fit into the student's frames.
        drift: mean distance of a chosen teacher frame from its student frame's own time, in student frames.
    """

    stream: str
    method: str
    utterances: int
    tokens: int
    errors: int
    unfit: int
    drift: float

    @property
    def rate(self) -> float:
        """Errors per token."""
        return self.errors / max(self.tokens, 1)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes and ``rate`` as JSON values."""
        return {**vars(self), "rate": self.rate}


def served_errors(
    targets: Iterable[Target], streams: Sequence[str], rate: tuple[int, int]
) -> list[ServedErrors]:
    """Return the token errors of every stream's targets at a student's rate, by its default method.

    Args:
        targets: utterances, over the teacher's own classes.
        streams: streams of CTC frames and of lattices; the nodes of a path have no other rate.
        rate: (p, q): p student frames for q frames of the teacher.
    """
    found: dict[str, list[tuple[int, int, bool, float]]] = {stream: [] for stream in streams}
    for target in targets:
        student = -(-target.T * rate[0] // rate[1])
        for stream, results in found.items():
            results.append(_compare(target, stream, student))
    errors = []
    for stream, results in found.items():
        tokens, wrong, unfit, drift = zip(*results, strict=True) if results else ((), (), (), ())
        errors.append(
            ServedErrors(
                stream=stream,
                method=str(Method.of(stream, None)),
                utterances=len(results),
                tokens=sum(tokens),
                errors=sum(wrong),
                unfit=sum(unfit),
                drift=float(np.mean(drift)) if results else 0.0,
            )
        )
    return errors


def _compare(target: Target, stream: str, student: int) -> tuple[int, int, bool, float]:
    """Return the stored decode's tokens, those served otherwise, whether they do not fit, and the drift."""
    method, blank = Method.of(stream, None), target.blank
    stored = decode(target, stream, blank)
    served = resample_stream(target, stream, student, method, 1.0)
    best = _best_classes(served.rows)
    nodes = target.nodes.get(stream)
    if target.grid(stream) is None:
        decoded, unfit = greedy_ctc(best, blank), _frames_needed(stored) > student
    else:
        grid = np.full((student, target.U + 1), -1, np.int64)
        width = served.axes[1]
        position = np.tile(np.arange(width), student) if nodes is None else served.position
        grid[np.repeat(np.arange(student), width), position] = np.arange(student * width)
        decoded, unfit = list(forced_rnnt(on_grid(best, grid), blank).tokens), False
    evidence = RowEvidence.of(target, stream) if method.rule.needs_evidence else None
    return len(stored), edit_distance(stored, decoded), unfit, _drift(target.T, student, method, evidence)


def _best_classes(rows: Tempered) -> NDArray[np.int64]:
    """Return the (N,) most probable class of rows at one temperature."""
    best = rows.logp.argmax(axis=1)
    if rows.ids is not None:
        best = np.take_along_axis(rows.ids, best[:, None], axis=1)[:, 0]
    return np.asarray(best, np.int64)


def _frames_needed(tokens: Sequence[int]) -> int:
    """Return the fewest frames whose greedy CTC decode is these tokens: equal neighbours need a blank between."""
    return len(tokens) + sum(a == b for a, b in pairwise(tokens))


def _drift(teacher: int, student: int, method: Method, evidence: RowEvidence | None) -> float:
    """Return the mean distance of the teacher frames from the student frames' own times, in student frames."""
    ramp = Ramp.whole(teacher, student)
    plan = frames.plan(teacher, student, method, evidence)
    centre = plan.low.astype(np.float64)
    if plan.groups is not None:
        held = plan.groups >= 0
        centre = np.where(held, plan.groups, 0).sum(1) / held.sum(1)
    own_time = float(ramp.begin) + float(ramp.step) * np.arange(ramp.count)
    return float(np.abs(centre - own_time).mean() / float(ramp.step)) if student else 0.0
