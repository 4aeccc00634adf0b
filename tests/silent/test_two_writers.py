"""Two writers of one store at once: no utterance is lost or stored twice, and nobody counts lost work as done."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

from logitstore import StoreWriter, TokenTable, open_store
from logitstore.errors import CorruptError, StoreError
from logitstore.storage.places import open_place
from logitstore.storage.staging import STALE_SECONDS, host_name
from logitstore.store.verify import verify_store
from tests.support import demo
from tests.support.dumping import same_records
from tests.torture import store as torture
from tests.torture.warm import Warm

SHIM = Path(__file__).parents[1] / "torture" / "shim.c"
TABLE = TokenTable(("<blk>", "a", "b", "c", "d"), 0)


def opened(path, **options):
    return StoreWriter.open(path, tokens=TABLE, streams={"ctc": "dense"}, **options)


def logits(seed):
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))


# ---- point 4: writers of one process


@pytest.mark.parametrize("storage", ["zarr", "webdataset"])
def test_one_of_two_writers_that_add_one_id_wins_and_the_other_is_told(tmp_path, storage):
    path = tmp_path / "s"
    with (
        opened(path, writer="one", storage=storage) as one,
        opened(path, writer="two", storage=storage) as two,
    ):
        for seed, utt in enumerate(("a", "b", "c")):
            one.add(utt, ctc=logits(seed))
        for seed, utt in enumerate(("b", "c", "d")):
            two.add(utt, ctc=logits(10 + seed))
        assert one.flush() == 3
        with pytest.warns(UserWarning, match="'b' and 1 more"):
            assert two.flush() == 1
        assert two.duplicates == ["b", "c"]
        assert not one.duplicates
        one.add("e", ctc=logits(4))
        two.add("e", ctc=logits(5))
        assert two.flush() == 1
        with pytest.warns(UserWarning, match="'e' and 0 more"):
            assert one.flush() == 0
    store = open_store(path)
    assert sorted(store) == list("abcde")
    assert len(store) == 5
    assert not verify_store(path).findings
    assert not (path / "partial").exists()
    alone = tmp_path / "alone"
    with opened(alone, storage=storage) as w:
        w.add("d", ctc=logits(12))
    assert (store["d"].log_probs("ctc") == open_store(alone)["d"].log_probs("ctc")).all()


def test_refresh_finds_utterances_of_other_writers(tmp_path):
    with opened(tmp_path / "s", writer="one") as one, opened(tmp_path / "s", writer="two") as two:
        for number in range(40):
            one.add(f"u{number}", ctc=logits(number))
            one.flush()
            assert f"u{number}" not in two
            two.refresh()
            assert all(f"u{n}" in two for n in range(number + 1))


def test_a_name_that_is_taken_is_not_a_reason_to_drop_a_shard(tmp_path):
    place = open_place(tmp_path / "s")
    writers = [StoreWriter(place, torture.spec(), writer=name) for name in ("one", "two")]
    with writers[0].begin(torture.TABLE), writers[1].begin(torture.TABLE):
        for shard, utt in [(w.shard("000000"), i) for w, i in zip(writers, "ab", strict=True)]:
            shard.add(torture.row(utt))
            assert shard.seal([{"id": f"no {utt}", "reason": "x", "what": "y"}]).ids == (utt,)
    store = open_store(tmp_path / "s")
    assert sorted(store.shards) == ["000000", "000000-1"]
    assert all(torture.same(store.record(i), torture.row(i)) for i in "ab")
    assert [s["id"] for n in store.shards for s in store.entry(n).skipped] == ["no a", "no b"]
    assert not verify_store(tmp_path / "s").findings


# ---- point 4: dumps


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir=torture.memory()) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def warm():
    with Warm() as process:
        yield process


@pytest.fixture(scope="module")
def second_warm():
    with Warm() as process:
        yield process


def command(out, size, *more):
    return [
        *("dump", "--teacher", demo.FACTORY, "--manifest", str(demo.MANIFEST), "--out", str(out)),
        *("--shard-size", size, "--batch-seconds", "0", "--json", *more),
    ]


@pytest.fixture(scope="module")
def whole(warm, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "s"
    assert warm.run(command(out, "4"), out.parent / "log") == 0, (out.parent / "log").read_text()
    return out


def summary(log):
    return json.loads(log.read_text().splitlines()[-1])


def stopped(pid):
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)


def test_a_dump_of_another_split_in_the_middle_of_one_loses_nothing(folder, warm, second_warm, whole):
    out = folder / "s"

    def second(pid):
        stopped(pid)
        try:
            assert second_warm.run(command(out, "3", "--job", "0/2"), folder / "log2") == 0
        finally:
            os.kill(pid, signal.SIGCONT)

    order = {"fault": "row@4", "number": signal.SIGSTOP, "during": second}
    assert warm.run(command(out, "4"), folder / "log", **order) == 0, (folder / "log").read_text()
    one, two = summary(folder / "log"), summary(folder / "log2")
    assert (one["utterances"], one["present"], two["utterances"]) == (9, 11, 11)
    assert same_records(out, whole)
    assert len(open_store(out)) == 20
    assert not verify_store(out).findings


def test_two_live_dumps_of_different_splits_make_the_whole_store(folder, warm, second_warm, whole):
    out, results = folder / "s", {}

    def work(process, *more):
        results[process] = process.run(command(out, *more), folder / f"log{more[0]}")

    threads = [
        threading.Thread(target=work, args=(warm, "4")),
        threading.Thread(target=work, args=(second_warm, "3", "--job", "0/2")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(results.values()) == [0, 0], [p.read_text() for p in folder.glob("log*")]
    assert same_records(out, whole)
    assert len(open_store(out)) == 20
    assert not verify_store(out).findings


# ---- point 5: locks that are local to a node


def dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("host", "pid", "age", "kept"),
    [
        ("another-host", 1, 0.0, True),
        ("another-host", 1, STALE_SECONDS - 60, True),
        ("another-host", 1, STALE_SECONDS + 60, False),
        (None, "live", 0.0, True),
        (None, "dead", 0.0, False),
    ],
)
def test_staging_of_a_writer_that_may_live_is_kept(tmp_path, host, pid, age, kept):
    number = {"live": os.getppid(), "dead": dead_pid()}.get(pid, pid)
    staging = tmp_path / "s" / "partial" / f"job-0-of-1~{host or host_name()}~{number}~0123456789ab"
    (staging / "000000").mkdir(parents=True)
    (staging / "000000" / "data").write_bytes(b"x")
    then = time.time() - age
    for path in (staging / "000000" / "data", staging / "000000", staging):
        os.utime(path, (then, then))
    for writer in ("job-0-of-1", "another"):
        with opened(tmp_path / "s", writer=writer) as w:
            w.add(writer, ctc=logits(0))
        assert staging.exists() == kept


@pytest.mark.parametrize("storage", ["zarr", "webdataset"])
@pytest.mark.parametrize("change", ["remove", "cut", "flip"])
def test_a_shard_is_not_sealed_from_staged_files_that_changed(tmp_path, storage, change, monkeypatch):
    path = tmp_path / "s"
    w = opened(path, storage=storage)
    w.add("a", ctc=logits(0))
    real = w._shard._finish

    def finish(*given):
        entry = real(*given)
        files = sorted(p for p in (path / "partial").rglob("*") if p.is_file() and p.suffix != ".lock")
        largest = max(files, key=lambda p: p.stat().st_size)
        data = largest.read_bytes()
        largest.unlink()
        if change != "remove":
            largest.write_bytes(data[:-1] if change == "cut" else bytes([data[0] ^ 1]) + data[1:])
        return entry

    monkeypatch.setattr(w._shard, "_finish", finish)
    with pytest.raises(
        (StoreError, CorruptError), match=r"changed before they were sealed|(were|was) sealed"
    ):
        w.close()
    assert len(open_store(path)) == 0
    assert not list((path / "sealed").glob("*")) if (path / "sealed").exists() else True


@pytest.fixture(scope="module")
def lockless(tmp_path_factory):
    """Two processes in which every flock succeeds at once."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler for the shim")
    shim = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, SHIM, "-ldl"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(shim))
        patch.setenv("SHIM_NO_FLOCK", "1")
        with Warm() as one, Warm() as two:
            yield one, two


