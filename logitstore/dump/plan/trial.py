"""One encoding tried on a sample: written as a dump does, weighed, timed, compared with the teacher."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ...encodings.base import LatticeSides
from ...encodings.rows import logsumexp
from ...runner.driver import TeacherDriver, TeacherOutput
from ...runner.pipe import row_meta
from ...schema.checksums import canonical
from ...schema.lattice import Form, Nodes, full
from ...schema.spec import Column, StoreSpec
from ...storage import parse_storage
from ...storage.base import EncodedRecord, ShardWriter
from ...storage.constants import Constants
from ...storage.entries import Entry
from ...storage.places import Place
from ...store.identity import establish
from ...store.inspect import Footprint, footprint
from ...store.lattice_nodes import Picker
from ...store.layout import columns_of, encoding_of
from ...store.reader import Store
from ...store.row_encoder import RowEncoder
from ...tokens.table import TokenTable

ROOM = 64 << 20  # bytes of a shard on trial before it is weighed and removed
HELD = 1 << 24  # logits of a lattice that are held; a larger one is driven anew for each encoding
LOOKED_AT, ELEMENTS = 500, 1 << 20  # rows of an utterance, and logits, that divergences are measured on


class Lattice:
    """The joiner's slices of one utterance: driven once and held where they are few.

    Attributes:
        seconds: spent in the joiner.
        once: those of the first drive.
        drives: how often slices were asked for.
    """

    def __init__(self, driver: TeacherDriver, output: TeacherOutput) -> None:
        self._driver, self._output = driver, output
        self._pieces: list[torch.Tensor] = []
        nodes = output.T * (len(output.labels.get("rnnt", ())) + 1)
        self._holds, self._whole = nodes * len(driver.table) <= HELD, False
        self.seconds = self.once = 0.0
        self.drives = 0

    def __call__(self) -> Iterator[torch.Tensor]:
        self.drives += 1
        if self._whole:
            yield from self._pieces
            return
        before, slices = self.seconds, self._driver.lattice(self._output)
        while True:
            begin = time.perf_counter()
            piece = next(slices, None)
            settle(self._driver.device)
            self.seconds += time.perf_counter() - begin
            if piece is None:
                break
            if self._holds:
                self._pieces.append(piece)
            yield piece
        self.once = self.once or self.seconds - before
        self._whole = self._holds


class _Papers:
    """The files of a store beside its shards, in memory: all that these need of a place."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def __str__(self) -> str:
        return "a store on trial"

    def exists(self, name: str = "") -> bool:
        return name in self._files

    def names(self, folder: str) -> list[str]:
        return []  # no shard is sealed here

    def size(self, name: str) -> int:
        return len(self._files[name])

    def read(self, name: str) -> bytes:
        return self._files[name]

    def write(self, name: str, data: bytes) -> None:
        self._files[name] = data


Nothing = dict[tuple[str, tuple[Column, ...]], tuple[int, float]]


