"""Summaries of a store and of one utterance, as typed records: description, size, statistics, decodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ..corpus.manifest import Manifest
from ..encodings.base import LOSS
from ..encodings.rows import NOTHING
from ..errors import UsageError
from ..schema.lattice import Form
from ..schema.spec import StoreSpec, StreamSpec
from ..storage.constants import file_name
from ..storage.entries import Entry, entry_name, read_entry
from ..storage.places import Place
from ..targets.decode import best_classes, decode, forced_rnnt, on_grid
from ..targets.served import ServedErrors, served_errors
from ..targets.target import Target
from ..tokens.transcript import edit_distance
from .reader import Store, as_store

SAMPLE = 200  # utterances that statistics are measured on unless another number is asked for
AXES_OF_FORM = {
    "full": "(T, U+1, V)",
    "banded": "(T, S, V)",
    "path": "(T+U, V)",
    "sample": "(T, N, V)",
    "mean-u": "(T, V)",
}


@dataclass(frozen=True)
class LossSummary:
    """Information that an encoding left out of a stream, as the dump measured it (SPEC E11).

    The unit is nats: KL(teacher ‖ stored) of a row, at the temperature that the encoding names, or 1.

    Attributes:
        mean: mean over all rows.
        p99: 99th percentile over all rows, estimated from above: records hold their own percentiles alone.
        max: largest loss of a row.
        at: the same three at temperatures 2 and 4, where records hold them.
        changed: share of rows whose best class changes; None where records do not say.
    """

    mean: float
    p99: float
    max: float
    at: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    changed: float | None = None


@dataclass(frozen=True)
class StreamSummary:
    """A stream of a store. Attributes that do not apply to its kind are None.

    Attributes:
        kind: kind of the stream: ``ctc``, ``rnnt``, ``seq2seq``, ``hidden`` or ``text``.
        shape: axes of an utterance, e.g. ``(T, U+1, V)``.
        form: lattice form; empty for a stream that is no lattice.
        classes: number of classes V.
        blank: class of the blank.
        encoding: encoding as the user writes it.
        rows: number of rows in the sampled utterances.
        bytes_per_row: mean bytes of a row, uncompressed.
        of_dense_fp16: those bytes as a share of the bytes of a dense float16 row.
        entropy: mean entropy of a row in nats.
        blank_share: share of rows whose most probable class is the blank.
        top1_share: mean probability of the most probable class.
        kept_mass: mean probability of all classes that are stored one by one.
        rms: root mean square of the numbers of a ``hidden`` stream.
        whole_share: share of rows that a pruning encoding stores whole; None of other encodings.
        lost: loss of the encoding; None if the store does not hold it.
        error_rate: errors of the greedy decode of the stored rows (of the transcript, for ``text``) per token
            or word of the reference; lattices and attention decoders are decoded under teacher forcing.
        error_unit: unit of the errors: ``token`` or ``word``.
        error_reference: number of tokens or words in the references.
    """

    kind: str
    shape: str
    form: str
    classes: int | None
    blank: int | None
    encoding: str
    rows: int
    bytes_per_row: float | None
    of_dense_fp16: float | None
    entropy: float | None
    blank_share: float | None
    top1_share: float | None
    kept_mass: float | None
    rms: float | None
    whole_share: float | None
    lost: LossSummary | None
    error_rate: float | None
    error_unit: str
    error_reference: int


@dataclass(frozen=True)
class ManifestComparison:
    """A manifest beside the utterances of a store.

    Attributes:
        asked: number of utterances in the manifest.
        missing: ids that the store lacks.
        extra: ids that the manifest lacks.
        other_names: for missing ids, the id of an extra record that is named after the same file: one of the two is
            the path of the audio and the other its name, or both are paths in different folders.
        bad_lines: lines of the manifest that cannot be used, as JSON values.
    """

    asked: int
    missing: list[str]
    extra: list[str]
    other_names: dict[str, str]
    bad_lines: list[dict[str, Any]]


@dataclass(frozen=True)
class StoreSummary:
    """The result of :func:`inspect_store`.

    Attributes:
        store: location of the store.
        format: version of the store format.
        teacher: description of the teacher, as JSON values.
        tokens: size, blank and digest of the token table.
        storage: storage backend with its setting.
        made_with: versions of the libraries that wrote the store.
        allowed: differences from earlier dumps that were allowed, each with field, old and new value.
        gates: checks of the teacher that were skipped, each with its name and the reason given.
        utterances: number of utterances.
        hours: hours of audio.
        frames: number of teacher frames.
        shards: number of shards.
        skipped: number of utterances that could not be dumped.
        bytes: bytes of all files.
        bytes_once: bytes of the files that do not grow with the number of utterances.
        bytes_per_frame: bytes of the other files for each teacher frame.
        sampled: number of utterances that the statistics of the streams are measured on.
        streams: summary of each stream, by name.
        transcript_error_rates: by stream, token error rate of the teacher's own transcripts in the sample.
        manifest: comparison with a manifest, if one was given.
        served: token errors of the targets as served at another rate, if one was given.
    """

    store: str
    format: str
    teacher: dict[str, Any]
    tokens: dict[str, Any]
    storage: str
    made_with: dict[str, str]
    allowed: list[dict[str, Any]]
    gates: list[dict[str, Any]]
    utterances: int
    hours: float
    frames: int
    shards: int
    skipped: int
    bytes: int
    bytes_once: int
    bytes_per_frame: float
    sampled: int
    streams: dict[str, StreamSummary]
    transcript_error_rates: dict[str, float]
    manifest: ManifestComparison | None = None
    served: list[ServedErrors] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values; ``manifest`` and ``served`` only if they were asked for."""
        value = asdict(self)
        if self.manifest is None:
            del value["manifest"]
        if self.served is None:
            del value["served"]
        else:
            value["served"] = [errors.to_json() for errors in self.served]
        return value


