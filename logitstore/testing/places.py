"""Conformance suite of places. In a test of one's own place::

    @pytest.mark.parametrize("check", places.CHECKS, ids=lambda c: c.__name__)
    def test_my_place(check):
        location = new_empty_location()
        check(lambda: my_module.at(location))

Every check gets a function that opens the same location again; at first it holds nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from ..errors import StoreBusy
from ..schema.spec import TeacherSpec
from ..storage.catalog import read_catalog
from ..storage.commit import UnsealedShard, finish_store
from ..storage.entries import read_entry
from ..storage.places import Place, open_place
from ..storage.spec_file import read_spec, write_spec
from ..store.layout import about_shards, columns_of, make_spec
from ..tokens.table import TokenTable
from . import expect
from .storage import records, same

OpenPlace = Callable[[], Place]
WAIT_SECONDS = 30.0
TURNS = 20


def check_location(open_again: OpenPlace) -> None:
    """Check that ``str()`` of a place is its location, and that ``open_place`` returns a place unchanged."""
    place = open_again()
    expect(bool(str(place)), "str() of the place is empty")
    expect(str(place) == str(open_again()), "the same location has two names")
    expect(open_place(place) is place, "open_place does not return the place it was given")


def check_nothing_there(open_again: OpenPlace) -> None:
    """Check that an empty location has no names; reading raises ``FileNotFoundError`` and removing does nothing."""
    place = open_again()
    expect(not place.exists("logitstore.json"), "a file exists at an empty location")
    expect(place.names("") == [], f"names at an empty location: {place.names('')}")
    expect(place.names("sealed") == [], "names below a folder that does not exist")
    for name in ("x", "no/such/file"):
        for read in (place.read, place.size, place.map):
            try:
                read(name)
            except FileNotFoundError:
                continue
            raise AssertionError(f"{read.__name__}({name!r}) of a missing file raised no FileNotFoundError")
        place.remove(name)


def check_files(open_again: OpenPlace) -> None:
    """Files come back as written, through every handle, and a write replaces the whole file."""
    place, other = open_again(), open_again()
    contents = {"x": b"1", "sealed/a.json": b"", "sealed/b.json": bytes(range(256)) * 300, "a/b/c.d": b"abc"}
    for name, data in contents.items():
        place.write(name, b"something longer that was there before" * 1000)
        place.write(name, data)
    for name, data in contents.items():
        for handle in (place, other):
            expect(handle.exists(name), f"{name} does not exist")
            expect(handle.size(name) == len(data), f"{name} has {handle.size(name)} bytes of {len(data)}")
            expect(handle.read(name) == data, f"read({name!r}) differs from what was written")
            mapped = handle.map(name)
            expect(mapped.dtype == np.uint8 and mapped.ndim == 1, f"map({name!r}) is not (n,) uint8")
            expect(mapped.tobytes() == data, f"map({name!r}) differs from what was written")
            expect(not mapped.flags.writeable or not mapped.size, f"map({name!r}) can be written to")
    expect(place.exists("a/b") and place.exists("sealed"), "a folder with files does not exist")
    expect(not place.exists("sea"), "the beginning of a name exists")


def check_names(open_again: OpenPlace) -> None:
    """Check that ``names`` lists files and folders directly below a folder, sorted."""
    place = open_again()
    for name in ("b", "a/2", "a/10/deep/x", "a/1.json", "ab/x"):
        place.write(name, b"x")
    expect(place.names("") == ["a", "ab", "b"], f"names('') is {place.names('')}")
    expect(place.names("a") == ["1.json", "10", "2"], f"names('a') is {place.names('a')}")
    expect(place.names("a/10") == ["deep"], f"names('a/10') is {place.names('a/10')}")


def check_remove(open_again: OpenPlace) -> None:
    """Check that ``remove`` removes a file or a folder with everything in it, and nothing beside it."""
    place = open_again()
    for name in ("a/1", "a/2", "a/b/3", "ab/1", "c"):
        place.write(name, b"x")
    place.remove("a/1")
    expect(place.names("a") == ["2", "b"], f"after one file was removed: {place.names('a')}")
    place.remove("a")
    expect(not place.exists("a/b/3") and not place.exists("a"), "a removed folder exists")
    expect(place.names("") == ["ab", "c"], f"after a folder was removed: {place.names('')}")
    place.write("a", b"a file where a folder was")
    expect(open_again().read("a") == b"a file where a folder was", "a name cannot be used again")


def check_maps_keep_their_bytes(open_again: OpenPlace) -> None:
    """Check that a mapped file keeps its bytes when the file is replaced or removed."""
    place = open_again()
    place.write("x", b"old")
    before = place.map("x")
    place.write("x", b"new and longer")
    after = place.map("x")
    place.remove("x")
    expect(before.tobytes() == b"old", "a map changed when its file was replaced")
    expect(after.tobytes() == b"new and longer", "a map changed when its file was removed")


def check_stage(open_again: OpenPlace) -> None:
    """Check that every writer has a local folder of its own, listed below ``partial`` and removed from there."""
    place = open_again()
    one, two = place.stage("one"), place.stage("two")
    expect(one.is_dir() and two.is_dir() and one != two, f"{one} and {two} are not two folders")
    (one / "half").mkdir()
    (one / "half" / "data").write_bytes(b"x")
    (two / "data").write_bytes(b"y")
    expect(open_again().stage("one") == one, "the folder of a writer changes")
    listed = place.names("partial")
    expect({"one", "two"} <= set(listed), f"names('partial') is {listed}")
    place.remove("partial/one")
    expect(not (one / "half" / "data").exists(), "files of a removed writer remain")
    expect((two / "data").read_bytes() == b"y", "files of another writer were removed")
    expect("one" not in place.names("partial"), "a removed writer is still listed")
    expect(place.stage("one").is_dir(), "a writer cannot begin again")


def check_publish(open_again: OpenPlace) -> None:
    """Check that a staged file or folder moves to its name, over what a crashed writer left there."""
    place = open_again()
    for content in (b"one", b"two"):
        staged = place.stage("w") / "s-0"
        (staged / "deep").mkdir(parents=True)
        (staged / "data").write_bytes(content)
        (staged / "deep" / content.decode()).write_bytes(b"")
        place.publish(staged, "shards/s-0")
        expect(not staged.exists(), "a published folder is still staged")
    expect(open_again().read("shards/s-0/data") == b"two", "the second folder was not published")
    expect(place.names("shards/s-0/deep") == ["two"], "files of the first folder remain")
    for content in (b"one", b"two"):
        staged = place.stage("w") / "f"
        staged.write_bytes(content)
        place.publish(staged, "shards/f.tar")
        expect(not staged.exists(), "a published file is still staged")
    expect(place.read("shards/f.tar") == b"two", "the second file was not published")


def check_locks(open_again: OpenPlace) -> None:
    """Check that a lock is held once at a time, beside locks of other names, and ends with its block."""
    place, other = open_again(), open_again()
    with place.lock("w"):
        expect("w.lock" in other.names("partial"), "names('partial') does not list a lock that is held")
        for handle in (place, other):
            try:
                with handle.lock("w"):
                    raise AssertionError("a lock was taken twice")
            except StoreBusy:
                pass
        with other.lock("another"), other.lock("store", wait=True):
            pass
    with other.lock("w"):
        pass
    with suppress(RuntimeError), place.lock("w"):
        raise RuntimeError
    with other.lock("w"):
        pass


def check_waiting(open_again: OpenPlace) -> None:
    """With ``wait`` a lock is taken once its holder releases it, so that writers take turns."""
    count = open_again()
    count.write("count", b"0")
    failed: list[BaseException] = []

    def take_turns() -> None:
        try:
            place = open_again()
            for _ in range(TURNS):
                with place.lock("store", wait=True):
                    before = int(place.read("count"))
                    time.sleep(0.001)
                    place.write("count", str(before + 1).encode())
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=take_turns, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    expect(not any(t.is_alive() for t in threads), f"waiting for a lock takes more than {WAIT_SECONDS:g} s")
    if failed:
        raise failed[0]
    expect(count.read("count") == str(3 * TURNS).encode(), f"{count.read('count')!r} of {3 * TURNS} turns")


def check_shards(open_again: OpenPlace) -> None:
    """Shards of every built-in storage backend are sealed, indexed, replaced and read."""
    table = TokenTable(("<blk>", *"abcdef"), 0)
    for storage in ("webdataset", "zarr"):
        place = open_again()
        for name in place.names(""):
            place.remove(name)
        spec = make_spec(TeacherSpec("t", 16000, 640), table, {"ctc": "dense"}, storage=storage)
        spec = write_spec(place, spec)
        expect(read_spec(open_again()) == spec, "the spec differs from what was written")
        _check_shards(open_again, storage)


def _check_shards(open_again: OpenPlace, backend: str) -> None:
    from ..storage import parse_storage

    place, storage = open_again(), parse_storage(backend)
    spec = read_spec(place)
    columns, about = columns_of(spec), about_shards(spec)
    given = records(6, columns)
    for number, part in enumerate((given[:2], given[2:4], given[4:])):
        with place.lock("job"):
            making = UnsealedShard(place, storage, columns, f"s-{number}", "job", about)
            for row in part:
                making.add(row)
            expect(making.seal() is not None, "a new shard was not sealed")
    with place.lock("job"):
        making = UnsealedShard(place, storage, columns, "merged", "job", about)
        for row in given[:4]:
            making.add(row)
        making.seal(replaces=("s-0", "s-1"))
    finish_store(place)
    expect(open_again().names("sealed") == ["merged.entry", "s-2.entry"], f"entries: {place.names('sealed')}")
    catalog = read_catalog(open_again(), spec.identity)
    for row in given:
        found = catalog.find(row.id)
        expect(len(found) == 1, f"{row.id!r} is indexed {len(found)} times")
        name, number = found[0]
        shard = storage.open(place, name, read_entry(place, name).contents, columns)
        read = shard.record(number)
        expect(read.id == row.id, f"{read.id!r} lies where {row.id!r} should")
        for column in columns:
            expect(same(read.arrays[column.name], row.arrays[column.name]), f"{column.name} differs")


CHECKS: tuple[Callable[[OpenPlace], None], ...] = (
    check_location,
    check_nothing_there,
    check_files,
    check_names,
    check_remove,
    check_maps_keep_their_bytes,
    check_stage,
    check_publish,
    check_locks,
    check_waiting,
    check_shards,
)
