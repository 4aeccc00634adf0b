"""Writer of one injected process: it encodes captured batches in a thread of its own.

Each process has its own :class:`logitstore.store.writer.StoreWriter`, and all write into one store.
"""

from __future__ import annotations

import logging
import os
import queue
import shlex
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import LogitStoreError, ManifestError, UnknownName
from ..runner.checks import require_logits
from ..schema.ids import check_id
from ..schema.lattice import Form
from ..schema.spec import Head, TeacherSpec
from ..storage.entries import Entry
from ..storage.places import Place, open_place
from ..store.layout import make_spec
from ..store.reader import Store
from ..store.writer import StoreWriter
from ..teachers.protocol import weights_sha256
from ..teachers.tap import unwrap
from ..tokens.formats import read_table
from ..tokens.table import TokenTable
from .claims import ROUNDING, IdClaims, signatures_of
from .inject.parent import owner_lives
from .inject.report import ProcessReport
from .job import CaptureJob, CaptureOptions
from .lattices import RecipeLattices, RecipeTransducer, without_side_effects, wrong_width
from .pieces import UtteranceLattice

ASSUMED = {"frame_shift": 640, "sample_rate": 16000}  # 40 ms at 16 kHz, where nobody gives them
QUEUED_BATCHES = 4
SAME_SHARE = 0.5  # of a frame's probability that a record and new logits of the same utterance share at least
ZARR_SYNC = os.path.join("zarr", "core", "sync.py")
CHECKED_ROWS = 4096  # of each utterance of the first batch


@dataclass(frozen=True)
class HeadShape:
    """Properties of a model's heads that the first output of any of them shows.

    Attributes:
        classes: V.
        transducer: transducer whose joiner capture runs; None where no joiner is run.
        normalised: whether the joiner gives log-probabilities and has no logits (HAT).
        band: label positions per frame of a pruned lattice; 0 where the lattice is whole.
    """

    classes: int
    transducer: RecipeTransducer | None = None
    normalised: bool = False
    band: int = 0


