"""The commit protocol: sealing, replacing and removing shards, so that a crash leaves a valid store.

The order of sealing is SPEC C3: finish the files, make them durable, rename them into ``shards/``, write the
entry into ``sealed/``. Readers ignore the files until the entry exists.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import FormatError, LogitStoreError, StoreError, Vanished
from ..schema.checksums import parse_json
from ..schema.spec import Column
from . import StorageBackend, faults, open_storage
from .base import EncodedRecord, ShardContents
from .catalog import Catalog, extend_index, finish_index, leave_out, read_catalog
from .entries import Entry, entry_name, read_entry, shard_names
from .places import Place, disk_errors
from .spec_file import is_store, read_spec, write_notes
from .staging import check_staged, new_staging, remove_staging, staged_place

_TEMPORARY = re.compile(r"\.(tokens\.txt|skipped\.jsonl|[\w.-]+\.(json|entry|idx|npy|md))\.\d+", re.ASCII)
LINE = "ManifestError"  # reason of a problem of a manifest line, and not of an utterance


class UnsealedShard:
    """A shard that is being written; readers see it once :meth:`seal` has returned.

    Args:
        place: place of the store.
        storage: storage backend of the store.
        columns: columns of the store.
        name: name of the shard.
        writer: name of the writer, which holds the lock of that name.
        about: description of the shard (SPEC S18), without its name.
        known: names of the sealed entries in which the caller has looked the ids up; None: those that exist now.

    Attributes:
        duplicates: ids that :meth:`seal` left out, because another writer had sealed them meanwhile.
        seconds: seconds of audio of the records that were added.
        bytes: bytes of their arrays.
    """

    def __init__(
        self,
        place: Place,
        storage: StorageBackend,
        columns: tuple[Column, ...],
        name: str,
        writer: str,
        about: Mapping[str, Any],
        known: Collection[str] | None = None,
    ) -> None:
        self.place, self.name, self._storage, self._columns = place, name, storage, columns
        self._store = str(about.get("identity", ""))
        self.duplicates: tuple[str, ...] = ()
        self._known = frozenset(shard_names(place) if known is None else known)
        self._staging = new_staging(writer)
        try:
            self._staged = place.stage(self._staging) / name
            with disk_errors(self._staged, missing_too=True):
                self._shard = storage.create(self._staged, name, columns, about)
        except BaseException:
            with suppress(LogitStoreError):
                remove_staging(place, self._staging)
            raise
        self._ids: list[str] = []
        self._failed: str | None = None  # id of a record that may be written in part
        self._finished = False
        self.seconds, self._frames, self.bytes = 0.0, 0, 0

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def whole(self) -> bool:
        """True as long as every record was written completely and no attempt was made to seal the shard."""
        return self._failed is None and not self._finished

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
        self.seconds += record.meta.get("seconds", 0.0)
        self._frames += record.meta["T"]
        self.bytes += sum(array.nbytes for array in record.arrays.values())

    def seal(
        self, skipped: Iterable[Mapping[str, str]] = (), *, replaces: Iterable[str] = ()
    ) -> Entry | None:
        """Seal the shard and return its entry; None if other writers have sealed all its records meanwhile.

        The entry has another name than the shard where another writer has taken that name, and fewer records
        where another writer has sealed some of them; ``duplicates`` then holds the ids of those.

        Args:
            skipped: ``id``, ``reason`` and ``what`` of the utterances that could not be dumped into it.
            replaces: names of shards that it replaces.
        """
        try:
            entry = self._finish(skipped, replaces)
            found = publish(self.place, self._storage, self._staged, entry, self._columns, self._known)
        except BaseException:
            self.discard()
            raise
        self.duplicates = found.duplicates
        remove_staging(self.place, self._staging)
        return found.entry

    def set_aside(self, folder: str) -> Entry:
        """Finish the files and move them to ``partial/FOLDER``, for the holder of that lock to seal them."""
        try:
            entry = self._finish((), ())
            os.rename(self._staged, self.place.stage(folder) / self.name)
        except BaseException:
            self.discard()
            raise
        remove_staging(self.place, self._staging)
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
        self._finished = True
        with disk_errors(self._staged, missing_too=True):
            contents = self._shard.finish()
        faults.reach("finished")
        return Entry(
            self.name,
            tuple(self._ids),
            self.seconds,
            self._frames,
            contents,
            tuple(map(dict, skipped)),
            tuple(replaces),
            self._store,
        )

    def discard(self) -> None:
        """Remove the files of the shard."""
        with suppress(OSError):  # on a full disk, buffered bytes cannot be written; they are not needed
            self._shard.close()
        remove_staging(self.place, self._staging)


@dataclass(frozen=True)
class Publication:
    """The outcome of publishing a staged shard.

    Attributes:
        entry: the entry that was sealed; None where other writers had sealed all its records.
        duplicates: ids that were left out, because another writer had sealed them.
    """

    entry: Entry | None
    duplicates: tuple[str, ...] = ()


def publish(
    place: Place,
    storage: StorageBackend,
    staged: Path,
    entry: Entry,
    columns: Sequence[Column],
    known: Collection[str] = (),
) -> Publication:
    """Check a staged shard and carry out steps 2 to 4 of sealing (SPEC C3).

    Records that another writer has sealed meanwhile are left out, and where the shard's name is taken the next
    free one is used. In both cases the records are written again into a new staged shard.

    Args:
        place: place of the store.
        storage: storage backend of the store.
        staged: the staged file.
        entry: entry of the staged shard.
        columns: columns of the store.
        known: names of the sealed entries in which the ids of the shard were looked up before it was written.
    """
    check_staged(storage, staged, entry)
    seen, duplicates = set(known) | set(entry.replaces), list[str]()
    while True:
        with place.lock("store", wait=True):
            finish_replacements(place)  # of a writer that died: it may have replaced a shard of this name
            names = set(shard_names(place))
            taken = read_catalog(place, entry.identity, leave_out).taken
            ids, problems = _sealed_in(place, names - seen)
            repeated = ids.intersection(entry.ids)
            if entry.shard not in taken and not repeated:
                _seal(place, storage, staged, entry)
                _require_alone(place, entry, names)
                return Publication(entry, tuple(duplicates))
        seen |= names
        duplicates += [i for i in entry.ids if i in repeated]
        staged, entry = _rewrite(
            storage, staged, entry, columns, next_name(entry.shard, taken), repeated, problems
        )
        if not (entry.ids or entry.skipped or entry.replaces):
            return Publication(None, tuple(duplicates))


def _sealed_in(place: Place, names: Iterable[str]) -> tuple[set[str], set[tuple[str, str, str]]]:
    """Return the ids, and the keys of skipped utterances, in the entries of these names."""
    ids, problems = set[str](), set[tuple[str, str, str]]()
    for name in names:
        with suppress(Vanished):
            entry = read_entry(place, name)
            ids.update(entry.ids)
            problems.update(map(problem_key, entry.skipped))
    return ids, problems


def next_name(shard: str, taken: Collection[str]) -> str:
    """Return the first free name of ``NAME``, ``NAME-1``, ``NAME-2``, ...; a shard's own name may be one of these."""
    found = re.fullmatch(r"(.+)-([1-9]\d{0,3})", shard, re.ASCII)
    base, generation = (found[1], int(found[2])) if found else (shard, 0)
    name = shard
    while name in taken:
        generation += 1
        name = f"{base}-{generation}"
    return name