@dataclass(frozen=True)
class RowSummary:
    """The most probable classes of one row.

    Attributes:
        best: (token, probability) of the most probable classes, the best first.
        tail: probability of all classes that are not stored one by one.
        t: frame of the row; None for an attention decoder.
        u: label position of the row; None for a stream of frames.
    """

    best: list[tuple[str, float]]
    tail: float
    t: int | None = None
    u: int | None = None


@dataclass(frozen=True)
class UtteranceStream:
    """One stream of one utterance. Attributes that do not apply to its kind are None.

    Attributes:
        shape: size of each axis.
        encoding: encoding as the user writes it.
        transcript: the teacher's own transcript, if the record holds one: text, score and error rates.
        text: text of the greedy decode of the stored rows, or the transcript of a ``text`` stream.
        errors: number of errors in that text.
        reference: number of tokens or words in the reference.
        decoded: tokens of the greedy decode.
        labels: tokens that the rows were computed for.
        frames: most probable classes of every row; of a lattice, those along the greedy path.
        rms: root mean square of each row of a ``hidden`` stream.
    """

    shape: list[int]
    encoding: str
    transcript: Mapping[str, Any] | None = None
    text: str | None = None
    errors: int | None = None
    reference: int | None = None
    decoded: list[str] | None = None
    labels: list[str] | None = None
    frames: list[RowSummary] | None = None
    rms: list[float] | None = None


