"""One encoding tried on a sample: encoded and written as in a dump, weighed, timed, compared with the teacher."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...encodings.rows import logsumexp
from ...runner.driver import TeacherDriver, TeacherOutput
from ...runner.pipe import record_metadata, stream_output
from ...schema.spec import Column, StoreSpec
from ...storage import parse_storage
from ...storage.base import EncodedRecord, ShardWriter
from ...storage.constants import Constants
from ...storage.entries import Entry
from ...storage.places import open_place
from ...storage.record_metadata import BLOCK_RECORDS, gzip_member, metadata_line
from ...store.identity import establish
from ...store.inspect import Footprint, footprint
from ...store.layout import about_shards, columns_of
from ...store.reader import Store
from ...store.record_encoder import RecordEncoder
from ...store.stream_output import StreamOutput, encode, own_rows
from ...tokens.table import TokenTable

SHARD_BYTES = 64 << 20  # of encoded records, after which a trial's shard is weighed and removed
HELD_LOGITS = 1 << 24  # of a lattice that stays in memory; a larger one is driven again for each encoding
COMPARED_ROWS, COMPARED_LOGITS = 500, 1 << 20  # of an utterance: more rows take longer and say no more


class TimedLattice:
    """The joiner's slices of one utterance: driven once and held where they are few.

    Attributes:
        seconds: time spent in the joiner.
        once: time that the first drive took.
        drives: how often the slices were asked for.
    """

    def __init__(self, driver: TeacherDriver, output: TeacherOutput) -> None:
        self._driver, self._output = driver, output
        self._slices: list[torch.Tensor] = []
        nodes = output.T * (len(output.labels.get("rnnt", ())) + 1)
        self._holds, self._complete = nodes * len(driver.table) <= HELD_LOGITS, False
        self.seconds = self.once = 0.0
        self.drives = 0

    def __call__(self) -> Iterator[torch.Tensor]:
        self.drives += 1
        if self._complete:
            yield from self._slices
            return
        before, slices = self.seconds, self._driver.lattice(self._output)
        while True:
            begin = time.perf_counter()
            piece = next(slices, None)
            synchronise(self._driver.device)
            self.seconds += time.perf_counter() - begin
            if piece is None:
                break
            if self._holds:
                self._slices.append(piece)
            yield piece
        self.once = self.once or self.seconds - before
        self._complete = self._holds


EmptyShards = dict[tuple[str, tuple[Column, ...]], tuple[int, float]]


class TrialStore:
    """A temporary store: shards are written as a dump writes them, weighed and removed.

    Args:
        folder: folder of the store.
        spec: description of the store.
        table: token table.
        made: arrays that the store keeps once.
        empty: bytes and seconds of a shard without a record, by storage and columns; filled in here.

    Attributes:
        spec: description of the store.
        fixed: bytes that every shard has whatever it holds, its entry included.
        bare: those of them that a shard without columns has; further streams of the same store would share them.
        seconds: time spent writing records, without the time that an empty shard takes.
    """

    def __init__(
        self, folder: Path, spec: StoreSpec, table: TokenTable, made: Constants, empty: EmptyShards
    ) -> None:
        folder.mkdir()
        self.place = open_place(folder)
        self.spec = establish(self.place, spec, table, set(), made)
        self._storage, self._columns = parse_storage(spec.storage["name"]), columns_of(spec)
        self._staged = folder / "trial"
        self._shard: ShardWriter | None = None
        self._ids: list[str] = []
        self._frames, self._audio = 0, 0.0
        self._waiting = self._bytes = 0
        self.seconds, self.fixed = 0.0, 0
        name, columns = spec.storage["name"], self._columns
        for key in ((name, ()), (name, columns)):
            if key not in empty:
                self._columns = key[1]
                self._begin()
                begin = time.perf_counter()
                empty[key] = self._end(), time.perf_counter() - begin
        self._columns = columns
        self.fixed, self._empty = empty[name, columns]
        self.bare = empty[name, ()][0]

    def add(self, record: EncodedRecord) -> None:
        """Write a record."""
        begin = time.perf_counter()
        if self._shard is None:
            self._begin()
        assert self._shard is not None
        self._shard.add(record)
        self._ids.append(record.id)
        self._frames, self._audio = self._frames + record.meta["T"], self._audio + record.meta["seconds"]
        self._waiting += sum(a.nbytes for a in record.arrays.values())
        if self._waiting > SHARD_BYTES:
            self._weigh()
        self.seconds += time.perf_counter() - begin

    def weight(self) -> Footprint:
        """Return the bytes of all records, without those of every shard, and of arrays kept once."""
        begin = time.perf_counter()
        if self._shard is not None:
            self._weigh()
            self.seconds += max(0.0, time.perf_counter() - begin - self._empty)
        return Footprint(self._bytes, footprint(self.place, self.spec, ()).once)

    def close(self) -> None:
        """Remove the open shard."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None
            with suppress(FileNotFoundError):
                os.unlink(self._staged)

    def _begin(self) -> None:
        self._shard = self._storage.create(self._staged, "000000", self._columns, about_shards(self.spec))

    def _end(self) -> int:
        """Finish and remove the open shard; return its bytes and those of its entry."""
        assert self._shard is not None
        contents = self._shard.finish()
        entry = Entry(
            "000000", tuple(self._ids), self._audio, self._frames, contents, identity=self.spec.identity
        )
        self.close()
        return entry.bytes + len(entry.to_bytes())

    def _weigh(self) -> None:
        self._bytes += self._end() - self.fixed
        self._ids, self._frames, self._audio, self._waiting = [], 0, 0.0, 0


