"""Faults that once went wrong in silence: live dumps, locks of one node, foreign shards, odd records, cut maps."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from logitstore.errors import LogitStoreError
from logitstore.schema.spec import TeacherSpec
from logitstore.storage.base import EncodedRecord
from logitstore.storage.places import open_place
from logitstore.store.layout import columns_of, make_spec
from logitstore.store.reader import Store
from logitstore.store.rewrite import repair_store
from logitstore.store.verify import verify_store
from logitstore.store.writer import StoreWriter
from tests.support.columns import CHANGES

from .damage import HARM
from .disk import under_shim
from .store import BLOCKS, IDS, STORAGES, STREAMS, TABLE, Child, look, row, same, spec, work

HERE = Path(__file__).parent
POSITIONS = tuple(range(len(IDS) + 1))


def splits(sizes):
    """Return the utterances of all blocks in other blocks: {shard name: ids}."""
    found = {}
    for size in sizes:
        for begin in range(0, len(IDS), size):
            found[f"{size}-{begin:06d}"] = IDS[begin : begin + size]
    return found


def live_dumps(family, root, rounds):
    """Two or three dumps of different splits run at once: every record once, every process ends well."""
    for storage in STORAGES:
        for number in range(rounds):
            folder = root / f"live-{storage}-{number}"
            with family.case(f"{storage}: dumps of different splits, round {number}"):
                dice = random.Random(number)
                sizes = dice.sample((1, 2, 4, 5, 7), 2)
                jobs = [BLOCKS, *(splits([size]) for size in sizes)]
                children = [
                    Child(lambda told, a=(folder, storage, n, b): work(*a[:2], told, f"job-{a[2]}", a[3]))
                    for n, b in enumerate(jobs)
                ]
                ends = [child.wait()[1] for child in children]
                assert ends == [0] * len(jobs), ends
                look(family, folder, [])
                found = list(Store(folder))
                family.lost += len(set(IDS) - set(found))
                assert sorted(found) == sorted(IDS)
                assert not verify_store(folder).findings
            shutil.rmtree(folder, ignore_errors=True)


def node_locks(family, root, rounds):
    """Two dumps on a file system where every lock succeeds: a whole store, or an error that names the locks."""
    under_shim(family, root, ["-m", "tests.torture.silence", str(root), str(rounds)], SHIM_NO_FLOCK="1")


def without_locks(family, root, rounds):
    """Run in a process in which no lock holds."""
    for storage in STORAGES:
        for number in range(rounds):
            folder = root / f"locks-{storage}-{number}"
            with family.case(f"{storage}: no lock holds, round {number}"):
                jobs = [BLOCKS, BLOCKS if number % 2 else splits([2])]
                errors = [root / f"errors-{n}" for n in range(len(jobs))]
                names = [f"job-{n * (number % 3 > 0)}" for n in range(len(jobs))]  # one name for both, or two
                children = [
                    Child(lambda told, a=arguments: _noting(*a, told))
                    for arguments in zip(errors, [folder] * 2, [storage] * 2, names, jobs, strict=True)
                ]
                ends = [os.waitstatus_to_exitcode(child.wait()[1]) for child in children]
                said = "".join(e.read_text() for e in errors if e.exists())
                assert set(ends) <= {0, 3}, (ends, said)
                found = list(Store(folder))
                assert len(found) == len(set(found)) or "locks" in said.lower(), f"a record twice: {found}"
                if ends == [0, 0]:
                    family.lost += len(set(IDS) - set(found))
                    assert sorted(found) == sorted(IDS)
                    assert not verify_store(folder).findings
                else:
                    assert "lock" in said.lower(), said
                    for utt_id in found:
                        if not same(Store(folder).record(utt_id), row(utt_id)):
                            family.silent += 1
                work(folder, storage, writer="job-later")
                assert set(Store(folder)) == set(IDS)
            shutil.rmtree(folder, ignore_errors=True)
            for e in errors:
                e.unlink(missing_ok=True)


def _noting(path, folder, storage, writer, blocks, told):
    """Write a store; note the error that ends it in a file, and end with 3."""
    try:
        work(folder, storage, told, writer, blocks)
    except LogitStoreError as e:
        path.write_text(str(e))
        os._exit(3)


def foreign_shards(family, root):
    """Shards of another teacher, table or encoding, copied in with their entries; a description swapped."""
    for storage in STORAGES:
        own = root / f"own-{storage}"
        work(own, storage)
        for what, made in _others(storage).items():
            other = root / f"other-{storage}"
            with StoreWriter(open_place(other), made, writer="x").begin(TABLE) as writer:
                shard = writer.shard("999999")
                for i in range(3):
                    shard.add(_fitting(made, f"foreign/{i}"))
                shard.seal()
            mixed = root / f"mixed-{storage}"
            with family.case(f"{storage}: a shard of {what}"):
                shutil.copytree(own, mixed)
                _copy_shards(other, mixed)
                _named(family, mixed, "999999")
                for utt_id in IDS:
                    assert same(Store(mixed).record(utt_id), row(utt_id))
            shutil.rmtree(mixed, ignore_errors=True)
            with family.case(f"{storage}: logitstore.json of {what}"):
                shutil.copytree(own, mixed)
                shutil.copy(other / "logitstore.json", mixed / "logitstore.json")
                found = _findings(mixed)
                assert found, "verify found nothing"
                _no_records(family, mixed)
            shutil.rmtree(mixed, ignore_errors=True)
            shutil.rmtree(other)


def _others(storage):
    """Return descriptions of stores whose records do not belong into the store of these tests."""
    teacher = TeacherSpec("torture", 16000, 640, weights="sha256:" + "0" * 64)
    return {
        "another teacher": make_spec(teacher, TABLE, STREAMS, storage=storage),
        "another encoding": make_spec(
            TeacherSpec("torture", 16000, 640), TABLE, {**STREAMS, "rnnt": "topk:3"}, storage=storage
        ),
    }


def _fitting(made, utt_id):
    """Return a record of the store of these tests, widened to the columns of another."""
    plain, arrays = row(utt_id), {}
    for column in columns_of(made):
        array = plain.arrays[column.name]
        if array.shape[1:] != column.shape:
            array = np.concatenate([array, array[:, -1:]], axis=1).astype(array.dtype)
        arrays[column.name] = array
    return EncodedRecord(utt_id, plain.meta, arrays)


def _copy_shards(source, target):
    """Copy shards and entries from one store into another, as a person does with cp -r."""
    for name in ("shards", "sealed"):
        shutil.copytree(source / name, target / name, dirs_exist_ok=True)
    for derived in target.glob("index*"):
        shutil.rmtree(derived) if derived.is_dir() else derived.unlink()


def _findings(folder):
    """Return what ``verify`` names."""
    try:
        return [f.where + " " + f.what for f in verify_store(folder).findings]
    except LogitStoreError as e:
        return [str(e)]


def _named(family, folder, shard):
    """Check that a shard is named by verify and that none of its records is read."""
    found = _findings(folder)
    assert any(shard in f for f in found), f"{shard} is not named: {found}"
    _no_records(family, folder, "foreign/")


def _no_records(family, folder, prefix=""):
    """Check that no record whose id has a prefix can be read."""
    try:
        store = Store(folder, damaged=lambda shard, error: None)
    except LogitStoreError:
        return
    for utt_id in [*IDS, *(f"foreign/{i}" for i in range(3))]:
        if not utt_id.startswith(prefix):
            continue
        try:
            store.record(utt_id)
        except LogitStoreError:
            continue
        family.silent += 1
        raise AssertionError(f"{utt_id} is read as if it belonged to the store")


def odd_records(family, root, cases, seed=0):
    """Records with right checksums whose columns disagree: refused by name, or dropped by repair; never a crash."""
    dice = np.random.default_rng(seed)
    names = [column.name for column in columns_of(spec())]
    for case in range(cases):
        storage, column = STORAGES[case % 2], names[int(dice.integers(len(names)))]
        change = CHANGES[int(dice.integers(len(CHANGES)))]
        folder = root / "odd"
        with family.case(f"{storage}: {change.__name__} {column}, case {case} of seed {seed}"):
            with StoreWriter(open_place(folder), spec(storage), writer="x").begin(TABLE) as writer:
                shard = writer.shard("000000")
                shard.add(row(IDS[0]))
                good = row(IDS[1])
                arrays = {**good.arrays, column: change(good.arrays[column], dice)}
                shard.add(EncodedRecord(IDS[1], good.meta, arrays))
                shard.seal()
            _decodes(folder, IDS[0])
            refused = not _decodes(folder, IDS[1])
            findings = verify_store(folder).findings
            if refused:
                assert any(IDS[1] in f.where + f.what for f in findings), findings
                assert IDS[1] in repair_store(folder).dropped
            assert not verify_store(folder).findings or not refused
            _decodes(folder, IDS[0])
        shutil.rmtree(folder, ignore_errors=True)


def _decodes(folder, utt_id):
    """Return whether a record can be read and decoded at two temperatures; only errors of the tree may arise."""
    store = Store(folder)
    try:
        target = store[utt_id]
        for name in target.streams:
            for temperature in (1.0, 2.5):
                target.log_probs(name, temperature)
    except LogitStoreError:
        return False
    return True


def constants(family, root, cases, seed=0):
    """One harm to what a store keeps once: the head of a factored stream is named, and never used."""
    dice = random.Random(seed)
    stores = sorted(p for p in (HERE.parent / "golden").glob("*factored*") if (p / "constants").is_dir())
    for case in range(cases):
        folder = root / "constants"
        shutil.copytree(dice.choice(stores), folder)
        path = dice.choice(sorted((folder / "constants").iterdir()))
        harm, data = dice.choice(HARM), path.read_bytes()
        changed = harm(dice, data, data[::-1])
        if changed != data:
            with family.case(f"{harm.__name__} {path.name}, case {case} of seed {seed}"):
                path.unlink()
                if changed is not None:
                    path.write_bytes(changed)
                assert _findings(folder), "verify found nothing"
                with pytest.raises(LogitStoreError, match=re.escape(path.name)):
                    Store(folder)
        shutil.rmtree(folder)


def cut_maps(family, root, cases, seed=0):
    """A file is cut while a reader has it mapped: an error that names it, no SIGBUS, no wrong value."""
    dice = random.Random(seed)
    for storage in STORAGES:
        whole = root / f"whole-{storage}"
        work(whole, storage)
        for case in range(cases):
            folder = root / "cut"
            shutil.copytree(whole, folder)
            files = [p for p in sorted((folder / "shards").rglob("*")) if p.is_file() and p.stat().st_size]
            path = dice.choice(files)
            size = dice.randrange(path.stat().st_size)
            with family.case(f"{storage}: {path.name} cut to {size} while mapped, case {case}"):
                _, status = Child(lambda told, f=folder, p=path, n=size: _read_cut(f, p, n)).wait()
                assert os.waitstatus_to_exitcode(status) in (0, 4), f"the reader ended with {status}"
                if os.waitstatus_to_exitcode(status) == 4:
                    family.silent += 1
                    raise AssertionError("a record reads back wrong")
            shutil.rmtree(folder)


def _read_cut(folder, path, size):
    """Read all records, cut a file, and read all again; end with 4 where one reads back wrong."""
    store = Store(folder)
    for utt_id in IDS:
        store.record(utt_id)
    os.truncate(path, size)
    for utt_id in IDS:
        try:
            found = store.record(utt_id)
        except LogitStoreError:
            continue
        if not same(found, row(utt_id)):
            os._exit(4)


def few_handles(family, root, shards, handles):
    """An epoch in any order over more shards than the process may open files."""
    for storage in STORAGES:
        folder = root / f"many-{storage}"
        blocks = {f"{n:06d}": (f"many/{n}",) for n in range(shards)}
        work(folder, storage, blocks=blocks)
        with family.case(f"{storage}: {shards} shards with {handles} more handles"):
            _, status = Child(lambda told, a=(folder, blocks, handles): _epoch_with_few_handles(*a)).wait()
            assert status == 0, os.waitstatus_to_exitcode(status)
        shutil.rmtree(folder)


def _epoch_with_few_handles(folder, blocks, handles):
    before = len(os.listdir("/proc/self/fd"))
    limit = before + handles
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    store = Store(folder)
    ids = [i for block in blocks.values() for i in block]
    for epoch in range(2):
        random.Random(epoch).shuffle(ids)
        for utt_id in ids:
            assert same(store.record(utt_id), row(utt_id)), utt_id
    used = len(os.listdir("/proc/self/fd")) - before
    assert used < handles // 2, f"{used} handles"


def loops(family, root, positions=POSITIONS):
    """An exception or signal in a user's loop, at every utterance: the whole records stay, and it can go on."""
    for storage in STORAGES:
        for position in positions:
            for how in ("exception", "exit", "interrupt"):
                folder = root / "loop"
                with family.case(f"{storage}: {how} at utterance {position}"):
                    _, status = Child(
                        lambda told, p=position, h=how, s=storage, f=folder: _loop(f, s, p, h)
                    ).wait()
                    assert os.waitstatus_to_exitcode(status) == (5 if position < len(IDS) else 0)
                    found = list(Store(folder)) if (folder / "logitstore.json").exists() else []
                    family.lost += len(set(IDS[:position]) - set(found))
                    assert found == list(IDS[:position]), found
                    _loop(folder, storage, len(IDS), how)
                    assert sorted(Store(folder)) == sorted(IDS)
                    assert not verify_store(folder).findings
                shutil.rmtree(folder, ignore_errors=True)


