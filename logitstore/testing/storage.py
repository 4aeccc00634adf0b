"""Conformance suite of storage backends (:class:`logitstore.storage.base.StorageBackend`).

Run every check on one's own backend, with an empty folder::

    import pytest
    from logitstore.testing import storage as suite

    @pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
    def test_my_backend(check, tmp_path):
        check(MyBackend(), tmp_path)

The checks cover round trips of records, hostile ids, reproducible bytes, and damage to files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptError, FormatError, StoreError
from ..schema.checksums import crc32c
from ..schema.spec import Column
from ..storage import Shard, StorageBackend
from ..storage.base import DTYPES, EncodedRecord, ShardContents
from ..storage.places import Place, open_place
from . import expect

COLUMNS = (
    Column("ctc.logp", "float16", (7,), "two axes"),
    Column("ctc.logz", "float32", (), "one axis"),
    Column("rnnt.ids", "uint16", (3,), "integers"),
    Column("rnnt.labels", "int32", (), "often empty"),
)
IDS = (
    "plain",
    "103-1240-0001_sp1.1",
    "wav/day 1/a b.flac",
    "../../etc/passwd",
    "Ta’ Ħaġrat – 名前.🎤",
    "%2E",
    "~",
    ".",
    "é" * 150,
    "é" * 149 + "è",
    "x" * 300,
    "__logitstore__",
    "UPPER",
    "upper",
)
FLIPS = 60
ABOUT: dict[str, Any] = {"format": "logitstore", "teacher": "a teacher", "streams": []}


def records(
    count: int, columns: Sequence[Column] = COLUMNS, *, ids: Sequence[str] = ()
) -> list[EncodedRecord]:
    """Return records of different lengths, some columns empty, with any bit pattern of their dtypes.

    Args:
        count: number of records.
        columns: columns of the records.
        ids: their ids; ``utt-0000``, ... where there are none.
    """
    random = np.random.default_rng(count)
    made = []
    for i in range(count):
        arrays = {}
        for c in columns:
            n = 0 if c.name.endswith("labels") and i % 2 else 1 + (i * 5) % 4
            size = n * int(np.prod(c.shape, dtype=int)) * np.dtype(c.dtype).itemsize
            raw = random.integers(0, 256, size, np.uint8)
            arrays[c.name] = raw.view(c.dtype).reshape(n, *c.shape)
        name = ids[i] if ids else f"utt-{i:04d}"
        made.append(EncodedRecord(name, {"T": 3, "U": i, "text": '’ 名 \n\t "', "seconds": i / 7}, arrays))
    return made


def write(
    backend: StorageBackend, folder: Path, given: Sequence[EncodedRecord], columns: Sequence[Column] = COLUMNS
) -> tuple[Place, ShardContents]:
    """Write records as shard ``s-0`` of a place at ``folder`` and publish it."""
    place = open_place(folder)
    staged = place.stage("w") / "s-0"
    writer = backend.create(staged, "s-0", columns, ABOUT)
    try:
        for record in given:
            writer.add(record)
        contents = writer.finish()
    finally:
        writer.close()
    place.publish(staged, backend.path("s-0"))
    return place, contents


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Tell whether arrays have equal dtypes, shapes and bits; NaN equals the same NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _expect_same(shard: Shard, given: Sequence[EncodedRecord], columns: Sequence[Column] = COLUMNS) -> None:
    expect(len(shard) == len(given), f"{len(shard)} records of {len(given)} written")
    for i in reversed(range(len(given))):  # not in stored order
        record, was = shard.record(i), given[i]
        expect(record.id == was.id, f"record {i} is {record.id!r}, not {was.id!r}")
        expect(record.meta == {**was.meta, "id": was.id}, f"record {i} has the metadata {record.meta}")
        for c in columns:
            array = record.arrays[c.name]
            expect(same(array, was.arrays[c.name]), f"record {i}: {c.name} differs")
            expect(not array.flags.writeable or not array.size, f"record {i}: {c.name} is a writable view")


def _round_trip(backend: StorageBackend, folder: Path, given: Sequence[EncodedRecord]) -> None:
    place, contents = write(backend, folder, given)
    _expect_same(backend.open(place, "s-0", contents, COLUMNS), given)


def check_one_record(backend: StorageBackend, folder: Path) -> None:
    """Check that one record comes back bit for bit."""
    _round_trip(backend, folder, records(1))


def check_many_records(backend: StorageBackend, folder: Path) -> None:
    """Check that many records come back bit for bit, in any order."""
    _round_trip(backend, folder, records(150))


def check_no_records(backend: StorageBackend, folder: Path) -> None:
    """Check that a shard without records can be written and opened."""
    _round_trip(backend, folder, [])


def check_dtypes(backend: StorageBackend, folder: Path) -> None:
    """Check that every dtype of columns comes back bit for bit."""
    columns = [Column(f"a.{d}", d, (2,) if i % 2 else ()) for i, d in enumerate(DTYPES)]
    given = records(5, columns)
    place, contents = write(backend, folder, given, columns)
    _expect_same(backend.open(place, "s-0", contents, columns), given, columns)


def check_large_records(backend: StorageBackend, folder: Path) -> None:
    """Check that columns larger than one chunk come back bit for bit."""
    big = [Column("a.b", "float16", (5000,))]
    values = np.arange(350 * 5000, dtype=np.uint32).astype(np.uint16).view(np.float16).reshape(350, 5000)
    given = [EncodedRecord(f"u{i}", {}, {"a.b": values[70 * i : 70 * (i + 1)]}) for i in range(5)]
    place, contents = write(backend, folder, given, big)
    _expect_same(backend.open(place, "s-0", contents, big), given, big)


def check_columns_without_items(backend: StorageBackend, folder: Path) -> None:
    """Check that columns without items in any record come back."""
    given = [
        EncodedRecord(f"u{i}", {}, {c.name: np.zeros((0, *c.shape), c.dtype) for c in COLUMNS})
        for i in range(3)
    ]
    _round_trip(backend, folder, given)


def check_ids(backend: StorageBackend, folder: Path) -> None:
    """Check ids with dots, slashes, spaces, quotes and 300 bytes of UTF-8; no file leaves the store."""
    given = records(len(IDS), ids=IDS)
    place, contents = write(backend, folder, given)
    _expect_same(backend.open(place, "s-0", contents, COLUMNS), given)
    for file in contents.files:
        parts = file.path.split("/")
        expect(parts[0] == "shards" and not {"..", ".", ""} & set(parts), f"a file at {file.path!r}")


def check_sealing(backend: StorageBackend, folder: Path) -> None:
    """Check that the shard's contents list every file, each with its size and CRC-32C."""
    place, contents = write(backend, folder, records(4))
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    expect(found == {f.path for f in contents.files}, f"{found} on disk, {contents.files} sealed")
    for file in contents.files:
        data = place.read(file.path)
        expect((len(data), crc32c(data)) == (file.bytes, file.crc32c), f"{file.path} is not as sealed")


