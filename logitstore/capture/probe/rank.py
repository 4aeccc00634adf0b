"""Which of the modules that were watched gives the logits: a ranking, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from ...encodings.linear_head import additive
from ...teachers.weight_products import PREFIX
from .observer import DECISIONS, FEW, LOGITS, SOFTMAX, EmittedOutput

NORMALISED = 1e-3  # nats: |log Σ exp| of a row of log-probabilities
DECIDES = ("argmax", "topk", "sort")
AXES = {"BTV": (0, 1), "BVT": (0, 2), "TBV": (1, 0)}  # which axes are B and T


@dataclass(frozen=True)
class HeadCandidate:
    """A module that emits something as wide as the token table may be.

    Attributes:
        path: below the outermost module that has it, or ``fn:PATH.weight`` of a product with its weight;
            ``model``: the class of that.
        kind: class of the module.
        layout: ``BTV``, ``BVT``, ``TBV``, ``BTUV``, ``TUV`` (of one utterance), ``NV`` (packed),
            or ``V`` (one row a call).
        shape: of its first output; ``classes``: V.
        normalised: log-probabilities already; ``logz``: the largest |log Σ exp| of a row, nats.
        calls: a batch, at most.
        after: what its output is given to: log_softmax, argmax, ...; ``steps``: call by call of a batch.
        best: class that is most often the largest, and in which share of the rows.
        inputs: D of a Linear or Conv1d, 0 for others.
        joiner: the additive joiner around it: ``encoder_proj 128 + decoder_proj 96 -> 112``.
        score: the higher, the likelier.
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
    def call(self) -> int | None:
        """Which of a few calls a batch is the answer, from 0, where that shows: the only one of which a
        log-softmax is taken, or from which a class is chosen. InterCTC heads serve layers in the others."""
        for names in (("log_softmax", "ctc_loss"), DECIDES):
            calls = [i for i, after in enumerate(self.steps) if set(after) & set(names)]
            if len(calls) == 1 < self.calls <= FEW:
                return calls[0]
        return None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def rank(
    emitted: list[EmittedOutput], tops: list[nn.Module], count: int | None, classes: int | None
) -> list[HeadCandidate]:
    """Candidates, the likeliest first.

    Args:
        emitted: what was watched.
        tops: modules that lie in no other one.
        count: B, where it is known.
        classes: V, where a token table says it: other widths are left out.
    """
    names = {m: (n, top) for m, (n, top) in named(tops).items() if n}
    embedded = {m.num_embeddings for m, _ in names.items() if isinstance(m, nn.Embedding)}
    found = []
    for said in emitted:
        path, top = names.get(said.module, ("", said.module))
        looked_up = isinstance(said.module, nn.Embedding) and not said.weight
        if not (said.constant or said.wrapped or looked_up) and (classes is None or said.classes == classes):
            candidate = _candidate(said, path, top, count, said.classes in embedded)
            if candidate.score > 0:
                found.append(candidate)
    return sorted(found, key=lambda c: (-c.score, c.path))


def named(tops: list[nn.Module]) -> dict[nn.Module, tuple[str, nn.Module]]:
    """Path and outermost module of every module; of several paths the one with the fewest numbers in it."""
    found: dict[nn.Module, tuple[str, nn.Module]] = {}
    for top in tops:
        for path, module in top.named_modules():
            if module not in found or _numbers(path) < _numbers(found[module][0]):
                found[module] = path, top
    return found


def _numbers(path: str) -> int:
    return sum(part.isdigit() for part in path.split("."))


def _candidate(
    said: EmittedOutput, path: str, top: nn.Module, count: int | None, embedded: bool
) -> HeadCandidate:
    module, off = said.module, max(abs(said.logz[0]), abs(said.logz[1]))
    best, times = said.best.most_common(1)[0]
    found = HeadCandidate(
        path=f"{PREFIX}{path}.{said.weight}" if said.weight else path,
        model=type(top).__name__,
        kind=type(module).__name__,
        layout=_layout(said, count),
        shape=said.shape,
        classes=said.classes,
        normalised=off < NORMALISED,
        logz=off,
        calls=max(said.calls.values()),
        after=tuple(said.after),
        best=(best, times / said.rows),
        inputs=int(getattr(module, "in_features", 0) or getattr(module, "in_channels", 0) or 0),
        joiner=additive(_parent(top, path), module),
        score=0.0,
        steps=tuple(tuple(said.steps.get(i, ())) for i in range(min(max(said.calls.values()), FEW))),
    )
    head = isinstance(module, nn.Linear) or getattr(module, "kernel_size", None) in ((1,), 1)
    if found.joiner and len(said.shape) == 3:
        found = replace(found, layout="TUV")
    return replace(found, score=_score(found, head, embedded))


def _score(c: HeadCandidate, head: bool, embedded: bool) -> float:
    """How likely it is; 0 where nothing speaks for it but its width."""
    score = 4.0 * any(a in SOFTMAX for a in c.after) + 2 * any(a in DECISIONS.values() for a in c.after)
    score += embedded + bool(c.joiner) + 2 * (LOGITS in c.after)
    if not score:
        return 0.0
    score += 2 * head + (c.layout in ("BTV", "BVT", "TBV", "BTUV", "TUV"))
    score -= 3 * c.normalised + (c.calls > 1) + 2 * (c.calls > FEW)
    return max(score, 0.1)


def _layout(said: EmittedOutput, count: int | None) -> str:
    shape = said.shape
    if len(shape) == 4:
        return "BTUV"
    if len(shape) == 3 and said.axis == 1:
        return "BVT"
    if len(shape) == 3:
        return "TBV" if count is not None and shape[0] != count and shape[1] == count else "BTV"
    return "NV" if len(shape) == 2 else "V"


def _parent(top: nn.Module, path: str) -> nn.Module | None:
    try:
        return top.get_submodule(path.rpartition(".")[0]) if path else None
    except AttributeError:
        return None
