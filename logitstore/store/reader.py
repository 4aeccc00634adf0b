"""The reader: a store as a read-only mapping from utterance id to target, in numpy until ``batch``."""

from __future__ import annotations

import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..encodings import Encoding
from ..encodings.rows import DecodedRows, has_classes
from ..errors import (
    CorruptError,
    FormatError,
    IdentityError,
    MissingUtterance,
    StoreError,
    UsageError,
    VocabError,
)
from ..registry import suggest
from ..schema.checksums import sha256
from ..schema.lattice import Form, Nodes, restored
from ..schema.spec import StoreSpec, StreamSpec
from ..storage import Shard, constants, open_storage
from ..storage.base import EncodedRecord
from ..storage.catalog import Catalog, OnDamaged, read_catalog
from ..storage.entries import Entry, entry_name, read_entry
from ..storage.places import Place, open_place
from ..storage.spec_file import SPEC_FILE, read_spec
from ..targets.clip import Clip, Clipped
from ..targets.keywords import checked_keywords
from ..targets.target import Target
from ..targets.vocab_map import VocabMap
from ..tokens.table import TokenTable, require_same
from .layout import LABELS, columns_of, encoding_of
from .select import Where

if TYPE_CHECKING:
    import torch

    from ..schema.clock import FrameClock
    from ..targets.batch import TargetBatch

OPEN_SHARDS = 256  # shards that stay mapped, the most recently read ones; none keeps a file open
LOOK_SHARE = 0.05  # share of its time that a reader may spend looking for new shards after ids it misses
DECODE_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_NO_LABELS = np.zeros(0, np.int32)


