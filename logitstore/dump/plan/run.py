"""Runs a plan: the teacher once over a sample, what it said through every encoding."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...corpus.manifest import Manifest, Utterance
from ...errors import LengthError, LogitStoreError, TeacherError, UsageError
from ...runner.checks import SkippedChecks, self_check
from ...runner.chunks import driver_of
from ...runner.driver import TeacherDriver, TeacherOutput, cpu_threads
from ...runner.loader import LoadedUtterance, by_length, load
from ...runner.stored_heads import (
    activation_of,
    factored,
    inputs_of,
    require_factors,
    require_lattice_factors,
    thinned,
    with_heads,
)
from ...runner.transcribe import TeacherTranscriber
from ...schema.spec import StoreSpec, StreamSpec, TeacherSpec
from ...storage.constants import Constants
from ...storage.entries import ShardSize
from ...store.lattice_nodes import occupancy, scores
from ...store.layout import make_spec
from ...store.row_encoder import require_finite
from ...teachers.protocol import Teacher, weights_sha256
from ...tokens.table import TokenTable
from .choose import Measured, choose
from .options import Extent, Plan, PlanOptions, contenders, extent
from .trial import Lattice, Nothing, Shelf, Trial, settle

INDEX_ROW = 17  # bytes of an utterance in index.bin: 16, and its share of the fan-out


def plan(
    teacher: Teacher,
    manifest: Manifest,
    folder: Path,
    options: PlanOptions,
    *,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Plan:
    """Measure what each encoding would cost and keep.

    Args:
        teacher: keeps the protocol of ``logitstore.teachers.protocol``.
        manifest: what would be dumped.
        folder: where the stores on trial are made; all of it is removed again.
        options: how.
        report: told how many utterances of how many the teacher has run on.

    Raises:
        LogitStoreError: any of the tree: a teacher that a dump's own self-check refuses, a manifest of which
            nothing can be loaded.
    """
    about = extent(manifest, options.sample)
    with (
        cpu_threads(options.cpu_threads),
        tempfile.TemporaryDirectory(prefix="plan-", dir=folder) as here,
        ExitStack() as open_shelves,
    ):
        return _Run(teacher, manifest, about, options, Path(here), open_shelves).run(report)


@dataclass
class _Heard:
    """What the pass over the sample leaves: sums, and the rows of heads that constants are made from."""

    utterances: int = 0
    seconds: float = 0.0
    frames: int = 0
    loading: float = 0.0
    forward: float = 0.0
    joining: float = 0.0
    failed: list[str] = field(default_factory=list)
    kept: list[TeacherOutput] = field(default_factory=list)
    rows: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))


class _Run:
    """One run of :func:`plan`."""

    def __init__(
        self,
        teacher: Teacher,
        manifest: Manifest,
        about: Extent,
        options: PlanOptions,
        folder: Path,
        shelves: ExitStack,
    ) -> None:
        self.teacher, self.manifest, self.about, self.options = teacher, manifest, about, options
        self.folder, self.shelves = folder, shelves
        self.table: TokenTable = teacher.tokens()
        self.described: TeacherSpec = teacher.describe()
        self.refused: list[tuple[str, str, str]] = []
        self.trials: list[Trial] = []
        self.coded: list[tuple[str, str]] = []  # stream and encoding that need the whole sample first
        self.measured: list[Measured] = []
        self.activation, self.findings = "", tuple[str, ...]()
        self.heard = _Heard()
        self.nothing: Nothing = {}
        self.whys: dict[str, str] = {}  # why a stream's head does not factor
        self.widths: dict[str, int] = {}  # D of each layer
        self.driver = self._tapped()

    def run(self, report: Callable[[int, int], None]) -> Plan:
        sampled = {u.id for u in self.about.sample}
        others = self.about.others if set(self.driver.heads) - {"rnnt"} else ()
        done, total = 0, len(sampled) + len(others)
        for batch in by_length([*self.about.sample, *others], self.options.batch_seconds, self._fail):
            outputs = self._run_teacher(batch, sampled)
            if not self.trials and not self.measured:
                outputs = self._begin(outputs)
            for output in outputs:
                self._take(output, output.loaded.utt.id in sampled)
            done += len(batch)
            report(done, total)
        if not self.heard.utterances:
            raise TeacherError(
                "not one utterance of the sample can be used",
                where=self.described.name,
                why="; ".join(self.heard.failed[:3]),
                do="Look at the manifest.",
            )
        for trial in self.trials:
            self._weigh(trial)
        self._code()
        measured = tuple(sorted(self.measured, key=lambda m: m.bytes))
        asked = self.options.asked()
        for stream in asked:
            if not any(m.stream == stream for m in measured):
                raise TeacherError(
                    f"no encoding takes its {stream} stream",
                    where=self.described.name,
                    why=next((r for s, _, r in self.refused if s == stream), ""),
                )
        choice = choose(self.measured, asked, self.options.max_gb * 1e9)  # storages in the order given
        h = self.heard
        speeds = {"load": h.loading, "teacher": h.forward, "joiner": h.joining}
        return Plan(
            self.described.name,
            self.about,
            (h.utterances, h.seconds, h.frames),
            tuple(h.failed),
            {n: round(h.seconds / s, 1) for n, s in speeds.items() if s},
            measured,
            tuple(self.refused),
            choice,
            asked,
            self.findings,
        )

    def _tapped(self) -> TeacherDriver:
        """The teacher with the inputs of every head tapped that factors."""
        driver = TeacherDriver(self.teacher, self.table, list(self.options.streams), self.options.device)
        was_training, factors = driver.was_training, list[str]()
        for stream in (s for s in self.options.streams if driver.kinds[s].classes):
            try:
                driver = self._driver([*factors, stream])
                factors.append(stream)
            except TeacherError as e:
                self.whys[stream] = e.what
        driver = self._driver(factors)
        driver.was_training = was_training
        return driver

    def _driver(self, factors: Sequence[str]) -> TeacherDriver:
        streams = list(self.options.streams)
        given = self.teacher, self.table, streams, self.options.device
        return driver_of(self.options.chunks, self.options.batch_seconds, *given, factored=factors)

    def _fail(self, utt: Utterance, error: LogitStoreError) -> None:
        self.heard.failed.append(str(error).splitlines()[0])

    def _run_teacher(self, batch: list[Utterance], sampled: set[str]) -> list[TeacherOutput]:
        """Load a batch and run the teacher on it; what fails is left out."""
        begin, loaded = time.perf_counter(), list[LoadedUtterance]()
        needs_labels = any(kind.labels for kind in self.driver.kinds.values())
        for utt in batch:
            try:
                loaded.append(load(utt, self.teacher, self.table, needs_labels))
            except LogitStoreError as e:
                self._fail(utt, e)
        if not loaded:
            return []
        share = sum(x.seconds for x in loaded if x.utt.id in sampled) / sum(x.seconds for x in loaded)
        self.heard.loading += share * (time.perf_counter() - begin)
        begin = time.perf_counter()
        outputs = self.driver.run(loaded)
        settle(self.driver.device)
        self.heard.forward += share * (time.perf_counter() - begin)
        return outputs

    def _begin(self, outputs: list[TeacherOutput]) -> list[TeacherOutput]:
        """Check the teacher on its first batch, find out which heads factor, and set up the trials."""
        if not outputs:
            return outputs
        for stream in list(self.driver.heads):
            try:
                if stream == "rnnt":
                    self.activation = activation_of(self.driver, outputs[0])
                    require_lattice_factors(self.driver, outputs)
                else:
                    require_factors(self.driver, outputs, stream)
            except TeacherError as e:
                self.whys[stream] = e.what
        if lost := set(self.driver.heads) & set(self.whys):
            was_training = self.driver.was_training
            self.driver = self._driver([s for s in self.driver.heads if s not in lost])
            self.driver.was_training = was_training
            outputs = self.driver.run([s.loaded for s in outputs])
        layers = {n: rows for n, rows in outputs[0].rows.items() if not self.driver.kinds[n].classes}
        self.widths = {name: int(rows.shape[1]) for name, rows in layers.items()}
        self.findings = self_check(self.driver, outputs, SkippedChecks(self.options.skip_gate)).findings
        self.described = replace(self.described, weights=weights_sha256(self.teacher.model))
        for stream, asked in self.options.asked().items():
            wish = self.options.streams[stream]
            for encoding in contenders(stream, asked.budget, self.options.temperatures, wish.form):
                self._set_up(stream, encoding)
        return outputs

    def _set_up(self, stream: str, encoding: str) -> None:
        if encoding.startswith("factored") and stream in self.whys:
            self.refused.append((stream, encoding, self.whys[stream]))
            return
        try:
            spec = self._spec(stream, encoding, self.options.storages[0])
            heads = factored(spec)
            if any(e.needs_sample for e in heads.values()):
                self.coded.append((stream, encoding))
                return
            made = {n: e.prepare(self.driver.heads[n], None) for n, e in heads.items()}
            self.trials.append(self._trial(stream, encoding, made))
        except UsageError as e:
            self.refused.append((stream, encoding, e.what))

    def _spec(self, stream: str, encoding: str, storage: str) -> StoreSpec:
        width = f"/{self.widths[stream]}" if stream in self.widths else ""
        streams, manifest = {stream: encoding + width}, self.manifest.to_json()
        return make_spec(self.described, self.table, streams, storage=storage, manifest=manifest)

    def _trial(self, stream: str, encoding: str, made: Constants) -> Trial:
        shelves = {}
        for storage in self.options.storages:
            spec = with_heads(self._spec(stream, encoding, storage), self.driver, made, self.activation)
            name = f"{stream}-{encoding}-{storage}".replace("/", "-")
            shelves[storage] = Shelf(self.folder / name, spec, self.table, made, self.nothing)
            self.shelves.callback(shelves[storage].close)
        return Trial(encoding, stream, shelves, self.options.temperatures)

    def _take(self, output: TeacherOutput, sampled: bool) -> None:
        """One utterance through every trial; one that nothing can be done with is left out."""
        utt = output.loaded.utt
        lattice = occupied = None
        try:
            if not sampled:
                return self._fit(output)
            if output.T < 1:
                raise LengthError("no valid frame: the recording is too short", where=utt.id)
            begin = time.perf_counter()
            output, _ = TeacherTranscriber(self.driver, keep=self.options.transcripts).transcribe(
                output, judged=True
            )
            output = self._decoded(output)
            settle(self.driver.device)
            self.heard.forward += time.perf_counter() - begin
            self._fit(output)
            for stream, rows in output.rows.items():
                if not len(rows):
                    raise LengthError(f"the {stream} stream is empty", where=utt.id)
                require_finite(rows, stream, utt.id)
            if "rnnt" in self.options.streams:
                lattice = Lattice(self.driver, output)
                occupied = self._occupied(output, lattice)
        except LogitStoreError as e:
            self._fail(utt, e)
            return
        for trial in list(self.trials):
            of_lattice = trial.stream.kind == "rnnt"
            self._try(trial, output, lattice if of_lattice else None, occupied if of_lattice else None)
        if self.coded:
            inputs = {stream: output.inputs[stream].cpu() for stream, _ in self.coded}
            self.heard.kept.append(replace(output, batch_output=None, rows={}, inputs=inputs))
        self.heard.utterances += 1
        self.heard.seconds += output.loaded.seconds
        self.heard.frames += output.T
        self.heard.joining += lattice.once if lattice is not None else 0.0

    def _decoded(self, output: TeacherOutput) -> TeacherOutput:
        """With the rows of an attention decoder, and what went into its head: driven once for all trials."""
        if "seq2seq" not in self.options.streams:
            return output
        rows, inputs = self.driver.decoded(output)
        below = {} if inputs is None else {"seq2seq": inputs}
        return replace(output, rows={**output.rows, "seq2seq": rows}, inputs={**output.inputs, **below})

    def _fit(self, output: TeacherOutput) -> None:
        """Keep what goes into heads where constants are made from it, as a dump does."""
        if output.loaded.utt.id in self.about.fitted and output.T:
            for stream in dict.fromkeys(stream for stream, _ in self.coded):
                self.heard.rows[stream].append(inputs_of(self.driver, output, stream)[0].float())

    def _occupied(self, output: TeacherOutput, lattice: Lattice) -> NDArray[np.float64]:
        stream = StreamSpec("rnnt", "rnnt", len(self.table), self.table.blank, "dense", "full")
        labels = output.labels.get("rnnt", [])
        return occupancy(*scores(lattice(), stream, labels, output.loaded.utt.id))

    def _try(
        self,
        trial: Trial,
        output: TeacherOutput,
        lattice: Lattice | None = None,
        occupied: NDArray[np.float64] | None = None,
    ) -> None:
        """One utterance through one trial, which ends where its encoding refuses."""
        try:
            trial.take(self.driver, output, lattice, occupied)
        except LogitStoreError as e:
            self.refused.append((trial.stream.name, trial.encoding, f"{output.loaded.utt.id}: {e.what}"))
            self.trials.remove(trial)

    def _code(self) -> None:
        """Encodings whose constants are made from the sample: its rows are there by now."""
        for stream, encoding in self.coded if self.heard.rows else ():
            head, sample = self.driver.heads[stream], thinned(self.heard.rows[stream])
            asked = factored(self._spec(stream, encoding, self.options.storages[0]))[stream]
            trial = self._trial(stream, encoding, {stream: asked.prepare(head, sample)})
            self.trials.append(trial)
            weight, bias = (sample.new_tensor(x) for x in (head.weight, head.bias))
            for output in self.heard.kept:
                hidden = output.inputs[stream].float().to(sample.device)
                rows = {stream: hidden @ weight.T + bias}
                self._try(trial, replace(output, inputs={stream: hidden}, rows=rows))
            if trial in self.trials:
                self._weigh(trial)

    def _weigh(self, trial: Trial) -> None:
        """From what the sample weighs and took to what the manifest will."""
        h = self.heard
        hours = self.about.hours(h.seconds / h.utterances)
        frames = h.frames / h.seconds * hours * 3600
        size = ShardSize.parse(self.options.shard_size)
        shards = -(-self.about.utterances // size.utterances) if size.utterances else 0
        shards = shards or max(1, round(hours * 3600 / size.seconds))
        kl = {}
        for t, found in trial.lost.items():
            nats = np.concatenate(found)
            kl[t] = (float(nats.mean()), float(np.quantile(nats, 0.99)))
        passes = trial.passes / h.utterances
        for storage, shelf in trial.shelves.items():
            written = shelf.weight()
            rows = written.rows / h.frames * frames + INDEX_ROW * self.about.utterances
            growing = rows + shards * shelf.fixed
            alone = trial.seconds + shelf.seconds
            self.measured.append(
                Measured(
                    stream=trial.stream.name,
                    encoding=trial.encoding,
                    storage=storage,
                    bytes=round(growing + written.once),
                    once=written.once,
                    common=round(trial.common / h.frames * frames),
                    bytes_per_frame=growing / frames,
                    kl=kl,
                    held=trial.held,
                    encoding_speed=h.seconds / alone,
                    speed=h.seconds / (alone + h.loading + h.forward + passes * h.joining),
                )
            )