class Shelf:
    """A store on trial: real shards in a temporary folder, weighed and removed; the rest in memory.

    Args:
        folder: of its shards.
        spec: of the store.
        table: its token table.
        made: what it keeps once.
        nothing: bytes and seconds of a shard that holds nothing, by storage and columns; filled in here.

    Attributes:
        spec: of the store.
        fixed: bytes of a shard that holds nothing, its entry included: every shard of a dump has them.
        seconds: spent writing, without what an empty shard takes.
    """

    def __init__(
        self, folder: Path, spec: StoreSpec, table: TokenTable, made: Constants, nothing: Nothing
    ) -> None:
        self.place = cast(Place, _Papers())
        self.spec = establish(self.place, spec, table, set(), made)
        self._storage, self._columns = parse_storage(spec.storage["name"]), columns_of(spec)
        self._storage.describe(self.place, {"format": "logitstore", "version": spec.version})
        self._folder = folder
        self._shard: ShardWriter | None = None
        self._ids: list[str] = []
        self._frames, self._audio = 0, 0.0
        self._waiting = self._bytes = 0
        self.seconds, self.fixed = 0.0, 0
        key = (spec.storage["name"], self._columns)
        if key not in nothing:
            self._begin()
            begin = time.perf_counter()
            nothing[key] = self._end(), time.perf_counter() - begin
        self.fixed, self._empty = nothing[key]

    def add(self, row: EncodedRecord) -> None:
        """Write a row as a dump does."""
        begin = time.perf_counter()
        if self._shard is None:
            self._begin()
        assert self._shard is not None
        self._shard.add(row)
        self._ids.append(row.id)
        self._frames, self._audio = self._frames + row.meta["T"], self._audio + row.meta["seconds"]
        self._waiting += sum(a.nbytes for a in row.arrays.values())
        if self._waiting > ROOM:
            self._weigh()
        self.seconds += time.perf_counter() - begin

    def _begin(self) -> None:
        self._shard = self._storage.create(self._folder, "000000", self._columns)

    def _end(self) -> int:
        """Bytes of the open shard and of its entry; it is removed."""
        assert self._shard is not None
        entry = Entry("000000", tuple(self._ids), self._audio, self._frames, self._shard.finish())
        self.close()
        return entry.bytes + len(entry.to_bytes())

    def _weigh(self) -> None:
        self._bytes += self._end() - self.fixed
        self._ids, self._frames, self._audio, self._waiting = [], 0, 0.0, 0

    def weight(self) -> Footprint:
        """Bytes of all rows, beside what every shard has, and of what the store keeps once."""
        begin = time.perf_counter()
        if self._shard is not None:
            self._weigh()
            self.seconds += max(0.0, time.perf_counter() - begin - self._empty)
        return Footprint(self._bytes, footprint(self.place, self.spec, ()).once)

    def close(self) -> None:
        """Remove what is there."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None
            (shutil.rmtree if self._folder.is_dir() else os.unlink)(self._folder)


class Trial:
    """One encoding of one stream.

    Args:
        encoding: as a user writes it, form included.
        shelves: by storage; rows are encoded once and written to each.
        temperatures: that rows are compared at.

    Attributes:
        seconds: spent encoding.
        passes: drives of the joiner, over all utterances.
        lost: (N,) nats of each row looked at, by temperature and utterance; of a layer, relative errors at 1.
        common: bytes of the rows that another stream in the same store would share.
        held: share of the teacher's alignments that the nodes kept hold.
    """

    def __init__(
        self, encoding: str, stream: str, shelves: Mapping[str, Shelf], temperatures: Sequence[float]
    ) -> None:
        first = next(iter(shelves.values()))
        self.encoding, self.shelves = encoding, shelves
        self.stream, self._store = first.spec.stream(stream), Store(first.place)
        self._encoder = RowEncoder(first.spec, self._store.constants)
        self._sides = isinstance(encoding_of(self.stream), LatticeSides)
        kept = temperatures if self.stream.stream_kind.classes else (1.0,)
        self.lost: dict[float, list[NDArray[np.float64]]] = {t: [] for t in kept}
        self.seconds, self.passes, self.common = 0.0, 0, 0
        self._occupied = self._nodes = 0.0

    @property
    def held(self) -> float:
        return self._occupied / self._nodes if self._nodes else 1.0

    def take(
        self,
        driver: TeacherDriver,
        output: TeacherOutput,
        lattice: Lattice | None = None,
        occupied: NDArray[np.float64] | None = None,
    ) -> None:
        """Encode, write and compare one utterance; raises what the encoding refuses.

        Args:
            driver: of the teacher.
            output: what the teacher said, a decoder's rows among its rows.
            lattice: where the stream is one.
            occupied: (T, U+1) of :func:`logitstore.store.lattice_nodes.occupancy`.
        """
        begin, joined = time.perf_counter(), lattice.seconds if lattice else 0.0
        drives = lattice.drives if lattice else 0
        try:
            nodes = self._encode(driver, output, lattice)
            row = self._encoder.finish(output.loaded.utt.id, output.labels, row_meta(output))
        except BaseException:
            self._encoder.drop()
            raise
        self.seconds += time.perf_counter() - begin
        if lattice is not None:
            self.seconds -= lattice.seconds - joined
            self.passes += lattice.drives - drives
        for shelf in self.shelves.values():
            shelf.add(row)
        # The row's text, its line of the table, its name in the entry.
        self.common += len(canonical({**row.meta, "id": row.id})) + 12 + len(row.id.encode()) + 4
        if occupied is not None and nodes is not None:
            self._occupied += float(occupied[nodes.frame, nodes.position].sum())
            self._nodes += float(occupied.sum())
        self._compare(row, output, lattice)

    def _encode(self, driver: TeacherDriver, output: TeacherOutput, lattice: Lattice | None) -> Nodes | None:
        loaded, name = output.loaded, self.stream.name
        if self._sides:
            enc, dec = driver.sides(output)
            self._encoder.take(name, enc, loaded.utt.id, inputs=dec)
        elif lattice is not None:
            labels = output.labels.get(name, [])
            picker = Picker(self.stream, labels, loaded.utt.id)
            for rows, always in picker.rows(lattice, output.T):
                self._encoder.take(name, rows, loaded.utt.id, labels, always=always)
            if picker.nodes is not None:
                self._encoder.choose(name, picker.nodes)
            return picker.nodes
        else:
            rows, inputs = output.rows[name], output.inputs.get(name)
            self._encoder.take(name, rows, loaded.utt.id, output.labels.get(name), inputs=inputs)
        return None

    def _compare(self, row: EncodedRecord, output: TeacherOutput, lattice: Lattice | None) -> None:
        """Some rows, spread over the utterance, as a reader gets them, against the teacher's own."""
        target = self._store.decode(row)
        if not self.stream.stream_kind.classes:
            numbers = output.rows[self.stream.name].double().cpu().numpy()
            self.lost[1.0].append(relative_errors(numbers, target.vectors(self.stream.name)))
            return
        rows = target[self.stream.name]
        some = max(1, min(LOOKED_AT, ELEMENTS // rows.classes, len(rows)))
        index = np.arange(some) * len(rows) // some
        if lattice is None:
            logits = output.rows[self.stream.name]
            own = logits[torch.from_numpy(index).to(logits.device)].double().cpu().numpy()
        elif Form.parse(self.stream.form).framewise:
            picker = Picker(self.stream, target.labels.tolist(), target.id)
            means = torch.cat([rows for rows, _ in picker.rows(lattice, target.T)])
            own = means[torch.from_numpy(index).to(means.device)].double().cpu().numpy()
        else:
            own = _own(lattice, target.nodes.get(self.stream.name) or full(target.T, target.U), index)
        served = rows.take(index)
        for temperature, found in self.lost.items():
            found.append(divergences(own, served.at(temperature).dense(), temperature))


def _own(lattice: Lattice, nodes: Nodes, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, V) the teacher's own logits of some of a lattice's nodes."""
    frame, position = nodes.frame[index], nodes.position[index]
    found, t = [], 0
    for piece in lattice():
        low, high = np.searchsorted(frame, [t, t + len(piece)])
        at = torch.from_numpy((frame[low:high] - t) * piece.shape[1] + position[low:high]).to(piece.device)
        found.append(piece.reshape(-1, piece.shape[-1])[at].double().cpu().numpy())
        t += len(piece)
    return np.concatenate(found)


def settle(device: torch.device) -> None:
    """Wait for a GPU, so that a clock beside it tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def relative_errors(own: NDArray[Any], served: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) |served - own|² / |own|² of every row of (N, D) numbers; 0 of a row of zeros that is served."""
    exact = own.astype(np.float64)
    missed = np.square(served - exact).sum(1)
    return np.asarray(missed / np.maximum(np.square(exact).sum(1), 1e-30))


def divergences(own: NDArray[Any], served: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """(N,) nats: KL(teacher ‖ stored) of every row.

    Args:
        own: (N, V) logits of the teacher.
        served: (N, V) log-probabilities at the temperature.
        temperature: of the softmax over ``own``.
    """
    exact, given = own.astype(np.float64) / temperature, served.astype(np.float64)
    exact -= logsumexp(exact)[:, None]
    given -= logsumexp(given)[:, None]  # float32 sums to one within 1e-7, which would drown the smallest
    return np.asarray((np.exp(exact) * (exact - given)).sum(1))
