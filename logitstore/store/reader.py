"""Reads a store: a read-only mapping from utterance id to target, free of torch until asked for tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..encodings.rows import DecodedRows, has_classes
from ..errors import FormatError, MissingUtterance, StoreError, VocabError
from ..schema.checksums import sha256
from ..schema.lattice import Form, Nodes, restored
from ..schema.spec import StoreSpec
from ..storage import Shard, constants, open_storage
from ..storage.base import EncodedRecord
from ..storage.entries import Entry, OnDamaged, current_index, read_entry, shard_names
from ..storage.index import Index, entries_digest
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

OPEN_SHARDS = 64


class Store(Mapping[str, Target]):
    """An opened store.

    Pickles as its location and opens again on the other side, so dataloader workers share no file handle.

    Attributes:
        spec: what the store says about itself.
        tokens: its token table, the teacher's.
        constants: what its streams store once, by stream and name.
        vocab_map: how every target is mapped to a student's table; None where it is not.
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
        self.tokens = _tokens(self.place, self.spec)
        odd = [s.name for s in self.spec.streams if s.classes != len(self.tokens)]
        if odd or self.spec.tokens["size"] != len(self.tokens):
            raise FormatError(
                f"{', '.join(odd) or 'it'} has not the {len(self.tokens)} classes of tokens.txt (SPEC F4)",
                where=f"{self.place}/{SPEC_FILE}",
            )
        if vocab_map is not None:
            vocab_map.require_teacher(self.tokens, str(self.place))
        self.vocab_map = vocab_map
        self._verify = verify
        self._storage = open_storage(self.spec.storage)
        self._columns = columns_of(self.spec)
        self.constants = constants.read(self.place, self.spec)
        self._encodings = {s.name: encoding_of(s, self.constants[s.name]) for s in self.spec.streams}
        self._forms = {s.name: Form.parse(s.form) for s in self.spec.streams if s.kind == "rnnt"}
        self._index: Index = current_index(self.place, damaged=damaged)
        self._shards: OrderedDict[str, tuple[Entry, Shard | None]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, self._args

    __eq__ = object.__eq__  # a Mapping would decode every target to compare
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        streams = ", ".join(f"{s.name}={s.encoding}" for s in self.spec.streams)
        return f"<Store {self.place}: {len(self)} utterances, {streams}>"

    def __len__(self) -> int:
        return self._index.rows

    def __contains__(self, utt_id: object) -> bool:
        return isinstance(utt_id, str) and self._find(utt_id) is not None

    def __iter__(self) -> Iterator[str]:
        """Ids in stored order, shard after shard; raises ``Vanished`` where shards are merged meanwhile."""
        self._moved()
        for name in self.shards:
            yield from self.entry(name).ids

    def __getitem__(self, utt_id: str) -> Target:
        """Raises ``MissingUtterance``, or ``CorruptError`` where stored bytes fail their checksum."""
        return self.decode(self.row(utt_id))

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the sealed shards, in order."""
        return self._index.shards

    def entry(self, shard: str) -> Entry:
        """The sealed entry of a shard."""
        return self._open(shard)[0]

    def row(self, utt_id: str, only: Sequence[str] | None = None) -> EncodedRecord:
        """The stored arrays of an utterance, undecoded; ``only`` names the columns wanted."""
        found = self._find(utt_id)
        if found is None:
            raise MissingUtterance(
                f"no utterance {utt_id!r}",
                where=str(self.place),
                do="logitstore inspect STORE --manifest FILE lists what is missing.",
            )
        shard, number = found
        return self._checked(shard, number, utt_id, only)

    def rows(self, shard: str) -> Iterator[EncodedRecord]:
        """Every row of a shard, in order."""
        for number in range(len(self.entry(shard).ids)):
            yield self.row_at(shard, number)

    def row_at(self, shard: str, number: int) -> EncodedRecord:
        """One row of a shard, by its number."""
        entry, opened = self._open(shard)
        assert opened is not None
        return self._checked(opened, number, entry.ids[number])

    def _checked(
        self, shard: Shard, number: int, utt_id: str, only: Sequence[str] | None = None
    ) -> EncodedRecord:
        try:
            row = shard.record(number, verify=self._verify, only=only)
        except StoreError as e:
            raise _named(e, shard.name, number, utt_id) from None
        if row.id != utt_id:
            raise FormatError(
                f"its row says {row.id!r}, its entry {utt_id!r} (SPEC C2)",
                where=f"shard {shard.name} row {number} ({utt_id!r})",
            )
        return row

    def decode(self, row: EncodedRecord) -> Target:
        """The target of a stored row, over the student's classes where the store maps to them."""
        t, u = _lengths(row)
        streams: dict[str, DecodedRows] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        nodes: dict[str, Nodes] = {}
        driven: dict[str, Any] = {}
        for spec in self.spec.streams:
            prefix, encoding = f"{spec.name}.", self._encodings[spec.name]
            if encoding is None:
                _require_transcript(row, spec.name)
                continue
            arrays = {n.removeprefix(prefix): a for n, a in row.arrays.items() if n.startswith(prefix)}
            if spec.stream_kind.labels:
                driven[spec.name] = self._labels(arrays.pop(LABELS), row.id)
            rows = encoding.decode(arrays, spec.size)
            axes: tuple[int, ...] = (t,)
            form = self._forms.get(spec.name)
            labels = driven.get(spec.name, ())
            if spec.kind == "rnnt" and len(labels) != u:
                raise FormatError(f"{len(labels)} labels, U = {u} (SPEC S7)", where=row.id)
            if form and not form.framewise:
                kept = restored(form, t, u, len(rows), arrays, row.id)
                axes = kept.axes
                if not form.whole:
                    nodes[spec.name] = kept
                if rows.needs_next_labels and has_classes(rows):
                    rows = rows.with_next_labels(spec.blank, kept.next_labels(labels, spec.blank))
            else:
                axes = (t if form else spec.stream_kind.rows(t, len(labels)),)
                if len(rows) != axes[0]:
                    unit = f"T = {t} (SPEC S7)" if spec.stream_kind.frames else f"{axes[0]} labels (SPEC S13)"
                    raise FormatError(f"{spec.name} has {len(rows)} rows, {unit}", where=row.id)
            streams[spec.name], shapes[spec.name] = rows, (*axes, spec.size)
        first = next(iter(driven.values()), np.zeros(0, np.int32))
        target = Target(
            row.id,
            t,
            driven.get("rnnt", first),
            streams,
            shapes,
            row.meta,
            nodes,
            self.tokens.blank,
            self.spec.teacher.clock,
            driven,
        )
        return target if self.vocab_map is None else self.vocab_map.target(target)

    def _labels(self, labels: Any, where: str) -> Any:
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < len(self.tokens)):
            raise FormatError(f"a label outside of {len(self.tokens)} tokens (SPEC S7)", where=where)
        return labels

    def metas(self) -> Iterator[Mapping[str, Any]]:
        """What every row says about itself, in stored order: ``id``, ``seconds``, ``text``, ``hyp``, ..."""
        for name in self.shards:
            shard = self._open(name)[1]
            for number in range(len(shard) if shard else 0):
                assert shard is not None
                yield shard.meta(number, self._verify)

    def select(self, where: str) -> list[str]:
        """Ids of the rows that a condition holds for, in stored order; no target is decoded.

        E.g. ``wer <= 0.1 and seconds < 20``, ``rnnt.wer == 0 and hours < 100``; see :mod:`logitstore.store.select`.
        Raises ``UsageError`` for what is no condition.
        """
        chosen = Where(where, self.spec.transcript_streams)
        return [meta["id"] for meta in self.metas() if chosen(meta)]

    def read_clip(self, clip: Clip) -> Clipped:
        """Return a clip with the targets of its utterances, for ``collate_targets``.

        Raises:
            MissingUtterance: an utterance that the store does not hold.
            LengthError: a crop beyond the end, or an utterance without a stored length.
            UsageError: a clip of silence only.
        """
        return Clipped.of(clip, self.__getitem__)

    @checked_keywords({'a clip, Clip(id).at_speed("1.1").crop(0, 2).pad(1, 1)': Clip.__init__})
    def batch(
        self,
        ids: Sequence[str | Clip],
        *,
        frames: Sequence[int] | torch.Tensor | None = None,
        method: str = "linear",
        temperature: float = 1.0,
        ratio: tuple[int, int] | FrameClock | None = None,
        tolerance: int = 2,
        streams: Sequence[str] | None = None,
        vocab: VocabMap | None = None,
    ) -> TargetBatch:
        """Read B utterances and pad their targets into tensors.

        ``store.batch(ids, frames=lengths)``; for a cropped, sped-up, padded or joined utterance give a clip
        instead of its id: ``Clip("utt1").at_speed("1.1").crop(0, 2)``.

        Args:
            ids: B utterance ids or clips (:class:`logitstore.targets.clip.Clip`).
            frames: (B,) valid frames of the student; None keeps the teacher's.
            method: resampling method: ``linear``, ``nearest``, ...
                (:class:`logitstore.targets.frames.Method`).
            temperature: temperature of the probabilities, 1 or more.
            ratio: student frames per teacher frame as (p, q), or the student's ``FrameClock``.
            tolerance: student frames by which ``frames`` may differ from what ``ratio`` gives.
            streams: names of the streams wanted; None for all.
            vocab: map to the student's token table, for a store opened without one.

        Raises:
            MissingUtterance: an id that the store does not hold.
            UsageError, LengthError, TokenError: as :func:`logitstore.targets.batch.collate_targets`.
        """
        from ..targets.batch import collate_targets

        return collate_targets(
            [self.read_clip(i) if isinstance(i, Clip) else self[i] for i in ids],
            frames=frames,
            method=method,
            temperature=temperature,
            ratio=ratio,
            tolerance=tolerance,
            streams=streams,
            vocab=vocab,
        )

    def require_vocab(self, table: TokenTable) -> None:
        """Raise ``VocabError`` naming the first differing token unless a student has the store's table."""
        require_same(self.tokens, table, where=str(self.place), which=("the store", "the student"))

    def _find(self, utt_id: str) -> tuple[Shard, int] | None:
        while True:
            hits = self._index.find(utt_id)
            name, number = "", -1
            try:
                for name, number in hits:
                    entry, shard = self._open(name)
                    if shard is not None and entry.ids[number : number + 1] == (utt_id,):
                        return shard, number
            except StoreError as e:
                if not self._moved():
                    raise _named(e, name, number, utt_id) from None
                continue
            if not hits or not self._moved():
                return None

    def _moved(self) -> bool:
        """Whether shards were merged, repaired or removed since the index was read; reads it again then."""
        if self._index.digest == entries_digest(shard_names(self.place)):
            return False
        self._index = current_index(self.place)
        self._shards.clear()
        return True

    def _open(self, name: str) -> tuple[Entry, Shard | None]:
        if name in self._shards:
            self._shards.move_to_end(name)
            return self._shards[name]
        entry = read_entry(self.place, name)
        shard = None
        if entry.ids:
            shard = self._storage.open(self.place, name, entry.contents, self._columns)
            if len(shard) != len(entry.ids):
                raise FormatError(
                    f"{len(shard)} rows where its entry says {len(entry.ids)} (SPEC C2)",
                    where=f"shard {name}",
                )
        self._shards[name] = entry, shard
        while len(self._shards) > OPEN_SHARDS:
            self._shards.popitem(last=False)
        return entry, shard


