"""``flat://NAME``: a store kept as object stores do, every object a file of one folder without subfolders.

The folder is ``$FLAT_ROOT/NAME``; a slash in an object's name is written ``%2F``.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from logitstore.errors import StoreBusy, UsageError

STAGING = ".staging"  # beside the objects: local folders and locks of writers, no objects


@dataclass(frozen=True)
class FlatPlace:
    """Objects of one folder, and a staging folder for the writers of this machine."""

    url: str
    root: Path

    def __str__(self) -> str:
        return self.url

    def local(self, name: str = "") -> Path | None:
        return None

    def exists(self, name: str = "") -> bool:
        if name == "":
            return self.root.exists()
        return self._object(name).exists() or bool(self.names(name))

    def names(self, folder: str) -> list[str]:
        if folder == "partial":
            staging = self.root / STAGING
            return sorted(os.listdir(staging)) if staging.exists() else []
        prefix = f"{folder}/" if folder else ""
        below = [k.removeprefix(prefix) for k in self._keys() if k.startswith(prefix)]
        return sorted({k.partition("/")[0] for k in below})

    def size(self, name: str) -> int:
        return self._object(name).stat().st_size

    def read(self, name: str) -> bytes:
        return self._object(name).read_bytes()

    def map(self, name: str) -> NDArray[np.uint8]:
        return np.frombuffer(self._object(name).read_bytes(), np.uint8)  # bytes are read-only

    def write(self, name: str, data: bytes) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        partial = self.root / f"{STAGING}-{os.getpid()}"
        with open(partial, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.rename(partial, self._object(name))

    def remove(self, name: str) -> None:
        folder, _, rest = name.partition("/")
        if folder == "partial":
            shutil.rmtree(self.root / STAGING / rest, ignore_errors=True)
            return
        for key in self._keys():
            if key == name or key.startswith(f"{name}/"):
                self._object(key).unlink(missing_ok=True)

    def stage(self, writer: str) -> Path:
        path = self.root / STAGING / writer
        path.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, staged: Path, name: str) -> None:
        self.remove(name)  # left by a writer that died before the entry was written
        if staged.is_dir():
            files = sorted(p for p in staged.rglob("*") if p.is_file())
            for file in files:
                self.write(f"{name}/{file.relative_to(staged).as_posix()}", file.read_bytes())
            shutil.rmtree(staged)
        else:
            self.write(name, staged.read_bytes())
            staged.unlink()

    @contextmanager
    def lock(self, writer: str, wait: bool = False) -> Iterator[None]:
        path = self.root / STAGING / f"{writer}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with open(path, "wb") as f:
                try:
                    fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    raise StoreBusy(f"another live process writes as {writer!r}", where=self.url) from None
                if not path.exists() or not os.path.samestat(os.fstat(f.fileno()), path.stat()):
                    continue  # its last holder removed the file while this one waited
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return

    def _object(self, name: str) -> Path:
        return self.root / quote(name, safe="")

    def _keys(self) -> list[str]:
        found = os.listdir(self.root) if self.root.exists() else []
        return [unquote(n) for n in found if not n.startswith(STAGING)]


def at(location: str) -> FlatPlace:
    """Return the place at ``flat://NAME``. Raises ``UsageError`` for a name that is no single word."""
    name = location.removeprefix("flat://")
    if not name or quote(name, safe="") != name or name.startswith("."):
        raise UsageError(f"{location!r} is not flat://NAME", do="NAME is one word, e.g. flat://train.")
    return FlatPlace(location, Path(os.environ.get("FLAT_ROOT", "/tmp"), name))
