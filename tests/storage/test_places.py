"""A local place: atomic writes, publishing over leftovers, locks that die with their holder."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from logitstore.errors import DiskError, StoreBusy, UnknownName
from logitstore.storage.places import local as module
from logitstore.storage.places import open_place

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


def test_locations(tmp_path):
    assert str(open_place(str(tmp_path))) == str(open_place(tmp_path)) == str(tmp_path)
    place = open_place(tmp_path)
    assert open_place(place) is place
    with pytest.raises(UnknownName, match="local"):
        open_place("s4://bucket/x")


def test_files(place):
    assert not place.exists()
    assert place.names("sealed") == []
    place.write("sealed/b.json", b"bb")
    place.write("sealed/a.json", b"")
    assert place.names("sealed") == ["a.json", "b.json"]
    assert place.read("sealed/b.json") == b"bb"
    assert (place.size("sealed/b.json"), place.size("sealed/a.json")) == (2, 0)
    place.write("sealed/b.json", b"c")
    assert place.map("sealed/b.json").tobytes() == b"c"
    assert len(place.map("sealed/a.json")) == 0
    with pytest.raises(ValueError):
        place.map("sealed/b.json")[0] = 1
    place.remove("sealed/b.json")
    place.remove("sealed/b.json")
    place.remove("no/such/folder")
    assert place.names("sealed") == ["a.json"]
    place.remove("sealed")
    assert not place.exists("sealed")


def test_a_map_survives_its_file_being_replaced(place):
    place.write("x", b"old")
    mapped = place.map("x")
    place.write("x", b"new and longer")
    assert mapped.tobytes() == b"old"


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
