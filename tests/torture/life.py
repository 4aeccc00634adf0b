"""A hundred epochs: file handles and memory stay as they are, in workers however they start."""

import gc
import os
import pickle

from logitstore.store.reader import Store

from .store import IDS, row, same, work


def _handles():
    return len(os.listdir("/proc/self/fd"))


def _memory():
    """Resident kilobytes of this process."""
    with open("/proc/self/status") as f:
        return next(int(x.split()[1]) for x in f if x.startswith("VmRSS"))


def first(batch):
    """As they come: a worker's report of itself."""
    return batch


class Reporting:
    """A dataset that gives what it read, with the process's own file handles and memory."""

    def __init__(self, location):
        from logitstore.store.dataset import TargetDataset

        self.inner = TargetDataset(location)

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, i):
        target = self.inner[i]
        wrong = not same(self.inner.store.record(target.id), row(target.id))
        return target.id, wrong, _handles(), _memory()


def epochs(family, root, count, storages=("zarr", "webdataset")):
    """Two workers, ``count`` epochs, fork and spawn."""
    from torch.utils.data import DataLoader

    for storage in storages:
        work(root / storage, storage)
        with family.case(f"{storage}: {count} epochs in this process, opened anew each time"):
            store = Store(root / storage)
            for epoch in range(count):
                for i in IDS:
                    family.silent += not same(store.record(i), row(i))
                store = pickle.loads(pickle.dumps(store))
                if epoch == count // 4:
                    gc.collect()
                    before = _handles(), _memory()
            gc.collect()
            assert _handles() <= before[0], f"{_handles()} file handles, {before[0]} before"
            assert _memory() < before[1] + 20_000, f"{_memory()} kB, {before[1]} before"
        for start in ("fork", "spawn"):
            with family.case(f"{storage}: {count} epochs, 2 workers by {start}"):
                loader = DataLoader(
                    Reporting(root / storage),
                    batch_size=2,
                    num_workers=2,
                    multiprocessing_context=start,
                    persistent_workers=True,
                    collate_fn=first,
                )
                seen = []
                for _ in range(count):
                    found = [x for batch in loader for x in batch]
                    assert sorted(i for i, *_ in found) == sorted(IDS)
                    family.silent += sum(wrong for _, wrong, _, _ in found)
                    seen.append((max(h for *_, h, _ in found), max(m for *_, m in found)))
                del loader
                early, late = seen[len(seen) // 4], seen[-1]
                assert late[0] <= early[0] + 2, f"file handles grow: {early[0]} to {late[0]}"
                assert late[1] < early[1] + 20_000, f"memory grows: {early[1]} to {late[1]} kB"
