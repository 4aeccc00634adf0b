"""A store of many records: opening it, finding records, listing ids, resuming, and the files that it has.

    python benchmarks/scale.py [--short] [--records N ...] [--at FOLDER]

Writes 10 000, 100 000 and 1 000 000 synthetic records of four frames (``--short``: 10 000), without a teacher: the
container is measured, not a model. Times are CPU times of this process, the least of several. *Open during a dump*
opens the store right after a shard was sealed, at three moments of the dump, before anything was finished. Prints
how each figure grows from the smallest store to the largest, and exits with 1 where a promise is missed.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from logitstore import TokenTable, open_store
from logitstore.schema.spec import TeacherSpec
from logitstore.storage.base import EncodedRecord
from logitstore.storage.places import open_place
from logitstore.store.layout import columns_of, make_spec
from logitstore.store.writer import StoreWriter

V, FRAMES, SHARD = 40, 4, 5000
LOOKUPS = 20_000
PROMISES = {  # figure: most that is allowed, and its unit
    "open during a dump": (50.0, "ms"),
    "open": (50.0, "ms"),
    "look-up in order": (30.0, "µs"),
    "look-up shuffled": (30.0, "µs"),
    "list a million ids": (1.0, "s"),
    "files and folders a shard": (3.0, ""),
}
TABLE = TokenTable(("<blk>", *(f"t{i}" for i in range(1, V))), 0)


def utterance(number):
    """Return the id of an utterance, as corpora have them."""
    return f"spk{number % 1999:04d}-session{number // 5000:04d}-utt{number:08d}"


def cpu(action, rounds=3):
    """Return the least CPU seconds of some rounds of an action, and its last result."""
    best = float("inf")
    for _ in range(rounds):
        begin = time.process_time()
        result = action()
        best = min(best, time.process_time() - begin)
    return best, result


def opened(folder):
    """Open a store and find one record in it."""
    store = open_store(folder)
    assert utterance(0) in store
    return store


def begin(folder):
    """Return a writer of the benchmark's store."""
    spec = make_spec(TeacherSpec("synthetic", 16000, 640), TABLE, {"ctc": "topk:2"})
    return StoreWriter(open_place(folder), spec).begin(TABLE)


def write(folder, records):
    """Write the store; return CPU seconds of all of it, and the most that opening took on the way."""
    looks, slowest, opening = {1, records // SHARD // 2, records // SHARD - 1}, 0.0, 0.0
    start = time.process_time()
    with begin(folder) as writer:
        arrays = {c.name: np.zeros((FRAMES, *c.shape), c.dtype) for c in columns_of(writer.spec)}
        for number, first in enumerate(range(0, records, SHARD)):
            writer.refresh()  # as a dump does
            shard = writer.shard(f"{number:06d}")
            for i in range(first, min(first + SHARD, records)):
                meta = {"T": FRAMES, "U": 0, "seconds": 0.16}
                shard.add(EncodedRecord(utterance(i), meta, arrays))
            shard.seal()
            if number in looks:
                before = time.process_time()
                slowest = max(slowest, cpu(lambda: opened(folder))[0])
                opening += time.process_time() - before
    return time.process_time() - start - opening, slowest


def look_up(store, ids):
    """Find every one of some ids."""
    assert all(utt_id in store for utt_id in ids)


def resume(folder):
    """Begin to write into a finished store again, and ask for the ids of one shard."""
    with begin(folder) as writer:
        assert all(utterance(i) in writer for i in range(SHARD))


def measure(folder, records):
    """Return every figure of a store of some records, by name."""
    seconds, during = write(folder, records)
    opening, store = cpu(lambda: opened(folder), 5)
    ids = [utterance(i) for i in range(0, records, max(1, records // LOOKUPS))]
    in_order, _ = cpu(lambda: look_up(store, ids))
    random.Random(0).shuffle(ids)
    shuffled, _ = cpu(lambda: look_up(store, ids))
    listing, found = cpu(lambda: list(store))
    assert len(found) == len(store) == records
    resuming, _ = cpu(lambda: resume(folder), 1)
    inodes = sum(1 for _ in Path(folder).rglob("*"))
    index = sum(p.stat().st_size for p in Path(folder, "index").iterdir())
    sealed = sum(p.stat().st_size for p in Path(folder, "sealed").iterdir())
    fixed = 16  # files and folders that a store of any size may have
    return {
        "write a record": 1e6 * seconds / records,
        "open during a dump": 1e3 * during,
        "open": 1e3 * opening,
        "look-up in order": 1e6 * in_order / len(ids),
        "look-up shuffled": 1e6 * shuffled / len(ids),
        "list a million ids": listing * 1e6 / records,
        "resume": 1e3 * resuming,
        "files and folders": inodes,
        "files and folders a shard": max(0, inodes - fixed) / (records / SHARD),
        "bytes of index a record": index / records,
        "bytes of entries a record": sealed / records,
    }


UNITS = {
    "write a record": "µs",
    "resume": "ms",
    **{name: unit for name, (_, unit) in PROMISES.items()},
}


def main():
    """Read the command line, print a line for every figure, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="10 000 records only")
    parser.add_argument("--records", type=int, nargs="+", metavar="N", help="other sizes of the stores")
    parser.add_argument("--at", metavar="FOLDER", help="folder on the disk to measure")
    args = parser.parse_args()
    sizes = args.records or ([10_000] if args.short else [10_000, 100_000, 1_000_000])
    found = {}
    for records in sizes:
        with tempfile.TemporaryDirectory(dir=args.at) as folder:
            found[records] = measure(folder, records)
    print(f"{'':<28}" + "".join(f"{n:>12,}" for n in sizes) + f"{'growth':>9}{'allowed':>12}")
    missed = []
    for name in found[sizes[0]]:
        values = [found[n][name] for n in sizes]
        growth = f"{values[-1] / values[0]:8.1f}×" if len(sizes) > 1 and values[0] else f"{'':>9}"
        allowed, unit = PROMISES.get(name, (None, UNITS.get(name, "")))
        limit = "" if allowed is None else f"{allowed:g} {unit}"
        print(f"{name:<28}" + "".join(f"{v:12.2f}" for v in values) + f"{growth}{limit:>12}")
        if allowed is not None and max(values) > allowed:
            missed.append(f"{name}: {max(values):.2f} {unit}, more than {allowed:g} {unit}")
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
