"""Writes what one process of a recipe said: a thread of its own, a writer of its own, one store for all."""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import sys
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .digest import id_hash
from .inject.inside import Report
from .layout import make_spec
from .manifest import check_id
from .places import open_place
from .sealed import Entry
from .selfcheck import require_logits
from .spec import Head, TeacherSpec
from .tap import unwrap
from .teachers.base import weights_sha256
from .vocab import TokenTable
from .vocabs import read_table
from .writer import StoreWriter

DEPTH = 4  # batches waiting
ZARR = os.path.join("zarr", "core", "sync.py")
ROWS = 4096  # of each utterance of the first batch that are checked


@dataclass
class Heard:
    """One batch.

    Attributes:
        ids: of its utterances; ``lengths``: valid frames of each; ``texts``: where there are any.
        wanted: positions of those to write.
        logits: by stream, (B, T, V) or (B, T, U+1, V).
        labels: of each utterance, where there is a lattice.
    """

    ids: tuple[str, ...]
    lengths: tuple[int, ...]
    wanted: tuple[int, ...]
    texts: tuple[str, ...] | None
    logits: dict[str, torch.Tensor] = field(default_factory=dict)
    labels: tuple[tuple[int, ...], ...] | None = None

    def part(self, stream: str, i: int) -> torch.Tensor | None:
        """(T, V) or (T, U+1, V) of one utterance without padding; None where there is no such stream."""
        if stream not in self.logits:
            return None
        logits = self.logits[stream][i, : self.lengths[i]]
        return logits[:, : len(self.labels[i]) + 1] if stream == "rnnt" and self.labels else logits


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
        job: see ``logitstore.capture``.
        session: folder of reports and claims.
        root: the model, for its name and weights.
        classes: V.
        report: of this process.
    """

    def __init__(
        self, job: dict[str, Any], session: Path, root: nn.Module, classes: int, report: Report
    ) -> None:
        hush()
        self._job, self._report, self._claims = job, report, Claims(session)
        self.root = weakref.ref(root)
        model = unwrap(root)
        table = table_of(job, classes)
        self.blank = table.blank
        heads = [Head("ctc", job["ctc"], table.blank, job["layout"])] if job["ctc"] else []
        heads += [Head("rnnt", job["joiner"], table.blank)] if job["joiner"] else []
        name = job["name"] or type(model).__name__
        weights = weights_sha256(model)
        about = TeacherSpec(name, job["sample_rate"], job["frame_shift"], tuple(heads), weights=weights)
        spec = make_spec(about, table, job["streams"], storage=job["storage"])
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
                for stream in heard.logits:
                    part = heard.part(stream, i)
                    assert part is not None
                    rows = part.reshape(-1, part.shape[-1])[:ROWS].float()
                    if len(rows) and bool(rows.isfinite().all()):
                        require_logits(rows, stream, heard.ids[i])
        if self._error is None:
            self._queue.put(heard)
        if self._error is not None:
            raise self._error

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
            frames = heard.lengths[i]
            self._writer.add(
                heard.ids[i],
                ctc=heard.part("ctc", i),
                rnnt=heard.part("rnnt", i),
                labels=heard.labels[i] if heard.labels else None,
                text=heard.texts[i] if heard.texts else None,
                seconds=round(frames * self._seconds, 6),
            )
            self._rows += 1


def table_of(job: dict[str, Any], classes: int) -> TokenTable:
    """The given token table; without one, classes are named by their number."""
    if job["tokens"]:
        return read_table(job["tokens"], blank=job["blank"])
    blank = (job["blank"] or 0) % classes
    return TokenTable(tuple("<blk>" if i == blank else f"<{i}>" for i in range(classes)), blank)