def _loop(folder, storage, position, how):
    """Add utterances until something ends the loop; end the process with 5 then."""
    endings = {"exception": ZeroDivisionError, "exit": SystemExit, "interrupt": KeyboardInterrupt}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = np.zeros((3, 5), np.float32)
    try:
        with StoreWriter.open(
            folder, tokens=TABLE, streams={"ctc": "dense"}, storage=storage, writer="loop", shard_size="4"
        ) as writer:
            for number, utt_id in enumerate(IDS):
                if number == position:
                    raise endings[how]
                if utt_id not in writer:
                    writer.add(utt_id, ctc=null + np.arange(5))
    except BaseException as e:
        if type(e) is not endings[how]:
            raise
        os._exit(5)


def closed_streams(family, root, commands=("inspect", "verify", "index", "diff", "transcripts")):
    """Every command that reads a store, with standard streams closed."""
    folder = root / "closed"
    work(folder, "zarr")
    for name in commands:
        command = [name, folder, folder] if name == "diff" else [name, folder]
        for closed in ("2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
            with family.case(f"{command[0]} {closed}"):
                done = subprocess.run(
                    ["bash", "-c", f'"$@" {closed}', "bash", sys.executable, "-m", "logitstore"]
                    + [str(x) for x in command],
                    capture_output=True,
                    cwd=HERE.parents[1],
                )
                expected = (0, 1, 2) if command[0] == "transcripts" else (0,)
                assert done.returncode in expected, done.returncode
                assert not verify_store(folder).findings


if __name__ == "__main__":
    from .table import Family

    counted = Family("locks of one node")
    without_locks(counted, Path(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps({k: v for k, v in vars(counted).items() if k != "seen"}))
