"""The protocol of a place: every operation that a store needs from a file system or an object store."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ... import registry
from ...errors import UsageError

_URL_IN_A_PATH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # pathlib joins the two slashes of a URL


class Place(Protocol):
    """A folder, or a prefix of an object store.

    Names are relative to it, with ``/`` between their parts. Names below ``partial`` are special: they stand
    for the staging folders and the locks of writers, which may be kept elsewhere than the files.
    """

    def __str__(self) -> str:
        """Return the location as a user would write it."""

    def exists(self, name: str = "") -> bool:
        """Return whether there is a file of that name, or a folder with files."""

    def names(self, folder: str) -> list[str]:
        """Return the sorted names directly below a folder; none where it does not exist.

        ``names("partial")`` lists the staging folder of every writer as ``WRITER``, and its lock, as long as
        it is held, as ``WRITER.lock``.
        """

    def size(self, name: str) -> int:
        """Return the number of bytes of a file; raise ``FileNotFoundError`` where there is none."""

    def read(self, name: str) -> bytes:
        """Return the content of a small file; raise ``FileNotFoundError`` where there is none."""

    def map(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a file as a read-only array, if possible loaded on first use.

        The array keeps its bytes when the file is replaced or removed. Raises ``FileNotFoundError``.
        """

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file in one step: no reader sees a part of it, and it survives a crash."""

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with everything in it, durably; do nothing where there is none.

        ``remove("partial/WRITER")`` removes the writer's staging folder.
        """

    def stage(self, writer: str) -> Path:
        """Return a local folder of this writer alone for unfinished shards; make it where it is missing."""

    def publish(self, staged: Path, name: str) -> None:
        """Move a staged file or folder to its final name, replacing what is there; then it is durable."""

    def lock(self, writer: str, wait: bool = False) -> AbstractContextManager[None]:
        """Hold the lock of a name for the time of a ``with`` block.

        Raises ``StoreBusy`` where another live process holds it, unless ``wait`` is true.
        """

    def local(self, name: str = "") -> Path | None:
        """Return the local path of a name; None where the place has no local paths."""


def open_place(location: Any) -> Place:
    """Return the place at a local path or a URL (``scheme://…``); a place is returned as it is.

    Raises:
        UnknownName: no place is registered for the scheme; the message lists the known ones.
        UsageError: the location is a ``Path`` that was made from a URL.
    """
    if not isinstance(location, str | Path):
        place: Place = location
        return place
    scheme, is_url, _ = str(location).partition("://")
    if isinstance(location, Path) and (found := _URL_IN_A_PATH.match(str(location))):
        registry.load("places", found[1])
        raise UsageError(f"{str(location)!r} is a URL in a Path, which drops a slash", do="Give a string.")
    component = registry.load("places", scheme if is_url else "local")
    place = component.at(str(location))
    return place