@dataclass(frozen=True)
class UtteranceSummary:
    """The result of :func:`inspect_utterance`.

    Attributes:
        id: id of the utterance.
        T: number of valid teacher frames.
        U: number of labels.
        seconds: seconds of audio.
        text: reference text, if there is one.
        labels: tokens of the labels.
        blank: token of the blank.
        streams: each stream, by name.
    """

    id: str
    T: int
    U: int
    seconds: float | None
    text: str | None
    labels: list[str]
    blank: str
    streams: dict[str, UtteranceStream]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values, without the parts of a stream that do not apply."""
        value = asdict(self)
        for name, stream in value["streams"].items():
            value["streams"][name] = {k: v for k, v in stream.items() if v is not None}
            for row in stream["frames"] or ():
                for axis in [a for a in ("t", "u") if row[a] is None]:
                    del row[axis]
        return value


@dataclass(frozen=True)
class Footprint:
    """Bytes of a store's files.

    Attributes:
        rows: bytes that grow with the number of utterances: shards, their entries and the index.
        once: bytes that do not: ``logitstore.json``, the token table and the heads of ``factored`` streams.
    """

    rows: int
    once: int

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return self.rows + self.once


def inspect_store(
    store: Any,
    *,
    sample: int = SAMPLE,
    manifest: Manifest | None = None,
    rate: tuple[int, int] | None = None,
) -> StoreSummary:
    """Summarise a store: its description, its size and statistics of every stream.

    Args:
        store: an opened store, or its folder or URL.
        sample: largest number of utterances that statistics are measured on, spread evenly over the store.
        manifest: utterances that the store should hold; the summary then lists missing and extra ones.
        rate: (p, q), p student frames for q frames of the teacher; the summary then has the token errors of
            the targets as they are served at that rate.

    Raises:
        UsageError: ``sample`` or ``rate`` is not made of positive numbers.
        NotAStore, FormatError, CorruptError: the store cannot be read.
    """
    if sample < 1:
        raise UsageError(f"sample={sample}", do="Give the number of utterances to measure, 1 or more.")
    if rate is not None and min(rate) < 1:
        raise UsageError(f"rate={rate}", do="Give student frames and teacher frames, such as (1, 2).")
    store = as_store(store)
    entries = [read_entry(store.place, name, store.spec.identity) for name in store.shards]
    ids = list(store)
    chosen = ids[:: -(-len(ids) // sample)] if ids else []
    statistics = {s.name: _StreamStatistics(store, s) for s in store.spec.streams}
    transcripts = _TranscriptErrors()
    for utt_id in chosen:
        record = store.record(utt_id)
        target = store.decode(record)
        transcripts.add(target)
        for name, of_stream in statistics.items():
            stored = sum(a.nbytes for n, a in record.arrays.items() if n.startswith(f"{name}."))
            of_stream.add(target, stored)
    on_disk = footprint(store.place, store.spec, entries)
    frames = sum(e.frames for e in entries)
    return StoreSummary(
        store=str(store.place),
        format=store.spec.version,
        teacher=store.spec.teacher.to_json(),
        tokens=dict(store.spec.tokens),
        storage=store.spec.storage["name"],
        made_with=dict(store.spec.made_with),
        allowed=[dict(a) for a in store.spec.allowed],
        gates=[dict(g) for g in store.spec.gates],
        utterances=len(ids),
        hours=sum(e.seconds for e in entries) / 3600,
        frames=frames,
        shards=len(entries),
        skipped=sum(len(e.skipped) for e in entries),
        bytes=on_disk.bytes,
        bytes_once=on_disk.once,
        bytes_per_frame=on_disk.rows / max(frames, 1),
        sampled=len(chosen),
        streams={name: of_stream.summary() for name, of_stream in statistics.items()},
        transcript_error_rates=transcripts.rates(),
        manifest=None if manifest is None else compare_manifest(store, manifest),
        served=None if rate is None else _served_errors(store, chosen, rate),
    )


def _served_errors(store: Store, ids: Iterable[str], rate: tuple[int, int]) -> list[ServedErrors]:
    """Return the token errors of the targets at another rate; of streams with frames that can be decoded."""
    streams = [
        s.name
        for s in store.spec.streams
        if s.kind == "ctc"
        or (s.kind == "rnnt" and not _has_mean_rows(s) and Form.parse(s.form).name != "path")
    ]
    return served_errors((store.target(utt_id, streams) for utt_id in ids), streams, rate)


class _TranscriptErrors:
    """Token errors of the teacher's own transcripts that records hold beside a reference."""

    def __init__(self) -> None:
        self._errors, self._lengths = Counter[str](), Counter[str]()

    def add(self, target: Target) -> None:
        for stream, transcript in target.meta.get("hyp", {}).items():
            if "ter" in transcript and target.U:
                self._errors[stream] += transcript["ter"] * target.U
                self._lengths[stream] += target.U

    def rates(self) -> dict[str, float]:
        """Return the token error rate by stream."""
        return {stream: self._errors[stream] / length for stream, length in self._lengths.items()}


