"""The commit protocol: how rows become a shard that exists, and what follows from the entries.

The order of sealing is SPEC C3: finish the files, make them durable, rename them into ``shards/``, write the
entry into ``sealed/``. Until the entry exists, no reader sees any of it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..errors import FormatError, StoreBusy, StoreError
from ..schema.checksums import parse_json
from ..schema.spec import REPLACES, Column
from . import StorageBackend, faults, open_storage
from .base import EncodedRecord
from .entries import Entry, current_index, entry_name, read_entry, shard_names
from .places import Place, disk_errors
from .spec_file import is_store, read_spec, write_spec

_HALF = re.compile(r"\.(logitstore\.json|tokens\.txt|index\.bin|skipped\.jsonl|[\w.-]+\.json)\.\d+", re.ASCII)
LINE = "ManifestError"  # the reason of a problem that is the line's, not the utterance's


class UnsealedShard:
    """A shard nobody sees yet; ``seal`` makes it exist, ``discard`` makes it never have been."""

    def __init__(
        self, place: Place, storage: StorageBackend, columns: tuple[Column, ...], name: str, writer: str
    ) -> None:
        self.place, self.name, self._storage, self._writer = place, name, storage, writer
        self._staged = place.stage(writer) / name
        with disk_errors(self._staged, missing_too=True):
            self._rows = storage.create(self._staged, name, columns)
        self._ids: list[str] = []
        self._torn: str | None = None
        self._seconds, self._frames = 0.0, 0

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, row: EncodedRecord) -> None:
        """Append a row; it is on its way to disk at once.

        A row that is refused leaves no trace. Where writing itself fails, half a row may be there: the shard
        can no longer be sealed, whatever the caller makes of the error.
        """
        self._whole()
        try:
            with disk_errors(self._staged, missing_too=True):
                self._rows.add(row)
        except FormatError:
            raise
        except BaseException:
            self._torn = row.id
            raise
        faults.reach("row")
        self._ids.append(row.id)
        self._seconds += row.meta.get("seconds", 0.0)
        self._frames += row.meta["T"]

    def seal(
        self, skipped: Iterable[Mapping[str, str]] = (), *, replaces: Iterable[str] = ()
    ) -> Entry | None:
        """Finish, make durable, rename, write the entry. None where another writer sealed it meanwhile.

        Args:
            skipped: utterances of this part of the manifest that could not be dumped.
            replaces: shards that stop existing at the moment this one begins to.
        """
        try:
            entry = self._finish(skipped, replaces)
            sealed = publish(self.place, self._storage, self._staged, entry)
        except BaseException:
            self.discard()
            raise
        if not sealed:
            self.discard()
            return None
        self.place.remove(f"partial/{self._writer}")
        return entry

    def set_aside(self, folder: str) -> Entry:
        """Finish; files wait in ``partial/folder`` for whoever holds the lock of that name to seal them."""
        try:
            entry = self._finish((), ())
            os.rename(self._staged, self.place.stage(folder) / self.name)
        except BaseException:
            self.discard()
            raise
        self.place.remove(f"partial/{self._writer}")
        return entry

    def _whole(self) -> None:
        if self._torn is not None:
            raise StoreError(
                f"writing {self._torn!r} failed half way, so its shard cannot be sealed",
                where=f"shard {self.name}",
                why="Its rows would no longer lie where its table says; shards sealed before are safe.",
                do="Open the store again: it goes on with what is missing.",
            )

    def _finish(self, skipped: Iterable[Mapping[str, str]], replaces: Iterable[str]) -> Entry:
        self._whole()
        with disk_errors(self._staged, missing_too=True):
            contents = self._rows.finish()
        faults.reach("finished")
        return Entry(
            self.name,
            tuple(self._ids),
            self._seconds,
            self._frames,
            contents,
            tuple(map(dict, skipped)),
            tuple(replaces),
        )

    def discard(self) -> None:
        """Forget the shard."""
        with suppress(OSError):  # a full disk: what is still in a buffer has nowhere to go, and need not
            self._rows.close()
        self.place.remove(f"partial/{self._writer}")


def publish(place: Place, storage: StorageBackend, staged: Path, entry: Entry) -> bool:
    """Steps 2 to 4 of sealing; False where an entry of that name is there already."""
    with place.lock("store", wait=True):
        finish_replacements(place)  # another writer's that died in the middle: it may have replaced our name
        if place.exists(entry_name(entry.shard)):
            return False
        if entry.replaces:
            announce_replacement(place)
        # An index knows entries by name: one made before a shard was removed and dumped again under
        # the same name would look fresh.
        place.remove("index.bin")
        faults.reach("unindexed")
        place.publish(staged, storage.path(entry.shard))
        faults.reach("published")
        place.write(entry_name(entry.shard), entry.to_bytes())
        faults.reach("sealed")
        if entry.replaces:
            finish_replacements(place)
    return True


def finish_store(place: Place) -> None:
    """Bring the index and ``skipped.jsonl`` up to date with the sealed entries."""
    with place.lock("store", wait=True):
        finish_replacements(place)
        remove_temporary_files(place)
        current_index(place, write=True)
        data = skipped_lines(place)
        if data or place.exists("skipped.jsonl"):
            place.write("skipped.jsonl", data)


def skipped_lines(place: Place) -> bytes:
    """What ``skipped.jsonl`` should say: utterances that entries list as skipped and nobody dumped since."""
    index = current_index(place)
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for shard in shard_names(place):
        try:
            entry = read_entry(place, shard)
        except StoreError:
            continue  # verify names it; a finished dump must not fail over a neighbour's shard
        for problem in entry.skipped:
            lines[problem_key(problem)] = dict(problem)
    for key in [k for k in lines if k[1] != LINE and index.find(k[0])]:
        del lines[key]  # dumped since; a bad line stays one, whatever its id
    return "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in lines.values()).encode("utf-8")


def remove_temporary_files(place: Place) -> None:
    """Remove files that dead writers left under their temporary names; the caller holds the store's lock.

    All of them are written under that lock, so none can belong to a live one.
    """
    for folder in ("", "sealed", "shards"):
        for name in place.names(folder):
            if _HALF.fullmatch(name):
                place.remove(f"{folder}/{name}" if folder else name)


def remove_unfinished_shards(place: Place, writer: str) -> None:
    """Remove what dead writers left unfinished, their lock files too; ``writer`` is held by the caller."""
    place.remove(f"partial/{writer}")
    for name in {n.removesuffix(".lock") for n in place.names("partial")} - {writer, "store"}:
        with suppress(StoreBusy), place.lock(name):
            place.remove(f"partial/{name}")


def problem_key(problem: Mapping[str, object]) -> tuple[str, str, str]:
    """What a problem is known again by: id and reason; a manifest line by what it says of its number too."""
    utt_id, reason = str(problem.get("id")), str(problem.get("reason"))
    return utt_id, reason, str(problem.get("what")) if reason == LINE else ""


def skipped_keys(place: Place) -> frozenset[tuple[str, str, str]]:
    """The key of every line of ``skipped.jsonl``."""
    if not place.exists("skipped.jsonl"):
        return frozenset()
    where = f"{place}/skipped.jsonl"
    try:
        found = [parse_json(line, where) for line in place.read("skipped.jsonl").splitlines() if line]
    except FormatError:  # damaged: the entries say the same
        found = [parse_json(line, where) for line in skipped_lines(place).splitlines()]
    return frozenset(problem_key(p) for p in found if isinstance(p, dict))


def announce_replacement(place: Place) -> None:
    """Let readers that do not know replaced shards refuse the store until :func:`finish_replacements` is through."""
    spec = read_spec(place)
    if REPLACES not in spec.requires:
        now = replace(spec, requires=(*spec.requires, REPLACES))
        write_spec(place, now)


def drop_shard(place: Place, shard: str) -> None:
    """Make a shard stop existing; the caller holds the store's lock."""
    path = open_storage(read_spec(place).storage).path(shard)
    place.remove("index.bin")
    place.remove(entry_name(shard))
    place.remove(path)


def finish_replacements(place: Place) -> None:
    """Remove replaced shards, then every trace of the replacement; the caller holds the store's lock.

    Nothing is done in a store that :func:`announce_replacement` was not called for.
    """
    if not is_store(place) or REPLACES not in (spec := read_spec(place)).requires:
        return
    storage = open_storage(spec.storage)
    entries = {n: read_entry(place, n) for n in shard_names(place)}
    gone = {n for e in entries.values() for n in e.replaces if n != e.shard}
    for name in sorted(gone):
        place.remove(entry_name(name))
        faults.reach("replaced:entry")
    for name in sorted(gone):
        place.remove(storage.path(name))
        faults.reach("replaced:files")
    for name, entry in entries.items():
        if entry.replaces and name not in gone:
            place.write(entry_name(name), replace(entry, replaces=()).to_bytes())
    now = replace(spec, requires=tuple(r for r in spec.requires if r != REPLACES))
    write_spec(place, now)