def _reopen(location: Any, vocab_map: VocabMap | None, verify: bool) -> Store:
    return Store(location, vocab_map=vocab_map, verify=verify)


def _tokens(place: Place, spec: StoreSpec) -> TokenTable:
    """The token table; its bytes are compared before they are read. Raises ``FormatError``."""
    where = f"{place}/tokens.txt"
    try:
        table = place.read("tokens.txt")
    except FileNotFoundError:
        raise FormatError("there is no tokens.txt (SPEC F6)", where=str(place)) from None
    if sha256(table) != spec.tokens["sha256"]:
        raise FormatError(
            "it is not the token table this store was made with (SPEC F6)",
            where=where,
            why="Every id would mean another token.",
            do="Restore the file from a copy.",
        )
    try:
        return TokenTable.parse(table, blank=spec.tokens["blank"], where=where)
    except VocabError as e:
        raise FormatError(f"{e.what} (SPEC F6)", where=e.where) from None


def _lengths(row: EncodedRecord) -> tuple[int, int]:
    """T and U; raises ``FormatError`` where a row says anything else of itself than it may."""
    meta = row.meta
    t, u, text, seconds = meta.get("T"), meta.get("U", 0), meta.get("text"), meta.get("seconds", 0.0)
    if not (type(t) is int and type(u) is int and 1 <= t < 1 << 31 and 0 <= u < 1 << 31):
        raise FormatError(f"T = {t!r} and U = {u!r} (SPEC S3, S7)", where=row.id)
    if not (text is None or isinstance(text, str)) or type(seconds) not in (int, float):
        raise FormatError(f"text {text!r:.50}, {seconds!r:.50} seconds (SPEC S3)", where=row.id)
    return t, u


