"""Queue between the teacher's thread and one thread that encodes and writes records."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from ..corpus.manifest import Problem, Utterance
from ..encodings import stores_sides
from ..errors import LengthError, LogitStoreError
from ..schema.spec import StreamSpec
from ..storage.commit import UnsealedShard
from ..storage.entries import Entry
from ..store.layout import encoding_of
from ..store.record_encoder import RecordEncoder, StreamNodes, StreamPiece, label_count
from ..store.stream_output import StreamOutput, pieces
from .driver import TeacherDriver, TeacherOutput

DEPTH = 8  # pieces that may wait: bounds memory


@dataclass(frozen=True)
class _End:
    """The end of an utterance; ``error`` where the teacher's side of it failed."""

    error: LogitStoreError | None = None


class _Stop(Exception):
    """The end of the thread."""


_Item = TeacherOutput | StreamPiece | StreamNodes | _End | _Stop


def record_metadata(output: TeacherOutput) -> dict[str, Any]:
    """Return the metadata of an utterance's record (SPEC S3)."""
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


def stream_output(stream: StreamSpec, output: TeacherOutput, driver: TeacherDriver) -> StreamOutput:
    """Return one stream of an utterance, in the form that its encoding and lattice form need.

    Runs an attention decoder here, and a joiner when the slices of the result are read.
    """
    name, labels = stream.name, output.labels.get(stream.name, [])
    if name in output.rows:
        return StreamOutput(output.T, labels, rows=output.rows[name], inputs=output.inputs.get(name))
    if stream.kind == "seq2seq":
        rows, inputs = driver.decoded(output, name)
        return StreamOutput(output.T, labels, rows=rows, inputs=inputs)
    if stores_sides(encoding_of(stream)):
        return StreamOutput(output.T, labels, sides=driver.sides(output))
    return StreamOutput(output.T, labels, slices=partial(driver.lattice, output))


class Pipe:
    """Encoder and writer of one shard's records, in a thread of its own.

    Args:
        shard: shard to write to.
        encoder: record encoder of the store.
        skip: leave out utterances that fail and list them in ``failed``; otherwise the first failure raises.

    Attributes:
        failed: utterances that were left out.
        utterances: records written.
        seconds: seconds of audio written.
        frames: teacher frames written.
        keep: seal the records that are whole if an error ends the ``with`` block; otherwise discard them.
        rescued: entry of the shard that was sealed after an error.
    """

    def __init__(self, shard: UnsealedShard, encoder: RecordEncoder, *, skip: bool) -> None:
        self.failed: list[Problem] = []
        self.utterances, self.seconds, self.frames = 0, 0.0, 0
        self.keep = True
        self.rescued: Entry | None = None
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
            self._rescue()

    @property
    def duplicates(self) -> tuple[str, ...]:
        """Ids that were left out when the shard was sealed, because another writer had sealed them."""
        return self._shard.duplicates

    def _rescue(self) -> None:
        """After an error, seal the records that were written completely; discard them where that fails."""
        if self.keep and len(self._shard) and self._shard.whole:
            with suppress(LogitStoreError, OSError):  # the error that is being raised says more
                self.rescued = self._shard.seal()
        else:
            self._shard.discard()

    def put(self, output: TeacherOutput, driver: TeacherDriver) -> None:
        """Hand over one utterance; joiner and decoder run here, in the caller's thread.

        A lattice is driven slice by slice: once, or twice for forms that follow the teacher's own alignment.
        """
        self._send(output)
        utt_id, error = output.loaded.utt.id, None
        try:
            if output.T < 1:
                raise LengthError("no valid frame: the recording is too short", where=utt_id)
            for stream in self._encoder.spec.streams:
                if stream.stream_kind.axes:
                    for piece in pieces(stream, stream_output(stream, output, driver), utt_id):
                        self._send(piece)
        except LogitStoreError as e:
            error = e
        self._send(_End(error))

    def fail(self, utt: Utterance, error: LogitStoreError) -> None:
        """List an utterance that cannot be dumped, or raise its error."""
        if not self._skip:
            raise error
        self.failed.append(Problem(utt.id, type(error).__name__, str(error)))

    def finish(self) -> int:
        """Wait for the last record and return their number; raises the thread's own error."""
        self._stop()
        if self._error is not None:
            raise self._error
        return len(self._shard)

    def seal(self, skipped: Iterable[dict[str, str]]) -> Entry | None:
        """Seal the finished shard; return None where it holds nothing that other writers have not sealed."""
        skipped = list(skipped)
        if self.finish() or skipped:
            return self._shard.seal(skipped)
        self._shard.discard()
        return None

    def _send(self, item: _Item) -> None:
        """Queue an item; raises the thread's own error where it died."""
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
        """Encode one utterance's pieces and append its record; of a failed one, read the pieces to their end."""
        utt, failure = output.loaded.utt, None
        while not isinstance(item := self._queue.get(), _End):
            if isinstance(item, _Stop):
                raise item
            assert isinstance(item, StreamPiece | StreamNodes)
            if failure is None:
                try:
                    self._encoder.take(item, utt.id)
                except LogitStoreError as e:
                    failure = e
        failure = failure or item.error
        if failure is not None:
            self._encoder.drop()
            return self.fail(utt, failure)
        self._shard.add(self._encoder.finish(utt.id, output.labels, record_metadata(output)))
        self.utterances += 1
        self.seconds += output.loaded.seconds
        self.frames += output.T
