"""Places: the conformance suite, stores at registered schemes, and the durable steps of a local place."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from logitstore import StoreWriter, TokenTable, open_store, registry
from logitstore.errors import DiskError, StoreBusy, UnknownName, UsageError
from logitstore.storage.places import local as module
from logitstore.storage.places import open_place
from logitstore.store.rewrite import compact_store, convert_store, repair_store
from logitstore.store.verify import verify_store
from logitstore.testing import places as suite
from tests.support.memory_place import MemoryPlaces

HOLD = """
    import os, sys
    from logitstore.storage.places import open_place
    with open_place(sys.argv[1]).lock(sys.argv[2]):
        print("held", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def place(tmp_path):
    return open_place(tmp_path / "store")


@pytest.fixture
def holder(place):
    """A live process that holds the lock 'w'."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(place), "w"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda c: c.__name__)
def test_a_local_place_conforms(check, tmp_path):
    check(lambda: open_place(tmp_path / "store"))


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda c: c.__name__)
def test_a_place_in_memory_conforms(check, tmp_path):
    places = MemoryPlaces(tmp_path)
    check(lambda: places.at("memory://a"))


def test_locations(tmp_path):
    assert str(open_place(str(tmp_path))) == str(open_place(tmp_path)) == str(tmp_path)
    place = open_place(tmp_path)
    assert open_place(place) is place


@pytest.fixture
def memory(monkeypatch, tmp_path_factory):
    """The registered scheme ``memory``, removed after the test."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    places = MemoryPlaces(tmp_path_factory.mktemp("memory"))
    registry.register("places", "memory", places)
    return places


TABLE = TokenTable(("<blk>", "a", "b"), 0)


def write_store(location, count=6, **options):
    random = np.random.default_rng(0)
    logits = {f"u{i}": random.normal(size=(4 + i, 3)).astype(np.float32) for i in range(count)}
    with StoreWriter.open(location, tokens=TABLE, streams={"ctc": "dense"}, shard_size="2", **options) as w:
        for utt_id, rows in logits.items():
            if utt_id not in w:
                w.add(utt_id, ctc=torch.from_numpy(rows))
    return logits


@pytest.mark.parametrize("storage", ["zarr", "webdataset"])
def test_a_store_at_a_registered_scheme(memory, storage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_store("memory://a", 3, storage=storage)
    logits = write_store("memory://a", storage=storage)  # resumed
    assert sorted(open_store("memory://a")) == sorted(logits)
    assert not verify_store("memory://a").findings
    compact_store("memory://a", "4")
    memory.opened["memory://a"].remove("index")
    convert_store("memory://a", "memory://b", storage="webdataset" if storage == "zarr" else "zarr")
    name = next(n for n in memory.opened["memory://a"].files if n.startswith("shards/"))
    memory.opened["memory://a"].files[name] = memory.opened["memory://a"].files[name][:-1]
    assert repair_store("memory://a").findings
    assert not verify_store("memory://a").findings
    store = open_store("memory://b")
    for utt_id, rows in logits.items():
        expected = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
        assert np.allclose(store[utt_id].log_probs("ctc"), expected, atol=0.01)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("make", [str, Path])
def test_an_unknown_scheme_makes_no_folder(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for opens in (open_place, open_store, verify_store, lambda at: write_store(at)):
        with pytest.raises(UnknownName, match="'s4'") as e:
            opens(make("s4://bucket/x"))
        assert "local" in str(e.value)
    assert os.listdir(tmp_path) == []


def test_a_path_cannot_hold_a_url(memory):
    with pytest.raises(UsageError, match="a string"):
        open_place(Path("memory://a"))


@pytest.mark.parametrize("fails", ["fsync", "rename"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(place, monkeypatch, fails):
    place.write("x", b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, fails, fail)
    with pytest.raises(DiskError, match="No space"):
        place.write("x", b"new")
    monkeypatch.undo()
    assert place.read("x") == b"old"
    assert place.names("") == ["x"]


def test_writing_is_made_durable_before_it_is_named(place, monkeypatch):
    steps = []
    real = {n: getattr(os, n) for n in ("fsync", "rename")}
    for name, call in real.items():
        monkeypatch.setattr(module.os, name, lambda *a, n=name, c=call: (steps.append(n), c(*a))[1])
    place.write("x", b"1")
    assert steps[-3:] == ["fsync", "rename", "fsync"]


def test_publish_moves_files_and_folders_over_leftovers(place):
    for content in (b"one", b"two"):  # the second finds what a crash left of the first
        staged = place.stage("w") / "s"
        staged.mkdir()
        (staged / "data").write_bytes(content)
        (staged / "deep").mkdir()
        (staged / "deep" / content.decode()).write_bytes(b"")
        place.publish(staged, "shards/s")
        assert not staged.exists()
    assert place.read("shards/s/data") == b"two"
    assert place.names("shards/s/deep") == ["two"]
    for content in (b"one", b"two"):
        staged = place.stage("w") / "f"
        staged.write_bytes(content)
        place.publish(staged, "shards/f.tar")
    assert place.read("shards/f.tar") == b"two"


def test_a_lock_leaves_nothing_behind(place):
    with place.lock("w"):
        assert place.names("partial") == ["w.lock"]
    assert place.names("") == []
    with pytest.raises(RuntimeError, match="inside"), place.lock("w"):
        raise RuntimeError("inside")
    with place.lock("w"), place.lock("store"):
        pass
    assert place.names("") == []


def test_a_lock_of_a_live_process_is_refused(place, holder):
    with pytest.raises(StoreBusy, match="'w'"), place.lock("w"):
        pass
    with place.lock("other"):
        pass
    holder.communicate("\n")
    with place.lock("w"):
        pass


def test_a_lock_of_a_killed_process_is_taken_over(place, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert place.names("partial") == ["w.lock"]
    with place.lock("w"):
        pass
    assert place.names("") == []


def test_waiting_for_a_lock(place, holder):
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from logitstore.storage.places import open_place\n"
            "print('waits', flush=True)\n"
            "with open_place(sys.argv[1]).lock('w', wait=True): print('got it')",
            str(place),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as waiting:
        assert waiting.stdout.readline() == "waits\n"
        holder.communicate("\n")
        assert waiting.stdout.read() == "got it\n"
    assert waiting.returncode == 0


def test_a_lock_whose_file_is_removed_meanwhile_is_taken_anew(place, monkeypatch):
    real, removed = module.fcntl.flock, []

    def flock(f, how):
        real(f, how)
        if not removed:  # what its last holder does while this one waits
            removed.append((place.root / "partial" / "w.lock").unlink())
            place.root.joinpath("partial").rmdir()

    monkeypatch.setattr(module.fcntl, "flock", flock)
    with place.lock("w"):
        assert place.names("partial") == ["w.lock"]


def test_many_processes_take_turns(place):
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from logitstore.storage.places import open_place
        place = open_place(sys.argv[1])
        for _ in range(60):
            with place.lock("store", wait=True):
                count = place.root / "count"
                count.write_text(str(int(count.read_text()) + 1))
    """)
    place.write("count", b"0")
    running = [subprocess.Popen([sys.executable, "-c", script, str(place)]) for _ in range(3)]
    assert [p.wait() for p in running] == [0, 0, 0]
    assert place.read("count") == b"180"
    assert place.names("") == ["count"]


def test_it_maps_without_keeping_the_file_open(place):
    place.write("x", np.arange(10, dtype=np.uint8).tobytes())
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    maps = [place.map("x") for _ in range(20)]
    after = len(os.listdir("/proc/self/fd")) if before else 0
    assert after - before <= 20  # Python's mmap keeps one of its own; none of ours
    assert all(m[3] == 3 for m in maps)
