"""Real dumps of the demo, stopped in every way: what is sealed stays, the same command goes on."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from logitstore import open_store
from logitstore.cli import _terminal as signals
from logitstore.errors import StoreBusy
from logitstore.storage import faults
from logitstore.storage.places import open_place
from tests.support import demo
from tests.support.dumping import same_records
from tests.torture.store import memory, same_tree
from tests.torture.warm import Warm


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir=memory()) as name:
        yield Path(name)


def command(out, *more):
    return [
        *("dump", "--teacher", demo.FACTORY, "--manifest", str(demo.MANIFEST), "--out", str(out)),
        *("--shard-size", "4", "--batch-seconds", "6", *more),
    ]


def state(pid):
    """The state of a process: ``T`` once it is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture(scope="module")
def warm():
    with Warm() as process:
        yield process


@pytest.fixture(scope="module")
def second_warm():
    with Warm() as process:
        yield process


@pytest.fixture(scope="module")
def whole(warm, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "s"
    assert warm.run(command(out), out.parent / "log") == 0, (out.parent / "log").read_text()
    return out


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_a_signal_ends_it_at_the_next_batch(folder, warm, whole, number):
    out = folder / "s"
    status = warm.run(command(out), folder / "log", fault="sealed@2", number=number)
    said = (folder / "log").read_text()
    assert os.waitstatus_to_exitcode(status) == 128 + number, said
    assert "stopping at the next batch" in said
    kept = len(open_store(out))
    assert 8 <= kept < 20
    assert f"stopped; {kept} utterances in {len(open_store(out).shards)} sealed shards are kept" in said
    assert not (out / "partial").exists()
    assert warm.run(command(out), folder / "log2") == 0
    assert same_records(out, whole)


@pytest.mark.parametrize(
    "step", ["row@3", "published@2", "write:sealed@4", "write:index@1", "indexed@2", "write:notes.json@2"]
)
def test_killed_in_a_real_dump_the_same_command_goes_on(folder, warm, whole, step):
    out = folder / "s"
    status = warm.run(command(out), folder / "log", fault=step)
    assert os.WTERMSIG(status) == signal.SIGKILL
    store = open_store(out)
    assert len(store) == 4 * len(store.shards)
    assert all(store[i].id == i for i in store)
    assert warm.run(command(out), folder / "log2") == 0
    assert same_tree(out, whole)


def test_the_variable_kills_a_process_of_its_own(folder):
    run = subprocess.run(
        [sys.executable, "-m", "logitstore", *command(folder / "s", "--limit", "4")],
        env={**os.environ, faults.ENV: "published"},
        cwd=demo.ROOT,
        capture_output=True,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert len(open_store(folder / "s")) == 0
    assert (folder / "s" / "shards" / "000000.zarr.zip").exists()


def test_a_second_signal_ends_it_at_once():
    with signals.StopSignals() as caught:
        caught.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(signals.StoppedBySignal):
            caught.check()
        with pytest.raises(signals.StoppedBySignal):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_dump_by_mistake_is_refused_and_harms_nothing(folder, warm, second_warm, whole):
    out = folder / "s"

    def second(pid):
        while state(pid) != "T":
            time.sleep(0.01)
        try:
            status = second_warm.run(command(out), folder / "log2")
            assert os.waitstatus_to_exitcode(status) == 1
            with pytest.raises(StoreBusy), open_place(out).lock("job-0-of-1"):
                pass
        finally:
            os.kill(pid, signal.SIGCONT)

    stopped = {"fault": "sealed@1", "number": signal.SIGSTOP}
    assert warm.run(command(out), folder / "log", **stopped, during=second) == 0
    assert "another live process writes as 'job-0-of-1'" in (folder / "log2").read_text()
    assert same_tree(out, whole)