def _rewrite(
    storage: StorageBackend,
    staged: Path,
    entry: Entry,
    columns: Sequence[Column],
    name: str,
    left_out: Collection[str],
    problems: Collection[tuple[str, str, str]],
) -> tuple[Path, Entry]:
    """Write the records of a staged shard into a new one beside it, under another name and without some ids.

    Args:
        storage: storage backend of the store.
        staged: the staged file.
        entry: entry of the staged shard.
        columns: columns of the store.
        name: name of the new shard.
        left_out: ids of the records to leave out.
        problems: keys of the skipped utterances that another entry lists.

    Returns the staged file of the new shard, and its entry; no files where nothing is left.
    """
    skipped = tuple(s for s in entry.skipped if problem_key(s) not in problems)
    numbers = [n for n, utt_id in enumerate(entry.ids) if utt_id not in left_out]
    if not (numbers or skipped or entry.replaces):
        return staged, Entry(name, (), 0.0, 0, ShardContents([]), identity=entry.identity)
    place = staged_place(storage, staged, entry)
    new = staged.with_name(f"{staged.name}~")
    seconds, frames = 0.0, 0
    with disk_errors(new, missing_too=True):
        shard = storage.open(place, entry.shard, entry.contents, columns) if entry.ids else None
        writer = storage.create(new, name, columns, shard.table.about if shard is not None else {})
        try:
            for number in numbers:
                assert shard is not None
                record = shard.record(number)
                writer.add(record)
                seconds += record.meta.get("seconds", 0.0)
                frames += record.meta["T"]
            contents = writer.finish()
        except BaseException:
            with suppress(OSError):
                writer.close()
            raise
    ids = tuple(entry.ids[n] for n in numbers)
    return new, Entry(name, ids, seconds, frames, contents, skipped, entry.replaces, entry.identity)


def _seal(place: Place, storage: StorageBackend, staged: Path, entry: Entry) -> None:
    """Carry out steps 2 to 4 of sealing; the caller holds the store's lock and has checked ids and name."""
    data, name = entry.to_bytes(), entry_name(entry.shard)
    # With working locks none of the checks from here on can fail.
    if place.exists(name):
        raise _locks_do_not_work(entry)
    place.publish(staged, storage.path(entry.shard))
    faults.reach("published")
    if place.exists(name):
        raise _locks_do_not_work(entry)
    _require_sizes(place, entry)
    place.write(name, data)
    faults.reach("sealed")
    if place.read(name) != data:
        raise _locks_do_not_work(entry)
    _require_sizes(place, entry)
    if entry.replaces:
        finish_replacements(place)
    with suppress(
        LogitStoreError
    ):  # the shard is sealed; readers need no index, and the next writer makes it
        extend_index(place, entry.identity)


