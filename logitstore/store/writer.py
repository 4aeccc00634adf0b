"""Writes a store from one's own loop; ``dump`` drives the same writer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..encodings import HeadEncoding, parse_encoding
from ..errors import LengthError, LogitStoreError, ManifestError, UsageError, Vanished, VocabError
from ..registry import suggest
from ..schema.ids import check_id
from ..schema.kinds import KINDS
from ..schema.lattice import Form, Nodes
from ..schema.spec import UNNAMED, StoreSpec, StreamSpec, TeacherSpec
from ..storage import parse_storage
from ..storage.commit import (
    UnsealedShard,
    finish_replacements,
    finish_store,
    remove_temporary_files,
    remove_unfinished_shards,
    skipped_keys,
)
from ..storage.constants import Constants
from ..storage.constants import read as read_constants
from ..storage.entries import Entry, current_index, read_entry, shard_names
from ..storage.places import Place, open_place
from ..tokens.table import TokenTable
from ..tokens.transcript import Transcript
from .identity import PLANNING, establish, forget_empty, note_gate
from .layout import columns_of, make_spec
from .row_encoder import RowEncoder, label_count

if TYPE_CHECKING:
    import torch

    from .loop_heads import LoopHeads


class StoreWriter:
    """Writes rows into a store; sealed rows survive anything that happens later.

    ::

        with StoreWriter.open("store", tokens=table, streams={"ctc": "dense"}) as w:
            for utt_id, logits in my_own_loop():        # logits (T, V) before the softmax
                if utt_id not in w:
                    w.add(utt_id, ctc=logits)
    """

    listed: frozenset[tuple[str, str, str]] = frozenset()  # the key of each line of skipped.jsonl

    def __init__(self, place: Place, spec: StoreSpec, *, writer: str = "loop", shard_rows: int = 500) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", writer) or writer in ("store", PLANNING):
            raise UsageError(
                f"{writer!r} cannot name a writer",
                why="It becomes part of file names; 'store' and 'plan' are locks that all writers share.",
                do="Up to 100 letters, digits, '.', '_' and '-', beginning with a letter or digit.",
            )
        self.place, self.spec = place, spec
        self._storage = parse_storage(spec.storage["name"])
        self._columns = columns_of(spec)
        self._names = [s.name for s in spec.streams]
        self.encoder = RowEncoder(spec)  # begin() gives it what the store keeps once
        self._writer, self._rows = writer, shard_rows
        self._shard: UnsealedShard | None = None
        self._open = ExitStack()
        self._fresh: set[str] = set()
        self._heads: LoopHeads | None = None

    @classmethod
    def open(
        cls,
        location: Any,
        *,
        tokens: TokenTable,
        streams: Mapping[str, str],
        teacher: TeacherSpec | None = None,
        storage: str = "zarr",
        writer: str = "loop",
        shard_rows: int = 500,
        heads: Mapping[str, Any] | None = None,
    ) -> StoreWriter:
        """A writer for one's own loop; use it as a context manager.

        Args:
            location: a directory; made, or resumed when it is a store with the same answers.
            tokens: the token table.
            streams: encoding by stream name; ``vectors/D`` of a layer of D numbers, empty of ``text``.
            teacher: who speaks.
            storage: ``zarr`` or ``webdataset``.
            writer: a name no other process writing into this store uses.
            shard_rows: utterances a shard.
            heads: by ``factored`` stream a Linear or (weight, bias); :class:`logitstore.store.loop_heads.LoopHeads`.
        """
        teacher = teacher or TeacherSpec(UNNAMED, 16000, 640)
        spec = make_spec(teacher, tokens, streams, storage=storage)
        for stream in spec.streams:
            if stream.stream_kind.axes and not stream.size:
                raise UsageError(
                    f"{stream.name}={stream.encoding} does not say how many numbers a row has",
                    do=f"Say D: {stream.encoding}/256.",
                )
        place = open_place(location)
        if not heads and not any(_keeps_head(s) for s in spec.streams):
            return cls(place, spec, writer=writer, shard_rows=shard_rows).begin(tokens)
        from .loop_heads import LoopHeads

        given = LoopHeads(spec, heads or {})
        spec, made = given.declare(place, spec)
        opened = cls(place, spec, writer=writer, shard_rows=shard_rows).begin(tokens, constants=made)
        try:
            given.require_stored(read_constants(place, opened.spec))
        except BaseException:
            opened.abandon()
            raise
        opened._heads = given
        return opened

    def begin(
        self, tokens: TokenTable, allow_different: Iterable[str] = (), *, constants: Constants | None = None
    ) -> Self:
        """Take the writer's lock; make the store, or check that it was made with the same answers.

        ``constants`` is what a new store keeps once; one that exists keeps its own.

        Raises ``IdentityError`` or ``StoreBusy``.
        """
        self._open.enter_context(self.place.lock(self._writer))
        try:
            with self.place.lock("store", wait=True):
                forget_empty(self.place, self._writer)
                finish_replacements(self.place)
                remove_temporary_files(self.place)
                self.spec = establish(self.place, self.spec, tokens, set(allow_different), constants)
                if not self.place.exists("index.bin"):
                    self._storage.describe(self.place, {"format": "logitstore", "version": self.spec.version})
            self.encoder = RowEncoder(self.spec, read_constants(self.place, self.spec))
            self._columns = columns_of(self.spec)
            remove_unfinished_shards(self.place, self._writer)
            self._index = current_index(self.place)
            self.listed = skipped_keys(self.place)
        except BaseException:
            self._open.close()
            raise
        self._entry = lru_cache(maxsize=16)(lambda shard: read_entry(self.place, shard))
        return self

    def note_gate(self, gate: str, reason: str) -> None:
        """Store that a check of the teacher was skipped, and why."""
        with self.place.lock("store", wait=True):
            self.spec = note_gate(self.place, gate, reason)

    def __contains__(self, utt_id: str) -> bool:
        """Whether an utterance is sealed already, or was added in this session."""
        if utt_id in self._fresh:
            return True
        while True:
            try:
                found = self._index.find(utt_id)
                return any(self._entry(shard).ids[row : row + 1] == (utt_id,) for shard, row in found)
            except Vanished:  # merged or repaired since; entries are the truth
                self._index = current_index(self.place)

    def shard(self, name: str) -> UnsealedShard:
        """Begin a shard under the first free of ``name``, ``name-1``, ``name-2``, ..."""
        taken, generation = set(shard_names(self.place)), 0
        while (free := f"{name}-{generation}" if generation else name) in taken:
            generation += 1
        return UnsealedShard(self.place, self._storage, self._columns, free, self._writer)

    def add(
        self,
        utt_id: str,
        *,
        labels: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        text: str | None = None,
        seconds: float = 0.0,
        hyp: str | tuple[str, float] | None = None,
        notes: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        **given: Any,
    ) -> None:
        """Add one utterance of one's own loop; every ``shard_rows`` of them are sealed.

        Args:
            utt_id: unique in the store.
            labels: (U,) token ids that drove the lattice or the attention decoder, the latter's end token
                included; by stream where there are both.
            text: reference text.
            seconds: of audio.
            hyp: what the teacher wrote down, for a ``text`` stream; with the logarithm of its probability.
            notes: what else its row says (SPEC S3, S9).
            inputs: by ``factored`` stream, (T, D) or (U, D) what went into its head.
            given: by stream, torch or numpy, valid frames only. ``ctc``: (T, V) logits. ``rnnt``: (T, U+1, V)
                logits, or an iterable of its slices along T; or a function that gives them, for forms that
                go through them twice; or ``(logits, nodes)`` of those nodes alone that are kept. ``seq2seq``:
                (U, V) logits. ``hidden``: (T, D) numbers.

        Raises:
            ManifestError: an id that cannot be stored or is there already.
            NonFinite, VocabError, LengthError: logits that cannot be stored.
        """
        check_id(utt_id)
        if utt_id in self:
            raise ManifestError(
                "this id is in the store already", where=utt_id, do="Ask `id in writer` first."
            )
        if unknown := [n for n, x in given.items() if x is not None and n not in self._names]:
            raise UsageError(f"no stream {unknown[0]!r}", where=utt_id, do=suggest(unknown[0], self._names))
        inputs = inputs or {}
        if unused := [n for n in inputs if self._heads is None or n not in self._heads]:
            what = f"inputs of {unused[0]!r}, which does not store what goes into a head"
            raise UsageError(what, where=utt_id)
        driven = self._driven(labels, utt_id)
        frames = 0
        try:
            for stream in self.spec.streams:
                if not stream.stream_kind.axes:
                    continue
                value = given.get(stream.name)
                if value is None:
                    raise LengthError(f"no {stream.name} was given", where=utt_id)
                below = inputs.get(stream.name)
                count = self._take(stream, value, driven.get(stream.name, []), utt_id, below)
                frames = count if stream.stream_kind.frames else frames
            frames = frames or self._guessed(seconds)
            meta: dict[str, Any] = {"T": frames, "U": label_count(driven), "seconds": float(seconds)}
            if text is not None:
                meta["text"] = text
            if hyp is not None:
                said, score = (hyp, None) if isinstance(hyp, str) else hyp
                heard = Transcript.of((), said, score, text, None).to_json()
                meta["hyp"] = {s.name: heard for s in self.spec.streams if not s.stream_kind.axes}
            row = self.encoder.finish(utt_id, driven, {**meta, **(notes or {})})
        except BaseException:
            self.encoder.drop()
            raise
        if self._shard is None:
            self._shard = self.shard(f"{self._writer}-{len(shard_names(self.place)):06d}")
        self._shard.add(row)
        self._fresh.add(utt_id)
        if len(self._shard) >= self._rows:
            self._shard.seal()
            self._shard = None

    def _driven(
        self, labels: Sequence[int] | Mapping[str, Sequence[int]] | None, utt_id: str
    ) -> dict[str, list[int]]:
        """Labels of every stream that is driven with some; raises ``VocabError`` for an unknown one."""
        found: dict[str, list[int]] = {}
        for stream in self.spec.streams:
            if stream.stream_kind.labels:
                own = labels.get(stream.name) if isinstance(labels, Mapping) else labels
                found[stream.name] = [] if own is None else [int(i) for i in own]
                if any(not 0 <= i < self.spec.tokens["size"] for i in found[stream.name]):
                    what = f"a label of {found[stream.name]} is outside the token table"
                    raise VocabError(what, where=utt_id)
        return found

    def _guessed(self, seconds: float) -> int:
        """T where no stream has frames: as many as the teacher's shift makes of the audio."""
        about = self.spec.teacher
        return max(1, round(seconds * about.sample_rate / about.frame_shift))

    def _take(
        self, stream: StreamSpec, value: Any, labels: list[int], utt_id: str, inputs: Any = None
    ) -> int:
        """Encode one stream; gives its frames."""
        if stream.kind == "rnnt" and not Form.parse(stream.form).whole:
            return self._lattice(stream, value, labels, utt_id)
        frames = 0
        for piece in _slices(stream.kind, value, len(labels), utt_id):
            below = None
            if inputs is not None and self._heads is not None:
                below = self._heads.below(stream.name, inputs, frames, piece, utt_id)
            frames += len(piece)
            self.encoder.take(stream.name, piece, utt_id, labels, inputs=below)
        if inputs is not None and len(inputs) != frames:
            what = f"{len(inputs)} rows went into the {stream.name} head, {frames} came out"
            raise LengthError(what, where=utt_id)
        return frames

    def _lattice(self, stream: StreamSpec, value: Any, labels: list[int], utt_id: str) -> int:
        """Encode the nodes that a form keeps; gives T."""
        from .lattice_nodes import Picker, chosen

        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Nodes):
            logits, nodes = value
            rows, always = chosen(stream, logits, nodes, labels)
            self.encoder.take(stream.name, rows, utt_id, always=always)
            self.encoder.choose(stream.name, nodes)
            return int(nodes.T)
        if not hasattr(value, "shape") and not callable(value) and iter(value) is value:
            raise UsageError(
                f"{stream.encoding}/{stream.form} goes through a lattice more than once",
                where=utt_id,
                do="Give it whole, or a function that returns its slices.",
            )

        def drive() -> Iterator[torch.Tensor]:
            return _slices("rnnt", value, len(labels), utt_id)

        frames = sum(len(piece) for piece in drive())
        picker = Picker(stream, labels, utt_id)
        for rows, always in picker.rows(drive, frames):
            self.encoder.take(stream.name, rows, utt_id, always=always)
        if picker.nodes is not None:
            self.encoder.choose(stream.name, picker.nodes)
        return frames

    def close(self) -> None:
        """Seal the last shard, bring the index and ``skipped.jsonl`` up to date, drop the lock."""
        try:
            if self._shard is not None:
                self._shard.seal()
                self._shard = None
            finish_store(self.place)
        finally:
            self._open.close()

    def leave(self, folder: str) -> Entry | None:
        """Set the last shard aside in ``partial/folder`` for another process to seal; drop the lock."""
        try:
            shard, self._shard = self._shard, None
            return shard.set_aside(folder) if shard is not None else None
        finally:
            self._open.close()

    def abandon(self) -> None:
        """Forget the last shard; drop the lock."""
        try:
            if self._shard is not None:
                self._shard.discard()
                self._shard = None
        finally:
            self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return self.close()
        try:
            with suppress(LogitStoreError):  # the error that is on its way says more than what it left
                if self._shard is not None:
                    self._shard.discard()
                finish_store(self.place)
        finally:
            self._open.close()


def _keeps_head(stream: StreamSpec) -> bool:
    return bool(stream.encoding) and isinstance(parse_encoding(stream.encoding), HeadEncoding)


def _slices(kind: str, value: Any, u: int, utt_id: str) -> Iterator[torch.Tensor]:
    """Logits as the caller gave them, as tensors with the right axes."""
    import torch

    for piece in [value] if hasattr(value, "shape") else value() if callable(value) else value:
        tensor = torch.as_tensor(piece).detach()
        _check_axes(kind, tensor, u, utt_id)
        yield tensor


def _check_axes(kind: str, logits: torch.Tensor, u: int, utt_id: str) -> None:
    """A batch axis left in place would pass for frames; raises ``LengthError``."""
    good = logits.ndim == 3 and logits.shape[1] == u + 1 if kind == "rnnt" else logits.ndim == 2
    if not good:
        wanted = f"(T, U+1 = {u + 1}, V)" if kind == "rnnt" else str(KINDS[kind])
        what = "logits" if KINDS[kind].classes else "numbers"
        raise LengthError(f"{kind} {what} of shape {tuple(logits.shape)}, not {wanted}", where=utt_id)
