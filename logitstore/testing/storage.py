"""What every storage must do. For one's own::

@pytest.mark.parametrize("check", storage.CHECKS, ids=lambda c: c.__name__)
def test_mine(check, tmp_path):
    check(MyStorage(), tmp_path)
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


def rows(count: int, columns: Sequence[Column] = COLUMNS, *, ids: Sequence[str] = ()) -> list[EncodedRecord]:
    """Rows of different lengths, some of them empty, with every bit pattern of their dtypes."""
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
    storage: StorageBackend, folder: Path, given: Sequence[EncodedRecord], columns: Sequence[Column] = COLUMNS
) -> tuple[Place, ShardContents]:
    """Write rows as shard ``s-0`` of a place at ``folder`` and publish it."""
    place = open_place(folder)
    staged = place.stage("w") / "s-0"
    writer = storage.create(staged, "s-0", columns)
    try:
        for row in given:
            writer.add(row)
        contents = writer.finish()
    finally:
        writer.close()
    place.publish(staged, storage.path("s-0"))
    return place, contents


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Equal dtypes, shapes and bits; NaN equals the same NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _agree(shard: Shard, given: Sequence[EncodedRecord], columns: Sequence[Column] = COLUMNS) -> None:
    expect(len(shard) == len(given), f"{len(shard)} rows of {len(given)} written")
    for i in reversed(range(len(given))):  # not in stored order
        row, was = shard.record(i), given[i]
        expect(row.id == was.id, f"row {i} is {row.id!r}, not {was.id!r}")
        expect(row.meta == {**was.meta, "id": was.id}, f"row {i} says {row.meta}")
        for c in columns:
            expect(same(row.arrays[c.name], was.arrays[c.name]), f"row {i}: {c.name} differs")
            expect(not row.arrays[c.name].flags.writeable or not row.arrays[c.name].size, "a writable view")


def _round_trip(storage: StorageBackend, folder: Path, given: Sequence[EncodedRecord]) -> None:
    place, contents = write(storage, folder, given)
    _agree(storage.open(place, "s-0", contents, COLUMNS), given)


def check_one_row(storage: StorageBackend, folder: Path) -> None:
    """One row comes back bit for bit."""
    _round_trip(storage, folder, rows(1))


def check_many_rows(storage: StorageBackend, folder: Path) -> None:
    """Many rows come back bit for bit, in any order."""
    _round_trip(storage, folder, rows(150))


def check_no_rows(storage: StorageBackend, folder: Path) -> None:
    """A shard of no rows can be written and opened."""
    _round_trip(storage, folder, [])


def check_dtypes(storage: StorageBackend, folder: Path) -> None:
    """Every dtype a column may have comes back bit for bit."""
    columns = [Column(f"a.{d}", d, (2,) if i % 2 else ()) for i, d in enumerate(DTYPES)]
    given = rows(5, columns)
    place, contents = write(storage, folder, given, columns)
    _agree(storage.open(place, "s-0", contents, columns), given, columns)


def check_large_rows(storage: StorageBackend, folder: Path) -> None:
    """Columns larger than any one chunk come back bit for bit."""
    big = [Column("a.b", "float16", (5000,))]
    values = np.arange(350 * 5000, dtype=np.uint32).astype(np.uint16).view(np.float16).reshape(350, 5000)
    given = [EncodedRecord(f"u{i}", {}, {"a.b": values[70 * i : 70 * (i + 1)]}) for i in range(5)]
    place, contents = write(storage, folder, given, big)
    _agree(storage.open(place, "s-0", contents, big), given, big)


def check_columns_without_items(storage: StorageBackend, folder: Path) -> None:
    """Columns that are empty in one row, or in all of them."""
    given = [
        EncodedRecord(f"u{i}", {}, {c.name: np.zeros((0, *c.shape), c.dtype) for c in COLUMNS})
        for i in range(3)
    ]
    _round_trip(storage, folder, given)


def check_ids(storage: StorageBackend, folder: Path) -> None:
    """Ids with dots, slashes, spaces, quotes, 300 bytes of UTF-8; none escapes the store."""
    given = rows(len(IDS), ids=IDS)
    place, contents = write(storage, folder, given)
    _agree(storage.open(place, "s-0", contents, COLUMNS), given)
    for file in contents.files:
        parts = file.path.split("/")
        expect(parts[0] == "shards" and not {"..", ".", ""} & set(parts), f"a file at {file.path!r}")


def check_sealing(storage: StorageBackend, folder: Path) -> None:
    """The contents list every file there is, each with its size and CRC-32C."""
    place, contents = write(storage, folder, rows(4))
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    expect(found == {f.path for f in contents.files}, f"{found} on disk, {contents.files} sealed")
    for file in contents.files:
        data = place.read(file.path)
        expect((len(data), crc32c(data)) == (file.bytes, file.crc32c), f"{file.path} is not as sealed")


def check_same_bytes(storage: StorageBackend, folder: Path) -> None:
    """The same rows give the same bytes, wherever and whenever they are written."""
    given = rows(20)
    _, one = write(storage, folder / "one", given)
    _, two = write(storage, folder / "elsewhere" / "two", given)
    expect(one == two, "two writes of the same rows differ")


def check_wrong_rows(storage: StorageBackend, folder: Path) -> None:
    """A row that is not as the columns say is refused and leaves no trace."""
    good = rows(3)
    place = open_place(folder)
    staged = place.stage("w") / "s-0"
    writer = storage.create(staged, "s-0", COLUMNS)
    wrong: list[dict[str, Any]] = [
        {"ctc.logp": np.zeros((2, 6), np.float16)},
        {"ctc.logp": np.zeros((2, 7), np.float32)},
        {"ctc.logp": np.zeros((2, 7), ">f2")},
        {"more": np.zeros(2, np.uint8)},
    ]
    for row, change in zip([*good, good[0]], wrong, strict=True):
        try:
            writer.add(EncodedRecord("wrong", row.meta, {**row.arrays, **change}))
        except FormatError:
            continue
        raise AssertionError(f"a row with {change} was taken")
    for meta in ({"x": float("nan")}, {"x": "\ud800"}, {"x": object()}):
        try:
            writer.add(EncodedRecord("wrong", meta, good[0].arrays))
        except FormatError:
            continue
        raise AssertionError(f"a row with {meta} was taken")
    for row in good:
        writer.add(row)
    contents = writer.finish()
    writer.close()
    place.publish(staged, storage.path("s-0"))
    _agree(storage.open(place, "s-0", contents, COLUMNS), good)


def check_flipped_bits(storage: StorageBackend, folder: Path) -> None:
    """A flipped bit anywhere is an error or changes nothing; inside a row's own bytes it is an error."""
    given = rows(6)
    place, contents = write(storage, folder, given)
    random = np.random.default_rng(0)
    found = 0
    sizes = np.array([f.bytes for f in contents.files])
    flips = np.sort(random.choice(int(sizes.sum()), min(FLIPS, int(sizes.sum())), replace=False))
    ends = np.cumsum(sizes)
    for flip in flips.tolist():
        file = contents.files[int(np.searchsorted(ends, flip, side="right"))]
        path, at = folder / file.path, flip - int(ends[ends <= flip].max(initial=0))
        whole = path.read_bytes()
        path.write_bytes(_flip(whole, at, int(random.integers(8))))
        found += _noticed(storage, place, contents, given, f"bit of byte {at} of {file.path} flipped")
        path.write_bytes(whole)
    expect(found > 0, "no flipped bit was noticed")
    needle = given[2].arrays["ctc.logp"].tobytes()
    for file in contents.files:
        whole = place.read(file.path)
        if (at := whole.find(needle)) >= 0:  # where a storage keeps bytes as they are
            (folder / file.path).write_bytes(_flip(whole, at + 3, 0))
            noticed = _noticed(storage, place, contents, given, "a bit of row 2 flipped")
            expect(noticed, "a flipped bit in a row's own bytes was not noticed")


