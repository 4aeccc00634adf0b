"""The main job: a manifest through a teacher into a store.

Three things go on at once: loader threads read the next recordings, the caller's thread runs the teacher,
and a third thread encodes and writes what the teacher said.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any

from ..corpus.audio import seconds_of
from ..corpus.manifest import Manifest, Problem, Utterance
from ..errors import IdentityError, LengthError, LogitStoreError, ManifestError, TooManySkipped, UsageError
from ..runner.checks import SkippedChecks, TranscriptCheck, lines, self_check
from ..runner.chunks import Chunks, driver_of
from ..runner.driver import TeacherDriver, TeacherOutput, cpu_threads
from ..runner.gpu import require_device
from ..runner.loader import LoadedUtterance, ahead, by_length, load
from ..runner.pipe import Pipe
from ..runner.stored_heads import factored, once_per_store
from ..runner.transcribe import TeacherTranscriber
from ..schema.clock import check_audio
from ..schema.kinds import kind_of
from ..schema.spec import StoreSpec, TeacherSpec
from ..storage.commit import problem_key
from ..storage.entries import DEFAULT_SHARD_SIZE, ShardSize
from ..storage.places import Place, open_place
from ..storage.spec_file import read_spec
from ..store.identity import PLANNING, is_declared
from ..store.layout import make_spec
from ..store.writer import StoreWriter
from ..teachers.protocol import Teacher, check_protocol, weights_sha256
from ..tokens.table import TokenTable, require_same
from ..tokens.transcript import Transcript
from .blocks import Block, Part, blocks
from .plan.options import PlanOptions, Wish
from .plan.run import plan


@dataclass(frozen=True)
class DumpOptions:
    """How to dump.

    Attributes:
        streams: encoding by stream name; ``auto`` for the smallest that a plan finds good enough.
        storage: ``zarr``, ``zarr:zstd``, ``webdataset``, ...
        batch_seconds: audio of one padded batch; 0 for one utterance at a time.
        device: where the teacher runs.
        shard_size: what one shard holds; see :class:`logitstore.storage.entries.ShardSize`.
        on_error: ``raise``, or ``skip`` to leave an utterance out and list it.
        max_skipped: stop once more are skipped than this: ``1%`` of the job's utterances, or a number.
        part: job i of N.
        tokens: a table to compare the teacher's with.
        allow_different: fields in which a store may differ when it is resumed.
        threads: that load audio.
        cpu_threads: of a teacher on the CPU. Matrix products round differently with another number of
            threads, so it is fixed: the same bytes come out however many jobs share the machine.
        max_wer: percent of the first references' words that the teacher's greedy decode may get wrong.
        skip_gate: why a teacher that a gate would stop is right; stored. Empty: gates stop it.
        transcripts: whose greedy decode rows keep: ``none``, ``ctc`` or ``all``; ``text`` always is.
        chunk: seconds; recordings that are longer run in chunks of so many. None: never.
        overlap: seconds that a chunk shares with the next; half of them are dropped on either side.
    """

    streams: dict[str, str] = field(default_factory=lambda: {"ctc": "dense"})
    storage: str = "zarr"
    batch_seconds: float = 120.0
    device: str = "cpu"
    shard_size: str = DEFAULT_SHARD_SIZE
    on_error: str = "raise"
    max_skipped: str = "100%"
    part: Part = field(default_factory=Part)
    tokens: TokenTable | None = None
    allow_different: tuple[str, ...] = ()
    threads: int = 2
    cpu_threads: int = 1
    max_wer: float = 50.0
    skip_gate: str = ""
    transcripts: str = "ctc"
    chunk: Any = None
    overlap: Any = 5

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise UsageError(f"on_error is {self.on_error!r}", do="raise or skip.")
        if self.transcripts not in ("none", "ctc", "all"):
            raise UsageError(f"transcripts is {self.transcripts!r}", do="none, ctc or all.")
        require_device(self.device)
        if not re.fullmatch(r"\d{1,9}|\d{1,3}(\.\d{1,6})?%", self.max_skipped):
            raise UsageError(f"max_skipped is {self.max_skipped!r}", do="Give a number or a share: 50, 1%.")
        if not self.streams:
            raise UsageError("no stream to dump", do="E.g. --stream ctc=dense.")

    @property
    def needs_labels(self) -> bool:
        """Whether some stream is driven with labels."""
        return any(kind_of(name).labels for name in self.streams)

    def chunks(self, teacher: TeacherSpec) -> Chunks | None:
        """How long recordings are cut; None where they are not. Raises ``UsageError``."""
        return None if self.chunk is None else Chunks.of_seconds(self.chunk, self.overlap, teacher)

    def may_skip(self, utterances: int) -> int:
        """How many of so many utterances may be skipped."""
        number = float(self.max_skipped.rstrip("%"))
        return int(number * utterances / 100 if self.max_skipped.endswith("%") else number)


@dataclass
class Progress:
    """Where a dump stands; handed to the caller after every batch.

    Attributes:
        total: utterances of the manifest (all parts).
        done: dumped in this run.
        present: found sealed already.
        skipped: listed in ``skipped.jsonl``, in this run.
        seconds: of audio dumped in this run.
        frames: teacher frames dumped in this run.
        bytes: of the shards sealed in this run.
        shards: sealed in this run.
        elapsed: seconds since the teacher began.
        findings: of the self-check, once it ran.
        planned: which encoding was taken for a stream that says ``auto``, and why.
    """

    total: int
    done: int = 0
    present: int = 0
    skipped: int = 0
    seconds: float = 0.0
    frames: int = 0
    bytes: int = 0
    shards: int = 0
    elapsed: float = 0.0
    findings: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()


def dump(
    teacher: Teacher,
    manifest: Manifest,
    out: Any,
    options: DumpOptions,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Dump what a store does not hold yet; running it again resumes.

    Args:
        teacher: keeps the protocol of ``logitstore.teachers.protocol``.
        manifest: read by :func:`logitstore.corpus.manifest.read_manifest`.
        out: the store's location.
        options: how.
        report: called after every batch with where it stands.

    Raises:
        LogitStoreError: any of the tree; what was sealed before stays.
    """
    if manifest.problems and options.on_error == "raise":
        first = manifest.problems[0]
        raise ManifestError(
            f"{first.what}\n  ({len(manifest.problems)} such lines in all)"
            if len(manifest.problems) > 1
            else first.what,
            do="Mend the manifest, or leave such lines out and have them listed: --on-error skip.",
        )
    teacher = check_protocol(teacher, type(teacher).__name__)
    table = teacher.tokens()
    if options.tokens is not None:
        require_same(options.tokens, table, where="--tokens", which=("the given table", "the teacher"))
    place, name = open_place(out), f"job-{options.part.index}-of-{options.part.count}"
    with ExitStack() as deciding, cpu_threads(options.cpu_threads):
        planned: list[str] = []
        if wished := wishes(options.streams):
            how = plan_of(options, wished, options.chunks(teacher.describe()))
            took = decided(place, teacher, manifest, options.streams, how, writer=name, say=planned.append)
            options = replace(options, streams=deciding.enter_context(took))
            report(Progress(total=manifest.utterances, planned=tuple(planned)))
        spec = spec_of(teacher, table, manifest, options)
        given = teacher, table, list(options.streams), options.device
        chunks = Chunks.stored(spec.teacher)
        driver = driver_of(chunks, options.batch_seconds, *given, factored=factored(spec))
        spec, constants = once_per_store(place, spec, driver, manifest, options.batch_seconds)
        writer = StoreWriter(place, spec, writer=name)
        with writer.begin(table, options.allow_different, constants=constants):
            deciding.close()  # the store says what was decided: other jobs may come
            return _Dump(driver, manifest, options, writer, report, planned).run()


