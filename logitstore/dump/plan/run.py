"""Run of a plan: the teacher once over a sample, its output through every encoding."""

from __future__ import annotations

import os
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
from ...encodings import SidesSample
from ...errors import LengthError, LogitStoreError, TeacherError, UsageError
from ...runner.checks import SkippedChecks, self_check
from ...runner.chunks import make_driver
from ...runner.driver import TeacherDriver, TeacherOutput, cpu_threads
from ...runner.gpu import require_device
from ...runner.loader import LoadedUtterance, by_length, load
from ...runner.stored_heads import (
    activation_of,
    factored,
    inputs_of,
    require_factors,
    require_lattice_factors,
    sides_of,
    thinned,
    with_heads,
)
from ...runner.transcribe import TeacherTranscriber
from ...schema.spec import StoreSpec, StreamSpec
from ...storage.constants import Constants
from ...storage.shard_size import ShardSize
from ...store.lattice_nodes import occupancy, scores
from ...store.layout import make_spec
from ...store.record_encoder import require_finite
from ...teachers.layers import parse_layer, with_layers
from ...teachers.protocol import Teacher, weights_sha256
from .choose import Measurement, choose
from .options import Extent, Plan, PlanOptions, contenders, extent
from .trial import EmptyShards, TimedLattice, Trial, TrialStore, synchronise

INDEX_ROW = 21  # bytes of a record in an index run, without its id


def plan_encodings(
    teacher: Teacher,
    manifest: Manifest,
    options: PlanOptions | None = None,
    *,
    folder: Path | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """Measure the bytes, the loss and the speed of every encoding on a sample, and choose one for each stream.

    Args:
        teacher: object with the protocol of ``logitstore.teachers.protocol``.
        manifest: utterances that are to be dumped.
        options: streams, budget, temperatures and sample; None: every stream of the teacher, by default values.
        folder: existing folder for the temporary stores, best on the file system of the dump; None: the
            system's temporary folder. Everything in it is removed again.
        report: called with the number of utterances done and their total.

    Raises:
        UsageError: the device cannot be used, or an option is wrong.
        TeacherError: the self-check of a dump refuses the teacher, or no encoding takes a stream.
        ManifestError: no utterance of the manifest can be loaded.
    """
    options = options or PlanOptions()
    require_device(options.device)
    teacher = with_layers(teacher, [parse_layer(text, teacher.tokens().blank) for text in options.layers])
    options = options.of_teacher(teacher.describe())
    about = extent(manifest, options.sample)
    with (
        cpu_threads(options.cpu_threads),
        tempfile.TemporaryDirectory(prefix="plan-", dir=folder) as temporary,
        ExitStack() as stores,
    ):
        return _Planner(teacher, manifest, about, options, Path(temporary), stores).run(report)


def nearest_folder(out: Path) -> Path:
    """Return the nearest existing, writable folder above a store: trials run on the store's file system."""
    for folder in (out, *out.absolute().parents):
        if folder.is_dir() and os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.gettempdir())


@dataclass
class _SampleTotals:
    """Totals of the run over the sample, and what encodings with a fitted head need of it.

    Attributes:
        utterances, seconds, frames: of the sample, as far as usable.
        loading, forward, joining: seconds spent on each.
        failed: messages of utterances left out.
        outputs: teacher outputs, kept for encodings that need the whole sample first.
        head_inputs: (T, D) inputs of heads, by stream.
        sides: both sides of lattices.
    """

    utterances: int = 0
    seconds: float = 0.0
    frames: int = 0
    loading: float = 0.0
    forward: float = 0.0
    joining: float = 0.0
    failed: list[str] = field(default_factory=list)
    outputs: list[TeacherOutput] = field(default_factory=list)
    head_inputs: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))
    sides: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