class Store(Mapping[str, Target]):
    """A store, opened for reading: a mapping from utterance id to :class:`~logitstore.targets.target.Target`.

    Open one with :func:`open_store`::

        store = open_store("exp/logits")
        len(store), list(store)                       # number of utterances, their ids in stored order
        target = store["utt1"]                        # one utterance, in numpy
        target.log_probs("ctc", temperature=2.0)      # (T, V) float32 log-probabilities
        batch = store.batch(["utt1", "utt2"])         # padded torch tensors

    Records are found by id through a memory-mapped index, so opening a store takes as long for ten million
    utterances as for a thousand. A reader finds shards that are sealed, merged or repaired while it is open.

    A store pickles as its location and opens again in the other process, so that the workers of a DataLoader
    share no file handle. Equality is identity: two readers of one place differ.

    Args:
        location: folder or URL of the store.
        vocab_map: map from the store's token table to the student's, applied to every target.
        verify: check the checksum of every array as it is read.
        damaged: function that is called with shard name and error for a sealed entry that cannot be read
            or belongs to another store. Default: a warning. The store holds no records of such a shard, and
            iteration raises its error.

    Attributes:
        place: the place where the store lives.
        spec: the store's description: teacher, token table, streams, storage backend, versions.
        tokens: the teacher's token table.
        constants: arrays that a stream stores once, by stream and name: the head of ``factored``, for one.
        vocab_map: map to a student's token table; None if targets keep the teacher's classes.

    Raises:
        NotAStore: the location holds no store.
        FormatError, CorruptError: the description, the token table or a constant cannot be read.
        IdentityError: every shard belongs to another store.
        VocabError: ``vocab_map`` starts from another token table.
    """

    def __init__(
        self,
        location: Any,
        *,
        vocab_map: VocabMap | None = None,
        verify: bool = True,
        damaged: OnDamaged | None = None,
    ) -> None:
        self.place: Place = open_place(location)
        self._args = (location, vocab_map, verify)
        self.spec = read_spec(self.place)
        self.tokens = _read_tokens(self.place, self.spec)
        if vocab_map is not None:
            vocab_map.require_teacher(self.tokens, str(self.place))
        self.vocab_map = vocab_map
        self._verify = verify
        self._storage = open_storage(self.spec.storage)
        self._columns = columns_of(self.spec)
        self.constants = constants.read(self.place, self.spec)
        self._encodings = {s.name: encoding_of(s, self.constants[s.name]) for s in self.spec.streams}
        self._forms = {s.name: Form.parse(s.form) for s in self.spec.streams if s.kind == "rnnt"}
        self._on_damaged = damaged
        self._unreadable: dict[str, StoreError] = {}  # by shard whose entry could not be read for the catalog
        self._catalog: Catalog = self._read_catalog()
        self._shards: OrderedDict[str, tuple[Entry, Shard | None]] = OrderedDict()
        self._look_again = 0.0  # time.monotonic() from which a missed id is worth a look for new shards
        if self._catalog.records < self.spec.records and not self._unreadable:
            warnings.warn(str(records_lost(self)), stacklevel=2)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, self._args

    __eq__ = object.__eq__  # Mapping would decode every target to compare
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        streams = ", ".join(f"{s.name}={s.encoding}" if s.encoding else s.name for s in self.spec.streams)
        return f"<Store {self.place}: {len(self)} utterances, {streams}>"

    def _repr_html_(self) -> str:
        from .notebook import store_html

        return store_html(self)

    def __len__(self) -> int:
        """Return the number of utterances."""
        self._refresh()
        return self._catalog.records

    def __contains__(self, utt_id: object) -> bool:
        """Return whether the store holds an utterance; its record is not read."""
        return isinstance(utt_id, str) and self._locate(utt_id) is not None

    def __iter__(self) -> Iterator[str]:
        """Yield the ids in stored order, shard after shard.

        Raises:
            Vanished: shards were merged or removed during the iteration.
            FormatError, CorruptError: a sealed entry cannot be read.
        """
        self._refresh()
        for name in self.shards:
            if name in self._unreadable:
                raise self._unreadable[name]
            yield from self._catalog.ids(name)

    def __getitem__(self, utt_id: str) -> Target:
        """Read and decode the target of an utterance.

        Raises:
            MissingUtterance: the store has no record of that id (also a ``KeyError``).
            CorruptError: stored bytes do not match their checksum.
            FormatError: the record breaks a rule of SPEC.md.
        """
        if not isinstance(utt_id, str):
            raise UsageError(
                f"store[{utt_id!r}]: records are found by utterance id, which is a string",
                where=str(self.place),
                do="Iterate over the store for its ids; TargetDataset(store)[0] is the first target.",
            )
        return self.decode(self.record(utt_id))

    def target(self, utt_id: str, streams: Sequence[str] | None = None) -> Target:
        """Read and decode some streams of an utterance; the columns of other streams are not read.

        Args:
            utt_id: id of the utterance.
            streams: names of streams; None for all. Labels of all streams are read.

        Raises:
            UsageError: a stream that the store does not have.
            MissingUtterance, CorruptError, FormatError: as ``store[utt_id]``.
        """
        if streams is None:
            return self[utt_id]
        if isinstance(streams, str):
            raise UsageError(f"streams={streams!r} is one name", do=f"Give a list of names: [{streams!r}].")
        names = {s.name for s in self.spec.streams}
        if unknown := [name for name in streams if name not in names]:
            raise UsageError(f"no stream {unknown[0]!r}", where=utt_id, do=suggest(unknown[0], sorted(names)))
        columns = (column.name for column in self._columns)
        wanted = [c for c in columns if c.partition(".")[0] in streams or c.endswith(f".{LABELS}")]
        return self.decode(self.record(utt_id, wanted), streams)

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the sealed shards, in order."""
        return self._catalog.shards

    def entry(self, shard: str) -> Entry:
        """Return the sealed entry of a shard: ids, audio seconds, frames, files and skipped utterances."""
        return self._open(shard)[0]

    def record(self, utt_id: str, only: Sequence[str] | None = None) -> EncodedRecord:
        """Read the record of an utterance: its metadata and its stored arrays, not decoded.

        Args:
            utt_id: id of the utterance.
            only: names of the columns to read, e.g. ``["rnnt.labels"]``; None for all, empty for none.

        Raises:
            MissingUtterance: the store has no record of that id.
            CorruptError, FormatError: the record cannot be read.
        """
        found = self._find(utt_id)
        if found is None:
            unreadable = ", ".join(entry_name(shard) for shard in self._unreadable)
            raise MissingUtterance(
                f"no utterance {utt_id!r}",
                where=str(self.place),
                why=f"It may be in a shard whose entry cannot be read: {unreadable}."
                if unreadable
                else self._other_kind_of_id(utt_id),
                do="inspect_store(store, manifest=...), or logitstore inspect STORE --manifest FILE, lists "
                "what is missing.",
            )
        shard, number = found
        return self._read(shard, number, utt_id, only)

    def _other_kind_of_id(self, utt_id: str) -> str:
        """Return a sentence if the store's ids are paths and the id is none, or the other way round."""
        example = next(iter(self), utt_id)
        if ("/" in example) == ("/" in utt_id):
            return ""
        kind = "paths" if "/" in example else "no paths"
        return f"The ids of this store are {kind}, such as {example!r}."

    def records(self, shard: str) -> Iterator[EncodedRecord]:
        """Yield every record of a shard, in stored order."""
        for number in range(len(self.entry(shard).ids)):
            yield self.record_at(shard, number)

    def record_at(self, shard: str, number: int) -> EncodedRecord:
        """Read a record by its shard and its number in that shard, from 0."""
        entry, opened = self._open(shard)
        if opened is None:
            raise IndexError(f"shard {shard} has no records")
        return self._read(opened, number, entry.ids[number])

    def _read(
        self, shard: Shard, number: int, utt_id: str, only: Sequence[str] | None = None
    ) -> EncodedRecord:
        """Read a record, and check that it is the utterance's that its entry names."""
        try:
            record = shard.record(number, verify=self._verify, only=only)
        except StoreError as error:
            raise _placed(error, shard.name, number, utt_id) from None
        if record.id != utt_id:
            raise FormatError(
                f"the record is of {record.id!r}, its entry lists {utt_id!r} (SPEC C2)",
                where=_place_of(shard.name, number, utt_id),
            )
        return record

    def decode(self, record: EncodedRecord, only: Sequence[str] | None = None) -> Target:
        """Return the target of a record; its classes are the student's if the store has a ``vocab_map``.

        Args:
            record: record with the columns of the streams to decode, and the labels of all.
            only: names of the streams to decode; None for all.

        Raises ``FormatError`` where the record's columns do not agree with each other or with SPEC.md.
        """
        t, u = _lengths(record)
        streams: dict[str, DecodedRows] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        nodes: dict[str, Nodes] = {}
        labels: dict[str, NDArray[np.int32]] = {}
        for spec in self.spec.streams:
            if not spec.stream_kind.axes:
                _require_transcript(record, spec.name)
                continue
            prefix = f"{spec.name}."
            arrays = {n.removeprefix(prefix): a for n, a in record.arrays.items() if n.startswith(prefix)}
            if spec.stream_kind.labels:
                labels[spec.name] = self._labels(arrays.pop(LABELS), record.id)
            if only is not None and spec.name not in only:
                continue
            own = labels.get(spec.name, _NO_LABELS)
            if spec.kind == "rnnt" and len(own) != u:
                raise FormatError(f"{len(own)} labels where U = {u} (SPEC S7)", where=record.id)
            try:
                rows, axes, kept = self._decode_stream(spec, arrays, t, u, own, record.id)
            except StoreError as error:
                error.where = error.where or f"{record.id}: {spec.name}"
                raise
            except DECODE_ERRORS as error:
                raise FormatError(
                    f"the columns of {spec.name} do not agree with each other: {error}",
                    where=record.id,
                    why="Their checksums are right, so that they were written so.",
                    do="Dump this utterance again; repair_store(), or verify --repair, drops such records.",
                ) from error
            streams[spec.name], shapes[spec.name] = rows, (*axes, spec.size)
            if kept is not None:
                nodes[spec.name] = kept
        target = Target(
            record.id,
            t,
            labels["rnnt"] if "rnnt" in labels else next(iter(labels.values()), _NO_LABELS),
            streams,
            shapes,
            record.meta,
            nodes,
            self.tokens.blank,
            self.spec.teacher.clock,
            labels,
        )
        return target if self.vocab_map is None else self.vocab_map.target(target)

    def _decode_stream(
        self, spec: StreamSpec, arrays: dict[str, NDArray[Any]], t: int, u: int, labels: Any, utt_id: str
    ) -> tuple[DecodedRows, tuple[int, ...], Nodes | None]:
        """Return the rows of a stream, the axes that they fill, and the lattice nodes if not all are kept."""
        encoding, form = self._encodings[spec.name], self._forms.get(spec.name)
        assert encoding is not None  # only streams without rows have none
        rows = encoding.decode(arrays, spec.size)
        if isinstance(encoding, Encoding):
            _require_equal_lengths(spec, encoding, arrays, len(rows), utt_id)
        if form is not None and not form.framewise:
            kept = restored(form, t, u, len(rows), arrays, utt_id)
            if rows.needs_next_labels and has_classes(rows):
                rows = rows.with_next_labels(spec.blank, kept.next_labels(labels, spec.blank))
            return rows, kept.axes, None if form.whole else kept
        count = t if form is not None else spec.stream_kind.rows(t, len(labels))
        if len(rows) != count:
            wanted = f"T = {t} (SPEC S7)" if spec.stream_kind.frames else f"{count} labels (SPEC S13)"
            raise FormatError(f"{spec.name} has {len(rows)} rows, {wanted}", where=utt_id)
        return rows, (count,), None

    def _labels(self, labels: NDArray[Any], utt_id: str) -> NDArray[np.int32]:
        """Return labels; raises ``FormatError`` for one outside the token table."""
        if len(labels) and int(labels.max()) >= len(self.tokens):
            raise FormatError(f"a label outside the {len(self.tokens)} tokens (SPEC S7)", where=utt_id)
        return labels.astype(np.int32)

    def metadata(self) -> Iterator[Mapping[str, Any]]:
        """Yield the metadata of every record in stored order: ``id``, ``seconds``, ``text``, ``hyp``, ...

        No target is read or decoded.
        """
        for name in self.shards:
            shard = self._open(name)[1]
            if shard is not None:
                for number in range(len(shard)):
                    yield shard.meta(number, self._verify)

    def select(self, where: str) -> list[str]:
        """Return the ids of the records that meet a condition, in stored order; no target is decoded.

        Args:
            where: a condition, e.g. ``wer <= 0.1 and seconds < 20`` or ``rnnt.wer == 0 and hours < 100``; see
                :mod:`logitstore.store.select`.

        Raises:
            UsageError: ``where`` is no condition.
        """
        chosen = Where(where, self.spec.transcript_streams)
        return [meta["id"] for meta in self.metadata() if chosen(meta)]

    def read_clip(self, clip: Clip, streams: Sequence[str] | None = None) -> Clipped:
        """Return a clip with the targets of its utterances, for ``collate_targets``.

        Args:
            clip: cropped, sped-up, padded or joined utterances.
            streams: names of the streams to read; None for all.

        Raises:
            MissingUtterance: an utterance that the store does not hold.
            LengthError: a crop beyond the end, or an utterance without a stored length.
            UsageError: a clip of silence only.
        """
        return Clipped.of(clip, lambda utt_id: self.target(utt_id, streams))

    @checked_keywords({'a clip, Clip(id).at_speed("1.1").crop(0, 2).pad(1, 1)': Clip.__init__})
    def batch(
        self,
        ids: Sequence[str | Clip],
        *,
        frames: Sequence[int] | torch.Tensor | None = None,
        method: str | Mapping[str, str] | None = None,
        temperature: float = 1.0,
        ratio: tuple[int, int] | FrameClock | None = None,
        tolerance: int = 2,
        stretch: bool = False,
        streams: Sequence[str] | None = None,
        vocab: VocabMap | None = None,
        missing: str = "error",
    ) -> TargetBatch:
        """Read B utterances and pad their targets into tensors.

        ``store.batch(ids, frames=lengths)``; for a cropped, sped-up, padded or joined utterance give a clip
        instead of its id: ``Clip("utt1").at_speed("1.1").crop(0, 2)``.

        Args:
            ids: B utterance ids or clips (:class:`logitstore.targets.clip.Clip`).
            frames: (B,) valid frames of the student; None keeps the teacher's.
            method: resampling method of all streams, or by stream name: ``keep-tokens``, ``linear``,
                ``nearest+shift=2``, ... (:class:`logitstore.targets.frames.Method`). None, or ``+shift=n``
                alone, is each stream's default: ``keep-tokens`` for ``ctc``, ``compose`` for
                ``rnnt``, ``linear`` for the others.
            temperature: temperature of the probabilities, 1 or more.
            ratio: student frames per teacher frame as (p, q), or the student's ``FrameClock``.
            tolerance: student frames by which ``frames`` may differ from the ratio, or from one common ratio.
            stretch: True to take ``frames`` whose ratio to the teacher's differs between utterances.
            streams: names of the streams wanted; None for all.
            vocab: map to the student's token table, for a store opened without one.
            missing: treatment of ids that the store does not hold. ``error``: they are refused. ``mask``: their
                rows have no target: length 0, no labels, a mask that is False. ``skip``: they are left out, and
                ``utt_ids`` of the batch says which are in it.

        Raises:
            MissingUtterance: an id that the store does not hold, with ``error``; no id that it holds, with
                ``skip``.
            UsageError, LengthError, TokenError: as :func:`logitstore.targets.batch.collate_targets`.
        """
        from ..targets.batch import collate_targets
        from ..targets.missing import check_missing, with_masked_rows

        check_missing(missing)
        if isinstance(ids, str):
            raise UsageError(f"ids={ids!r} is one id", do=f"Give a list of ids: [{ids!r}].")
        held = list(range(len(ids)))
        if missing != "error":
            held = [i for i, chosen in enumerate(ids) if self._holds(chosen)]
        lengths = None if frames is None else [int(count) for count in frames]
        if missing == "skip" and ids and not held:
            raise MissingUtterance(
                f"the store holds none of the {len(ids)} utterances, the first {_name_of(ids[0])!r}",
                where=str(self.place),
                do="Use missing='mask' where a batch may have no targets at all.",
            )
        with_target: Sequence[str | Clip] = [ids[i] for i in held]
        of_them = lengths
        if lengths is not None and len(lengths) == len(ids):
            of_them = [lengths[i] for i in held]
        if ids and not held:  # a target of the right streams and classes, of which nothing is kept
            with_target, of_them = [self._any_id()], None
        batch = collate_targets(
            [
                self.read_clip(chosen, streams) if isinstance(chosen, Clip) else self.target(chosen, streams)
                for chosen in with_target
            ],
            frames=of_them,
            method=method,
            temperature=temperature,
            ratio=ratio,
            tolerance=tolerance,
            stretch=stretch,
            streams=streams,
            vocab=vocab,
        )
        if missing != "mask" or len(held) == len(ids):
            return batch
        return with_masked_rows(batch, [_name_of(chosen) for chosen in ids], held, lengths)

    def _any_id(self) -> str:
        """Return the first id of the store; raises ``MissingUtterance`` for a store without records."""
        for utt_id in self:
            return utt_id
        raise MissingUtterance(
            "the store holds no records, so that nothing says how large a masked row is",
            where=str(self.place),
            do="Dump at least one utterance first.",
        )

    def _holds(self, chosen: str | Clip) -> bool:
        """Return whether the store holds every utterance of an id or a clip."""
        return all(utt_id in self for utt_id in (chosen.ids if isinstance(chosen, Clip) else [chosen]))

    def require_vocab(self, table: TokenTable) -> None:
        """Raise ``VocabError`` naming the first token that differs between the store's table and another."""
        require_same(self.tokens, table, where=str(self.place), which=("the store", "the student"))

    def _locate(self, utt_id: str) -> tuple[str, int] | None:
        """Return the shard and the number of a record, or None if the store does not hold it."""
        found = self._catalog.find(utt_id)
        if not found and self._refresh_now_and_then():
            found = self._catalog.find(utt_id)
        return found[0] if found else None

    def _find(self, utt_id: str) -> tuple[Shard, int] | None:
        """Return the opened shard and the number of a record, or None if the store does not hold it."""
        while (found := self._locate(utt_id)) is not None:
            name, number = found
            try:
                entry, shard = self._open(name)
                if shard is not None and entry.ids[number : number + 1] == (utt_id,):
                    return shard, number
                raise FormatError(
                    f"the index expects {utt_id!r} in record {number} (SPEC I1)", where=entry_name(name)
                )
            except StoreError as error:
                if not self._refresh():
                    raise _placed(error, name, number, utt_id) from None
        return None

    def _refresh_now_and_then(self) -> bool:
        """Refresh, unless that would take more than ``LOOK_SHARE`` of the time since the last look.

        Reading the names of all shards takes milliseconds in a large store, and a caller may ask for many ids
        that the store does not hold.
        """
        begin = time.monotonic()
        if begin < self._look_again:
            return False
        changed = self._refresh()
        now = time.monotonic()
        self._look_again = now + (now - begin) / LOOK_SHARE
        return changed

    def _refresh(self) -> bool:
        """Read the catalog again if shards were sealed, merged or removed since; return whether they were."""
        if self._catalog.is_current(self.place):
            return False
        self._catalog = self._read_catalog()
        self._shards.clear()
        return True

    def _read_catalog(self) -> Catalog:
        """Read the catalog; note the shards whose entries cannot be read."""
        self._unreadable.clear()
        catalog = read_catalog(self.place, self.spec.identity, self._unreadable.__setitem__)
        if self._on_damaged is None and self._unreadable:
            foreign = [e for e in self._unreadable.values() if isinstance(e, IdentityError)]
            if len(foreign) == len(catalog.shards):
                raise all_foreign(self.place)
        for shard, error in self._unreadable.items():
            (self._on_damaged or _warn_of_damage)(shard, error)
        return catalog

    def _open(self, name: str) -> tuple[Entry, Shard | None]:
        """Return the entry of a shard, and the opened shard unless it holds no records."""
        if name in self._shards:
            self._shards.move_to_end(name)
            return self._shards[name]
        entry = read_entry(self.place, name, self.spec.identity)
        shard = None
        if len(entry.ids):
            shard = self._storage.open(self.place, name, entry.contents, self._columns)
            if len(shard) != len(entry.ids):
                raise FormatError(
                    f"{len(shard)} records where the entry names {len(entry.ids)} (SPEC C2)",
                    where=f"shard {name}",
                )
        self._shards[name] = entry, shard
        while len(self._shards) > OPEN_SHARDS:
            self._shards.popitem(last=False)
        return entry, shard


