"""Writes what one process of a recipe said: a thread of its own, a writer of its own, one store for all."""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..runner.checks import require_logits
from ..schema.checksums import id_hash
from ..schema.ids import check_id
from ..schema.lattice import Form
from ..schema.spec import Head, TeacherSpec
from ..storage.entries import Entry
from ..storage.places import open_place
from ..store.layout import make_spec
from ..store.writer import StoreWriter
from ..teachers.protocol import weights_sha256
from ..teachers.tap import unwrap
from ..tokens.formats import read_table
from ..tokens.table import TokenTable
from .inject.inside import Report
from .lattices import Driven, Lattices, unnoticed, wrong_width
from .pieces import Part

DEPTH = 4  # batches waiting
ZARR = os.path.join("zarr", "core", "sync.py")
ROWS = 4096  # of each utterance of the first batch that are checked


@dataclass(frozen=True)
class Shape:
    """What was seen of a model's heads when the first of them ran.

    Attributes:
        classes: V.
        driven: the transducer, where its joiner is driven here.
        normalised: the joiner gives log-probabilities, and there is nothing else (HAT).
        band: label positions a frame of a pruned joint; 0 where all are there.
    """

    classes: int
    driven: Driven | None = None
    normalised: bool = False
    band: int = 0


@dataclass
class Heard:
    """One batch.

    Attributes:
        ids: of its utterances; ``lengths``: valid frames of each; ``texts``: where there are any.
        wanted: positions of those to write.
        logits: of the ctc stream, (B, T, V); None where it was not taken yet.
        lattices: of each utterance, as the recipe's own joiner made them; None as above.
        encoded: (B, T, D) of the encoder, where lattices are driven from it; None as above.
        labels: of each utterance, where the recipe says them.
    """

    ids: tuple[str, ...]
    lengths: tuple[int, ...]
    wanted: tuple[int, ...]
    texts: tuple[str, ...] | None
    logits: torch.Tensor | None = None
    lattices: list[Part] | None = None
    encoded: torch.Tensor | None = None
    labels: tuple[tuple[int, ...], ...] | None = None

    @property
    def streams(self) -> set[str]:
        """Those that were taken."""
        rnnt = self.lattices is not None or self.encoded is not None
        return {*(("ctc",) if self.logits is not None else ()), *(("rnnt",) if rnnt else ())}

    def ctc(self, i: int) -> torch.Tensor | None:
        """(T, V) of one utterance, without padding."""
        return None if self.logits is None else self.logits[i, : self.lengths[i]]

    def first(self, i: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Stream and logits of one utterance, where the recipe made them."""
        if (ctc := self.ctc(i)) is not None:
            yield "ctc", ctc
        if self.lattices is not None:
            yield "rnnt", self.lattices[i].logits


def hush() -> None:
    """Keep what our libraries log below a warning out of the program's output."""
    logging.getLogger("zarr").setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(_of_the_program)


def _of_the_program(record: logging.LogRecord) -> bool:
    """Whether a record is the program's: asyncio says at DEBUG that a loop was made, for zarr too."""
    frame = sys._getframe() if record.levelno < logging.WARNING else None
    while frame is not None:
        if frame.f_code.co_filename.endswith(ZARR):
            return False
        frame = frame.f_back
    return True


class Claims:
    """Ids that some process of this session took: a distributed sampler gives one to several of them."""

    def __init__(self, session: Path) -> None:
        self._file = open(session / "claims", "ab+")
        self._seen: set[bytes] = set()
        self._read = 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def take(self, ids: list[str]) -> list[bool]:
        """Claim ids; True where nobody did before."""
        keys = [id_hash(i).to_bytes(8, "big") for i in ids]
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self._file.seek(self._read)
            others = self._file.read()
            self._read += len(others)
            self._seen.update(others[i : i + 8] for i in range(0, len(others), 8))
            free = []
            for key in keys:
                free.append(key not in self._seen)
                self._seen.add(key)
            self._file.write(b"".join(k for k, f in zip(keys, free, strict=True) if f))
            self._file.flush()
            self._read = self._file.tell()
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return free


class Scribe:
    """The writer of one process.

    Args:
        job: see ``logitstore.capture.run``.
        session: folder of reports and claims.
        root: the model, for its name and weights.
        report: of this process.
        shape: what is known of the model's heads.
    """

    def __init__(
        self, job: dict[str, Any], session: Path, root: nn.Module, report: Report, shape: Shape
    ) -> None:
        hush()
        classes, driven = shape.classes, shape.driven
        self._job, self._report, self._claims = job, report, Claims(session)
        self.root = weakref.ref(root)
        model = unwrap(root)
        table = table_of(job, classes, driven.drive.blank if driven is not None else 0)
        self.blank = table.blank
        heads = [Head("ctc", job["ctc"], table.blank, job["layout"])] if job["ctc"] else []
        if job["joiner"]:
            path = driven.head if driven is not None else job["joiner"]
            heads.append(Head("rnnt", path, table.blank, normalised=shape.normalised))
        self._normalised = {h.stream for h in heads if h.normalised}
        self._lattices = None
        if driven is not None:
            self._lattices = Lattices(driven, table, job)
            report.write(labels=self._lattices.labels_from)
            if n := self._lattices.in_training:
                report.write(eval=f"{n} modules that the recipe left in training mode are driven in eval")
        name = job["name"] or type(model).__name__
        weights = weights_sha256(_with_joint(model, driven))
        about = TeacherSpec(name, job["sample_rate"], job["frame_shift"], tuple(heads), weights=weights)
        streams = dict(job["streams"])
        if shape.band and "/" not in streams["rnnt"]:
            streams["rnnt"] += f"/banded:{shape.band}"
        spec = make_spec(about, table, streams, storage=job["storage"])
        self._form = next((Form.parse(s.form) for s in spec.streams if s.kind == "rnnt"), Form())
        self._table = table
        writer = f"capture-{job['session']}-{os.getpid()}"
        self._seconds = about.frame_shift / about.sample_rate
        self._writer = StoreWriter(open_place(job["out"]), spec, writer=writer, shard_rows=job["shard_rows"])
        self._writer.begin(table, job["allow_different"])
        self._rows = self._present = 0
        self._checked = False
        self._error: BaseException | None = None
        self._queue: queue.Queue[Heard | None] = queue.Queue(DEPTH)
        self._thread = threading.Thread(target=self._work, name="logitstore capture", daemon=True)
        self._thread.start()
        report.write(state="capturing", model=type(model).__name__, classes=classes)

    def wanted(self, ids: list[str]) -> tuple[int, ...]:
        """Positions of the ids that nobody has written or is writing."""
        for utt_id in ids:
            check_id(utt_id)
        free = self._claims.take(ids)
        found = tuple(i for i, utt_id in enumerate(ids) if free[i] and utt_id not in self._writer)
        self._present += len(ids) - len(found)
        return found

    def put(self, heard: Heard) -> None:
        """Hand over a batch; raises what an earlier one failed of."""
        if not self._checked:  # before hours are spent
            self._checked = True
            for i in heard.wanted:
                for stream, part in heard.first(i):
                    self._check(stream, part, heard.ids[i])
        if self._error is None and heard.encoded is not None:  # the recipe's own modules run: in its thread
            assert self._lattices is not None
            with unnoticed(heard.encoded.device, self._lattices.model):
                self._write(heard)
        elif self._error is None:
            self._queue.put(heard)
        if self._error is not None:
            raise self._error

    def _check(self, stream: str, part: torch.Tensor, where: str) -> None:
        """Raise an error for the first utterances' logits where they are none, or of another table."""
        rows = part.reshape(-1, part.shape[-1])[:ROWS].float()
        if rows.shape[1] != len(self._table):
            raise wrong_width(rows.shape[1], len(self._table), f"the {stream} module", where)
        if stream not in self._normalised and len(rows) and bool(rows.isfinite().all()):
            require_logits(rows, stream, where)

    def close(self, *, failed: bool) -> None:
        """Wait for the thread; set the last shard aside for the parent, or forget it."""
        self._queue.put(None)
        self._thread.join()
        self._claims.close()
        entry: Entry | None = None
        if failed or self._error is not None:
            self._writer.abandon()
        else:
            entry = self._writer.leave(self._job["handover"])
        said: dict[str, Any] = {"rows": self._rows, "present": self._present}
        if self._error is not None:
            said["error"] = f"{type(self._error).__name__}: {self._error}"
        if entry is not None:
            said["shard"], said["entry"] = entry.shard, entry.to_bytes().decode("utf-8")
        self._report.write(state="failed" if failed or self._error is not None else "done", **said)

    def _work(self) -> None:
        with torch.inference_mode():
            while (heard := self._queue.get()) is not None:
                if self._error is None:
                    try:
                        self._write(heard)
                    except BaseException as e:  # raised again in the recipe's own thread
                        self._error = e

    def _write(self, heard: Heard) -> None:
        for i in heard.wanted:
            text = heard.texts[i] if heard.texts else None
            labels = list(heard.labels[i]) if heard.labels is not None else None
            rnnt: Any = None
            nodes, notes = None, dict[str, Any]()
            if heard.lattices is not None:
                part = heard.lattices[i]
                rnnt, nodes = part.logits, part.nodes(self._form, len(labels or ()), heard.ids[i])
            elif heard.encoded is not None:
                assert self._lattices is not None
                enc = heard.encoded[i, : heard.lengths[i]]
                spoken = self._lattices.spoken(heard.ids[i], enc, text, labels)
                rnnt, labels = partial(self._lattices.slices, spoken), spoken.labels["rnnt"]
                notes = spoken.notes
            self._writer.add(
                heard.ids[i],
                ctc=heard.ctc(i),
                rnnt=rnnt if nodes is None else (rnnt, nodes),
                labels=labels,
                text=text,
                seconds=round(heard.lengths[i] * self._seconds, 6),
                notes=notes,
            )
            self._rows += 1


def _with_joint(model: nn.Module, driven: Driven | None) -> nn.Module:
    """The model, and beside it what of its joint lies outside it (in lists of a searcher's)."""
    inside = {id(p) for p in model.parameters()}
    if driven is None or all(id(p) in inside for p in driven.drive.model.parameters()):
        return model
    return nn.ModuleDict({"model": model, "joint": driven.drive.model})


def table_of(job: dict[str, Any], classes: int, blank: int = 0) -> TokenTable:
    """The given token table; without one, classes are named by their number.

    Args:
        job: see ``logitstore.capture.run``.
        classes: V.
        blank: where neither the job nor a table says it.
    """
    if job["tokens"]:
        return read_table(job["tokens"], blank=job["blank"])
    blank = (blank if job["blank"] is None else job["blank"]) % classes
    return TokenTable(tuple("<blk>" if i == blank else f"<{i}>" for i in range(classes)), blank)
