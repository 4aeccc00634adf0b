"""Dump: a manifest through a teacher into a store.

Three things run at once: loader threads read the next recordings, the caller's thread runs the teacher, and a
third thread encodes and writes records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

from ..corpus.audio import seconds_of
from ..corpus.manifest import Manifest, Problem, Utterance
from ..errors import LengthError, LogitStoreError, ManifestError, TooManySkipped
from ..runner.checks import SkippedChecks, TranscriptCheck, compare_again, lines, self_check
from ..runner.chunks import Chunks, make_driver
from ..runner.driver import TeacherDriver, TeacherOutput, cpu_threads
from ..runner.gpu import require_device
from ..runner.loader import LoadedUtterance, ahead, by_length, load
from ..runner.pipe import Pipe
from ..runner.stored_heads import factored, once_per_store
from ..runner.transcribe import TeacherTranscriber
from ..schema.clock import check_audio
from ..schema.kinds import kind_of
from ..schema.spec import StoreSpec
from ..storage.commit import problem_key
from ..storage.entries import Entry
from ..storage.places import open_place
from ..storage.shard_size import ShardSize
from ..store.layout import estimated_bytes_per_second, make_spec
from ..store.writer import StoreWriter
from ..teachers.layers import parse_layer, with_layers
from ..teachers.protocol import Teacher, check_protocol, weights_sha256
from ..tokens.table import TokenTable, require_same
from ..tokens.transcript import Transcript
from .auto import auto_streams, chosen_encodings
from .blocks import Block, blocks
from .options import DumpOptions, DumpProgress
from .plan.options import PlanOptions


def dump_logits(
    teacher: Teacher,
    manifest: Manifest,
    out: Any,
    options: DumpOptions | None = None,
    *,
    report: Callable[[DumpProgress], None] = lambda progress: None,
) -> DumpProgress:
    """Run a teacher over a manifest and store its logits; running it again dumps only what is missing.

    Args:
        teacher: object with the protocol of ``logitstore.teachers.protocol``; ``load_teacher`` gives one.
        manifest: utterances, from :func:`logitstore.read_manifest`.
        out: folder or URL of the store.
        options: streams, encodings and limits; None: the CTC logits, dense.
        report: called with the progress after every batch.

    Returns:
        The progress at the end.

    Raises:
        UsageError: an option is wrong, or the device cannot be used.
        ManifestError, AudioError, TokenError: an utterance is unusable, with ``on_error="raise"``.
        TeacherError and its subclasses: a check of the teacher failed.
        IdentityError: the store was made with another teacher, token table or encoding.
        StoreBusy: another live process dumps the same part.
        TooManySkipped: more utterances than ``max_skipped`` were left out.
    """
    options = options or DumpOptions()
    if manifest.problems and options.on_error == "raise":
        first, count = manifest.problems[0].what, len(manifest.problems)
        raise ManifestError(
            first if count == 1 else f"{first}\n  ({count} such lines in all)",
            do='Correct the manifest, or leave out and list such lines: on_error="skip" (--on-error skip).',
        )
    require_device(options.device)
    teacher = check_protocol(teacher, type(teacher).__name__)
    table = teacher.tokens()
    teacher = with_layers(teacher, [parse_layer(text, table.blank) for text in options.layers])
    if options.tokens is not None:
        require_same(options.tokens, table, where="--tokens", which=("the given table", "the teacher"))
    streams = options.encodings(teacher.describe())
    place, writer_name = open_place(out), f"job-{options.part.index}-of-{options.part.count}"
    with ExitStack() as planning, cpu_threads(options.cpu_threads):
        planned: list[str] = []
        if auto := auto_streams(streams):
            plan = _plan_options(options, auto, options.chunks(teacher.describe()))
            chosen = chosen_encodings(
                place, teacher, manifest, streams, plan, writer=writer_name, report=planned.append
            )
            streams = planning.enter_context(chosen)
            report(DumpProgress(total=manifest.utterances, planned=tuple(planned)))
        spec = _store_spec(teacher, table, manifest, streams, options)
        given = teacher, table, list(streams), options.device
        driver = make_driver(
            Chunks.stored(spec.teacher), options.batch_seconds, *given, factored=factored(spec)
        )
        spec, constants = once_per_store(place, spec, driver, manifest, options.batch_seconds)
        writer = StoreWriter(place, spec, writer=writer_name)
        with writer.begin(table, options.allow_different, constants=constants):
            planning.close()  # the store declares the chosen encodings: other jobs may go on
            return _Dump(driver, manifest, options, writer, report, planned).run()


def _plan_options(options: DumpOptions, auto: Any, chunks: Chunks | None) -> PlanOptions:
    return PlanOptions(
        auto,
        storages=(options.storage,),
        batch_seconds=options.batch_seconds,
        device=options.device,
        shard_size=options.shard_size,
        cpu_threads=options.cpu_threads,
        transcripts=options.transcripts,
        skip_checks=options.skip_checks,
        chunks=chunks,
    )


def _store_spec(
    teacher: Teacher, table: TokenTable, manifest: Manifest, streams: dict[str, str], options: DumpOptions
) -> StoreSpec:
    weights = weights_sha256(teacher.model) if teacher.model.state_dict() else ""  # a black box has none
    about = replace(teacher.describe(), weights=weights)
    if (chunks := options.chunks(about)) is not None:
        about = chunks.described_in(about)
    return make_spec(about, table, streams, storage=options.storage, manifest=manifest.to_json())


class _Dump:
    """One run of :func:`dump_logits`."""

    def __init__(
        self,
        driver: TeacherDriver,
        manifest: Manifest,
        options: DumpOptions,
        writer: StoreWriter,
        report: Callable[[DumpProgress], None],
        planned: Sequence[str] = (),
    ) -> None:
        self.manifest, self.options, self.writer, self.report = manifest, options, writer, report
        self.driver = driver
        needs_labels = any(kind_of(name).labels for name in driver.streams)
        self.load = partial(load, teacher=driver.teacher, table=driver.table, needs_labels=needs_labels)
        self.progress = DumpProgress(total=manifest.utterances, planned=tuple(planned))
        self.batches, self.times_audio = 0, True
        reason = options.skip_checks
        self.skips = SkippedChecks(reason, lambda check: writer.note_gate(check, reason))
        self.transcript_check = TranscriptCheck(driver.teacher, driver.table, options.max_wer, self.skips)
        self.transcriber = TeacherTranscriber(self.driver, keep=options.transcripts)
        asked = manifest.utterances + len(manifest.problems)
        self.may_skip = options.may_skip(-(-asked // options.part.count))
        self.begin = time.perf_counter()
        self.progress.findings += self._manifest_difference()

    def _manifest_difference(self) -> tuple[str, ...]:
        """Return a finding where the store was made with another manifest; the store has a note of it."""
        changed = [(was, now) for field, was, now in self.writer.differences if field == "manifest.sha256"]
        return tuple(
            f"the manifest has changed since the store was made: it was {was}, it is {now}; this one has "
            f"{self.manifest.utterances} utterances, the store {self.writer.sealed} records. Records of utterances "
            "that this manifest does not name stay."
            for was, now in changed
        )

    def run(self) -> DumpProgress:
        size = ShardSize.of_manifest(self.options.shard_size, self.manifest.utterances)
        problems = list(self.manifest.problems) if self.options.part.index == 0 else []
        idle = True
        rate = estimated_bytes_per_second(self.writer.spec)
        for block in blocks(self.manifest, size, self.options.part, _length, rate):
            idle = False
            self.writer.refresh()  # other jobs may have sealed some of them since this one began
            missing = tuple(u for u in block.utterances if u.id not in self.writer)
            self.progress.present += len(block.utterances) - len(missing)
            if missing:
                self._block(Block(block.number, missing), problems)
                problems = []
            self._tell()
        if idle and self.manifest.utterances:
            self.progress.findings += (
                f"no shard for this job: the {self.manifest.utterances} utterances make fewer shards of "
                f"{self.options.shard_size} than there are jobs ({self.options.part.count}). Choose a smaller "
                "shard size, or fewer jobs.",
            )
            self._tell()
        return self.progress

    def _bounded(self, problems: Sequence[Problem]) -> None:
        """Raise ``TooManySkipped`` when more are skipped than allowed; ``problems`` are the open shard's."""
        count = self.progress.skipped + len(problems)
        if count > self.may_skip:
            examples = "\n".join(f"  {p.what.splitlines()[0]}" for p in problems[-3:])
            raise TooManySkipped(
                f"{count} utterances cannot be dumped, more than --max-skipped {self.options.max_skipped} "
                f"allows; the last of them:\n{examples}",
                why="So many failures rarely come from the recordings: check the manifest, audio_root and the disk.",
                do="Correct the cause and run the same command again; sealed shards stay.",
            )

    def _block(self, block: Block, problems: list[Problem]) -> None:
        """Dump the missing utterances of one block into one shard and seal it.

        After an error or a signal the records that are whole are sealed as a short shard.
        """
        shard, skip = self.writer.shard(block.name), self.options.on_error == "skip"
        pipe = Pipe(shard, self.writer.encoder, skip=skip)
        try:
            with pipe:
                self._bounded(problems)
                for batch in self._batches(block, pipe):
                    outputs = self.driver.run(batch)
                    transcribed = self._checked(outputs, pipe)
                    for output, _ in transcribed:
                        pipe.put(output, self.driver)
                    self._bounded([*problems, *pipe.failed])
                    self._tell(pipe)
                pipe.finish()
                self._bounded([*problems, *pipe.failed])
                skipped = [p.to_json() for p in (*problems, *pipe.failed)]
                entry = pipe.seal(s for s in skipped if problem_key(s) not in self.writer.listed)
        except BaseException as e:
            self._count(pipe.rescued, pipe)
            if pipe.rescued is not None:
                e.add_note(
                    f"{len(pipe.rescued.ids)} utterances of the open shard were sealed; the same dump "
                    "goes on from there"
                )
            raise
        self.progress.skipped += len(skipped)
        self._count(entry, pipe)

    def _count(self, entry: Entry | None, pipe: Pipe) -> None:
        """Add what was sealed to the progress; utterances that another writer has sealed are present."""
        now = self.progress
        now.present += len(pipe.duplicates)
        if entry is not None:
            now.done += len(entry.ids)
            now.seconds += entry.seconds
            now.frames += entry.frames
            now.bytes += entry.bytes
            now.shards += 1

    def _checked(
        self, outputs: list[TeacherOutput], pipe: Pipe
    ) -> list[tuple[TeacherOutput, dict[str, Transcript]]]:
        """Transcribe a batch and run the checks of the teacher; raises their errors."""
        first, self.batches = not self.batches, self.batches + 1
        if not first and self._repeats_padding_check():
            pipe.keep = False  # records of a refused teacher are not sealed
            compare_again(self.driver, self.driver.one_forward(outputs))
            pipe.keep = True
        if first:
            checks = self_check(
                self.driver, outputs, self.skips, batched=self.options.batch_seconds > 0
            ).findings
        transcribed = []
        for output in outputs:
            try:
                self._require_true_time(output)
                transcribed.append(self.transcriber.transcribe(output, self.transcript_check.done))
            except LogitStoreError as e:
                pipe.fail(output.loaded.utt, e)
        if first:
            self.progress.findings += (*checks, *lines(transcribed))
            self._tell()
        pipe.keep = False
        self.transcript_check.add(transcribed)
        pipe.keep = True
        while self.skips.messages:
            self.progress.findings += (self.skips.messages.pop(0),)
        return transcribed

    def _repeats_padding_check(self) -> bool:
        """Return whether this batch is compared with one of its utterances alone: batch 2, 4, 8, 16, ..."""
        has_axes = any(kind.axes for kind in self.driver.kinds.values())
        return self.options.batch_seconds > 0 and has_axes and self.batches.bit_count() == 1

    def _require_true_time(self, output: TeacherOutput) -> None:
        """Raise ``LengthError`` where T disagrees with the audio; a skipped check is skipped for all."""
        clock, loaded = self.writer.spec.teacher.clock, output.loaded
        if not self.times_audio or clock is None or not output.T:
            return
        try:
            check_audio(
                output.T, Fraction(round(loaded.seconds * clock.rate), clock.rate), clock, loaded.utt.id
            )
        except LengthError as e:
            self.skips.refuse("true time", e)
            self.times_audio = False

    def _tell(self, pipe: Pipe | None = None) -> None:
        """Report the progress, the open shard included."""
        now = self.progress
        now.elapsed = time.perf_counter() - self.begin
        if pipe is not None:
            now = replace(
                now,
                done=now.done + pipe.utterances,
                seconds=now.seconds + pipe.seconds,
                frames=now.frames + pipe.frames,
                skipped=now.skipped + len(pipe.failed),
            )
        self.report(now)

    def _batches(self, block: Block, pipe: Pipe) -> Iterator[list[LoadedUtterance]]:
        """Yield loaded batches of a block; the pipe raises or lists utterances that fail to load."""
        batches = by_length(block.utterances, self.options.batch_seconds, pipe.fail)
        for good, bad in ahead(batches, self.load, self.options.threads):
            for utt, error in bad:
                pipe.fail(utt, error)
            if good:
                yield good


def _length(utt: Utterance) -> float:
    try:
        return seconds_of(utt)
    except LogitStoreError:
        return 0.0  # the loader raises the error with its utterance