def _reopen(location: Any, vocab_map: VocabMap | None, verify: bool) -> Store:
    """Open a store again in another process."""
    return Store(location, vocab_map=vocab_map, verify=verify)


def records_lost(store: Store) -> CorruptError:
    """Return the error that says how many records a store has lost, and of which shards."""
    catalog, had = store._catalog, store.spec.records
    named = ", ".join(f"{entry_name(name)} ({count} records)" for name, count in catalog.lost.items())
    return CorruptError(
        f"the store has {catalog.records} records; it had {had} when it was last finished (SPEC F8)",
        where=str(store.place),
        why=f"These entries are missing: {named}." if named else "Sealed entries were removed.",
        do="Restore sealed/ and shards/ from a copy, or run the same dump again; repair_store(), or logitstore "
        "verify --repair, accepts the loss.",
    )


def all_foreign(place: Place) -> IdentityError:
    """Return the error of a store whose shards all belong to another one."""
    return IdentityError(
        "every shard belongs to another store (SPEC F5)",
        where=f"{place}/{SPEC_FILE}",
        why="The file was exchanged: it describes another teacher, token table, encoding or storage backend than "
        "the shards were made with.",
        do="Restore it from a copy.",
    )


def _warn_of_damage(shard: str, error: StoreError) -> None:
    """Warn that the records of a shard cannot be found."""
    warnings.warn(f"The records of shard {shard} cannot be found. {error}", stacklevel=2)