class Trial:
    """One encoding of one stream on the sample.

    Args:
        encoding: the encoding as a user writes it, lattice form included.
        stores: temporary stores by storage; records are encoded once and written to each.
        temperatures: temperatures at which rows are compared.

    Attributes:
        seconds: time spent encoding.
        passes: drives of the joiner, over all utterances.
        lost: (N,) nats that each compared row loses, by temperature and utterance; of a layer, relative
            squared errors at 1.
    """

    def __init__(
        self, encoding: str, stream: str, stores: Mapping[str, TrialStore], temperatures: Sequence[float]
    ) -> None:
        first = next(iter(stores.values()))
        self.encoding, self.stores = encoding, stores
        self.stream, self._reader = first.spec.stream(stream), Store(first.place)
        self._encoder = RecordEncoder(first.spec, self._reader.constants)
        kept = temperatures if self.stream.stream_kind.classes else (1.0,)
        self.lost: dict[float, list[NDArray[np.float64]]] = {t: [] for t in kept}
        self.seconds, self.passes = 0.0, 0
        self._lines, self._shared = list[bytes](), 0
        self._kept_occupancy = self._occupancy = 0.0
        self._changed = self._compared = 0

    @property
    def common(self) -> int:
        """Bytes of the records' metadata, which further streams of the same store would share."""
        first = range(0, len(self._lines), BLOCK_RECORDS)
        blocks = (b"\n".join(self._lines[i : i + BLOCK_RECORDS]) for i in first)
        return self._shared + sum(len(gzip_member(block)) for block in blocks)

    @property
    def own_once(self) -> int:
        """Bytes of the stream's constants; everything else that a store keeps once is shared by its streams."""
        return sum(a.nbytes for a in self._reader.constants.get(self.stream.name, {}).values())

    @property
    def changed(self) -> float | None:
        """Share of compared rows whose best class is not the teacher's; None for the numbers of a layer."""
        return self._changed / self._compared if self._compared else None

    @property
    def held(self) -> float:
        """Share of the teacher's alignments that pass through the lattice nodes kept; 1 without a choice."""
        return self._kept_occupancy / self._occupancy if self._occupancy else 1.0

    def take(
        self,
        driver: TeacherDriver,
        output: TeacherOutput,
        lattice: TimedLattice | None = None,
        occupied: NDArray[np.float64] | None = None,
    ) -> None:
        """Encode, write and compare one utterance; raises the encoding's own errors.

        Args:
            driver: driver of the teacher.
            output: the teacher's output, with the rows of an attention decoder.
            lattice: slices of the joiner, where the stream is a lattice.
            occupied: (T, U+1) of :func:`logitstore.store.lattice_nodes.occupancy`.
        """
        name, utt_id = self.stream.name, output.loaded.utt.id
        exact = stream_output(self.stream, output, driver)
        if lattice is not None:
            exact = replace(exact, slices=lattice)
        begin, joined = time.perf_counter(), lattice.seconds if lattice else 0.0
        drives = lattice.drives if lattice else 0
        try:
            nodes = encode(self._encoder, self.stream, exact, utt_id)
            record = self._encoder.finish(utt_id, output.labels, record_metadata(output))
        except BaseException:
            self._encoder.drop()
            raise
        self.seconds += time.perf_counter() - begin
        if lattice is not None:
            self.seconds -= lattice.seconds - joined
            self.passes += lattice.drives - drives
        for store in self.stores.values():
            store.add(record)
        self._lines.append(metadata_line(record))
        self._shared += 12 + 2 * (
            len(record.id.encode()) + 1
        )  # in the shard's table, the entry and the index
        if occupied is not None and nodes is not None:
            self._kept_occupancy += float(occupied[nodes.frame, nodes.position].sum())
            self._occupancy += float(occupied.sum())
        self._compare(record, exact, name)

    def _compare(self, record: EncodedRecord, exact: StreamOutput, name: str) -> None:
        """Compare some rows, spread over the utterance, as a reader gets them, with the teacher's own."""
        target = self._reader.decode(record)
        if not self.stream.stream_kind.classes:
            own = own_rows(self.stream, exact, record.id)
            self.lost[1.0].append(relative_errors(own, target.vectors(name)))
            return
        rows = target[name]
        some = max(1, min(COMPARED_ROWS, COMPARED_LOGITS // rows.classes, len(rows)))
        index = np.arange(some) * len(rows) // some
        own = own_rows(self.stream, exact, record.id, nodes=target.nodes.get(name), index=index)
        served = rows.take(index)
        best = served.at(1.0).dense().argmax(1)
        self._changed, self._compared = (
            self._changed + int((best != own.argmax(1)).sum()),
            self._compared + len(best),
        )
        for temperature, found in self.lost.items():
            found.append(divergences(own, served.at(temperature).dense(), temperature))


def synchronise(device: torch.device) -> None:
    """Wait for a GPU's queue, so that a clock measures the work done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def relative_errors(own: NDArray[Any], served: NDArray[Any]) -> NDArray[np.float64]:
    """Return (N,) |served - own|² / |own|² of (N, D) rows; 0 for a row of zeros that is served as such."""
    exact = own.astype(np.float64)
    missed = np.square(served - exact).sum(1)
    return np.asarray(missed / np.maximum(np.square(exact).sum(1), 1e-30))


def divergences(own: NDArray[Any], served: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Return (N,) KL(teacher ‖ stored) of every row in nats.

    Args:
        own: (N, V) logits of the teacher.
        served: (N, V) log-probabilities at the temperature.
        temperature: softmax temperature that ``own`` is taken at.
    """
    exact, given = own.astype(np.float64) / temperature, served.astype(np.float64)
    exact -= logsumexp(exact)[:, None]
    given -= logsumexp(given)[:, None]  # float32 sums to one within 1e-7, more than the smallest divergence
    return np.asarray((np.exp(exact) * (exact - given)).sum(1))
