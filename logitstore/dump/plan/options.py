"""What to plan, and what a plan says: sizes and losses of every encoding tried, and which one to take."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ... import registry
from ...corpus.audio import stated_seconds
from ...corpus.manifest import Manifest, Utterance
from ...encodings.rows import TEMPERATURES
from ...errors import ManifestError, UsageError
from ...runner.chunks import Chunks
from ...runner.gpu import require_device
from ...runner.stored_heads import fitted
from ...schema.kinds import kind_of
from ...schema.lattice import Form
from ...storage.entries import DEFAULT_SHARD_SIZE, ShardSize
from .choose import Asked, Choice, Measured

BUDGET = 1e-3  # nats that a row may lose on average where nothing is said


NUCLEUS, FACTORED = (1e-5, 10.0), (1e-6, 1.0)  # budgets that these encodings take


TOP = (8, 32)


FORMS = ("banded:5", "path")  # beside the whole lattice


@dataclass(frozen=True)
class Wish:
    """An encoding to be chosen by what it costs on a sample: ``auto``, ``auto:KL``, each with ``/FORM``.

    Attributes:
        budget: nats that a row may lose on average at any temperature; 0 for what the plan says.
        form: of the lattice; empty for any.
    """

    budget: float = 0.0
    form: str = ""

    @classmethod
    def parse(cls, text: str) -> Wish | None:
        """The wish that stands for an encoding; None for the name of one. Raises ``UsageError``."""
        how, slash, form = text.partition("/")
        name, colon, budget = how.partition(":")
        if name != "auto":
            return None
        if colon and not re.fullmatch(r"\d{1,3}(\.\d{1,9})?(e-?\d{1,2})?", budget):
            raise UsageError(f"{text}: {budget!r} is no number of nats", do="E.g. auto, auto:1e-3.")
        value = float(budget) if colon else 0.0
        if colon and not value > 0:
            raise UsageError(f"{text}: a budget of {budget} nats", do="More than 0, e.g. auto:1e-3.")
        if slash and Form.parse(form).framewise:
            raise UsageError(
                f"{text}: means over label positions are not rows of the teacher to compare with",
                do="Name their encoding, e.g. dense/mean-u, or another form.",
            )
        return cls(value, str(Form.parse(form)) if slash else "")


PLANNED = ("ctc", "rnnt", "seq2seq", "hidden")  # kinds of streams that encodings are measured on


@dataclass(frozen=True)
class PlanOptions:
    """How to plan.

    Attributes:
        streams: what is wished for each.
        storages: to try; the first is taken unless another saves a good deal.
        sample: utterances to run.
        temperatures: that rows are compared at.
        max_kl: nats that a row may lose on average at each of them, where a stream's wish says nothing else;
            of a layer's row, the share of its squared length that it may lose.
        max_gb: of the store; 0 for any size.
        batch_seconds, device, shard_size, cpu_threads, transcripts, skip_gate, chunks: as the dump will have
            them.
    """

    streams: Mapping[str, Wish]
    storages: tuple[str, ...] = ("zarr", "zarr:zstd")
    sample: int = 50
    temperatures: tuple[float, ...] = TEMPERATURES
    max_kl: float = BUDGET
    max_gb: float = 0.0
    batch_seconds: float = 120.0
    device: str = "cpu"
    shard_size: str = DEFAULT_SHARD_SIZE
    cpu_threads: int = 1
    transcripts: str = "ctc"
    skip_gate: str = ""
    chunks: Chunks | None = None

    def __post_init__(self) -> None:
        require_device(self.device)
        ShardSize.parse(self.shard_size)
        for t in self.temperatures:
            if not 1 <= t <= 16:
                raise UsageError(f"a temperature of {t:g}", do="From 1 to 16.")
        if other := [name for name in self.streams if kind_of(name).name not in PLANNED]:
            raise UsageError(
                f"no plan for {', '.join(other)}",
                do=f"Planned are {', '.join(PLANNED)}: say what to do with the others.",
            )
        for name, wish in self.streams.items():
            if wish.form and name != "rnnt":
                raise UsageError(
                    f"{name}=auto/{wish.form}: only an rnnt stream has lattice nodes to choose from"
                )
        if not self.streams or not self.temperatures or not self.max_kl > 0 or self.sample < 1:
            raise UsageError("nothing to plan", do="Streams, temperatures, utterances and a budget above 0.")

    def asked(self) -> dict[str, Asked]:
        """What is good enough, by stream. Whoever names a lattice form knows what it leaves out."""
        return {
            name: Asked(wish.budget or self.max_kl, **({"aligned": 0.0} if wish.form else {}))
            for name, wish in self.streams.items()
        }


@dataclass(frozen=True)
class Plan:
    """What was measured, and what to take.

    Attributes:
        teacher: its name.
        extent: of the manifest, and the sample.
        heard: utterances, seconds and frames of the sample that the teacher ran on.
        failed: why the others of it could not be used.
        speeds: seconds of audio in one, of loading (``load``), the encoder and an attention decoder
            (``teacher``) and the joiner (``joiner``), each by itself.
        measured: every encoding tried, with every storage.
        refused: by stream, encoding and reason.
        choice: what to take.
        asked: what is good enough, by stream.
        findings: of the self-check.
    """

    teacher: str
    extent: Extent
    heard: tuple[int, float, int]
    failed: tuple[str, ...]
    speeds: Mapping[str, float]
    measured: tuple[Measured, ...]
    refused: tuple[tuple[str, str, str], ...]
    choice: Choice
    asked: Mapping[str, Asked]
    findings: tuple[str, ...] = ()

    @property
    def mean_seconds(self) -> float:
        """Of an utterance of the sample."""
        return self.heard[1] / self.heard[0]

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``schema`` grows when a key changes its meaning."""
        utterances, seconds, frames = self.heard
        hours = self.extent.hours(self.mean_seconds)
        return {
            "schema": 1,
            "teacher": self.teacher,
            "manifest": {
                "utterances": self.extent.utterances,
                "hours": hours,
                "hours_from": self.extent.hours_from(self.mean_seconds),
                "frames": round(frames / seconds * hours * 3600),
            },
            "sample": {
                "utterances": utterances,
                "seconds": seconds,
                "frames": frames,
                "chosen": "the same distance apart in the manifest",
                "failed": list(self.failed),
            },
            "speed": dict(self.speeds),
            "streams": {
                s: {
                    "max_kl": self.asked[s].budget,
                    "candidates": [
                        {**m.to_json(), "good_enough": m.keeps(self.asked[s])}
                        for m in self.measured
                        if m.stream == s
                    ],
                    "refused": [{"encoding": e, "reason": r} for of, e, r in self.refused if of == s],
                    "recommended": chosen.encoding,
                    "why": self.choice.why[s],
                }
                for s, chosen in self.choice.streams.items()
            },
            "storage": self.choice.storage,
            "gigabytes": self.choice.bytes / 1e9,
        }


