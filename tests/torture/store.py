"""A small store whose every bit is known, written as a dump writes it, by processes that may die."""

import filecmp
import os
import signal
import struct
from functools import cache

import numpy as np

from logitstore import TokenTable
from logitstore.schema.spec import TeacherSpec
from logitstore.storage import faults
from logitstore.storage.base import EncodedRecord
from logitstore.storage.places import open_place
from logitstore.store.layout import columns_of, make_spec
from logitstore.store.reader import Store
from logitstore.store.verify import verify_store
from logitstore.store.writer import StoreWriter

TABLE = TokenTable(("<blk>", "a", "b", "c", "d"), 0)
TEACHER = TeacherSpec("torture", 16000, 640)
STREAMS = {"ctc": "dense", "rnnt": "topk:2"}
STORAGES = ("zarr", "webdataset")
BLOCKS = {f"{n:06d}": tuple(f"utt.{n}/{i}" for i in range(3)) for n in range(3)}
SKIPPED = {"000001": ({"id": "broken", "reason": "AudioError", "what": "broken: is empty"},)}
IDS = tuple(i for ids in BLOCKS.values() for i in ids)


def memory():
    """A folder in memory where there is one: what kills test is the order of steps, not the disk's speed."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def spec(storage="zarr"):
    return make_spec(TEACHER, TABLE, STREAMS, storage=storage)


@cache
def row(utt_id, seed=0):
    """The one row of an utterance: real log-probabilities, ragged, from nothing but its id."""
    random = np.random.default_rng([seed, *utt_id.encode()])
    t, u = int(random.integers(1, 9)), int(random.integers(0, 4))
    arrays = {}
    for column in columns_of(spec()):
        stream, _, name = column.name.partition(".")
        n = u if name == "labels" else t if stream == "ctc" else t * (u + 1)
        if name == "logp":
            x = np.sort(random.normal(size=(n, 5)), axis=1)[:, ::-1]
            x = (x - np.log(np.exp(x).sum(1, keepdims=True))).astype(np.float16)
            arrays[column.name] = np.ascontiguousarray(x[:, : column.shape[0]])
        elif name == "ids":
            arrays[column.name] = np.tile(np.array([1, 3], np.uint16), (n, 1))
        elif name == "tail":
            arrays[column.name] = random.integers(16000, 20000, (n, *column.shape)).astype(np.int16)
        elif name == "labels":
            arrays[column.name] = random.integers(1, 5, n).astype(column.dtype)
        else:
            arrays[column.name] = random.normal(size=(n, *column.shape)).astype(column.dtype)
    return EncodedRecord(utt_id, {"T": t, "U": u, "seconds": t / 25, "text": "a ’"}, arrays)


def work(location, storage, acknowledge=lambda block: None, writer="job-0-of-1", blocks=BLOCKS):
    """What a dump does: resume, dump what is missing block by block, seal, finish the store."""
    with StoreWriter(open_place(location), spec(storage), writer=writer).begin(TABLE) as w:
        for name, ids in blocks.items():
            missing = [i for i in ids if i not in w]
            if missing:
                shard = w.shard(name)
                for i in missing:
                    shard.add(row(i))
                shard.seal(SKIPPED.get(name, ()))
                acknowledge(name)


def same(a, b):
    """Whether two rows agree bit for bit."""
    return (
        {**a.meta, "id": a.id} == {**b.meta, "id": b.id}
        and a.arrays.keys() == b.arrays.keys()
        and all(
            (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
            for x, y in ((a.arrays[n], b.arrays[n]) for n in a.arrays)
        )
    )


def tree(folder):
    """Every file below a folder, relative."""
    return sorted(os.path.relpath(os.path.join(p, f), folder) for p, _, fs in os.walk(folder) for f in fs)


def same_tree(a, b):
    """Whether two folders hold the same files with the same bytes."""
    found = tree(a), tree(b)
    return found[0] == found[1] and filecmp.cmpfiles(a, b, found[0], shallow=False)[1:] == ([], [])


class Child:
    """A forked process that runs ``work(acknowledge)``; what it acknowledged is known whenever it dies."""

    def __init__(self, work, hook=None):
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(write)
            return
        status = 1
        try:
            os.close(self._read)
            faults.install(hook)
            work(lambda block: os.write(write, struct.pack("16s", block.encode())))
            status = 0
        finally:
            os._exit(status)  # no clean-up of the parent's in the child

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)

    def wait(self):
        """What was acknowledged, and the wait status."""
        with open(self._read, "rb") as f:
            data = f.read()
        _, status = os.waitpid(self.pid, 0)
        return [b.rstrip(b"\0").decode() for (b,) in struct.iter_unpack("16s", data)], status


def look(family, location, acknowledged, blocks=BLOCKS):
    """What a reader sees of a store after a crash: all that was acknowledged, whole blocks, right bits."""
    place = open_place(location)
    if not place.exists("logitstore.json"):
        family.lost += sum(len(blocks[b]) for b in acknowledged)
        assert not acknowledged, "acknowledged shards, but no store"
        return
    store = Store(location)
    ids = list(store)
    assert len(ids) == len(set(ids)), f"a row twice: {ids}"
    known = {i for b in blocks.values() for i in b}
    assert set(ids) <= known, "a row nobody wrote"
    for i in ids:
        if not same(store.record(i), row(i)):
            family.silent += 1
            raise AssertionError(f"{i} reads back wrong")
    missing = {i for b in acknowledged for i in blocks[b]} - set(ids)
    family.lost += len(missing)
    assert not missing, f"acknowledged, but gone: {sorted(missing)}"
    for i in known - set(ids):
        assert i not in store, f"{i} is visible, but not listed"
    for finding in verify_store(location).findings:
        assert "no sealed entry" in finding.what, finding
