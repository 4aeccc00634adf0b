"""The commit protocol: how rows become a shard that exists, and what follows from the entries.

The order of sealing is SPEC C3: finish the files, make them durable, rename them into ``shards/``, write the
entry into ``sealed/``. Until the entry exists, no reader sees any of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from .emission import Row
from .errors import LogitStoreError, StoreBusy, StoreError
from .places import Place
from .sealed import Entry, current_index, entry_name, read_entry, shard_names
from .spec import Column
from .storage import Storage

LINE = "ManifestError"  # the reason of a problem that is the line's, not the utterance's


class ShardInMaking:
    """A shard nobody sees yet; ``seal`` makes it exist, ``discard`` makes it never have been."""

    def __init__(
        self, place: Place, storage: Storage, columns: tuple[Column, ...], name: str, writer: str
    ) -> None:
        self.place, self.name, self._storage, self._writer = place, name, storage, writer
        self._staged = place.stage(writer) / name
        self._rows = storage.create(self._staged, name, columns)
        self._ids: list[str] = []
        self._torn: str | None = None
        self._seconds, self._frames = 0.0, 0

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, row: Row) -> None:
        """Append a row; it is on its way to disk at once.

        A row that is refused leaves no trace. Where writing itself fails, half a row may be there: the shard
        can no longer be sealed, whatever the caller makes of the error.
        """
        self._whole()
        try:
            self._rows.add(row)
        except LogitStoreError:
            raise
        except BaseException:
            self._torn = row.id
            raise
        self._ids.append(row.id)
        self._seconds += row.meta.get("seconds", 0.0)
        self._frames += row.meta["T"]

    def seal(self, skipped: Iterable[Mapping[str, str]] = ()) -> Entry | None:
        """Finish, make durable, rename, write the entry. None where another writer sealed it meanwhile."""
        try:
            self._whole()
            return self._seal(tuple(map(dict, skipped)))
        except BaseException:
            self.discard()
            raise

    def _whole(self) -> None:
        if self._torn is not None:
            raise StoreError(
                f"writing {self._torn!r} failed half way, so its shard cannot be sealed",
                where=f"shard {self.name}",
                why="Its rows would no longer lie where its table says; shards sealed before are safe.",
                do="Open the store again: it goes on with what is missing.",
            )

    def _seal(self, skipped: tuple[dict[str, str], ...]) -> Entry | None:
        sealing = self._rows.finish()
        entry = Entry(self.name, tuple(self._ids), self._seconds, self._frames, sealing, skipped)
        with self.place.lock("store", wait=True):
            if self.place.exists(entry_name(self.name)):
                self.discard()
                return None
            # An index knows entries by name: one made before a shard was removed and dumped again under
            # the same name would look fresh.
            self.place.remove("index.bin")
            self.place.publish(self._staged, self._storage.path(self.name))
            self.place.write(entry_name(self.name), entry.to_bytes())
        self.place.remove(f"partial/{self._writer}")
        return entry

    def discard(self) -> None:
        """Forget the shard."""
        self._rows.close()
        self.place.remove(f"partial/{self._writer}")


def finish_store(place: Place) -> None:
    """Bring the index and ``skipped.jsonl`` up to date with the sealed entries."""
    with place.lock("store", wait=True):
        index = current_index(place, write=True)
        lines: dict[tuple[str, str], dict[str, str]] = {}
        for shard in shard_names(place):
            try:
                entry = read_entry(place, shard)
            except StoreError:
                continue  # verify names it; a finished dump must not fail over a neighbour's shard
            for problem in entry.skipped:
                lines[_key(problem)] = dict(problem)
        for key in [k for k in lines if k[1] != LINE and index.find(k[0])]:
            del lines[key]  # dumped since; a bad line stays one, whatever its id
        if lines or place.exists("skipped.jsonl"):
            data = "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in lines.values())
            place.write("skipped.jsonl", data.encode("utf-8"))


def sweep(place: Place, writer: str) -> None:
    """Remove what dead writers left unfinished; ``writer`` is held by the caller."""
    for name in place.names("partial"):
        if name == writer:
            place.remove(f"partial/{name}")
        elif not name.endswith(".lock"):
            try:
                with place.lock(name):
                    place.remove(f"partial/{name}")
            except StoreBusy:
                pass


def _key(problem: Mapping[str, str]) -> tuple[str, str]:
    return str(problem.get("id")), str(problem.get("reason"))


def listed(place: Place) -> frozenset[tuple[str, str]]:
    """Id and reason of every line of ``skipped.jsonl``."""
    if not place.exists("skipped.jsonl"):
        return frozenset()
    lines = place.read("skipped.jsonl").decode("utf-8").split("\n")
    return frozenset(_key(json.loads(line)) for line in lines if line)