def _require_alone(place: Place, entry: Entry, names: Collection[str]) -> None:
    """Raise ``StoreError`` if a shard with one of the same records was sealed since ``names`` were read.

    With a working lock no shard can be. Without one, the writer that seals last finds the other's entry.
    """
    others = set(shard_names(place)) - {*names, entry.shard}
    if others and not _sealed_in(place, others)[0].isdisjoint(entry.ids):
        raise _locks_do_not_work(entry)


def _require_sizes(place: Place, entry: Entry) -> None:
    """Raise ``StoreError`` unless the files of a shard that is being sealed are there, at their sizes."""
    for file in entry.contents.files:
        try:
            size = place.size(file.path)
        except FileNotFoundError:
            raise _locks_do_not_work(entry) from None
        if size != file.bytes:
            raise _locks_do_not_work(entry)


def _locks_do_not_work(entry: Entry) -> StoreError:
    return StoreError(
        "another process wrote the same shard, or the same records, while this one held the lock of the store",
        where=f"shard {entry.shard}",
        why="Locks of this file system do not work between its users; shards may be damaged, and records double.",
        do="Run `logitstore verify --repair` on the store, then the jobs again with parts of their own (--job i/N), "
        "or one at a time. `logitstore doctor` tests the locks.",
    )


def finish_store(place: Place) -> None:
    """Update the index, ``skipped.jsonl`` and the number of records to the sealed entries (SPEC C5)."""
    with place.lock("store", wait=True):
        finish_replacements(place)
        remove_temporary_files(place)
        spec = read_spec(place)
        entries, skipped = dict[str, tuple[int, int]](), list[dict[str, str]]()
        for entry in _readable_entries(place, spec.identity):
            entries[entry.shard] = entry.checksum, len(entry.ids)
            skipped += entry.skipped
        lost = max(0, spec.records - sum(records for _, records in entries.values()))
        catalog = finish_index(place, spec.identity, entries, lost=lost)
        if catalog.records > spec.records:
            write_notes(place, replace(spec, records=catalog.records))
        data = _lines(skipped, catalog)
        if data or place.exists("skipped.jsonl"):
            place.write("skipped.jsonl", data)


def skipped_lines(place: Place) -> bytes:
    """Return the content of ``skipped.jsonl``: utterances that entries list as skipped and no shard holds."""
    store = read_spec(place).identity
    skipped = [problem for entry in _readable_entries(place, store) for problem in entry.skipped]
    return _lines(skipped, read_catalog(place, store, leave_out))


def _lines(skipped: Iterable[Mapping[str, str]], catalog: Catalog) -> bytes:
    lines = {problem_key(problem): dict(problem) for problem in skipped}
    for key in [k for k in lines if k[1] != LINE and catalog.find(k[0])]:
        del lines[key]  # stored since then; a bad manifest line stays in the list
    return "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in lines.values()).encode("utf-8")


def _readable_entries(place: Place, store: str) -> Iterator[Entry]:
    """Yield every entry that can be read; verify reports the others."""
    for shard in shard_names(place):
        with suppress(StoreError):
            yield read_entry(place, shard, store)


def accept_losses(place: Place) -> None:
    """Set the number of records that the store has had back to none; the caller holds the store's lock.

    Whoever removes records on purpose calls it first: a store with fewer records than its notes say has lost some.
    """
    spec = read_spec(place)
    if spec.records:
        write_notes(place, replace(spec, records=0))


def remove_temporary_files(place: Place) -> None:
    """Remove files that dead writers left under temporary names; the caller holds the store's lock.

    Such files are written under that lock only, so none belongs to a live writer.
    """
    for folder in ("", "sealed", "shards", "index", "constants"):
        for name in place.names(folder):
            if _TEMPORARY.fullmatch(name):
                place.remove(f"{folder}/{name}" if folder else name)


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


def drop_shard(place: Place, shard: str) -> None:
    """Remove a shard; the caller holds the store's lock."""
    path = open_storage(read_spec(place).storage).path(shard)
    place.remove(entry_name(shard))
    place.remove(path)


def finish_replacements(place: Place) -> None:
    """Remove replaced shards and all references to them; the caller holds the store's lock (SPEC C6).

    No index run covers a shard that replaces others, so that only entries without a run are read.
    """
    if not is_store(place):
        return
    spec = read_spec(place)
    pending = read_catalog(place, spec.identity, leave_out).pending
    if not pending:
        return
    storage = open_storage(spec.storage)
    entries = {name: read_entry(place, name, spec.identity) for name in pending}
    replaced = {old for name, entry in entries.items() for old in entry.replaces if old != name}
    for name in sorted(replaced):
        place.remove(entry_name(name))
        faults.reach("replaced:entry")
    for name in sorted(replaced):
        place.remove(storage.path(name))
        faults.reach("replaced:files")
    for name, entry in entries.items():
        if name not in replaced:
            place.write(entry_name(name), replace(entry, replaces=()).to_bytes())
