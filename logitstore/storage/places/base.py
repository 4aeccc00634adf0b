"""What a place can do: everything the rest of logitstore asks of a file system."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ... import registry


class Place(Protocol):
    """A directory, or a prefix of an object store. Names are relative, with ``/`` between parts."""

    def __str__(self) -> str:
        """The location as the user would write it."""

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or directory of that name."""

    def names(self, folder: str) -> list[str]:
        """Sorted names directly below a folder; none where it does not exist."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def read(self, name: str) -> bytes:
        """A whole (small) file."""

    def map(self, name: str) -> NDArray[np.uint8]:
        """A file's bytes, read-only, loaded as they are touched."""

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file at once: no reader ever sees half of it, and it survives a crash."""

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder, durably; nothing happens where there is none."""

    def stage(self, writer: str) -> Path:
        """A local folder of this writer's own for shards in the making."""

    def publish(self, staged: Path, name: str) -> None:
        """Move a staged file or folder, all of it durable, to its final name."""

    def lock(self, writer: str, wait: bool = False) -> AbstractContextManager[None]:
        """Hold a writer's name; raises ``StoreBusy`` when another live process holds it."""

    def local(self, name: str = "") -> Path | None:
        """The path of a name for libraries that want one; None where there is none."""


def open_place(location: Any) -> Place:
    """The place at a local path or a URL (``scheme://…``). Raises ``UnknownName`` for an unknown scheme."""
    if not isinstance(location, str | Path):
        return location  # type: ignore[no-any-return]  # already a place
    scheme, found, _ = str(location).partition("://")
    module = registry.load("places", scheme if found else "local")
    return module.at(str(location))  # type: ignore[no-any-return]
