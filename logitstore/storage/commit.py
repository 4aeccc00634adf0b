"""The commit protocol: sealing, replacing and removing shards, so that a crash leaves a valid store.

The order of sealing is SPEC C3: finish the files, make them durable, rename them into ``shards/``, write the
entry into ``sealed/``. Readers ignore the files until the entry exists.
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

_TEMPORARY = re.compile(
    r"\.(logitstore\.json|tokens\.txt|index\.bin|skipped\.jsonl|[\w.-]+\.json)\.\d+", re.ASCII
)
LINE = "ManifestError"  # reason of a problem of a manifest line, and not of an utterance


class UnsealedShard:
    """A shard that is being written; readers see it once :meth:`seal` has returned.

    Args:
        place: place of the store.
        storage: storage backend of the store.
        columns: columns of the store.
        name: name of the shard.
        writer: name of the writer, which holds the lock of that name.
    """

    def __init__(
        self, place: Place, storage: StorageBackend, columns: tuple[Column, ...], name: str, writer: str
    ) -> None:
        self.place, self.name, self._storage, self._writer = place, name, storage, writer
        self._staged = place.stage(writer) / name
        with disk_errors(self._staged, missing_too=True):
            self._shard = storage.create(self._staged, name, columns)
        self._ids: list[str] = []
        self._failed: str | None = None  # id of a record that may be written in part
        self._seconds, self._frames = 0.0, 0

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, record: EncodedRecord) -> None:
        """Append a record; it is written to disk at once.

        A record that does not match the columns raises ``FormatError`` and changes nothing. After any other
        error a part of the record may have been written, so the shard can no longer be sealed.
        """
        self._require_complete()
        try:
            with disk_errors(self._staged, missing_too=True):
                self._shard.add(record)
        except FormatError:
            raise
        except BaseException:
            self._failed = record.id
            raise
        faults.reach("row")
        self._ids.append(record.id)
        self._seconds += record.meta.get("seconds", 0.0)
        self._frames += record.meta["T"]

    def seal(
        self, skipped: Iterable[Mapping[str, str]] = (), *, replaces: Iterable[str] = ()
    ) -> Entry | None:
        """Seal the shard and return its entry; None if another writer has sealed a shard of that name.

        Args:
            skipped: ``id``, ``reason`` and ``what`` of the utterances that could not be dumped into it.
            replaces: names of shards that it replaces.
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
        """Finish the files and move them to ``partial/FOLDER``, for the holder of that lock to seal them."""
        try:
            entry = self._finish((), ())
            os.rename(self._staged, self.place.stage(folder) / self.name)
        except BaseException:
            self.discard()
            raise
        self.place.remove(f"partial/{self._writer}")
        return entry

    def _require_complete(self) -> None:
        if self._failed is not None:
            raise StoreError(
                f"the record {self._failed!r} was not written completely, so its shard cannot be sealed",
                where=f"shard {self.name}",
                why="Later records would not be where the record table says. Sealed shards are safe.",
                do="Open the store again and write the missing utterances.",
            )

    def _finish(self, skipped: Iterable[Mapping[str, str]], replaces: Iterable[str]) -> Entry:
        self._require_complete()
        with disk_errors(self._staged, missing_too=True):
            contents = self._shard.finish()
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
        """Remove the files of the shard."""
        with suppress(OSError):  # on a full disk, buffered bytes cannot be written; they are not needed
            self._shard.close()
        self.place.remove(f"partial/{self._writer}")


def publish(place: Place, storage: StorageBackend, staged: Path, entry: Entry) -> bool:
    """Carry out steps 2 to 4 of sealing (SPEC C3); return False if there is an entry of that name."""
    with place.lock("store", wait=True):
        finish_replacements(place)  # of a writer that died: it may have replaced a shard of this name
        if place.exists(entry_name(entry.shard)):
            return False
        if entry.replaces:
            announce_replacement(place)
        # The index is compared with the entries by name. It would seem up to date if a shard was removed
        # and another one sealed under the same name.
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
    """Update the index and ``skipped.jsonl`` to the sealed entries."""
    with place.lock("store", wait=True):
        finish_replacements(place)
        remove_temporary_files(place)
        current_index(place, write=True)
        data = skipped_lines(place)
        if data or place.exists("skipped.jsonl"):
            place.write("skipped.jsonl", data)