def _read_tokens(place: Place, spec: StoreSpec) -> TokenTable:
    """Return the token table of a store.

    Raises ``FormatError`` unless its bytes are those that the store was made with, and all streams have its
    size.
    """
    where = f"{place}/tokens.txt"
    try:
        data = place.read("tokens.txt")
    except FileNotFoundError:
        raise FormatError("there is no tokens.txt (SPEC F6)", where=str(place)) from None
    if sha256(data) != spec.tokens["sha256"]:
        raise FormatError(
            "this is not the token table that the store was made with (SPEC F6)",
            where=where,
            why="Every id would mean another token.",
            do="Restore the file from a copy.",
        )
    try:
        table = TokenTable.parse(data, blank=spec.tokens["blank"], where=where)
    except VocabError as error:
        raise FormatError(f"{error.what} (SPEC F6)", where=error.where) from None
    if spec.tokens["size"] != len(table):
        raise FormatError(
            f"{SPEC_FILE} counts {spec.tokens['size']} tokens, tokens.txt has {len(table)} (SPEC F4)",
            where=f"{place}/{SPEC_FILE}",
        )
    for stream in spec.streams:
        if stream.classes != len(table):
            raise FormatError(
                f"{stream.name} has {stream.classes} classes, tokens.txt has {len(table)} tokens (SPEC F4)",
                where=f"{place}/{SPEC_FILE}",
            )
    return table