class _Planner:
    """One run of :func:`plan_encodings`."""

    def __init__(
        self,
        teacher: Teacher,
        manifest: Manifest,
        about: Extent,
        options: PlanOptions,
        folder: Path,
        stores: ExitStack,
    ) -> None:
        self.teacher, self.manifest, self.about, self.options = teacher, manifest, about, options
        self.folder, self.stores = folder, stores
        self.table, self.described = teacher.tokens(), teacher.describe()
        self.refused: list[tuple[str, str, str]] = []  # stream, encoding, reason
        self.trials: list[Trial] = []
        self.after_sample: list[
            tuple[str, str]
        ] = []  # stream and encoding that is fitted on the whole sample
        self.measured: list[Measurement] = []
        self.activation, self.findings = "", tuple[str, ...]()
        self.totals = _SampleTotals()
        self.empty_shards: EmptyShards = {}
        self.not_linear: dict[str, str] = {}  # why a stream's head cannot be stored as one linear layer
        self.layer_widths: dict[str, int] = {}
        self.driver = self._driver_with_heads()

    def run(self, report: Callable[[int, int], None]) -> Plan:
        sampled = {u.id for u in self.about.sample}
        others = self.about.others if self.driver.heads else ()
        done, total = 0, len(sampled) + len(others)
        for batch in by_length([*self.about.sample, *others], self.options.batch_seconds, self._fail):
            outputs = self._run_teacher(batch, sampled)
            if outputs and not self.trials and not self.measured:
                outputs = self._begin(outputs)
            for output in outputs:
                self._take(output, output.loaded.utt.id in sampled)
            done += len(batch)
            report(done, total)
        if not self.totals.utterances:
            raise TeacherError(
                "no utterance of the sample can be used",
                where=self.described.name,
                why="; ".join(self.totals.failed[:3]),
                do="Check the manifest and its recordings.",
            )
        for trial in self.trials:
            self._measure(trial)
        self._try_fitted_encodings()
        return self._plan()

    def _plan(self) -> Plan:
        criteria = self.options.criteria()
        for stream in criteria:
            if not any(m.stream == stream for m in self.measured):
                raise TeacherError(
                    f"no encoding takes its {stream} stream",
                    where=self.described.name,
                    why=next((reason for s, _, reason in self.refused if s == stream), ""),
                )
        t = self.totals
        speeds = {"load": t.loading, "teacher": t.forward, "joiner": t.joining}
        return Plan(
            teacher=self.described.name,
            extent=self.about,
            sample=(t.utterances, t.seconds, t.frames),
            failed=tuple(t.failed),
            speeds={n: round(t.seconds / s, 1) for n, s in speeds.items() if s},
            measured=tuple(sorted(self.measured, key=lambda m: m.bytes)),
            refused=tuple(self.refused),
            choice=choose(self.measured, criteria, self.options.max_gb * 1e9),
            criteria=criteria,
            findings=self.findings,
        )

    def _driver_with_heads(self) -> TeacherDriver:
        """Return a driver that also taps the input of every head that is one linear layer."""
        streams = list(self.options.streams)
        plain = TeacherDriver(self.teacher, self.table, streams, self.options.device)
        linear: list[str] = []
        for stream in (s for s in streams if plain.kinds[s].classes):
            try:
                self._driver([*linear, stream])
                linear.append(stream)
            except TeacherError as e:
                self.not_linear[stream] = e.what
        driver = self._driver(linear)
        driver.was_training = plain.was_training
        return driver

    def _driver(self, linear: Sequence[str]) -> TeacherDriver:
        o = self.options
        given = self.teacher, self.table, list(o.streams), o.device
        return make_driver(o.chunks, o.batch_seconds, *given, factored=linear)

    def _fail(self, utt: Utterance, error: LogitStoreError) -> None:
        self.totals.failed.append(str(error).splitlines()[0])

    def _run_teacher(self, batch: list[Utterance], sampled: set[str]) -> list[TeacherOutput]:
        """Load a batch and run the teacher; leave out utterances that fail to load."""
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
        self.totals.loading += share * (time.perf_counter() - begin)
        begin = time.perf_counter()
        outputs = self.driver.run(loaded)
        synchronise(self.driver.device)
        self.totals.forward += share * (time.perf_counter() - begin)
        return outputs

    def _begin(self, outputs: list[TeacherOutput]) -> list[TeacherOutput]:
        """Check the teacher on its first batch, find the heads that are linear, and set up the trials."""
        for stream in list(self.driver.heads):
            try:
                if stream == "rnnt":
                    self.activation = activation_of(self.driver, outputs[0])
                    require_lattice_factors(self.driver, outputs)
                else:
                    require_factors(self.driver, outputs, stream)
            except TeacherError as e:
                self.not_linear[stream] = e.what
        if set(self.driver.heads) & set(self.not_linear):
            was_training = self.driver.was_training
            self.driver = self._driver([s for s in self.driver.heads if s not in self.not_linear])
            self.driver.was_training = was_training
            outputs = self.driver.run([output.loaded for output in outputs])
        self.layer_widths = {
            n: int(rows.shape[1]) for n, rows in outputs[0].rows.items() if not self.driver.kinds[n].classes
        }
        self.findings = self_check(
            self.driver,
            outputs,
            SkippedChecks(self.options.skip_checks),
            batched=self.options.batch_seconds > 0,
        ).findings
        self.described = replace(self.described, weights=weights_sha256(self.teacher.model))
        for stream, criterion in self.options.criteria().items():
            form = self.options.streams[stream].form
            for encoding in contenders(stream, criterion.budget, self.options.temperatures, form):
                self._set_up(stream, encoding)
        return outputs

    def _set_up(self, stream: str, encoding: str) -> None:
        try:
            spec = self._spec(stream, encoding, self.options.storages[0])
            heads = factored(spec)
            if heads and stream in self.not_linear:
                self.refused.append((stream, encoding, self.not_linear[stream]))
            elif any(e.needs_sample for e in heads.values()):
                self.after_sample.append((stream, encoding))
            else:
                made = {n: e.prepare(self.driver.heads[n], None) for n, e in heads.items()}
                self.trials.append(self._trial(stream, encoding, made))
        except UsageError as e:
            self.refused.append((stream, encoding, e.what))

    def _spec(self, stream: str, encoding: str, storage: str) -> StoreSpec:
        width = f"/{self.layer_widths[stream]}" if stream in self.layer_widths else ""
        streams, manifest = {stream: encoding + width}, self.manifest.to_json()
        return make_spec(self.described, self.table, streams, storage=storage, manifest=manifest)

    def _trial(self, stream: str, encoding: str, made: Constants) -> Trial:
        stores = {}
        for storage in self.options.storages:
            spec = with_heads(self._spec(stream, encoding, storage), self.driver, made, self.activation)
            name = f"{stream}-{encoding}-{storage}".replace("/", "-")
            stores[storage] = TrialStore(self.folder / name, spec, self.table, made, self.empty_shards)
            self.stores.callback(stores[storage].close)
        return Trial(encoding, stream, stores, self.options.temperatures)

    def _take(self, output: TeacherOutput, sampled: bool) -> None:
        """Put one utterance through every trial; leave it out where the teacher's output is unusable."""
        utt = output.loaded.utt
        lattice = occupied = None
        try:
            if not sampled:
                return self._keep_head_inputs(output)
            if output.T < 1:
                raise LengthError("no valid frame: the recording is too short", where=utt.id)
            begin = time.perf_counter()
            transcriber = TeacherTranscriber(self.driver, keep=self.options.transcripts)
            output, _ = transcriber.transcribe(output, judged=True)
            output = self._with_decoder_rows(output)
            synchronise(self.driver.device)
            self.totals.forward += time.perf_counter() - begin
            self._keep_head_inputs(output)
            for stream, rows in output.rows.items():
                if not len(rows):
                    raise LengthError(f"the {stream} stream is empty", where=utt.id)
                require_finite(rows, stream, utt.id)
            if "rnnt" in self.options.streams:
                lattice = TimedLattice(self.driver, output)
                plain = StreamSpec("rnnt", "rnnt", len(self.table), self.table.blank, "dense", "full")
                occupied = occupancy(*scores(lattice(), plain, output.labels.get("rnnt", []), utt.id))
        except LogitStoreError as e:
            return self._fail(utt, e)
        for trial in list(self.trials):
            of_lattice = trial.stream.kind == "rnnt"
            self._try(trial, output, lattice if of_lattice else None, occupied if of_lattice else None)
        if self.after_sample:
            inputs = {s: output.inputs[s].cpu() for s, _ in self.after_sample if s != "rnnt"}
            held = output.batch_output if any(s == "rnnt" for s, _ in self.after_sample) else None
            self.totals.outputs.append(replace(output, batch_output=held, rows={}, inputs=inputs))
        self.totals.utterances += 1
        self.totals.seconds += output.loaded.seconds
        self.totals.frames += output.T
        self.totals.joining += lattice.once if lattice is not None else 0.0

    def _with_decoder_rows(self, output: TeacherOutput) -> TeacherOutput:
        """Add the rows of an attention decoder and the inputs of its head: driven once for all trials."""
        if "seq2seq" not in self.options.streams:
            return output
        rows, inputs = self.driver.decoded(output)
        below = {} if inputs is None else {"seq2seq": inputs}
        return replace(output, rows={**output.rows, "seq2seq": rows}, inputs={**output.inputs, **below})

    def _keep_head_inputs(self, output: TeacherOutput) -> None:
        """Keep the inputs of heads that encodings are fitted on, of the utterances that a dump takes for it."""
        if output.loaded.utt.id in self.about.fitted and output.T:
            for stream in dict.fromkeys(stream for stream, _ in self.after_sample):
                if stream == "rnnt":
                    self.totals.sides.append(sides_of(self.driver, output))
                else:
                    inputs, _ = inputs_of(self.driver, output, stream)
                    self.totals.head_inputs[stream].append(inputs.float())

    def _try(
        self,
        trial: Trial,
        output: TeacherOutput,
        lattice: TimedLattice | None = None,
        occupied: NDArray[np.float64] | None = None,
    ) -> None:
        """Run one utterance through a trial; a trial whose encoding refuses ends."""
        try:
            trial.take(self.driver, output, lattice, occupied)
        except LogitStoreError as e:
            self.refused.append((trial.stream.name, trial.encoding, f"{output.loaded.utt.id}: {e.what}"))
            self.trials.remove(trial)

    def _try_fitted_encodings(self) -> None:
        """Try the encodings whose constants are fitted on the head inputs of the sample."""
        for stream, encoding in self.after_sample if self.totals.head_inputs or self.totals.sides else ():
            head = self.driver.heads[stream]
            sample: torch.Tensor | SidesSample = SidesSample(self.totals.sides, self.activation)
            if stream != "rnnt":
                sample = thinned(self.totals.head_inputs[stream])
            fitted = factored(self._spec(stream, encoding, self.options.storages[0]))[stream]
            trial = self._trial(stream, encoding, {stream: fitted.prepare(head, sample)})
            self.trials.append(trial)
            for kept in self.totals.outputs:
                if trial not in self.trials:
                    break
                if isinstance(sample, SidesSample):
                    self._try(trial, kept, TimedLattice(self.driver, kept))
                    continue
                weight, bias = (sample.new_tensor(x) for x in (head.weight, head.bias))
                inputs = kept.inputs[stream].float().to(sample.device)
                rows = {stream: inputs @ weight.T + bias}
                self._try(trial, replace(kept, inputs={stream: inputs}, rows=rows))
            if trial in self.trials:
                self._measure(trial)

    def _measure(self, trial: Trial) -> None:
        """Extrapolate the bytes and speed of a trial from the sample to the manifest."""
        t = self.totals
        hours = self.about.hours(t.seconds / t.utterances)
        frames = t.frames / t.seconds * hours * 3600
        size = ShardSize.of_manifest(self.options.shard_size, self.about.utterances)
        kl = {}
        for temperature, found in trial.lost.items():
            nats = np.concatenate(found)
            kl[temperature] = (float(nats.mean()), float(np.quantile(nats, 0.99)), float(nats.max()))
        drives = trial.passes / t.utterances
        for storage, store in trial.stores.items():
            written = store.weight()
            records = written.rows / t.frames * frames + INDEX_ROW * self.about.utterances
            shards = max(
                -(-self.about.utterances // size.utterances) if size.utterances else 1,
                round(hours * 3600 / size.seconds) if size.seconds else 1,
                round(records / size.bytes) if size.bytes else 1,
            )
            growing = records + shards * store.fixed
            encoding_seconds = trial.seconds + store.seconds
            self.measured.append(
                Measurement(
                    stream=trial.stream.name,
                    encoding=trial.encoding,
                    storage=storage,
                    bytes=round(growing + written.once),
                    once=written.once,
                    common=round(trial.common / t.frames * frames + shards * store.bare)
                    + written.once
                    - trial.own_once,
                    bytes_per_frame=growing / frames,
                    kl=kl,
                    changed=trial.changed,
                    held=trial.held,
                    encoding_speed=t.seconds / encoding_seconds,
                    speed=t.seconds / (encoding_seconds + t.loading + t.forward + drives * t.joining),
                )
            )