class _StreamStatistics:
    """Statistics of one stream, added up utterance by utterance.

    Args:
        store: the store.
        spec: the stream.
    """

    def __init__(self, store: Store, spec: StreamSpec) -> None:
        self._store, self._spec = store, spec
        self._rows = self._bytes = self._errors = self._reference = 0
        self._entropy = self._blank = self._best = self._kept = self._squares = 0.0
        self._losses: list[tuple[float, ...]] = []
        self._whole: int | None = None

    def add(self, target: Target, stored: int) -> None:
        """Add an utterance whose arrays of this stream take ``stored`` bytes."""
        kind = self._spec.stream_kind
        if kind.axes:
            rows = len(target.streams[self._spec.name])
            self._rows += rows
            self._bytes += stored
            if loss := target.meta.get(LOSS, {}).get(self._spec.name):
                self._losses.append((rows, *loss))
        if kind.classes:
            self._add_distributions(target)
        elif kind.axes:
            self._squares += float(np.square(target.vectors(self._spec.name), dtype=np.float64).sum())
        if kind.has_transcript:
            errors, reference = errors_of(self._store, target, self._spec)
            self._errors += errors
            self._reference += reference

    def _add_distributions(self, target: Target) -> None:
        at = target[self._spec.name].at(1.0)
        if (whole := target[self._spec.name].whole_rows()) is not None:
            self._whole = (self._whole or 0) + whole
        p = np.exp(at.logp.astype(np.float64))
        tail = np.exp(at.tail.astype(np.float64))
        left = np.maximum(self._spec.classes - (at.logp > NOTHING).sum(axis=1), 1)
        of_tail = tail * (np.maximum(at.tail, NOTHING) - np.log(left))  # spread evenly over the classes left
        self._entropy -= float((p * at.logp).sum() + of_tail.sum())
        self._kept += float((1 - tail).sum())
        self._best += float(p.max(axis=1).sum())
        self._blank += float((best_classes(target[self._spec.name]) == self._spec.blank).sum())

    def summary(self) -> StreamSummary:
        """Return the statistics of all utterances added."""
        spec, kind, n = self._spec, self._spec.stream_kind, max(self._rows, 1)
        each = self._bytes / n if kind.axes else None
        shape = AXES_OF_FORM.get(spec.form.partition("+")[0].partition(":")[0], str(kind))
        hidden = bool(kind.axes) and not kind.classes
        return StreamSummary(
            kind=spec.kind,
            shape=shape.replace("D", str(spec.width)) if hidden else shape,
            form=spec.form,
            classes=spec.classes if kind.classes else None,
            blank=spec.blank if kind.classes else None,
            encoding=spec.encoding,
            rows=self._rows,
            bytes_per_row=each,
            of_dense_fp16=None if each is None else each / (2 * spec.size),
            entropy=self._entropy / n if kind.classes else None,
            blank_share=self._blank / n if kind.classes else None,
            top1_share=self._best / n if kind.classes else None,
            kept_mass=self._kept / n if kind.classes else None,
            rms=float(np.sqrt(self._squares / (n * spec.size))) if hidden else None,
            whole_share=None if self._whole is None else self._whole / n,
            lost=_loss_summary(self._losses),
            error_rate=self._errors / self._reference if self._reference else None,
            error_unit=error_unit(spec, self._store.spec),
            error_reference=self._reference,
        )


def _loss_summary(losses: Sequence[tuple[float, ...]]) -> LossSummary | None:
    """Return the loss over all rows.

    Args:
        losses: rows of each utterance and what SPEC E11 says of them, 3 or 10 numbers.
    """
    if not losses:
        return None
    rows, *numbers = np.array(losses, np.float64).T

    def pooled(first: int) -> tuple[float, float, float]:
        mean, p99, most = numbers[first : first + 3]
        return float(np.average(mean, weights=rows)), _pooled_p99(rows, mean, p99, most), float(most.max())

    if len(numbers) < 10:
        return LossSummary(*pooled(0))
    changed = float(np.average(numbers[9], weights=rows))
    return LossSummary(*pooled(0), {"2": pooled(3), "4": pooled(6)}, changed)


