"""The commit protocol (SPEC C3, C5, C6): killed at every step, and at any moment."""

import os
import random
import shutil
import time
from collections import Counter

from logitstore.storage import faults
from logitstore.store.reader import Store
from logitstore.store.rewrite import compact_store

from .store import BLOCKS, IDS, STORAGES, Child, look, row, same, same_tree, work


def never_killed(root):
    """A store of each storage that nobody killed, how often it comes to each step, and how long it takes."""
    found = {}
    for storage in STORAGES:
        folder = root / f"whole-{storage}"
        counts = Counter()
        faults.install(lambda step, counts=counts: counts.update([step]))
        try:
            begin = time.perf_counter()
            work(folder, storage)
            found[storage] = folder, counts, time.perf_counter() - begin
        finally:
            faults.install(None)
    return found


def at_every_step(family, root, times=99):
    """Killed at each step, each time it comes to it; then the same command again."""
    for storage, (whole, counts, _) in never_killed(root).items():
        for step, count in counts.items():
            for nth in range(1, min(count, times) + 1):
                family.seen[step] += 1
                _killed(family, root, storage, whole, f"{step}@{nth}")


def _killed(family, root, storage, whole, where):
    folder = root / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    with family.case(f"{storage} killed at {where}"):
        done, status = Child(lambda told: work(folder, storage, told), faults.killer(where)).wait()
        assert os.WIFSIGNALED(status), f"it was not killed: {status}"
        look(family, folder, done)
        _resume(folder, storage, whole)


def _resume(folder, storage, whole):
    _, status = Child(lambda told: work(folder, storage, told)).wait()
    assert status == 0, f"the same command again ends with {status}"
    assert same_tree(folder, whole), "the finished store is not that of one never killed"


def at_any_moment(family, root, kills, seed=0):
    """Killed again and again at random instants, the same command each time, until it is through."""
    dice = random.Random(seed)
    made = never_killed(root)
    while family.cases < kills:
        storage = dice.choice(STORAGES)
        whole, _, seconds = made[storage]
        folder = root / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        done = []
        for _ in range(dice.randint(1, 4)):
            with family.case(f"{storage}, kill {family.cases} of seed {seed}"):
                child = Child(lambda told, f=folder, s=storage: work(f, s, told))
                time.sleep(dice.uniform(0, 1.1 * seconds))
                child.kill()
                acknowledged, _ = child.wait()
                done += acknowledged
                look(family, folder, done)
        with family.case(f"{storage} resumed after kill {family.cases} of seed {seed}"):
            _resume(folder, storage, whole)


def two_at_once(family, root, kills, seed=0):
    """Two jobs of one store, each killed at random instants; the finished store does not show it."""
    dice = random.Random(seed)
    made = never_killed(root)
    parts = [dict(list(BLOCKS.items())[i::2]) for i in (0, 1)]
    while family.cases < kills:
        storage = dice.choice(STORAGES)
        whole, _, seconds = made[storage]
        folder = root / "pair"
        shutil.rmtree(folder, ignore_errors=True)
        with family.case(f"{storage}, pair {family.cases} of seed {seed}"):
            children = [
                Child(lambda told, p=p, i=i, f=folder, s=storage: work(f, s, told, f"job-{i}-of-2", p))
                for i, p in enumerate(parts)
            ]
            done = []
            for child in children:
                time.sleep(dice.uniform(0, seconds))
                child.kill()
            for child in children:
                done += child.wait()[0]
            look(family, folder, done)
            _resume(folder, storage, whole)


def merging(family, root, times=99):
    """``compact`` killed at each of its steps: no row is ever twice or not at all; then it is run again."""
    for storage, (whole, _, _) in never_killed(root).items():
        counts = Counter()
        merged = root / f"merged-{storage}"
        shutil.copytree(whole, merged)
        faults.install(lambda step, counts=counts: counts.update([step]))
        try:
            compact_store(merged, "100")
        finally:
            faults.install(None)
        with family.case(f"{storage}: rows and ids unchanged"):
            _unchanged(family, merged)
            assert len(Store(merged).shards) == 1
        for step, count in counts.items():
            for nth in range(1, min(count, times) + 1):
                family.seen[step] += 1
                with family.case(f"{storage}: merging killed at {step}@{nth}"):
                    folder = root / "killed"
                    shutil.rmtree(folder, ignore_errors=True)
                    shutil.copytree(whole, folder)
                    hook = faults.killer(f"{step}@{nth}")
                    _, status = Child(lambda told, f=folder: compact_store(f, "100"), hook).wait()
                    assert os.WIFSIGNALED(status), f"it was not killed: {status}"
                    _unchanged(family, folder)
                    if nth % 2:  # a dump comes first: it must neither lose nor double anything
                        work(folder, storage)
                        _unchanged(family, folder)
                    compact_store(folder, "100")
                    _unchanged(family, folder)
                    assert same_tree(folder, merged), "not the store of a merge never killed"


def _unchanged(family, folder):
    store = Store(folder)
    ids = list(store)
    if tuple(ids) != IDS:
        family.lost += len(set(IDS) - set(ids))
        raise AssertionError(f"rows are {ids}")
    for i in IDS:
        if not same(store.record(i), row(i)):
            family.silent += 1
            raise AssertionError(f"{i} reads back wrong")