def _lengths(record: EncodedRecord) -> tuple[int, int]:
    """Return T and U of a record; raises ``FormatError`` for metadata of another type than SPEC.md says."""
    meta = record.meta
    t, u, text, seconds = meta.get("T"), meta.get("U", 0), meta.get("text"), meta.get("seconds", 0.0)
    if not (type(t) is int and type(u) is int and 1 <= t < 1 << 31 and 0 <= u < 1 << 31):
        raise FormatError(f"T = {t!r} and U = {u!r} (SPEC S3, S7)", where=record.id)
    if not (text is None or isinstance(text, str)):
        raise FormatError(f"the text is {text!r:.50} (SPEC S3)", where=record.id)
    if type(seconds) not in (int, float):
        raise FormatError(f"the audio lasts {seconds!r:.50} seconds (SPEC S3)", where=record.id)
    return t, u


def _require_equal_lengths(
    stream: StreamSpec, encoding: Encoding, arrays: Mapping[str, NDArray[Any]], rows: int, utt_id: str
) -> None:
    """Raise ``FormatError`` unless every column that holds one item for each row has as many items as rows."""
    for column in encoding.columns(stream.size):
        if column.name not in encoding.ragged and len(arrays[column.name]) != rows:
            raise FormatError(
                f"{stream.name}.{column.name} has {len(arrays[column.name])} items for {rows} rows (SPEC S7)",
                where=utt_id,
            )


