"""Options and result of a plan: sizes and losses of every encoding tried, and the choice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ... import registry
from ...corpus.audio import stated_seconds
from ...corpus.manifest import Manifest, Utterance
from ...encodings.base import LOSS_TEMPERATURES
from ...errors import ManifestError, UsageError
from ...runner.chunks import Chunks
from ...runner.stored_heads import fitted
from ...schema.kinds import kind_of
from ...schema.lattice import Form
from ...schema.spec import TeacherSpec
from ...storage.shard_size import DEFAULT_SHARD_SIZE, ShardSize
from .choose import Choice, Criterion, Measurement

BUDGET = 1e-3  # default of the mean nats that a row may lose
NUCLEUS_BUDGETS, FACTORED_BUDGETS = (1e-5, 10.0), (1e-6, 1.0)  # that these encodings accept
TOP = (8, 32)
FORMS = ("banded:5", "path")  # tried beside the whole lattice
PLANNED = ("ctc", "rnnt", "seq2seq", "hidden")  # kinds of streams that encodings are measured on


@dataclass(frozen=True)
class AutoEncoding:
    """An encoding that a plan is to choose: ``auto``, ``auto:KL``, each with ``/FORM``.

    Attributes:
        budget: mean nats that a row may lose at any temperature; 0 for the plan's ``max_kl``.
        form: lattice form; empty for any.
    """

    budget: float = 0.0
    form: str = ""

    @classmethod
    def parse(cls, text: str) -> AutoEncoding | None:
        """Parse ``auto…``; return None for the name of an encoding. Raises ``UsageError``."""
        how, slash, form = text.partition("/")
        name, colon, budget = how.partition(":")
        if name != "auto":
            return None
        if colon and not re.fullmatch(r"\d{1,3}(\.\d{1,9})?(e-?\d{1,2})?", budget):
            raise UsageError(
                f"{text}: {budget!r} is not a number of nats", do="Write auto or auto:1e-3, for example."
            )
        value = float(budget) if colon else 0.0
        if colon and not value > 0:
            raise UsageError(f"{text}: a budget of {budget} nats", do="Give more than 0, e.g. auto:1e-3.")
        if slash and Form.parse(form).framewise:
            raise UsageError(
                f"{text}: a mean over label positions has no row of the teacher to be compared with",
                do="Name its encoding, e.g. dense/mean-u, or another form.",
            )
        return cls(value, str(Form.parse(form)) if slash else "")


@dataclass(frozen=True)
class PlanOptions:
    """Options of :func:`logitstore.plan_encodings`.

    Attributes:
        streams: streams to plan, each with its budget and lattice form; empty: all that the teacher has.
        layers: layers to plan as ``hidden`` streams, as in ``DumpOptions``.
        storages: storage backends to try; the first is taken unless another saves a tenth.
        sample: number of utterances to run.
        temperatures: temperatures, 1 to 16, at which rows are compared.
        max_kl: mean nats that a row may lose at each temperature, where a stream names no budget of its own;
            of a layer's row, the share of its squared length that may be lost.
        max_gb: largest size of the store in gigabytes; 0 for any.
        batch_seconds, device, shard_size, cpu_threads, transcripts, skip_checks, chunks: as in ``DumpOptions``.
    """

    streams: Mapping[str, AutoEncoding] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    storages: tuple[str, ...] = ("zarr", "zarr:blosc")
    sample: int = 50
    temperatures: tuple[float, ...] = LOSS_TEMPERATURES
    max_kl: float = BUDGET
    max_gb: float = 0.0
    batch_seconds: float = 120.0
    device: str = "cpu"
    shard_size: str = DEFAULT_SHARD_SIZE
    cpu_threads: int = 1
    transcripts: str = "ctc"
    skip_checks: str = ""
    chunks: Chunks | None = None

    def __post_init__(self) -> None:
        ShardSize.parse(self.shard_size)
        for t in self.temperatures:
            if not 1 <= t <= 16:
                raise UsageError(f"a temperature of {t:g}", do="Give temperatures from 1 to 16.")
        if other := [name for name in self.streams if kind_of(name).name not in PLANNED]:
            raise UsageError(
                f"no encodings are planned for {', '.join(other)}",
                do=f"Plan {', '.join(PLANNED)} streams, and name the encoding of the others.",
            )
        for name, auto in self.streams.items():
            if auto.form and name != "rnnt":
                raise UsageError(
                    f"{name}=auto/{auto.form}: only an rnnt stream has lattice nodes to choose from"
                )
        if not self.temperatures or not self.max_kl > 0 or self.sample < 1:
            raise UsageError(
                "there is nothing to plan", do="Give streams, temperatures, a sample and a budget above 0."
            )

    def of_teacher(self, teacher: TeacherSpec) -> PlanOptions:
        """Return the same options with streams named: those given and every layer, else all of the teacher.

        Args:
            teacher: description of the teacher, further layers included.
        """
        heads = [h.stream for h in teacher.heads if kind_of(h.stream).name in PLANNED]
        layers = [h for h in heads if not kind_of(h).classes]
        every = {name: AutoEncoding() for name in (layers if self.streams else heads)}
        return replace(self, streams={**every, **self.streams})

    def criteria(self) -> dict[str, Criterion]:
        """Return by stream the loss that is accepted; a lattice form that is named is accepted as it is."""
        return {
            name: Criterion(auto.budget or self.max_kl, **({"aligned": 0.0} if auto.form else {}))
            for name, auto in self.streams.items()
        }


@dataclass(frozen=True)
class Plan:
    """Result of a plan.

    Attributes:
        teacher: name of the teacher.
        extent: size of the manifest, and the sample.
        sample: utterances, seconds and frames of the sample that the teacher ran on.
        failed: messages of the sample's utterances that could not be used.
        speeds: seconds of audio per second, of loading (``load``), encoder and attention decoder
            (``teacher``) and joiner (``joiner``), each by itself.
        measured: every encoding tried, with every storage backend, smallest first.
        refused: stream, encoding and reason of encodings that could not be tried.
        choice: the encodings to take.
        criteria: loss that is accepted, by stream.
        findings: findings of the self-check.
    """

    teacher: str
    extent: Extent
    sample: tuple[int, float, int]
    failed: tuple[str, ...]
    speeds: Mapping[str, float]
    measured: tuple[Measurement, ...]
    refused: tuple[tuple[str, str, str], ...]
    choice: Choice
    criteria: Mapping[str, Criterion]
    findings: tuple[str, ...] = ()

    @property
    def mean_seconds(self) -> float:
        """Mean seconds of an utterance of the sample."""
        return self.sample[1] / self.sample[0]

    def to_json(self) -> dict[str, Any]:
        """Return plain data; ``schema`` grows when a key changes its meaning."""
        utterances, seconds, frames = self.sample
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
                    "max_kl": self.criteria[s].budget,
                    "candidates": [
                        {**m.to_json(), "good_enough": m.meets(self.criteria[s])}
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
    """Return the encodings of a stream to try, as a user writes them: ``topk:8``, ``nucleus:0.001/path``, ...

    Args:
        stream: ``ctc``, ``rnnt``, ``seq2seq``, or a layer: ``hidden``, ``hidden_NAME``.
        budget: mean nats that a row may lose.
        temperatures: temperatures at which the budget holds.
        form: the only lattice form to try; empty for the useful ones.
    """
    if not kind_of(stream).classes:
        return ["vectors", "vectors:int8"]
    near, hottest = _between(budget, NUCLEUS_BUDGETS), min(max(temperatures), 16.0)
    every = ["dense", "dense:int8", *(f"topk:{k}" for k in TOP), f"nucleus:{near}"]
    if hottest > 1:
        every.append(f"nucleus:{near}@{hottest:g}")
    every += _of_packages()
    coded = f"factored:{_between(budget, FACTORED_BUDGETS)}"
    if stream != "rnnt":
        return [*every, "factored", "factored:int8", coded]
    every.append("collapsed")
    if form:
        return [*(f"{e}/{form}" for e in every), *(["factored", coded] if form == "full" else [])]
    some = ("dense:int8", f"topk:{TOP[0]}", f"nucleus:{near}", "collapsed")
    return [*every, "factored", coded, *(f"{e}/{f}" for f in FORMS for e in some)]


def _of_packages() -> list[str]:
    """Return the encodings that other packages ask to be tried: ``PLANNED`` of their module, if it has one."""
    modules = (registry.load("encodings", name) for name in registry.names("encodings"))
    return [text for module in modules for text in getattr(module, "PLANNED", ())]


def _between(budget: float, limits: tuple[float, float]) -> str:
    return f"{min(max(budget, limits[0]), limits[1]):g}"


@dataclass(frozen=True)
class Extent:
    """Size of a manifest, and a sample of it.

    Attributes:
        utterances: number of utterances.
        seconds: seconds of audio, as far as the manifest states durations.
        unstated: number of utterances without a stated duration.
        sample: utterances at equal distances in the manifest.
        fitted: ids of the utterances on which a dump fits the arrays that are stored once.
        others: utterances of ``fitted`` that are not in the sample.
    """

    utterances: int
    seconds: float
    unstated: int
    sample: tuple[Utterance, ...]
    fitted: frozenset[str]
    others: tuple[Utterance, ...]

    def hours(self, mean: float) -> float:
        """Return the manifest's hours, with ``mean`` seconds for each utterance without a stated duration."""
        return (self.seconds + self.unstated * mean) / 3600

    def hours_from(self, mean: float) -> str:
        """Return the source of these hours, for a report."""
        if not self.unstated:
            return "durations of the manifest"
        which = "no durations in" if self.unstated == self.utterances else f"{self.unstated} missing from"
        return f"{which} the manifest: {mean:.2f} s each, the sample's mean"


def extent(manifest: Manifest, sample: int) -> Extent:
    """Read a manifest once and take ``sample`` utterances, evenly spread; raises ``ManifestError``."""
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
