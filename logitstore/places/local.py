"""A store in a local (or mounted) directory."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreBusy


def fsync(path: Path) -> None:
    """Make a file or directory entry durable."""
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
    """A directory. Renames inside it are atomic; every durable step is an fsync."""

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def local(self, name: str = "") -> Path:
        return self.root / name

    def exists(self, name: str = "") -> bool:
        return (self.root / name).exists()

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / folder))
        except FileNotFoundError:
            return []

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def map(self, name: str) -> NDArray[np.uint8]:
        with open(self.root / name, "rb") as f:
            if os.fstat(f.fileno()).st_size == 0:  # an empty file cannot be mapped
                return np.zeros(0, np.uint8)
            return np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        self._folder(path.parent)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(partial, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.rename(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        fsync(path.parent)

    def remove(self, name: str) -> None:
        path = self.root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.exists() or path.is_symlink():
            path.unlink(missing_ok=True)
        else:
            return
        fsync(path.parent)

    def stage(self, writer: str) -> Path:
        path = self.root / "partial" / writer
        path.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, staged: Path, name: str) -> None:
        fsync_tree(staged)
        path = self.root / name
        self._folder(path.parent)
        if path.exists():
            self.remove(name)  # left by a crash between rename and entry: no reader knows it
        os.rename(staged, path)
        fsync(path.parent)

    @contextmanager
    def lock(self, writer: str, wait: bool = False) -> Iterator[None]:
        """An flock: the kernel drops it when its holder dies, so none is ever stale; its file goes too."""
        path = self.root / "partial" / f"{writer}.lock"
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                f = open(path, "wb")
            except (FileNotFoundError, FileExistsError):  # the last holder just removed the folder
                if path.parent.exists() and not path.parent.is_dir():
                    raise
                continue
            try:
                fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                f.close()
                raise StoreBusy(
                    f"another live process writes as {writer!r}",
                    where=str(self.root),
                    why="Two writers of one name would write the same shards.",
                    do="Wait for it, or give this one another part (--job i/N).",
                ) from None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(f.fileno()), path.stat()):
                    break
            f.close()  # its last holder removed the file while this one waited
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            f.close()
            with suppress(OSError):
                path.parent.rmdir()  # the last one out; not empty while others work

    def _folder(self, path: Path) -> None:
        """Make a folder below the root, each new level durable in its parent."""
        if not path.exists():
            self._folder(path.parent)
            path.mkdir(exist_ok=True)
            fsync(path.parent)


def at(location: str) -> LocalPlace:
    """The place at a local path."""
    return LocalPlace(Path(location))