def plan_of(options: DumpOptions, wished: Mapping[str, Wish], chunks: Chunks | None = None) -> PlanOptions:
    """The plan of a dump: of the storage that was asked for, and no other."""
    return PlanOptions(
        wished,
        storages=(options.storage,),
        batch_seconds=options.batch_seconds,
        device=options.device,
        shard_size=options.shard_size,
        cpu_threads=options.cpu_threads,
        transcripts=options.transcripts,
        skip_gate=options.skip_gate,
        chunks=chunks,
    )


def spec_of(teacher: Teacher, table: TokenTable, manifest: Manifest, options: DumpOptions) -> StoreSpec:
    """What the store of a dump says about itself."""
    weights = weights_sha256(teacher.model) if teacher.model.state_dict() else ""  # of a black box: unknown
    about = replace(teacher.describe(), weights=weights)
    if (chunks := options.chunks(about)) is not None:
        about = chunks.told(about)
    return make_spec(about, table, options.streams, storage=options.storage, manifest=manifest.to_json())


class _Dump:
    """One run of :func:`dump`."""

    def __init__(
        self,
        driver: TeacherDriver,
        manifest: Manifest,
        options: DumpOptions,
        writer: StoreWriter,
        report: Callable[[Progress], None],
        planned: Sequence[str] = (),
    ) -> None:
        self.manifest, self.options, self.writer, self.report = manifest, options, writer, report
        self.driver = driver
        self.load = partial(
            load, teacher=driver.teacher, table=driver.table, needs_labels=options.needs_labels
        )
        self.progress = Progress(total=manifest.utterances, planned=tuple(planned))
        self.checked, self.timed = False, True
        reason = options.skip_gate
        self.skips = SkippedChecks(reason, lambda gate: writer.note_gate(gate, reason))
        self.transcript_check = TranscriptCheck(driver.table, options.max_wer, self.skips)
        self.transcriber = TeacherTranscriber(self.driver, keep=options.transcripts)
        asked = manifest.utterances + len(manifest.problems)
        self.may_skip = options.may_skip(-(-asked // options.part.count))
        self.begin = time.perf_counter()

    def run(self) -> Progress:
        size = ShardSize.parse(self.options.shard_size)
        problems = list(self.manifest.problems) if self.options.part.index == 0 else []
        for block in blocks(self.manifest, size, self.options.part, _length):
            missing = tuple(u for u in block.utterances if u.id not in self.writer)
            self.progress.present += len(block.utterances) - len(missing)
            if missing:
                self._block(Block(block.number, missing), problems)
                problems = []
            self._tell()
        return self.progress

    def _bounded(self, problems: Sequence[Problem]) -> None:
        """Raise ``TooManySkipped`` where more than allowed are; ``problems`` are those of the open shard."""
        count = self.progress.skipped + len(problems)
        if count > self.may_skip:
            examples = "\n".join(f"  {p.what.splitlines()[0]}" for p in problems[-3:])
            raise TooManySkipped(
                f"{count} utterances cannot be dumped, more than --max-skipped {self.options.max_skipped} "
                f"allows; the last of them:\n{examples}",
                why="So many are rarely the recordings' fault: think of the manifest, --audio-root, a disk.",
                do="Mend what they say and run the same command again; what is sealed stays.",
            )

    def _block(self, block: Block, problems: list[Problem]) -> None:
        """Dump the missing utterances of one block into one shard and seal it."""
        before = self.progress
        shard, skip = self.writer.shard(block.name), self.options.on_error == "skip"
        with Pipe(shard, self.writer.encoder, skip=skip) as pipe:
            self._bounded(problems)
            for batch in self._batches(block, pipe):
                outputs = self.driver.run(batch)
                transcribed = self._listen(outputs, pipe)
                for output, _ in transcribed:
                    pipe.put(output, self.driver)
                self._bounded([*problems, *pipe.failed])
                self._tell(pipe)
            pipe.finish()
            self._bounded([*problems, *pipe.failed])
            skipped = [p.to_json() for p in (*problems, *pipe.failed)]
            entry = pipe.seal(s for s in skipped if problem_key(s) not in self.writer.listed)
        before.skipped += len(skipped)
        before.done += pipe.utterances
        before.seconds += pipe.seconds
        before.frames += pipe.frames
        if entry is not None:
            before.bytes += entry.bytes
            before.shards += 1

    def _listen(
        self, outputs: list[TeacherOutput], pipe: Pipe
    ) -> list[tuple[TeacherOutput, dict[str, Transcript]]]:
        """What the teacher would write down, and whether that lets the dump go on."""
        first, self.checked = not self.checked, True
        if first:
            checks = self_check(self.driver, outputs, self.skips).findings
        transcribed = []
        for output in outputs:
            try:
                self._require_true_time(output)
                transcribed.append(self.transcriber.transcribe(output, self.transcript_check.done))
            except LogitStoreError as e:
                pipe.fail(output.loaded.utt, e)
        if first:
            self.progress.findings = (*checks, *lines(transcribed))
            self._tell()
        self.transcript_check.add(transcribed)
        while self.skips.messages:
            self.progress.findings += (self.skips.messages.pop(0),)
        return transcribed

    def _require_true_time(self, output: TeacherOutput) -> None:
        """Raise ``LengthError`` where its frames are not as long as its audio; skipped once, for all."""
        clock, loaded = self.writer.spec.teacher.clock, output.loaded
        if not self.timed or clock is None or not output.T:
            return
        try:
            check_audio(
                output.T, Fraction(round(loaded.seconds * clock.rate), clock.rate), clock, loaded.utt.id
            )
        except LengthError as e:
            self.skips.refuse("true time", e)
            self.timed = False

    def _tell(self, pipe: Pipe | None = None) -> None:
        """Report where it stands, the shard in the making included."""
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
        """Loaded batches of a block; the pipe raises or lists what cannot be loaded."""
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
        return 0.0  # the loader names it


def wishes(streams: Mapping[str, str]) -> dict[str, Wish]:
    """The streams whose encoding is to be chosen; raises ``UsageError`` for a wish that says nothing."""
    found = {name: Wish.parse(encoding) for name, encoding in streams.items()}
    return {name: wish for name, wish in found.items() if wish is not None}


@contextmanager
def decided(
    place: Place,
    teacher: Teacher,
    manifest: Manifest,
    streams: Mapping[str, str],
    options: PlanOptions,
    *,
    writer: str,
    say: Callable[[str], None],
) -> Iterator[dict[str, str]]:
    """Every stream with a real encoding: the store's own where there is one, else the plan's.

    The lock of that name is held until the body ends: begin the store there, and jobs that come later find
    what it declares.

    Args:
        place: of the store.
        teacher: to plan with.
        manifest: of the dump.
        streams: encoding, or wish, by stream.
        options: of the plan; its streams are those wished for.
        writer: name of this job's writer.
        say: told what was taken, and why.
    """
    with place.lock(PLANNING, wait=True):
        wished = options.streams
        if is_declared(place, writer):
            store = read_spec(place)
            chosen = {s.name: _written(s.encoding, s.form) for s in store.streams}
            for name in wished:
                if name not in chosen:
                    raise IdentityError(
                        f"this store has no {name} stream; it has {', '.join(chosen)}",
                        where=str(place),
                        do="Write to another store.",
                    )
                say(f"{name}: {chosen[name]} is what the store has.")
        else:
            folder = place.stage(PLANNING)
            try:
                found = plan(teacher, manifest, folder, options)
            finally:
                place.remove(f"partial/{PLANNING}")
            chosen = {name: m.encoding for name, m in found.choice.streams.items()}
            for name in wished:
                say(f"{name}: {found.choice.why[name]}")
        yield {name: chosen[name] if name in wished else encoding for name, encoding in streams.items()}


def _written(encoding: str, form: str) -> str:
    """As a user writes it."""
    return encoding if form in ("", "full") else f"{encoding}/{form}"
