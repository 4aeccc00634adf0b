"""Writer of a store: from a loop of one's own, and below ``dump_logits`` and ``capture_logits``."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..encodings import parse_encoding, stores_head
from ..errors import LengthError, LogitStoreError, ManifestError, UsageError, VocabError
from ..registry import suggest
from ..schema.ids import check_id
from ..schema.kinds import KINDS
from ..schema.lattice import Form, Nodes
from ..schema.spec import UNNAMED, StoreSpec, StreamSpec, TeacherSpec, differences
from ..storage import parse_storage
from ..storage.catalog import read_catalog
from ..storage.commit import (
    UnsealedShard,
    finish_replacements,
    finish_store,
    next_name,
    remove_temporary_files,
    skipped_keys,
)
from ..storage.constants import Constants
from ..storage.constants import read as read_constants
from ..storage.entries import Entry, shard_names
from ..storage.places import Place, open_place
from ..storage.shard_size import DEFAULT_SHARD_SIZE, ShardSize
from ..storage.staging import remove_dead_staging
from ..tokens.table import TokenTable
from ..tokens.transcript import Transcript
from .identity import ALLOWABLE, PLANNING, establish, note_skipped_check, remove_spec_of_empty_store
from .layout import about_shards, columns_of, make_spec
from .record_encoder import RecordEncoder, label_count

if TYPE_CHECKING:
    import torch

    from .loop_heads import LoopHeads
    from .stream_output import StreamOutput


class StoreWriter:
    """Writer of records into a store; sealed records survive whatever happens later.

    Where an exception ends the ``with`` block, the records added until then are sealed too, and a note on the
    exception says how many.

    ::

        with StoreWriter.open("store", tokens=table, streams={"ctc": "dense"}) as writer:
            for utt_id, logits in my_own_loop():        # logits (T, V) before the softmax
                if utt_id not in writer:
                    writer.add(utt_id, ctc=logits)

    Attributes:
        place: where the store is.
        spec: the store's description.
        encoder: encoder of the next record.
        listed: keys of the lines of ``skipped.jsonl``.
        duplicates: ids that this writer added and that another writer had sealed first; they were left out.
        differences: fields of the identity in which this writer differs from the store: (field, the store's
            value, the writer's value).
    """

    listed: frozenset[tuple[str, str, str]] = frozenset()

    def __init__(
        self, place: Place, spec: StoreSpec, *, writer: str = "loop", shard_size: str = DEFAULT_SHARD_SIZE
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", writer) or writer in ("store", PLANNING):
            raise UsageError(
                f"{writer!r} cannot name a writer",
                why="The name becomes part of file names; 'store' and 'plan' are locks of all writers.",
                do="Use up to 100 letters, digits, '.', '_' and '-', beginning with a letter or digit.",
            )
        self.place, self.spec = place, spec
        self._storage = parse_storage(spec.storage["name"])
        self._columns = columns_of(spec)
        self._names = [s.name for s in spec.streams]
        self.encoder = RecordEncoder(spec)  # begin() replaces it by one with the store's constants
        self._writer, self._size = writer, ShardSize.parse(shard_size)
        self._shard: UnsealedShard | None = None
        self._open = ExitStack()
        self._fresh: set[str] = set()
        self.duplicates: list[str] = []
        self.differences: list[tuple[str, Any, Any]] = []
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
        shard_size: str = DEFAULT_SHARD_SIZE,
        heads: Mapping[str, Any] | None = None,
    ) -> StoreWriter:
        """Open a store to write to from a loop of one's own; use the writer as a context manager.

        Args:
            location: folder or URL of the store; made anew, or resumed where it has the same identity.
            tokens: the teacher's token table.
            streams: encoding by stream name, e.g. ``{"ctc": "topk:16"}``; ``vectors/D`` for a layer of D
                numbers, empty for ``text``.
            teacher: the teacher's name, sample rate and frame shift; without it 16 kHz and 40 ms are assumed.
            storage: storage backend, e.g. ``zarr`` or ``webdataset``.
            writer: name that no other process writing into this store uses.
            shard_size: size of one shard; see :class:`logitstore.storage.shard_size.ShardSize`.
            heads: Linear layer, or (weight (V, D), bias (V,)), of each stream whose encoding stores the
                head's input; of a lattice, followed by the activation before it; see
                :class:`logitstore.store.loop_heads.LoopHeads`.

        Raises:
            IdentityError: the store was made by another teacher, token table or encoding.
            StoreBusy: another live process uses the writer's name.
            UsageError, UnknownName: an encoding, stream or storage backend that does not exist.
        """
        teacher = teacher or TeacherSpec(UNNAMED, 16000, 640)
        spec = make_spec(teacher, tokens, streams, storage=storage)
        for stream in spec.streams:
            if stream.stream_kind.axes and not stream.size:
                raise UsageError(
                    f"{stream.name}={stream.encoding} does not say how many numbers a row has",
                    do=f"Add the layer's width D: {stream.encoding}/256.",
                )
        place = open_place(location)
        if not heads and not any(_keeps_head(s) for s in spec.streams):
            return cls(place, spec, writer=writer, shard_size=shard_size).begin(tokens)
        from .loop_heads import LoopHeads

        given = LoopHeads(spec, heads or {})
        spec, made = given.declare(place, spec)
        opened = cls(place, spec, writer=writer, shard_size=shard_size).begin(tokens, constants=made)
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
        """Take the writer's lock; make the store, or check that its identity is the same.

        Args:
            tokens: the teacher's token table.
            allow_different: fields of the identity that may differ.
            constants: arrays that a new store keeps once; an existing store keeps its own.

        Raises ``IdentityError`` or ``StoreBusy``.
        """
        self._open.enter_context(self.place.lock(self._writer))
        try:
            with self.place.lock("store", wait=True):
                remove_spec_of_empty_store(self.place, self._writer)
                finish_replacements(self.place)
                remove_temporary_files(self.place)
                asked = self.spec
                self.spec = establish(self.place, asked, tokens, set(allow_different), constants)
                self.differences = [d for d in differences(self.spec, asked) if d[0].startswith(ALLOWABLE)]
            self.encoder = RecordEncoder(self.spec, read_constants(self.place, self.spec))
            self._columns = columns_of(self.spec)
            remove_dead_staging(self.place, self._writer)
            self._catalog = read_catalog(self.place, self.spec.identity)
            self.listed = skipped_keys(self.place)
        except BaseException:
            self._open.close()
            raise
        return self

    def note_gate(self, gate: str, reason: str) -> None:
        """Record in the store that a check of the teacher was skipped, and the reason."""
        with self.place.lock("store", wait=True):
            self.spec = note_skipped_check(self.place, gate, reason)

    def __contains__(self, utt_id: str) -> bool:
        """Return whether an utterance is sealed already, or was added by this writer."""
        return utt_id in self._fresh or bool(self._catalog.find(utt_id))

    @property
    def sealed(self) -> int:
        """Number of records in the sealed shards that the writer knows of."""
        return self._catalog.records

    def refresh(self) -> None:
        """Look up which shards other writers have sealed meanwhile, so that ``in`` finds their utterances."""
        if not self._catalog.is_current(self.place):
            self._catalog = read_catalog(self.place, self.spec.identity)

    def shard(self, name: str) -> UnsealedShard:
        """Begin a shard under the first free name of ``name``, ``name-1``, ``name-2``, ..."""
        free = next_name(name, self._catalog.taken.union(shard_names(self.place)))
        about = about_shards(self.spec)
        return UnsealedShard(
            self.place, self._storage, self._columns, free, self._writer, about, self._catalog.names
        )

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
        """Add one utterance; a shard that has reached its size is sealed.

        An utterance that another writer has sealed by then is left out of the shard; the writer warns once and
        lists it in ``duplicates``.

        Args:
            utt_id: id, unique in the store.
            labels: (U,) label ids that drove the lattice or the attention decoder, the decoder's end token
                included; by stream name where both are stored.
            text: reference text.
            seconds: duration of the audio in seconds.
            hyp: the teacher's hypothesis for a ``text`` stream, or (hypothesis, log-probability).
            notes: further metadata of the record (SPEC S3, S9).
            inputs: (T, D) or (U, D) input of the head, by stream whose encoding stores it; of a lattice both
                sides of the joiner, (T, J) and (U+1, J), whose logits are needed for the first utterance only.
            given: logits by stream name, torch or numpy, valid frames only. ``ctc``: (T, V). ``rnnt``:
                (T, U+1, V), an iterable of its slices along T, a function that returns the slices (needed by
                forms that go through them twice), or ``(logits, nodes)`` of kept nodes alone. ``seq2seq``:
                (U, V). ``hidden``: (T, D) numbers of a layer.

        Raises:
            ManifestError: the id cannot be stored or is in the store already.
            NonFinite, VocabError, LengthError: the logits cannot be stored.
            UsageError: a stream that the store does not have, or a head's input that is missing.
        """
        from .stream_output import encode

        check_id(utt_id)
        if utt_id in self:
            raise ManifestError(
                "this id is in the store already", where=utt_id, do="Ask `id in writer` first."
            )
        if unknown := [n for n, x in given.items() if x is not None and n not in self._names]:
            raise UsageError(f"no stream {unknown[0]!r}", where=utt_id, do=suggest(unknown[0], self._names))
        inputs = inputs or {}
        if unused := [n for n in inputs if self._heads is None or n not in self._heads]:
            raise UsageError(
                f"the encoding of {unused[0]!r} does not store the input of its head", where=utt_id
            )
        driven = self._driven(labels, utt_id)
        frames = 0
        try:
            for stream in self.spec.streams:
                if not stream.stream_kind.axes:
                    continue
                value, below = given.get(stream.name), inputs.get(stream.name)
                if value is None and (below is None or stream.kind != "rnnt"):
                    raise LengthError(f"no {stream.name} was given", where=utt_id)
                output = self._output(stream, value, driven.get(stream.name, []), below, utt_id)
                encode(self.encoder, stream, output, utt_id)
                frames = output.frames if stream.stream_kind.frames else frames
            meta = self._metadata(frames or self._guessed(seconds), driven, seconds, text, hyp)
            row = self.encoder.finish(utt_id, driven, {**meta, **(notes or {})})
        except BaseException:
            self.encoder.drop()
            raise
        if self._shard is None:
            self._shard = self.shard(f"{self._writer}-{len(shard_names(self.place)):06d}")
        self._shard.add(row)
        self._fresh.add(utt_id)
        if self._size.complete(len(self._shard), self._shard.seconds, self._shard.bytes):
            self.flush()

    def flush(self) -> int:
        """Seal the utterances added since the last shard as a shard of their own; return their number."""
        shard, self._shard = self._shard, None
        if shard is None:
            return 0
        entry = shard.seal()
        self.refresh()
        self._fresh.clear()  # the catalog has them now
        if shard.duplicates:
            if not self.duplicates:
                warnings.warn(
                    f"another writer has sealed {shard.duplicates[0]!r} and {len(shard.duplicates) - 1} more "
                    f"utterances that the writer {self._writer!r} added; they were left out. "
                    "StoreWriter.duplicates lists them all.",
                    stacklevel=3,
                )
            self.duplicates += shard.duplicates
        return 0 if entry is None else len(entry.ids)

    def _metadata(
        self,
        frames: int,
        driven: Mapping[str, Sequence[int]],
        seconds: float,
        text: str | None,
        hyp: str | tuple[str, float] | None,
    ) -> dict[str, Any]:
        meta: dict[str, Any] = {"T": frames, "U": label_count(driven), "seconds": float(seconds)}
        if text is not None:
            meta["text"] = text
        if hyp is not None:
            hypothesis, score = (hyp, None) if isinstance(hyp, str) else hyp
            transcript = Transcript.of((), hypothesis, score, text, None).to_json()
            meta["hyp"] = {s.name: transcript for s in self.spec.streams if not s.stream_kind.axes}
        return meta

    def _driven(
        self, labels: Sequence[int] | Mapping[str, Sequence[int]] | None, utt_id: str
    ) -> dict[str, list[int]]:
        """Return the labels of every stream that is driven by labels; raises ``VocabError``."""
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
        """Return T of an utterance that has no stream with frames: the teacher's frames in its audio."""
        about = self.spec.teacher
        return max(1, round(seconds * about.sample_rate / about.frame_shift))

    def _output(
        self, stream: StreamSpec, value: Any, labels: list[int], inputs: Any, utt_id: str
    ) -> StreamOutput:
        """Check the caller's logits of one stream and bring them into the form that is encoded."""
        import torch

        from .stream_output import StreamOutput

        if stream.kind != "rnnt":
            parts = list(_tensors(stream.kind, value, len(labels), utt_id))
            if not parts:
                raise LengthError(f"the {stream.name} stream is empty", where=utt_id)
            rows = parts[0] if len(parts) == 1 else torch.cat(parts)
            below = None
            if inputs is not None and self._heads is not None:
                below = self._heads.checked_inputs(stream.name, inputs, rows, utt_id)
            return StreamOutput(len(rows), labels, rows=rows, inputs=below)
        if inputs is not None and self._heads is not None:
            logits = None if value is None else torch.cat(list(_tensors("rnnt", value, len(labels), utt_id)))
            enc, dec = self._heads.checked_sides(stream.name, inputs, logits, utt_id)
            if len(dec) != len(labels) + 1:
                raise LengthError(f"{len(dec)} label positions for {len(labels)} labels", where=utt_id)
            return StreamOutput(len(enc), labels, sides=(enc, dec))
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Nodes):
            return StreamOutput(int(value[1].T), labels, chosen=value)

        def slices() -> Iterator[torch.Tensor]:
            return _tensors("rnnt", value, len(labels), utt_id)

        again = hasattr(value, "shape") or callable(value) or iter(value) is not value
        if again:
            return StreamOutput(sum(len(piece) for piece in slices()), labels, slices=slices)
        if not Form.parse(stream.form).whole:
            raise UsageError(
                f"{stream.encoding}/{stream.form} goes through a lattice more than once",
                where=utt_id,
                do="Give the whole lattice, or a function that returns its slices.",
            )
        parts = list(slices())
        return StreamOutput(sum(map(len, parts)), labels, slices=lambda: parts)

    def close(self) -> None:
        """Seal the last shard, bring the index and ``skipped.jsonl`` up to date, release the lock."""
        try:
            self.flush()
            finish_store(self.place)
        finally:
            self._open.close()

    def leave(self, folder: str) -> Entry | None:
        """Leave the last shard in ``partial/FOLDER`` for another process to seal; release the lock."""
        try:
            shard, self._shard = self._shard, None
            return shard.set_aside(folder) if shard is not None else None
        finally:
            self._open.close()

    def abandon(self) -> None:
        """Discard the last shard; release the lock."""
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
            if self._shard is not None:
                error.add_note(self._rescue())
            with suppress(LogitStoreError):  # the error that is being raised says more
                finish_store(self.place)
        finally:
            self._open.close()

    def _rescue(self) -> str:
        """Seal the open shard after an error, and return a sentence that says how much was kept."""
        added = 0 if self._shard is None else len(self._shard)
        try:
            kept = self.flush()
        except (LogitStoreError, OSError) as e:
            return f"logitstore: the last {added} utterances were lost: {getattr(e, 'what', e)}"
        return f"logitstore: {kept} utterances of the open shard were sealed; the same program can go on from there"


def _keeps_head(stream: StreamSpec) -> bool:
    return bool(stream.encoding) and stores_head(parse_encoding(stream.encoding))


def _tensors(kind: str, value: Any, u: int, utt_id: str) -> Iterator[torch.Tensor]:
    """Yield the caller's logits as tensors with the right axes; raises ``LengthError``."""
    import torch

    for piece in [value] if hasattr(value, "shape") else value() if callable(value) else value:
        tensor = torch.as_tensor(piece).detach()
        _check_axes(kind, tensor, u, utt_id)
        yield tensor


def _check_axes(kind: str, logits: torch.Tensor, u: int, utt_id: str) -> None:
    """Raise ``LengthError`` for other axes: a batch axis left in place would pass for frames."""
    good = logits.ndim == 3 and logits.shape[1] == u + 1 if kind == "rnnt" else logits.ndim == 2
    if not good:
        wanted = f"(T, U+1 = {u + 1}, V)" if kind == "rnnt" else str(KINDS[kind])
        what = "logits" if KINDS[kind].classes else "numbers"
        raise LengthError(f"{kind} {what} of shape {tuple(logits.shape)}, not {wanted}", where=utt_id)
