"""Places in local or mounted folders."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import FormatError, StoreBusy
from .. import faults
from ._disk_errors import disk_errors
from ._mapping import map_file

MAX_READ_BYTES = 1 << 30  # size of the largest file that is read as a whole
MAX_TRIES = 40  # attempts to make a folder that other writers may remove when they end: 0.8 seconds


def fsync(path: Path) -> None:
    """Make a file, or the entries of a folder, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(path: Path) -> None:
    """Make a file, or a folder and everything below it, durable."""
    if path.is_dir():
        for folder, _, files in os.walk(path):
            for name in files:
                fsync(Path(folder, name))
            fsync(Path(folder))
    else:
        fsync(path)


@dataclass(frozen=True)
class LocalPlace:
    """A local folder.

    Files are replaced by atomic renames and made durable by fsync. No file is read or written through a
    symbolic link that leads out of the folder, and only regular files are read (SPEC F7). Errors of the file
    system are raised as ``DiskError``.

    Attributes:
        root: the folder.
    """

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def local(self, name: str = "") -> Path:
        return self.root / name

    def exists(self, name: str = "") -> bool:
        with disk_errors(self.root / name):
            return (self.root / name).exists()

    def names(self, folder: str) -> list[str]:
        try:
            with disk_errors(self.root / folder):
                return sorted(os.listdir(self.root / folder))
        except FileNotFoundError:
            return []

    def size(self, name: str) -> int:
        with disk_errors(self.root / name):
            return self._inside(name).stat().st_size

    def read(self, name: str) -> bytes:
        with self._reading(name) as fd:
            if os.fstat(fd).st_size > MAX_READ_BYTES:
                raise FormatError(
                    f"it has more than {MAX_READ_BYTES} bytes, too many for its purpose",
                    where=str(self.root / name),
                )
            with open(fd, "rb", closefd=False) as f:
                return f.read()

    def map(self, name: str) -> NDArray[np.uint8]:
        with self._reading(name) as fd:
            return map_file(fd)

    def write(self, name: str, data: bytes) -> None:
        with disk_errors(self.root / name, missing_too=True):
            path = self._parent_of(name)
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                partial.unlink(missing_ok=True)  # left by a dead process with the same id; or a link
                with open(partial, "xb") as f:
                    f.write(data)
                    f.flush()
                    os.fsync(f.fileno())
                faults.reach(f"write:{name.partition('/')[0]}")
                os.rename(partial, path)
            except BaseException:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise
            fsync(path.parent)

    def remove(self, name: str) -> None:
        path = self.root / name
        with disk_errors(path, missing_too=True):
            if path.is_symlink() or path.exists():
                self._check(path.parent)
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                fsync(path.parent)

    def stage(self, writer: str) -> Path:
        path = self.root / "partial" / writer
        with disk_errors(path, missing_too=True):
            path.mkdir(parents=True, exist_ok=True)
            return self._check(path)

    def publish(self, staged: Path, name: str) -> None:
        with disk_errors(self.root / name, missing_too=True):
            fsync_tree(staged)
            path = self._parent_of(name)
            if path.exists() or path.is_symlink():
                self.remove(name)  # left by a crash before the entry was written: no reader uses it
            os.rename(staged, path)
            fsync(path.parent)

    @contextmanager
    def lock(self, writer: str, wait: bool = False) -> Iterator[None]:
        """Hold an flock. The kernel releases it when its holder dies, so it cannot become stale."""
        path = self.root / "partial" / f"{writer}.lock"
        tries = 0
        while True:
            try:
                with disk_errors(path):
                    with suppress(FileExistsError):  # another process made it, and may remove it again
                        path.parent.mkdir(parents=True, exist_ok=True)
                    self._check(path.parent)
                    f = open(
                        os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "wb"
                    )
            except FileNotFoundError as e:  # the last holder has just removed the folder
                tries += 1
                if tries < MAX_TRIES:
                    time.sleep(0.001 * tries)
                    continue
                with disk_errors(path, missing_too=True):  # a link to nothing, or a folder such as /proc
                    raise OSError(e.errno, "no folder can be made there") from None
                raise
            try:
                with disk_errors(path):
                    fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BaseException as e:
                f.close()
                if isinstance(e.__cause__, BlockingIOError):
                    raise StoreBusy(
                        f"another live process writes as {writer!r}",
                        where=str(self.root),
                        why="Two writers of the same name would write the same shards.",
                        do="Wait for it, or give this one another name or part of the manifest (--job i/N).",
                    ) from None
                raise
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(f.fileno()), path.stat()):
                    break
            f.close()  # the last holder removed the file while this process waited
        try:
            yield
        finally:
            with suppress(OSError):  # a disk that has become read-only keeps the file; the lock still ends
                path.unlink(missing_ok=True)
            f.close()
            with suppress(OSError):
                path.parent.rmdir()  # not empty while other writers work

    @contextmanager
    def _reading(self, name: str) -> Iterator[int]:
        """Open a file for reading; refuse a device or a pipe, which could block."""
        path = self.root / name
        with disk_errors(path):
            self._inside(name)
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise FormatError("it is not a regular file (SPEC F7)", where=str(path))
                yield fd
            finally:
                os.close(fd)

    def _inside(self, name: str) -> Path:
        path = self.root / name
        return self._check(path) if path.is_symlink() or path.parent != self.root else path

    def _check(self, path: Path) -> Path:
        """Return the path; raise ``FormatError`` if links lead out of the store."""
        real, root = os.path.realpath(path), os.path.realpath(self.root)
        if real != root and not real.startswith(root.rstrip("/") + "/"):
            raise FormatError(
                f"it is a symbolic link that leads out of the store, to {real} (SPEC F7)",
                where=str(path),
                why="With such a link an untrusted store could read or overwrite any file.",
                do="Put the files themselves there; only a link to the whole store is allowed.",
            )
        return path

    def _parent_of(self, name: str) -> Path:
        """Return the path of a name; make its folder, and check that it is inside the store."""
        path = self.root / name
        self._folder(path.parent)
        self._check(path.parent)
        return path

    def _folder(self, path: Path) -> None:
        """Make a folder below the root, each new level durable in its parent."""
        if not path.exists():
            self._folder(path.parent)
            path.mkdir(exist_ok=True)
            fsync(path.parent)


def at(location: str) -> LocalPlace:
    """Return the place at a local path."""
    return LocalPlace(Path(location))