def check_same_bytes(backend: StorageBackend, folder: Path) -> None:
    """Check that the same records give the same bytes, wherever and whenever they are written."""
    given = records(20)
    _, one = write(backend, folder / "one", given)
    _, two = write(backend, folder / "elsewhere" / "two", given)
    expect(one == two, "two writes of the same records differ")


def check_wrong_records(backend: StorageBackend, folder: Path) -> None:
    """Check that a record that does not fit the columns is refused and leaves no trace."""
    good = records(3)
    place = open_place(folder)
    staged = place.stage("w") / "s-0"
    writer = backend.create(staged, "s-0", COLUMNS, ABOUT)
    wrong: list[dict[str, Any]] = [
        {"ctc.logp": np.zeros((2, 6), np.float16)},
        {"ctc.logp": np.zeros((2, 7), np.float32)},
        {"ctc.logp": np.zeros((2, 7), ">f2")},
        {"more": np.zeros(2, np.uint8)},
    ]
    for record, change in zip([*good, good[0]], wrong, strict=True):
        try:
            writer.add(EncodedRecord("wrong", record.meta, {**record.arrays, **change}))
        except FormatError:
            continue
        raise AssertionError(f"a record with {change} was taken")
    for meta in ({"x": float("nan")}, {"x": "\ud800"}, {"x": object()}):
        try:
            writer.add(EncodedRecord("wrong", meta, good[0].arrays))
        except FormatError:
            continue
        raise AssertionError(f"a record with {meta} was taken")
    for record in good:
        writer.add(record)
    contents = writer.finish()
    writer.close()
    place.publish(staged, backend.path("s-0"))
    _expect_same(backend.open(place, "s-0", contents, COLUMNS), good)


def check_flipped_bits(backend: StorageBackend, folder: Path) -> None:
    """Check that a flipped bit raises or changes nothing; within a record's own bytes it must raise."""
    given = records(6)
    place, contents = write(backend, folder, given)
    random = np.random.default_rng(0)
    noticed = 0
    sizes = np.array([f.bytes for f in contents.files])
    flips = np.sort(random.choice(int(sizes.sum()), min(FLIPS, int(sizes.sum())), replace=False))
    ends = np.cumsum(sizes)
    for flip in flips.tolist():
        file = contents.files[int(np.searchsorted(ends, flip, side="right"))]
        path, at = folder / file.path, flip - int(ends[ends <= flip].max(initial=0))
        whole = path.read_bytes()
        path.write_bytes(_flip(whole, at, int(random.integers(8))))
        noticed += _is_noticed(backend, place, contents, given, f"bit of byte {at} of {file.path} flipped")
        path.write_bytes(whole)
    expect(noticed > 0, "no flipped bit was noticed")
    needle = given[2].arrays["ctc.logp"].tobytes()
    for file in contents.files:
        whole = place.read(file.path)
        if (at := whole.find(needle)) >= 0:  # where the backend keeps bytes as they are
            (folder / file.path).write_bytes(_flip(whole, at + 3, 0))
            raised = _is_noticed(backend, place, contents, given, "a bit of record 2 flipped")
            expect(raised, "a flipped bit in a record's own bytes was not noticed")
            try:
                backend.open(place, "s-0", contents, COLUMNS).gather([1, 2], ["ctc.logz"])
            except CorruptError as e:
                expect(given[2].id in str(e), f"the record is not named: {e}")
            else:
                raise AssertionError("a flipped bit was not noticed among gathered records")