def _require_transcript(row: EncodedRecord, stream: str) -> None:
    """Raise ``FormatError`` unless a row holds what its teacher wrote down."""
    hyp = row.meta.get("hyp")
    said = hyp.get(stream) if isinstance(hyp, dict) else None
    if not (isinstance(said, dict) and isinstance(said.get("text"), str)):
        raise FormatError(f"no transcript of the {stream} stream (SPEC S15)", where=row.id)


def _named(error: StoreError, shard: str, number: int, utt_id: str) -> StoreError:
    """The same error, naming the shard, the row and the utterance it was met with."""
    here = f"shard {shard} row {number} ({utt_id!r})"
    if here not in error.where:
        error.where = f"{here}: {error.where}" if error.where else here
    return error


def open_store(location: Any, *, vocab: TokenTable | VocabMap | None = None, verify: bool = True) -> Store:
    """Open a store for reading.

    Args:
        location: the folder, or a URL.
        vocab: the student's token table, refused with ``VocabError`` unless it is the store's own; or a
            ``VocabMap`` from the store's table to the student's, by which every target is mapped.
        verify: check every row's checksum as it is read.

    Raises:
        NotAStore, FormatError, CorruptError: something there cannot be read.
        VocabError: the student's table differs, or the map does not start at the store's.
    """
    if isinstance(vocab, VocabMap):
        return Store(location, vocab_map=vocab, verify=verify)
    store = Store(location, verify=verify)
    if vocab is not None:
        store.require_vocab(vocab)
    return store