def _pooled_p99(rows: Any, mean: Any, p99: Any, most: Any) -> float:
    """Return a 99th percentile over the rows of all utterances, estimated from above.

    The share of an utterance's rows that exceed x is 0 from its maximum on, falls from 1 % at its own
    percentile, and is mean / x at most below that (Markov's inequality).
    """
    low, high = 0.0, float(p99.max())
    for _ in range(60):  # bisection to the last bit
        x = (low + high) / 2
        falling = 0.01 * (most - x) / np.maximum(most - p99, 1e-300)
        with np.errstate(divide="ignore", invalid="ignore"):
            markov = np.clip(mean / x, 0.01, 1.0)
        share = np.where(x >= most, 0.0, np.where(x >= p99, falling, markov))
        if np.average(share, weights=rows) <= 0.01:
            high = x
        else:
            low = x
    return high


def error_unit(spec: StreamSpec, store: StoreSpec) -> str:
    """Return the unit of a stream's errors: tokens if the store holds labels that fit it, else words."""
    has_labels = spec.stream_kind.labels or (
        spec.stream_kind.classes and any(s.kind == "rnnt" for s in store.streams)
    )
    return "token" if has_labels else "word"


def errors_of(store: Store, target: Target, spec: StreamSpec) -> tuple[int, int]:
    """Return (errors, length of the reference) of a greedy decode or a transcript, in tokens or words.

    Both are 0 where there is nothing to compare: no reference, or rows that are means of lattice nodes.
    """
    if _has_mean_rows(spec):
        return 0, 0
    if error_unit(spec, store.spec) == "token":
        labels = target.driven.get(spec.name, target.labels).tolist()
        return edit_distance(labels, decode(target, spec.name, spec.blank)), len(labels)
    if target.text is None:
        return 0, 0
    words = target.text.split()
    return edit_distance(words, _text(store, target, spec).split()), len(words)


def _text(store: Store, target: Target, spec: StreamSpec) -> str:
    """Return the text of a greedy decode without end tokens, or the transcript of a ``text`` stream."""
    if not spec.stream_kind.axes:
        return str(target.meta["hyp"][spec.name]["text"])
    head = store.spec.teacher.head(spec.name)
    end = None if head is None else head.end
    return store.tokens.text([i for i in decode(target, spec.name, spec.blank) if i != end])


def _has_mean_rows(spec: StreamSpec) -> bool:
    """Return whether rows are means of a lattice's nodes, which cannot be decoded."""
    return spec.kind == "rnnt" and Form.parse(spec.form).framewise


def compare_manifest(store: Store, manifest: Manifest) -> ManifestComparison:
    """Compare the ids of a manifest with those of a store, in both directions."""
    asked = {utterance.id for utterance in manifest}
    missing = sorted(i for i in asked if i not in store)
    extra = sorted(i for i in store if i not in asked)
    return ManifestComparison(
        asked=len(asked),
        missing=missing,
        extra=extra,
        other_names=_same_files(missing, extra),
        bad_lines=[problem.to_json() for problem in manifest.problems],
    )


def _same_files(missing: Sequence[str], extra: Sequence[str]) -> dict[str, str]:
    """Return {missing id: extra id} for ids that are named after one file, where the name is unique."""
    by_name: dict[str, list[str]] = {}
    for utt_id in extra:
        by_name.setdefault(PurePosixPath(utt_id).stem, []).append(utt_id)
    found = {utt_id: by_name.get(PurePosixPath(utt_id).stem, []) for utt_id in missing}
    return {utt_id: names[0] for utt_id, names in found.items() if len(names) == 1}


