"""A place whose files are kept in memory, as an object store keeps objects: no folders, no paths."""

import threading
from contextlib import contextmanager
from shutil import rmtree

import numpy as np

from logitstore.errors import StoreBusy


class MemoryPlace:
    """Files by name, locks by name, and a temporary folder for shards in the making."""

    def __init__(self, location, staging):
        self._location, self._staging = location, staging
        self.files, self._locks = {}, {}

    def __str__(self):
        return self._location

    def local(self, name=""):
        return None

    def exists(self, name=""):
        return name in self.files or bool(self.names(name))

    def names(self, folder):
        if folder == "partial":
            locks = [f"{name}.lock" for name, lock in self._locks.items() if lock.locked()]
            return sorted([*locks, *(p.name for p in self._staging.iterdir())])
        prefix = f"{folder}/" if folder else ""
        return sorted({n.removeprefix(prefix).split("/")[0] for n in self.files if n.startswith(prefix)})

    def size(self, name):
        return len(self.read(name))

    def read(self, name):
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def map(self, name):
        return np.frombuffer(self.read(name), np.uint8)

    def write(self, name, data):
        self.files[name] = bytes(data)

    def remove(self, name):
        folder, _, rest = name.partition("/")
        if folder == "partial":
            rmtree(self._staging / rest, ignore_errors=True)
        for known in list(self.files):
            if known == name or known.startswith(f"{name}/"):
                del self.files[known]

    def stage(self, writer):
        path = self._staging / writer
        path.mkdir(exist_ok=True)
        return path

    def publish(self, staged, name):
        self.remove(name)
        if staged.is_file():
            self.files[name] = staged.read_bytes()
            staged.unlink()
            return
        for path in staged.rglob("*"):
            if path.is_file():
                self.files[f"{name}/{path.relative_to(staged).as_posix()}"] = path.read_bytes()
        rmtree(staged)

    @contextmanager
    def lock(self, writer, wait=False):
        lock = self._locks.setdefault(writer, threading.Lock())
        if not lock.acquire(blocking=wait):
            raise StoreBusy(f"another writer holds {writer!r}", where=str(self))
        try:
            yield
        finally:
            lock.release()


class MemoryPlaces:
    """The component to register: one :class:`MemoryPlace` for each location; ``folder`` holds staged shards."""

    def __init__(self, folder):
        self._folder = folder
        self.opened = {}

    def at(self, location):
        if location not in self.opened:
            staging = self._folder / str(len(self.opened))
            staging.mkdir()
            self.opened[location] = MemoryPlace(location, staging)
        return self.opened[location]