def _flip(data: bytes, at: int, bit: int) -> bytes:
    """Return bytes with one bit of byte ``at`` flipped."""
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def _is_noticed(
    backend: StorageBackend, place: Place, contents: ShardContents, given: Sequence[EncodedRecord], what: str
) -> bool:
    """Tell whether reading all records raises; raises ``AssertionError`` where it gives other records."""
    try:
        shard = backend.open(place, "s-0", contents, COLUMNS)
        _expect_same(shard, given)
    except StoreError:
        return True
    except AssertionError as e:
        raise AssertionError(f"{what}, without an error: {e}") from None
    return False


def check_cut_files(backend: StorageBackend, folder: Path) -> None:
    """Check that a shortened, longer or missing file raises, unless reading does not need it."""
    given = records(6)
    place, contents = write(backend, folder, given)
    needed = 0
    for file in contents.files:
        path = folder / file.path
        whole = path.read_bytes()
        for size in {0, 1, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:size])
            needed += _is_noticed(backend, place, contents, given, f"{file.path} cut to {size} bytes")
        path.write_bytes(whole + b"\0")
        needed += _is_noticed(backend, place, contents, given, f"{file.path} grew by a byte")
        os.remove(path)
        needed += _is_noticed(backend, place, contents, given, f"{file.path} removed")
        path.write_bytes(whole)
    expect(needed > 0, "no cut file was noticed")


def check_wrong_columns(backend: StorageBackend, folder: Path) -> None:
    """Check that a shard opened with other columns raises or gives the same bytes."""
    given = records(4)
    place, contents = write(backend, folder, given)
    other = (Column("ctc.logp", "int16", (7,)), *COLUMNS[1:])
    try:
        read = backend.open(place, "s-0", contents, other).record(0).arrays["ctc.logp"]
    except (FormatError, CorruptError):
        return
    expect(read.tobytes() == given[0].arrays["ctc.logp"].tobytes(), "other columns gave other bytes")


def check_gathered_records(backend: StorageBackend, folder: Path) -> None:
    """Check that the items of many records come at once, in the order asked for and one record twice."""
    given = records(30)
    place, contents = write(backend, folder, given)
    shard = backend.open(place, "s-0", contents, COLUMNS)
    chosen, names = [7, 29, 0, 7, 1], [c.name for c in COLUMNS[:2]] + [COLUMNS[-1].name]
    found = shard.gather(chosen, names)
    expect(list(found) == names, f"columns {list(found)} of {names}")
    for name, (items, counts) in found.items():
        was = [given[i].arrays[name] for i in chosen]
        expect(counts.tolist() == list(map(len, was)), f"{name}: {counts} items")
        expect(same(items, np.concatenate(was)), f"{name} differs")
    expect(shard.table.U[chosen].tolist() == [given[i].meta["U"] for i in chosen], "other lengths")
    nothing = shard.gather([], names)
    expect(all(not len(items) and not len(n) for items, n in nothing.values()), "items of no records")


def check_one_file(backend: StorageBackend, folder: Path) -> None:
    """Check that a shard is one file, of which a writer holds one open, and an opened shard none."""
    before = len(os.listdir("/proc/self/fd"))
    writer = backend.create(open_place(folder).stage("x") / "s-0", "s-0", COLUMNS, ABOUT)
    for record in records(20):
        writer.add(record)
    held = len(os.listdir("/proc/self/fd")) - before
    writer.close()
    expect(held <= 1, f"a writer holds {held} files open")
    place, contents = write(backend, folder, records(20))
    expect([f.path for f in contents.files] == [backend.path("s-0")], f"the files {contents.files}")
    shards = [backend.open(place, "s-0", contents, COLUMNS) for _ in range(20)]
    for shard in shards:
        shard.record(3)
    after = len(os.listdir("/proc/self/fd"))
    expect(after == before, f"20 shards keep {after - before} files open")


def check_description(backend: StorageBackend, folder: Path) -> None:
    """Check that a shard carries the description that it was given."""
    place, contents = write(backend, folder, records(2))
    about = backend.open(place, "s-0", contents, COLUMNS).table.about
    expect(about == {**ABOUT, "shard": "s-0"}, f"it says {about}")


CHECKS: tuple[Callable[[StorageBackend, Path], None], ...] = (
    check_one_record,
    check_many_records,
    check_no_records,
    check_dtypes,
    check_large_records,
    check_columns_without_items,
    check_ids,
    check_sealing,
    check_same_bytes,
    check_wrong_records,
    check_flipped_bits,
    check_cut_files,
    check_wrong_columns,
    check_gathered_records,
    check_one_file,
    check_description,
)