def inspect_utterance(store: Any, utt_id: str, *, top: int = 5) -> UtteranceSummary:
    """Summarise one utterance: lengths, decodes beside the reference, and the best classes of every row.

    Args:
        store: an opened store, or its folder or URL.
        utt_id: id of the utterance.
        top: number of classes that are listed for a row.

    Raises:
        UsageError: ``top`` is not a positive number.
        MissingUtterance: the store has no record of that id.
        CorruptError, FormatError: the record cannot be read.
    """
    if top < 1:
        raise UsageError(f"top={top}", do="Give the number of classes to list, 1 or more.")
    store = as_store(store)
    target = store[utt_id]
    return UtteranceSummary(
        id=utt_id,
        T=target.T,
        U=target.U,
        seconds=target.meta.get("seconds"),
        text=target.text,
        labels=_names(store, target.labels),
        blank=store.tokens.tokens[store.tokens.blank],
        streams={s.name: _utterance_stream(store, target, s, top) for s in store.spec.streams},
    )


def _utterance_stream(store: Store, target: Target, spec: StreamSpec, top: int) -> UtteranceStream:
    """Return one stream of an utterance."""
    kind, found = spec.stream_kind, dict[str, Any]()
    if kind.has_transcript:
        found["errors"], found["reference"] = errors_of(store, target, spec)
        found["text"] = "" if _has_mean_rows(spec) else _text(store, target, spec)
    if kind.classes:
        tokens = [] if _has_mean_rows(spec) else decode(target, spec.name, spec.blank)
        found["decoded"] = _names(store, tokens)
        found["frames"] = _best_rows(store, target, spec, top)
    elif kind.axes:
        found["rms"] = [float(x) for x in np.sqrt(np.square(target.vectors(spec.name)).mean(1))]
    if spec.name in target.driven:
        found["labels"] = _names(store, target.driven[spec.name])
    return UtteranceStream(
        shape=list(target.shapes.get(spec.name, ())),
        encoding=spec.encoding,
        transcript=target.meta.get("hyp", {}).get(spec.name),
        **found,
    )


def _best_rows(store: Store, target: Target, spec: StreamSpec, top: int) -> list[RowSummary]:
    """Return the best classes of every row; of a lattice, of the nodes along its greedy path."""
    at = target[spec.name].at(1.0)
    best, grid = best_classes(target[spec.name]), target.grid(spec.name)
    places: list[dict[str, int]]
    if grid is not None:
        path = forced_rnnt(on_grid(best, grid), spec.blank).nodes
        places, numbers = [{"t": t, "u": u} for t, u in path], [int(grid[t, u]) for t, u in path]
    else:
        axis, numbers = spec.stream_kind.axes[0].lower(), list(range(len(best)))
        places = [{axis: n} for n in numbers]
    rows = []
    for place, n in zip(places, numbers, strict=True):
        order = np.argsort(-at.logp[n], kind="stable")[:top]
        ids = order if at.ids is None else at.ids[n][order]
        probabilities = [float(p) for p in np.exp(at.logp[n][order])]
        listed = list(zip(_names(store, ids), probabilities, strict=True))
        rows.append(RowSummary(listed, float(np.exp(at.tail[n])), **place))
    return rows


def _names(store: Store, ids: Iterable[int]) -> list[str]:
    """Return the tokens of ids."""
    return [store.tokens.tokens[i] for i in ids]


ONCE = ("logitstore.json", "notes.json", "tokens.txt", "SPEC.md", "README.md")


def footprint(place: Place, spec: StoreSpec, entries: Iterable[Entry]) -> Footprint:
    """Return the bytes of a store's files.

    Args:
        place: place of the store.
        spec: description of the store.
        entries: the sealed entries of its shards.
    """
    constants = [file_name(s.name, str(c["name"])) for s in spec.streams for c in s.constants]
    shards = sum(entry.bytes + place.size(entry_name(entry.shard)) for entry in entries)
    derived = ["skipped.jsonl", *(f"index/{name}" for name in place.names("index"))]  # made from the entries
    return Footprint(rows=shards + _sizes(place, derived), once=_sizes(place, [*ONCE, *constants]))


def _sizes(place: Place, names: Iterable[str]) -> int:
    """Return the bytes of the files that exist among some."""
    return sum(place.size(name) for name in names if place.exists(name))
