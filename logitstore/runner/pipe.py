"""Between the teacher and a shard: one thread that encodes and writes, fed through a short queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch

from ..corpus.manifest import Problem, Utterance
from ..errors import LengthError, LogitStoreError
from ..schema.lattice import Nodes
from ..schema.spec import StreamSpec
from ..storage.commit import UnsealedShard
from ..storage.entries import Entry
from ..store.lattice_nodes import Picker
from ..store.row_encoder import RowEncoder, label_count
from .driver import TeacherDriver, TeacherOutput

DEPTH = 8  # slices waiting: what bounds memory
FRAMES = 1 << 13  # of a slice, where a recording is that long: five minutes of 40 ms


@dataclass(frozen=True)
class _Slice:
    """Some rows of a stream: logits, classes that each keeps always, and what went into their head."""

    stream: str
    rows: torch.Tensor
    always: torch.Tensor | None = None
    inputs: torch.Tensor | None = None


class _LastSlice:
    """Ends an utterance; ``error`` where it failed on the teacher's side."""

    def __init__(self, error: LogitStoreError | None = None) -> None:
        self.error = error


class _Stop(Exception):
    """Ends the thread."""


@dataclass(frozen=True)
class _Chosen:
    """Which nodes of a lattice its rows were."""

    stream: str
    nodes: Nodes


_Item = TeacherOutput | _Slice | _Chosen | _LastSlice | _Stop


def row_meta(output: TeacherOutput) -> dict[str, Any]:
    """What the row of an utterance says about itself (SPEC S3)."""
    loaded = output.loaded
    meta: dict[str, Any] = {
        "T": output.T,
        "U": label_count(output.labels),
        "seconds": round(loaded.seconds, 6),
    }
    if loaded.audio:
        meta["audio"] = loaded.audio
    if loaded.utt.recording:
        meta["recording"] = loaded.utt.origin()
    if loaded.utt.text is not None:
        meta["text"] = loaded.utt.text
    return {**meta, **output.notes}


class Pipe:
    """Encodes what the teacher says and appends it to a shard.

    Args:
        shard: to write to.
        encoder: of the store.
        skip: leave out utterances that fail and list them in ``failed``; otherwise the first failure raises.
    """

    def __init__(self, shard: UnsealedShard, encoder: RowEncoder, *, skip: bool) -> None:
        self.failed: list[Problem] = []
        self.utterances, self.seconds, self.frames = 0, 0.0, 0
        self._shard, self._skip = shard, skip
        self._encoder = encoder
        self._queue: queue.Queue[_Item] = queue.Queue(DEPTH)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="encode and write", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stop()
            self._shard.discard()

    def put(self, output: TeacherOutput, driver: TeacherDriver) -> None:
        """Hand over one utterance; what is driven by its labels runs here, in the caller's thread.

        A lattice is driven slice by slice: once, or twice for forms that follow the teacher's own alignment.
        """
        self._send(output)
        error = None
        try:
            if output.T < 1:
                raise LengthError("no valid frame: the recording is too short", where=output.loaded.utt.id)
            for stream in self._encoder.spec.streams:
                for item in _slices(stream, output, driver):
                    self._send(item)
        except LogitStoreError as e:
            error = e
        self._send(_LastSlice(error))

    def fail(self, utt: Utterance, error: LogitStoreError) -> None:
        """Note an utterance that cannot be dumped, or raise its error."""
        if not self._skip:
            raise error
        self.failed.append(Problem(utt.id, type(error).__name__, str(error)))

    def finish(self) -> int:
        """Wait for the last row and give how many there are; raises what the thread died of."""
        self._stop()
        if self._error is not None:
            raise self._error
        return len(self._shard)

    def seal(self, skipped: Iterable[dict[str, str]]) -> Entry | None:
        """Seal the finished shard; None where it would hold nothing, or another writer sealed it."""
        skipped = list(skipped)
        if self.finish() or skipped:
            return self._shard.seal(skipped)
        self._shard.discard()
        return None

    def _send(self, item: Any) -> None:
        """Queue an item, unless the thread died: then raise what it died of."""
        while self._error is None:
            try:
                return self._queue.put(item, timeout=1.0)
            except queue.Full:
                continue
        raise self._error

    def _stop(self) -> None:
        while self._thread.is_alive():
            try:
                self._queue.put(_Stop(), timeout=0.1)
                self._thread.join()
            except queue.Full:
                continue

    def _work(self) -> None:
        try:
            while isinstance(output := self._queue.get(), TeacherOutput):
                self._utterance(output)
        except _Stop:
            pass
        except BaseException as e:  # raised again in the caller's thread
            self._error = e

    def _utterance(self, output: TeacherOutput) -> None:
        """Encode one utterance's slices and append its row; a failed one is drained, then noted or raised."""
        loaded, failure = output.loaded, None
        while not isinstance(item := self._queue.get(), _LastSlice):
            if isinstance(item, _Stop):
                raise item
            if isinstance(item, _Chosen):
                self._encoder.choose(item.stream, item.nodes)
                continue
            assert isinstance(item, _Slice)
            if failure is None:
                try:
                    self._encoder.take(
                        item.stream,
                        item.rows,
                        loaded.utt.id,
                        output.labels.get(item.stream),
                        always=item.always,
                        inputs=item.inputs,
                    )
                except LogitStoreError as e:
                    failure = e
        failure = failure or item.error
        if failure is not None:
            self._encoder.drop()
            return self.fail(loaded.utt, failure)
        row = self._encoder.finish(loaded.utt.id, output.labels, row_meta(output))
        self._shard.add(row)
        self.utterances += 1
        self.seconds += loaded.seconds
        self.frames += output.T


def _slices(stream: StreamSpec, output: TeacherOutput, driver: TeacherDriver) -> Iterator[_Slice | _Chosen]:
    """Everything that one stream of an utterance is encoded from."""
    name = stream.name
    if name in output.rows:
        rows, below = output.rows[name], output.inputs.get(name)
        for n in range(0, output.T, FRAMES):
            yield _Slice(name, rows[n : n + FRAMES], inputs=None if below is None else below[n : n + FRAMES])
    elif stream.kind == "seq2seq":
        rows, inputs = driver.decoded(output, name)
        yield _Slice(name, rows, inputs=inputs)
    elif stream.kind == "rnnt" and name in driver.heads:
        enc, dec = driver.sides(output)
        yield _Slice(name, enc, inputs=dec)
    elif stream.kind == "rnnt":
        picker = Picker(stream, output.labels.get(name, []), output.loaded.utt.id)
        for rows, always in picker.rows(partial(driver.lattice, output), output.T):
            yield _Slice(name, rows, always)
        if picker.nodes is not None:
            yield _Chosen(name, picker.nodes)