def contenders(stream: str, budget: float, temperatures: Sequence[float], form: str = "") -> list[str]:
    """Encodings of a stream to try, as a user writes them: ``topk:8``, ``nucleus:0.001/path``, ...

    Args:
        stream: ``ctc``, ``rnnt``, ``seq2seq``, or a layer: ``hidden``, ``hidden_NAME``.
        budget: nats that a row may lose.
        temperatures: at which it shall not lose more.
        form: the only lattice form to try; empty for those that make sense.
    """
    if not kind_of(stream).classes:
        return ["vectors", "vectors:int8"]
    near, hottest = _between(budget, NUCLEUS), min(max(temperatures), 16.0)
    every = ["dense", "dense:int8", *(f"topk:{k}" for k in TOP), f"nucleus:{near}"]
    if hottest > 1:
        every.append(f"nucleus:{near}@{hottest:g}")
    every += _of_packages()
    if stream != "rnnt":
        return [*every, "factored", "factored:int8", f"factored:{_between(budget, FACTORED)}"]
    every.append("collapsed")
    if form:
        return [*(f"{e}/{form}" for e in every), *(["factored"] if form == "full" else [])]
    some = ("dense:int8", f"topk:{TOP[0]}", f"nucleus:{near}", "collapsed")
    return [*every, "factored", *(f"{e}/{f}" for f in FORMS for e in some)]


def _of_packages() -> list[str]:
    """Return the encodings that other packages ask to be tried: ``PLANNED`` of their module, if it has one."""
    modules = (registry.load("encodings", name) for name in registry.names("encodings"))
    return [text for module in modules for text in getattr(module, "PLANNED", ())]


def _between(budget: float, limits: tuple[float, float]) -> str:
    return f"{min(max(budget, limits[0]), limits[1]):g}"


@dataclass(frozen=True)
class Extent:
    """A manifest, read once.

    Attributes:
        utterances: of the manifest.
        seconds: of audio that the manifest states.
        unstated: utterances whose length it does not state.
        sample: utterances, the same distance apart in the manifest.
        fitted: ids of those that a dump makes what it stores once from.
        others: those of them that are not in the sample.
    """

    utterances: int
    seconds: float
    unstated: int
    sample: tuple[Utterance, ...]
    fitted: frozenset[str]
    others: tuple[Utterance, ...]

    def hours(self, mean: float) -> float:
        """Of the whole manifest, utterances without a stated length lasting ``mean`` seconds each."""
        return (self.seconds + self.unstated * mean) / 3600

    def hours_from(self, mean: float) -> str:
        """Where these hours come from."""
        if not self.unstated:
            return "durations of the manifest"
        which = "no durations in" if self.unstated == self.utterances else f"{self.unstated} missing from"
        return f"{which} the manifest: {mean:.2f} s each, the sample's mean"


def extent(manifest: Manifest, sample: int) -> Extent:
    """Read a manifest and take ``sample`` utterances of it, evenly spread; raises ``ManifestError``."""
    total = manifest.utterances
    taken, fit = [], []
    seconds, unstated = 0.0, 0
    for number, utt in enumerate(manifest):
        stated = stated_seconds(utt)
        seconds, unstated = seconds + (stated or 0.0), unstated + (stated is None)
        if (number + 1) * sample // total > number * sample // total:
            taken.append(utt)
        if fitted(number, total):
            fit.append(utt)
    if not taken:
        raise ManifestError("there is no utterance to plan with", where=str(manifest.path))
    ids = {u.id for u in taken}
    others = tuple(u for u in fit if u.id not in ids)
    return Extent(total, seconds, unstated, tuple(taken), frozenset(u.id for u in fit), others)