@pytest.mark.parametrize("step", ["row@3", "finished@1", "published@1", "sealed@1", "indexed@1"])
@pytest.mark.parametrize("size", ["4", "3"])
def test_two_live_dumps_of_one_name_without_locks_never_seal_a_broken_shard(
    folder, lockless, whole, step, size
):
    one, two = lockless
    out = folder / "s"

    def second(pid):
        stopped(pid)
        try:
            status = two.run(command(out, size), folder / "log2")
            assert os.waitstatus_to_exitcode(status) in (0, 1)
        finally:
            os.kill(pid, signal.SIGCONT)

    status = one.run(command(out, "4"), folder / "log", fault=step, number=signal.SIGSTOP, during=second)
    codes = [os.waitstatus_to_exitcode(status), 0 if '"store"' in (folder / "log2").read_text() else 1]
    said = (folder / "log").read_text() + (folder / "log2").read_text()
    assert "Traceback" not in said
    if codes == [0, 0]:
        assert not verify_store(out).findings
        assert same_records(out, whole)
        assert len(open_store(out)) == 20
    else:
        assert "locks" in said.lower() or "Locks" in said, said


def test_no_warning_without_a_second_writer(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with opened(tmp_path / "s", shard_size="2") as w:
            for number in range(5):
                w.add(f"u{number}", ctc=logits(number))