def _flip(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def _noticed(
    storage: StorageBackend, place: Place, contents: ShardContents, given: Sequence[EncodedRecord], what: str
) -> bool:
    """Whether reading everything raised; raises ``AssertionError`` where it gave something wrong."""
    try:
        shard = storage.open(place, "s-0", contents, COLUMNS)
        _agree(shard, given)
    except StoreError:
        return True
    except AssertionError as e:
        raise AssertionError(f"{what}, and nobody noticed: {e}") from None
    return False


def check_cut_files(storage: StorageBackend, folder: Path) -> None:
    """A file that was cut or is gone is an error, or holds nothing that reading needs."""
    given = rows(6)
    place, contents = write(storage, folder, given)
    needed = 0
    for file in contents.files:
        path = folder / file.path
        whole = path.read_bytes()
        for size in {0, 1, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:size])
            needed += _noticed(storage, place, contents, given, f"{file.path} cut to {size} bytes")
        path.write_bytes(whole + b"\0")
        needed += _noticed(storage, place, contents, given, f"{file.path} grew by a byte")
        os.remove(path)
        needed += _noticed(storage, place, contents, given, f"{file.path} removed")
        path.write_bytes(whole)
    expect(needed > 0, "no cut file was noticed")


def check_wrong_columns(storage: StorageBackend, folder: Path) -> None:
    """A shard opened with other columns than it was written with is an error, not other numbers."""
    given = rows(4)
    place, contents = write(storage, folder, given)
    other = (Column("ctc.logp", "int16", (7,)), *COLUMNS[1:])
    try:
        read = storage.open(place, "s-0", contents, other).record(0).arrays["ctc.logp"]
    except (FormatError, CorruptError):
        return
    expect(read.tobytes() == given[0].arrays["ctc.logp"].tobytes(), "other columns gave other bytes")


CHECKS: tuple[Callable[[StorageBackend, Path], None], ...] = (
    check_one_row,
    check_many_rows,
    check_no_rows,
    check_dtypes,
    check_large_rows,
    check_columns_without_items,
    check_ids,
    check_sealing,
    check_same_bytes,
    check_wrong_rows,
    check_flipped_bits,
    check_cut_files,
    check_wrong_columns,
)