def _require_transcript(record: EncodedRecord, stream: str) -> None:
    """Raise ``FormatError`` unless a record holds the transcript of a ``text`` stream."""
    transcripts = record.meta.get("hyp")
    transcript = transcripts.get(stream) if isinstance(transcripts, dict) else None
    if not (isinstance(transcript, dict) and isinstance(transcript.get("text"), str)):
        raise FormatError(f"no transcript of the {stream} stream (SPEC S15)", where=record.id)


def _name_of(chosen: str | Clip) -> str:
    """Return the name of an utterance or a clip in a batch."""
    return chosen.name if isinstance(chosen, Clip) else chosen


def _place_of(shard: str, number: int, utt_id: str) -> str:
    """Return how errors name a record."""
    return f"shard {shard} record {number} ({utt_id!r})"


def _placed(error: StoreError, shard: str, number: int, utt_id: str) -> StoreError:
    """Return an error with the record in its place: shard, number and utterance."""
    place = _place_of(shard, number, utt_id)
    if not error.where or error.where.startswith(f"shard {shard}"):
        error.where = place
    else:
        error.where = f"{place}: {error.where}"
    return error


def open_store(
    location: Any,
    *,
    vocab: TokenTable | VocabMap | str | os.PathLike[str] | None = None,
    verify: bool = True,
) -> Store:
    """Open a store for reading.

    ::

        store = open_store("exp/logits")
        store = open_store("exp/logits", vocab="student/tokens.txt")   # refused unless the tables agree
        store = open_store(["exp/logits-a", "exp/logits-b"])           # two corpora, one teacher

    Args:
        location: folder or URL of the store; or a list of stores of one teacher, token table and streams that
            hold different ids, which are read as one.
        vocab: the student's token table or the path of one, which must equal the store's; or a
            :class:`~logitstore.targets.vocab_map.VocabMap` from the store's table to the student's, by which
            every target is mapped.
        verify: check the checksum of every array as it is read; without it, damage goes unnoticed.

    Raises:
        NotAStore: the location holds no store.
        FormatError, CorruptError: something in the store cannot be read.
        VocabError: the student's table differs, or the map does not start from the store's table.
        IdentityError: stores that are opened together differ in more than their ids, or share one.
    """
    if isinstance(location, list | tuple):
        from .union import StoreUnion

        return StoreUnion([open_store(part, vocab=vocab, verify=verify) for part in location])
    if isinstance(vocab, VocabMap):
        return Store(location, vocab_map=vocab, verify=verify)
    store = Store(location, verify=verify)
    if isinstance(vocab, str | os.PathLike):
        from ..tokens.formats import read_table

        vocab = read_table(Path(vocab))
    if vocab is not None:
        store.require_vocab(vocab)
    return store


def as_store(store: Any) -> Store:
    """Return a store that is opened already as it is; open a folder or URL."""
    return store if isinstance(store, Store) else open_store(store)