def skipped_lines(place: Place) -> bytes:
    """Return the content of ``skipped.jsonl``: utterances that entries list as skipped and no shard holds."""
    index = current_index(place)
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for shard in shard_names(place):
        try:
            entry = read_entry(place, shard)
        except StoreError:
            continue  # verify reports it; a finished job must not fail because of another job's shard
        for problem in entry.skipped:
            lines[problem_key(problem)] = dict(problem)
    for key in [k for k in lines if k[1] != LINE and index.find(k[0])]:
        del lines[key]  # stored since then; a bad manifest line stays in the list
    return "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in lines.values()).encode("utf-8")


def remove_temporary_files(place: Place) -> None:
    """Remove files that dead writers left under temporary names; the caller holds the store's lock.

    Such files are written under that lock only, so none belongs to a live writer.
    """
    for folder in ("", "sealed", "shards"):
        for name in place.names(folder):
            if _TEMPORARY.fullmatch(name):
                place.remove(f"{folder}/{name}" if folder else name)


def remove_unfinished_shards(place: Place, writer: str) -> None:
    """Remove unfinished shards and locks of dead writers; the caller holds the lock ``writer``."""
    place.remove(f"partial/{writer}")
    for name in {n.removesuffix(".lock") for n in place.names("partial")} - {writer, "store"}:
        with suppress(StoreBusy), place.lock(name):
            place.remove(f"partial/{name}")


def problem_key(problem: Mapping[str, object]) -> tuple[str, str, str]:
    """Return (id, reason, text) of a skipped utterance, to compare it by; text only of a manifest line."""
    utt_id, reason = str(problem.get("id")), str(problem.get("reason"))
    return utt_id, reason, str(problem.get("what")) if reason == LINE else ""


def skipped_keys(place: Place) -> frozenset[tuple[str, str, str]]:
    """Return the key of every line of ``skipped.jsonl``; of the entries if that file is damaged."""
    if not place.exists("skipped.jsonl"):
        return frozenset()
    where = f"{place}/skipped.jsonl"
    try:
        found = [parse_json(line, where) for line in place.read("skipped.jsonl").splitlines() if line]
    except FormatError:
        found = [parse_json(line, where) for line in skipped_lines(place).splitlines()]
    return frozenset(problem_key(p) for p in found if isinstance(p, dict))


def announce_replacement(place: Place) -> None:
    """Require readers to know about replaced shards, until :func:`finish_replacements` has returned.

    Without it, an older reader would find the records of the replaced shards twice.
    """
    spec = read_spec(place)
    if REPLACES not in spec.requires:
        now = replace(spec, requires=(*spec.requires, REPLACES))
        write_spec(place, now)


def drop_shard(place: Place, shard: str) -> None:
    """Remove a shard; the caller holds the store's lock."""
    path = open_storage(read_spec(place).storage).path(shard)
    place.remove("index.bin")
    place.remove(entry_name(shard))
    place.remove(path)


def finish_replacements(place: Place) -> None:
    """Remove replaced shards and all references to them; the caller holds the store's lock.

    Does nothing unless :func:`announce_replacement` was called for the store.
    """
    if not is_store(place) or REPLACES not in (spec := read_spec(place)).requires:
        return
    storage = open_storage(spec.storage)
    entries = {n: read_entry(place, n) for n in shard_names(place)}
    replaced = {n for e in entries.values() for n in e.replaces if n != e.shard}
    for name in sorted(replaced):
        place.remove(entry_name(name))
        faults.reach("replaced:entry")
    for name in sorted(replaced):
        place.remove(storage.path(name))
        faults.reach("replaced:files")
    for name, entry in entries.items():
        if entry.replaces and name not in replaced:
            place.write(entry_name(name), replace(entry, replaces=()).to_bytes())
    now = replace(spec, requires=tuple(r for r in spec.requires if r != REPLACES))
    write_spec(place, now)
