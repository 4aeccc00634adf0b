"""Staging folders of unfinished shards: their names, their check before sealing, and the removal of dead ones.

The name of a staging folder carries the writer, the host, the process and a random token. A lock alone does not
show that a writer is dead: on some cluster file systems a lock is known only to the host that took it.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreBusy, StoreError
from .base import StorageBackend, check_file
from .entries import Entry
from .places import Place
from .places.local import LocalPlace

STALE_SECONDS = 24 * 3600.0  # age from which on a staging folder of another host is taken for a dead one
_NAME = re.compile(r"(.+)~([A-Za-z0-9._-]+)~(\d+)~([0-9a-f]+)", re.ASCII)
_live: set[str] = set()  # staging folders of this process that are in use


@dataclass(frozen=True)
class StagingOwner:
    """The owner of a staging folder, as its name says.

    Attributes:
        writer: name of the writer.
        host: name of the host, of letters, digits, ``.``, ``_`` and ``-``.
        pid: process id on that host.
    """

    writer: str
    host: str
    pid: int

    @classmethod
    def parse(cls, name: str) -> StagingOwner | None:
        """Parse the name of a staging folder; return None for a name without an owner."""
        found = _NAME.fullmatch(name)
        return cls(found[1], found[2], int(found[3])) if found else None


def host_name() -> str:
    """Return the name of this host, with ``-`` for characters that a file name should not have."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "host"


def new_staging(writer: str) -> str:
    """Return a new name of a staging folder for a writer of this process, and note that it is in use."""
    name = f"{writer}~{host_name()}~{os.getpid()}~{secrets.token_hex(6)}"
    _live.add(name)
    return name


def remove_staging(place: Place, name: str) -> None:
    """Remove a staging folder of this process."""
    _live.discard(name)
    place.remove(f"partial/{name}")


def remove_dead_staging(place: Place, writer: str) -> None:
    """Remove staging folders and locks of dead writers; the caller holds the lock ``writer``.

    A folder is removed if its writer's lock is free and, besides, its process ran on this host and has ended, or
    nothing in it was written for 24 hours. A folder whose name has no owner is removed if the lock of its name
    is free.
    """
    names = place.names("partial")
    for name in names:
        if not name.endswith(".lock"):
            owner = StagingOwner.parse(name)
            with suppress(StoreBusy):
                if owner is None:
                    if name not in (writer, "store"):
                        with place.lock(name):
                            place.remove(f"partial/{name}")
                elif _is_dead(place, name, owner):
                    if owner.writer == writer:
                        place.remove(f"partial/{name}")
                    else:
                        with place.lock(owner.writer):
                            place.remove(f"partial/{name}")
    for name in names:  # taking and releasing a lock removes the file that a dead writer left
        lock = name.removesuffix(".lock")
        if name.endswith(".lock") and lock not in (writer, "store"):
            with suppress(StoreBusy), place.lock(lock):
                pass


def _is_dead(place: Place, name: str, owner: StagingOwner) -> bool:
    """Return whether the owner of a staging folder can no longer be at work."""
    if owner.host == host_name():
        if owner.pid == os.getpid():
            return name not in _live
        try:
            os.kill(owner.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    return time.time() - _last_change(place.stage(name)) > STALE_SECONDS


def _last_change(folder: Path) -> float:
    """Return the time of the latest change of a folder or of anything in it."""
    latest = folder.stat().st_mtime
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(OSError):
                latest = max(latest, os.lstat(os.path.join(parent, name)).st_mtime)
    return latest


@dataclass(frozen=True)
class StagedPlace(LocalPlace):
    """A staged shard as a place, in which its files have their final names; a backend can open it from there.

    Attributes:
        root: folder that holds the staged file or folder.
        staged: name of the staged file or folder.
        path: final path of the shard, relative to the store.
    """

    staged: str = ""
    path: str = ""

    def local(self, name: str = "") -> Path:
        return super().local(self._staged(name))

    def exists(self, name: str = "") -> bool:
        return super().exists(self._staged(name))

    def size(self, name: str) -> int:
        return super().size(self._staged(name))

    def read(self, name: str) -> bytes:
        return super().read(self._staged(name))

    def map(self, name: str) -> NDArray[np.uint8]:
        return super().map(self._staged(name))

    def _staged(self, name: str) -> str:
        return self.staged + name.removeprefix(self.path) if name.startswith(self.path) else name


def staged_place(storage: StorageBackend, staged: Path, entry: Entry) -> StagedPlace:
    """Return the place in which a storage backend can open a staged shard."""
    return StagedPlace(staged.parent, staged.name, storage.path(entry.shard))


def check_staged(storage: StorageBackend, staged: Path, entry: Entry) -> None:
    """Raise ``StoreError`` unless the staged files are exactly those of the entry, byte for byte."""
    expected = {f.path for f in entry.contents.files}
    found = set(_staged_files(staged, storage.path(entry.shard)))
    if found != expected:
        missing, other = sorted(expected - found), sorted(found - expected)
        what = f"{missing[0]} is missing" if missing else f"{other[0]} was not written by this writer"
        raise StoreError(
            f"the staged files of shard {entry.shard} were changed before they were sealed: {what}",
            where=str(staged),
            why="Another process removed or added files. Locks of this file system may not work between hosts.",
            do="Run `logitstore doctor`, then the same job again. Sealed shards are safe.",
        )
    place = staged_place(storage, staged, entry)
    for file in entry.contents.files:
        check_file(place.map(file.path), file)


def _staged_files(staged: Path, path: str) -> Iterator[str]:
    """Yield the final path of every file of a staged shard."""
    if not staged.is_dir():
        if staged.exists():
            yield path
        return
    for parent, _, names in os.walk(staged):
        for name in names:
            yield f"{path}/{Path(parent, name).relative_to(staged).as_posix()}"