@dataclass
class CapturedBatch:
    """Outputs of one batch, filled stream by stream.

    Attributes:
        ids: utterance ids.
        lengths: valid frames of each utterance.
        wanted: positions of the utterances to write.
        texts: reference texts; None where there are none.
        present: positions of the utterances that an earlier run stored.
        logits: (B, T, V) logits of the ctc stream; None until captured.
        lattices: lattice of each utterance, as the program's joiner computed it; None until captured.
        encoded: (B, T, D) encoder frames that the joiner is run on; None until captured.
        labels: label ids of each utterance, where the program gives them.
    """

    ids: tuple[str, ...]
    lengths: tuple[int, ...]
    wanted: tuple[int, ...]
    texts: tuple[str, ...] | None
    present: tuple[int, ...] = ()
    logits: torch.Tensor | None = None
    lattices: list[UtteranceLattice] | None = None
    encoded: torch.Tensor | None = None
    labels: tuple[tuple[int, ...], ...] | None = None

    @property
    def streams(self) -> set[str]:
        """Names of the streams that were captured."""
        found = set()
        if self.logits is not None:
            found.add("ctc")
        if self.lattices is not None or self.encoded is not None:
            found.add("rnnt")
        return found

    def ctc(self, i: int) -> torch.Tensor | None:
        """Return (T, V) logits of utterance ``i``, without padding."""
        return None if self.logits is None else self.logits[i, : self.lengths[i]]

    def computed_logits(self, i: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield stream and logits of utterance ``i``, for streams whose logits the program computed."""
        if (ctc := self.ctc(i)) is not None:
            yield "ctc", ctc
        if self.lattices is not None:
            yield "rnnt", self.lattices[i].logits


def silence_libraries() -> None:
    """Keep log messages below a warning, of libraries that only logitstore uses, out of the program's log."""
    logging.getLogger("zarr").setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(_is_of_the_program)


def _is_of_the_program(record: logging.LogRecord) -> bool:
    """Return whether a log record is the program's: asyncio logs at DEBUG that zarr made an event loop."""
    frame = sys._getframe() if record.levelno < logging.WARNING else None
    while frame is not None:
        if frame.f_code.co_filename.endswith(ZARR_SYNC):
            return False
        frame = frame.f_back
    return True


class CaptureWriter:
    """Writer of one process.

    Batches whose logits the program computed are encoded in a thread. Lattices that capture computes with the
    program's own modules are computed in the program's thread, which must not run them at the same time.

    Args:
        job: description of the capture.
        session: folder of reports and claims.
        root: the program's model, for its name and the checksum of its weights.
        report: report of this process.
        shape: properties of the model's heads.

    Attributes:
        root: weak reference to the program's model.
        blank: id of the blank.
    """

    def __init__(
        self, job: CaptureJob, session: Path, root: nn.Module, report: ProcessReport, shape: HeadShape
    ) -> None:
        silence_libraries()
        options, transducer = job.options, shape.transducer
        self._job, self._session = job, session
        self._report, self._claims = report, IdClaims(session)
        self.root = weakref.ref(root)
        model = unwrap(root)
        own_blank = transducer.adapter.blank if transducer is not None else 0
        self._table = table_of(options, shape.classes, own_blank)
        self.blank = self._table.blank
        heads = _heads(options, shape, self.blank)
        self._normalised = {h.stream for h in heads if h.normalised}
        self._lattices: RecipeLattices | None = None
        if transducer is not None:
            self._lattices = RecipeLattices(transducer, self._table, options)
            report.note("labels", self._lattices.labels_from)
            if n := self._lattices.in_training:
                report.note(
                    "eval", f"{n} modules that the program left in training mode are run in eval mode"
                )
        given = {"frame_shift": options.frame_shift, "sample_rate": options.sample_rate}
        assumed = [name for name, value in given.items() if value is None]
        if options.blank is None and not options.tokens and transducer is None:
            assumed.insert(0, "blank")
        teacher = TeacherSpec(
            options.name or type(model).__name__,
            options.sample_rate or ASSUMED["sample_rate"],
            options.frame_shift or ASSUMED["frame_shift"],
            tuple(heads),
            weights=weights_sha256(_with_joiner(model, transducer)),
            assumed=tuple(assumed),
        )
        if assumed:
            values = {"blank": self.blank, **ASSUMED}
            listed = ", ".join(f"{name} = {values[name]}" for name in assumed)
            flags = ", ".join("--" + name.replace("_", "-") for name in assumed)
            report.note("assumed", f"{listed}. The store marks what nobody gave; give it with {flags}")
        self._clock = teacher.clock
        encodings = options.encodings
        if shape.band and "/" not in encodings["rnnt"]:
            encodings["rnnt"] += f"/banded:{shape.band}"
        spec = make_spec(teacher, self._table, encodings, storage=options.storage)
        self._form = next((Form.parse(s.form) for s in spec.streams if s.kind == "rnnt"), Form())
        self._writer = StoreWriter(
            _open_place_of(job.out),
            spec,
            writer=job.writer(os.getpid()),
            shard_size=options.shard_size,
        )
        self._writer.begin(self._table, options.allow_different)
        self._rows = self._present = 0
        self._checked = False
        self._error: BaseException | None = None
        self._queue: queue.Queue[CapturedBatch | None] = queue.Queue(QUEUED_BATCHES)
        self._thread = threading.Thread(target=self._write_queued, name="logitstore capture", daemon=True)
        self._thread.start()
        report.write(state="capturing", model=type(model).__name__, classes=shape.classes)

    def wanted(
        self, ids: Sequence[str], batch: int, lengths: Sequence[int], output: torch.Tensor | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Claim ids; return the positions to write, and those that an earlier run wrote.

        Args:
            ids: utterance ids.
            batch: number of the batch, for messages.
            lengths: valid frames of each utterance.
            output: (B, T, D) or (B, T, U+1, V) output of any stream, by which a repeated id is proven to be
                the same utterance; None where there is no padded output: then only the frames are compared.

        Raises ``ManifestError`` for an id that cannot be stored, or that names another utterance too.
        """
        for utt_id in ids:
            check_id(utt_id)
        signatures = signatures_of(output, lengths) if output is not None else None
        stored = [utt_id in self._writer for utt_id in ids]
        is_new = self._claims.take(ids, batch, lengths, signatures, stored)
        found = tuple(i for i in range(len(ids)) if is_new[i] and not stored[i])
        self._present += len(ids) - len(found)
        return found, tuple(i for i in range(len(ids)) if is_new[i] and stored[i])

    def check_present(self, batch: CapturedBatch, logits: torch.Tensor | None = None) -> None:
        """Compare a batch with the records that an earlier run stored under the same ids.

        Args:
            batch: batch of which some utterances are in the store.
            logits: (B, T, V) logits of the ctc stream; None to compare the lengths only.

        Raises ``ManifestError`` where a record has another length, or where its classes differ from the logits in
        most of the frames in which either of them has another class than the blank.
        """
        if not batch.present:
            return
        store = Store(self._writer.place)
        for i in batch.present:
            utt_id, length = batch.ids[i], batch.lengths[i]
            frames = int(store.record(utt_id, only=()).meta["T"])
            found = f"{frames} frames instead of {length}" if abs(frames - length) > ROUNDING else ""
            if logits is not None and not found:
                frames = min(frames, length)
                stored = torch.from_numpy(store.target(utt_id, ["ctc"]).log_probs("ctc")[:frames]).exp()
                computed = logits[i, :frames].float().softmax(-1).cpu()
                speaks = (stored.argmax(-1) != self.blank) | (computed.argmax(-1) != self.blank)
                shared = torch.minimum(stored, computed).sum(-1)[speaks]
                if len(shared) and float(shared.mean()) < SAME_SHARE:
                    found = f"other classes in {int((shared < SAME_SHARE).sum())} of {frames} frames"
            if found:
                raise _another_utterance(store, utt_id, found)

    def check(self, batch: CapturedBatch) -> None:
        """Check the logits of the first batch.

        Raises ``VocabError`` for a wrong width, ``NotLogits`` for log-probabilities.
        """
        for i in () if self._checked else batch.wanted:
            for stream, logits in batch.computed_logits(i):
                self._check_logits(stream, logits, batch.ids[i])
        self._checked = True

    def put(self, batch: CapturedBatch) -> None:
        """Write a batch, now or in the thread; raise the error of this batch or of an earlier one."""
        if self._error is None:
            if batch.encoded is None:
                self._queue.put(batch)
            else:
                assert self._lattices is not None
                with without_side_effects(batch.encoded.device, self._lattices.model):
                    self._write(batch)
        if self._error is not None:
            raise self._error

    def _check_logits(self, stream: str, logits: torch.Tensor, utt_id: str) -> None:
        rows = logits.reshape(-1, logits.shape[-1])[:CHECKED_ROWS].float()
        if rows.shape[1] != len(self._table):
            raise wrong_width(rows.shape[1], len(self._table), f"the {stream} module", utt_id)
        if stream not in self._normalised and len(rows) and bool(rows.isfinite().all()):
            require_logits(rows, stream, utt_id)

    def close(self, *, keep: bool) -> None:
        """Wait for the thread, and report to the parent process.

        The utterances of the last shard wait in the staging folder until the parent seals them. Where the parent is
        dead, they are sealed here.

        Args:
            keep: False where the capture was refused: then the last shard is dropped.
        """
        self._queue.put(None)
        self._thread.join()
        self._claims.close()
        result: dict[str, Any] = {"rows": self._rows, "present": self._present}
        if self._error is not None:
            result["error"] = f"{type(self._error).__name__}: {self._error}"
        try:
            if not keep:
                self._writer.abandon()
            elif owner_lives(self._session):
                entry: Entry | None = self._writer.leave(self._job.handover)
                if entry is not None:
                    result["shard"], result["entry"] = entry.shard, entry.to_bytes().decode("utf-8")
            else:
                self._writer.close()
        except (LogitStoreError, OSError) as e:
            result.setdefault("error", f"{type(e).__name__}: {e}")
        with suppress(FileNotFoundError):  # the session folder of a dead parent may be gone
            self._report.write(state="done" if keep else "refused", **result)

    def _write_queued(self) -> None:
        with torch.inference_mode():
            while (batch := self._queue.get()) is not None:
                if self._error is None:
                    try:
                        self._write(batch)
                    except BaseException as e:  # put() raises it in the program's thread
                        self._error = e

    def _write(self, batch: CapturedBatch) -> None:
        for i in batch.wanted:
            utt_id = batch.ids[i]
            text = batch.texts[i] if batch.texts else None
            labels = list(batch.labels[i]) if batch.labels is not None else None
            notes: dict[str, Any] = {}
            rnnt: Any = None
            if batch.lattices is not None:
                lattice = batch.lattices[i]
                nodes = lattice.nodes(self._form, len(labels or ()), utt_id)
                rnnt = lattice.logits if nodes is None else (lattice.logits, nodes)
            elif batch.encoded is not None:
                assert self._lattices is not None
                frames = batch.encoded[i, : batch.lengths[i]]
                output = self._lattices.with_labels(utt_id, frames, text, labels)
                rnnt, labels, notes = (
                    partial(self._lattices.slices, output),
                    output.labels["rnnt"],
                    dict(output.notes),
                )
            self._writer.add(
                utt_id,
                ctc=batch.ctc(i),
                rnnt=rnnt,
                labels=labels,
                text=text,
                seconds=0.0 if self._clock is None else round(float(batch.lengths[i] * self._clock.shift), 6),
                notes=notes,
            )
            self._rows += 1


def _another_utterance(store: Store, utt_id: str, found: str) -> ManifestError:
    shard = next(name for name in store.shards if utt_id in store.entry(name).ids)
    location = shlex.quote(str(store.place))
    return ManifestError(
        f"the record that an earlier run stored under this id has {found}",
        where=f"{utt_id}, shard {shard}",
        why="One of the two runs gives the logits another utterance's id.",
        do="If the ids of this run are wrong, say where they are: --ids EXPR. If the record is wrong, remove its "
        f"shard: logitstore verify {location} --drop {shard}.",
    )


def _heads(options: CaptureOptions, shape: HeadShape, blank: int) -> list[Head]:
    """Return the heads that the store names."""
    heads = []
    if options.ctc:
        heads.append(Head("ctc", options.ctc, blank, options.layout))
    if options.joiner:
        path = shape.transducer.head if shape.transducer is not None else options.joiner
        heads.append(Head("rnnt", path, blank, normalised=shape.normalised))
    return heads


def _open_place_of(location: str) -> Place:
    """Open the store's place; raise ``UnknownName`` where only the parent process knows it."""
    try:
        return open_place(location)
    except UnknownName as e:
        raise UnknownName(
            e.what,
            where=location,
            why="This process of the program does not know a place that the process that started it knows. "
            "logitstore.registry.register() adds a place to one process only.",
            do="Install the place as an entry point of the group logitstore.places, for the Python that runs "
            "the program.",
        ) from None


def _with_joiner(model: nn.Module, transducer: RecipeTransducer | None) -> nn.Module:
    """Return the model, with the joiner's modules beside it where they lie outside (SpeechBrain)."""
    inside = {id(p) for p in model.parameters()}
    if transducer is None or all(id(p) in inside for p in transducer.adapter.model.parameters()):
        return model
    return nn.ModuleDict({"model": model, "joint": transducer.adapter.model})


def table_of(options: CaptureOptions, classes: int, blank: int = 0) -> TokenTable:
    """Return the token table of the options; without one, a table that names classes by their number.

    Args:
        options: settings of the capture; ``tokens`` and ``blank`` are used.
        classes: V.
        blank: id of the blank where neither the options nor a table gives it.
    """
    if options.tokens:
        return read_table(options.tokens, blank=options.blank)
    blank = (blank if options.blank is None else options.blank) % classes
    return TokenTable(tuple("<blk>" if i == blank else f"<{i}>" for i in range(classes)), blank)
