"""Ranking of the watched modules: which of them gives the logits, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from ...encodings.linear_head import additive
from ...teachers.weight_products import PREFIX
from .observer import DECISIONS, LOGITS, SOFTMAX, EmittedOutput

NORMALISED = 1e-3  # nats: largest |log Σ exp| of a row of log-probabilities
FEW_CALLS = 16  # in one batch; more are a decoding loop
IMAGES = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.Dropout2d)
CHOOSING = ("argmax", "topk", "sort")
B_AND_T_AXES = {"BTV": (0, 1), "BVT": (0, 2), "TBV": (1, 0)}


@dataclass(frozen=True, kw_only=True)
class HeadCandidate:
    """A module whose output may be the logits.

    Attributes:
        path: path below the outermost module that has it, or ``fn:PATH.weight`` of products with its weight.
        model: class of that outermost module.
        kind: class of the module.
        layout: ``BTV``, ``BVT``, ``TBV``, ``BTUV``, ``TUV`` (one utterance), ``NV`` (packed), ``V`` (one row
            per call), or ``BCTF`` of a layer of images, which gives no logits.
        shape: shape of its first output.
        classes: V.
        normalised: whether the rows are log-probabilities.
        logz: largest |log Σ exp| of a row, in nats.
        calls: most calls in one batch.
        after: functions that its output was given to: log_softmax, argmax, ...
        best: class that is the largest of a row most often, and its share of the rows.
        inputs: D of a Linear or Conv1d; 0 for others.
        joiner: additive joiner around it, such as ``encoder_proj 128 + decoder_proj 96 -> 112``; or empty.
        score: likelihood that it gives the logits, without unit; higher is likelier.
        steps: functions that its output was given to, for each of the first calls of a batch.
    """

    path: str
    model: str
    kind: str
    layout: str
    shape: tuple[int, ...]
    classes: int
    normalised: bool
    logz: float
    calls: int
    after: tuple[str, ...]
    best: tuple[int, float]
    inputs: int
    joiner: str
    score: float
    steps: tuple[tuple[str, ...], ...] = ()

    @property
    def answering_call(self) -> int | None:
        """Index, from 0, of the call that gives the answer, where only one of a few calls can be.

        That is the only one whose output goes to a log-softmax or a CTC loss, or else the only one from which
        a class is chosen. The heads of InterCTC condition inner layers by the softmax of the other calls.
        """
        for names in (("log_softmax", "ctc_loss"), CHOOSING):
            calls = [i for i, after in enumerate(self.steps) if set(after) & set(names)]
            if len(calls) == 1 < self.calls <= FEW_CALLS:
                return calls[0]
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as JSON values."""
        return asdict(self)


def rank(
    emitted: list[EmittedOutput], tops: list[nn.Module], count: int | None, classes: int | None
) -> list[HeadCandidate]:
    """Return the modules that may give the logits, the likeliest first.

    Args:
        emitted: outputs of the watched modules.
        tops: modules that lie in no other one.
        count: B, where it is known.
        classes: V, where a token table gives it; other widths are left out.
    """
    names = {m: (n, top) for m, (n, top) in named(tops).items() if n}
    embedding_sizes = {m.num_embeddings for m in names if isinstance(m, nn.Embedding)}
    found = []
    for output in emitted:
        path, top = names.get(output.module, ("", output.module))
        is_lookup = isinstance(output.module, nn.Embedding) and not output.weight
        if output.constant or output.wrapped or is_lookup:
            continue
        if classes is not None and output.classes != classes:
            continue
        candidate = _candidate(output, path, top, count, output.classes in embedding_sizes)
        if candidate.score > 0:
            found.append(candidate)
    return sorted(found, key=lambda c: (-c.score, c.path))


def named(tops: list[nn.Module]) -> dict[nn.Module, tuple[str, nn.Module]]:
    """Return path and outermost module of each module; of several paths the one with the fewest numbers."""
    found: dict[nn.Module, tuple[str, nn.Module]] = {}
    for top in tops:
        for path, module in top.named_modules():
            if module not in found or _numbers(path) < _numbers(found[module][0]):
                found[module] = path, top
    return found


def _numbers(path: str) -> int:
    return sum(part.isdigit() for part in path.split("."))


def _candidate(
    output: EmittedOutput, path: str, top: nn.Module, count: int | None, is_embedding_size: bool
) -> HeadCandidate:
    module, logz = output.module, max(abs(output.logz[0]), abs(output.logz[1]))
    best, times = output.best.most_common(1)[0]
    calls = max(output.calls.values())
    found = HeadCandidate(
        path=f"{PREFIX}{path}.{output.weight}" if output.weight else path,
        model=type(top).__name__,
        kind=type(module).__name__,
        layout=_layout(output, count),
        shape=output.shape,
        classes=output.classes,
        normalised=logz < NORMALISED,
        logz=logz,
        calls=calls,
        after=tuple(output.after),
        best=(best, times / output.rows),
        inputs=int(getattr(module, "in_features", 0) or getattr(module, "in_channels", 0) or 0),
        joiner=additive(_parent(top, path), module),
        score=0.0,
        steps=tuple(tuple(output.steps.get(i, ())) for i in range(min(calls, FEW_CALLS))),
    )
    if found.joiner and len(output.shape) == 3:
        found = replace(found, layout="TUV")
    is_head = isinstance(module, nn.Linear) or getattr(module, "kernel_size", None) in ((1,), 1)
    return replace(found, score=_score(found, is_head, is_embedding_size))


def _score(c: HeadCandidate, is_head: bool, is_embedding_size: bool) -> float:
    """Return the score of a candidate; 0 where nothing but its width speaks for it."""
    score = 4.0 * any(a in SOFTMAX for a in c.after) + 2 * any(a in DECISIONS.values() for a in c.after)
    score += is_embedding_size + bool(c.joiner) + 2 * (LOGITS in c.after)
    if not score:
        return 0.0
    score += 2 * is_head + (c.layout in ("BTV", "BVT", "TBV", "BTUV", "TUV"))
    score -= 3 * c.normalised + (c.calls > 1) + 2 * (c.calls > FEW_CALLS)
    return max(score, 0.1)


def _layout(output: EmittedOutput, count: int | None) -> str:
    shape = output.shape
    if isinstance(output.module, IMAGES):
        return "BCTF"
    if len(shape) == 4:
        return "BTUV"
    if len(shape) == 3 and output.axis == 1:
        return "BVT"
    if len(shape) == 3:
        return "TBV" if count is not None and shape[0] != count and shape[1] == count else "BTV"
    return "NV" if len(shape) == 2 else "V"


def _parent(top: nn.Module, path: str) -> nn.Module | None:
    try:
        return top.get_submodule(path.rpartition(".")[0]) if path else None
    except AttributeError:
        return None
