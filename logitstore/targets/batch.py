"""Targets of several utterances as padded tensors with masks, for a student's training step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ..encodings.rows import NOTHING, Tempered, check_temperature
from ..errors import LengthError, UsageError
from ..registry import suggest
from ..schema.clock import FrameClock
from .clip import Clipped
from .clip_resample import Ratio, check_frames, clip_vectors, frames_of, resample_clip, stretches
from .frames import Method, check_common_ratio
from .keywords import checked_keywords
from .resample import (
    Resampled,
    ResampledHead,
    follows_frames,
    resample_head,
    resample_stream,
    resample_vectors,
)
from .stream_batch import FactoredBatch, StreamBatch, VectorBatch, map_tensors
from .target import Target
from .vocab_map import VocabMap

__all__ = ["FactoredBatch", "StreamBatch", "TargetBatch", "VectorBatch", "collate_targets"]

Source = Target | Clipped  # one example of a batch
MAX_LOST = 0.01  # share of a batch's tokens that keep-tokens may lose without a warning


@dataclass(frozen=True)
class TargetBatch:
    """Targets of B utterances or clips.

    Attributes:
        utt_ids: B utterance ids, or names of clips.
        temperature: temperature of the probabilities.
        lengths: (B,) int64 frames, after resampling.
        mask: (B, T) bool, True on valid frames.
        labels: (B, U) int64 token ids, 0 in padding; joined utterances have theirs one after the other. None,
            as the next two, where an utterance with labels is cropped: the labels within the crop are not
            known.
        label_lengths: (B,) int64.
        label_mask: (B, U) bool, True on labels.
        streams: by stream name a :class:`StreamBatch` or :class:`FactoredBatch` of rows of classes, or a
            :class:`VectorBatch` of a ``hidden`` stream.
        driven: (B, U) int64 token ids, 0 in padding, by stream that has labels of its own: an attention
            decoder's end with the end token. Their mask is that of the stream's rows.
    """

    utt_ids: tuple[str, ...]
    temperature: float
    lengths: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor | None
    label_lengths: torch.Tensor | None
    label_mask: torch.Tensor | None
    streams: dict[str, Any]
    driven: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.utt_ids)

    def __getitem__(self, stream: str) -> Any:
        return self.streams[stream]

    def _repr_html_(self) -> str:
        from .notebook import batch_html

        return batch_html(self)

    def to(self, device: Any, non_blocking: bool = False) -> Self:
        """Return the batch with every tensor on a device."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory; ``DataLoader(pin_memory=True)`` calls this method."""
        return self.map(lambda t: t.pin_memory())

    def map(self, f: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Return the batch with ``f`` applied to every tensor."""
        return replace(
            self,
            **map_tensors(self, f),
            streams={name: stream.map(f) for name, stream in self.streams.items()},
            driven={name: f(ids) for name, ids in self.driven.items()},
        )


@checked_keywords()
def collate_targets(
    targets: Sequence[Target | Clipped],
    *,
    frames: Sequence[int] | torch.Tensor | None = None,
    method: str | Mapping[str, str] | None = None,
    temperature: float = 1.0,
    ratio: tuple[int, int] | FrameClock | None = None,
    tolerance: int = 2,
    stretch: bool = False,
    streams: Sequence[str] | None = None,
    vocab: VocabMap | None = None,
) -> TargetBatch:
    """Pad targets into a batch; each is resampled by its own valid length.

    Args:
        targets: B targets, or clips with theirs (``Store.batch`` reads both).
        frames: (B,) valid frames of the student; None keeps the teacher's.
        method: resampling method of all streams, or by stream name: ``keep-tokens``, ``linear``,
            ``nearest+shift=2``, ... (:data:`logitstore.targets.frames.METHODS`). None, or ``+shift=n`` alone, is
            each stream's default: ``keep-tokens`` for ``ctc``, ``compose`` for ``rnnt``, ``linear`` for the
            others.
        temperature: temperature of the probabilities, 1 or more.
        ratio: student frames per teacher frame as (p, q), or the student's own ``FrameClock``. Frames that do
            not fit it are refused, and it gives the exact times of a clip's frames.
        tolerance: student frames by which ``frames`` may differ from the ratio, or from one common ratio.
        stretch: True to take ``frames`` whose ratio to the teacher's differs between utterances, or is beyond
            8:1 or 1:8; both are signs of padded lengths or of lengths in other units.
        streams: names of the streams to put into the batch; None for all.
        vocab: map to a student's token table, for targets of a store that was opened without it. Rows are
            mapped after resampling, at the temperature.

    Raises:
        TokenError: a label that the student's table lacks.
        LengthError: frames that do not fit the utterance, or a count of frames that is not B.
        MissingUtterance: a stream that a target does not hold.
        UsageError: an empty batch, an unknown method or argument, a temperature below 1, a method that cannot
            resample a stream, or a stream that cannot follow a clip.

    Warns:
        UserWarning: ``keep-tokens`` has lost more than 1 % of the batch's tokens, because they do not fit into
            the student's frames.
    """
    if not targets:
        raise UsageError("a batch of no utterances", do="Give at least one target.")
    _check_settings(temperature, ratio, streams)
    if vocab is not None:
        targets = [_mapped(source, vocab) for source in targets]
    sources = [_plain(source) for source in targets]
    names = list(_example(sources[0]).streams) if streams is None else list(streams)
    methods = _methods(method, names)
    lengths = _lengths(sources, frames, methods)
    if ratio is not None:
        for source, length in zip(sources, lengths, strict=True):
            check_frames(source, length, ratio, tolerance)
    elif frames is not None and not stretch:
        check_common_ratio(
            [source.id for source in sources], [frames_of(s) for s in sources], lengths, tolerance
        )
    request = _Request(methods, float(temperature), ratio, at_teacher_rate=frames is None)
    labels, label_lengths, label_mask = _pad_labels([_labels(source) for source in sources])
    return TargetBatch(
        utt_ids=tuple(source.id for source in sources),
        temperature=request.temperature,
        lengths=torch.tensor(lengths),
        mask=_mask(lengths, max(lengths)),
        labels=labels,
        label_lengths=label_lengths,
        label_mask=label_mask,
        streams={name: _collate_stream(name, sources, lengths, request) for name in names},
        driven=_driven_labels(sources, names),
    )


def _check_settings(temperature: object, ratio: object, streams: object) -> None:
    """Raise ``UsageError`` for settings of a wrong type, which would fail later with another message."""
    if isinstance(temperature, bool | str):
        raise UsageError(f"temperature={temperature!r} is not a number", do="Give a number such as 2.0.")
    pair = isinstance(ratio, Sequence) and len(ratio) == 2 and all(isinstance(x, Integral) for x in ratio)
    if not (ratio is None or pair or isinstance(ratio, FrameClock)):
        raise UsageError(
            f"ratio={ratio!r} is no ratio of whole numbers",
            do="Give student frames per teacher frame as (p, q): (1, 2) for half as many; or a FrameClock.",
        )
    if isinstance(streams, str):
        raise UsageError(f"streams={streams!r} is one name", do=f"Give a list of names: [{streams!r}].")


@dataclass(frozen=True)
class _Request:
    """Settings of a batch that every stream follows; see :func:`collate_targets`."""

    methods: Mapping[str, Method]
    temperature: float
    ratio: Ratio | None
    at_teacher_rate: bool


# --- one utterance or clip


def _plain(source: Source) -> Source:
    """Return the target of a clip that is one whole utterance at its own speed; else the source itself."""
    return source if isinstance(source, Target) else source.plain or source


def _example(source: Source) -> Target:
    """Return a target of the source: its own, or a clip's first."""
    return source if isinstance(source, Target) else source.first


def _mapped(source: Source, vocab: VocabMap) -> Source:
    """Return the source over a student's token table."""
    if isinstance(source, Target):
        return vocab.target(source)
    targets = {utt_id: vocab.target(target) for utt_id, target in source.targets.items()}
    return replace(source, targets=targets)


def _methods(method: str | Mapping[str, str] | None, names: Sequence[str]) -> dict[str, Method]:
    """Return the resampling method of every stream; raises ``UsageError``."""
    if isinstance(method, Mapping):
        if unknown := [name for name in method if name not in names]:
            raise UsageError(f"method names no stream {unknown[0]!r}", do=suggest(unknown[0], names))
        return {name: Method.of(name, method.get(name)) for name in names}
    return {name: Method.of(name, method) for name in names}


def _lengths(
    sources: Sequence[Source],
    frames: Sequence[int] | torch.Tensor | None,
    methods: Mapping[str, Method],
) -> list[int]:
    """Return B frame counts: the student's, or those that the teacher's frames make."""
    if frames is None:
        stacks = {max(m.size, 1) for name, m in methods.items() if follows_frames(name)}
        if len(stacks) > 1:
            raise UsageError(
                f"stacks of {', '.join(map(str, sorted(stacks)))} frames in one batch",
                why="The streams of a batch have the same student frames.",
                do="Give frames=, or stacks of one size.",
            )
        stack = max(stacks, default=1)
        return [-(-frames_of(source) // stack) for source in sources]
    lengths = [int(count) for count in frames]
    if len(lengths) != len(sources):
        raise LengthError(
            f"{len(lengths)} frame counts for {len(sources)} utterances",
            do="Give one valid length per utterance: frames=lengths.",
        )
    return lengths


def _labels(source: Source) -> NDArray[np.int64] | None:
    """Return the label ids of an utterance or a clip; None where some may be cropped away."""
    if isinstance(source, Target):
        return source.labels.astype(np.int64)
    utterances = source.utterances
    if any(source.targets[piece.id].U and not source.is_whole(piece) for piece in utterances):
        return None
    return np.concatenate([source.targets[piece.id].labels.astype(np.int64) for piece in utterances])


def _driven(source: Source, stream: str) -> NDArray[Any] | None:
    """Return the label ids of a stream; None where it has none, or of a clip that is cropped or joined."""
    if isinstance(source, Target):
        return source.driven.get(stream)
    first, *others = source.utterances
    return None if others or not source.is_whole(first) else source.targets[first.id].driven.get(stream)


# --- one stream of all utterances


def _collate_stream(
    name: str, sources: Sequence[Source], lengths: Sequence[int], request: _Request
) -> StreamBatch | FactoredBatch | VectorBatch:
    """Return one stream of B utterances at the student's frames, padded.

    Rows stay as inputs of their linear head where all of them have the same one.
    """
    rows = _example(sources[0]).streams.get(name)
    if rows is not None and rows.numbers:
        return _pad_vectors(
            [_resample_vectors(name, s, n, request) for s, n in zip(sources, lengths, strict=True)]
        )
    heads = _shared_heads(name, sources, lengths, request.methods[name])
    if heads is not None:
        check_temperature(request.temperature)
        _warn_of_lost_tokens(heads)
        counts = lengths if follows_frames(name) else [len(head.inputs.h) for head in heads]
        return _pad_heads(heads, counts, request.temperature)
    sampled = [_resample_rows(name, s, n, request) for s, n in zip(sources, lengths, strict=True)]
    _warn_of_lost_tokens(sampled)
    return _pad(sampled)


def _warn_of_lost_tokens(sampled: Sequence[Resampled] | Sequence[ResampledHead]) -> None:
    """Warn where the chosen frames have lost too many of the teacher's tokens.

    Text and place are always the same, so that Python shows the warning once per process.
    """
    tokens, lost = sum(one.tokens for one in sampled), sum(one.lost for one in sampled)
    if lost > MAX_LOST * tokens:
        warnings.warn(
            f"more than {MAX_LOST:.0%} of the tokens of a batch's CTC targets do not fit into the student's "
            "frames. The student learns to leave them out. Give it more frames, or learn from the rnnt stream; "
            "logitstore inspect STORE --rate P:Q shows how many tokens are lost at a rate",
            UserWarning,
            stacklevel=2,
        )


def _resample_rows(name: str, source: Source, length: int, request: _Request) -> Resampled:
    try:
        if isinstance(source, Target):
            method = request.methods[name]
            return resample_stream(source, name, length, method, request.temperature)
        method, parts = request.methods[name], _stretches(name, source, length, request)
        return resample_clip(source, name, parts, method, request.temperature)
    except LengthError as e:
        raise LengthError(e.what, where=e.where or source.id, why=e.why, do=e.do) from None


def _resample_vectors(
    name: str, source: Source, length: int, request: _Request
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    try:
        if isinstance(source, Target):
            return resample_vectors(source, name, length, request.methods[name])
        parts = _stretches(name, source, length, request)
        return clip_vectors(source, name, parts, request.methods[name])
    except LengthError as e:
        raise LengthError(e.what, where=e.where or source.id, why=e.why, do=e.do) from None


def _stretches(name: str, clip: Clipped, length: int, request: _Request) -> list[Any]:
    return list(
        stretches(clip, length, request.methods[name], request.ratio, at_teacher_rate=request.at_teacher_rate)
    )


def _shared_heads(
    name: str, sources: Sequence[Source], lengths: Sequence[int], how: Method
) -> list[ResampledHead] | None:
    """Return the rows of all utterances before their linear head; None unless all have the same one."""
    heads: list[ResampledHead] = []
    for source, length in zip(sources, lengths, strict=True):
        head = resample_head(source, name, length, how) if isinstance(source, Target) else None
        if head is None or (heads and not head.inputs.same_head(heads[0].inputs)):
            return None
        heads.append(head)
    return heads


# --- padding


def _mask(lengths: Sequence[int], width: int) -> torch.Tensor:
    """Return (B, width) bool, True below each length."""
    return torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]


def _pad_ids(ids: Sequence[NDArray[Any]]) -> torch.Tensor:
    """Return (B, U) int64 ids, 0 in padding."""
    out = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.int64)
    for row, own in zip(out, ids, strict=True):
        row[: len(own)] = torch.from_numpy(own.astype(np.int64))
    return out


def _pad_labels(
    labels: Sequence[NDArray[np.int64] | None],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | tuple[None, None, None]:
    """Return (B, U) label ids, (B,) lengths and (B, U) mask; None three times where some are not known."""
    known = [ids for ids in labels if ids is not None]
    if len(known) < len(labels):
        return None, None, None
    counts = [len(ids) for ids in known]
    return _pad_ids(known), torch.tensor(counts), _mask(counts, max(counts))


def _driven_labels(sources: Sequence[Source], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return (B, U) label ids of every stream with known labels for all utterances."""
    padded: dict[str, torch.Tensor] = {}
    for name in names:
        known = [ids for ids in (_driven(source, name) for source in sources) if ids is not None]
        if len(known) == len(sources):
            padded[name] = _pad_ids(known)
    return padded


def _pad_vectors(sampled: Sequence[tuple[NDArray[np.float32], NDArray[np.bool_]]]) -> VectorBatch:
    """Return (S, D) or (S, n, D) numbers of each utterance as (B, T, D) or (B, T, n, D)."""
    first, _ = sampled[0]
    shape = (len(sampled), max(len(rows) for rows, _ in sampled), *first.shape[1:])
    h, mask = np.zeros(shape, np.float32), np.zeros(shape[:-1], bool)
    for b, (rows, valid) in enumerate(sampled):
        h[b, : len(rows)] = np.where(valid[..., None], rows, np.float32(0))
        mask[b, : len(rows)] = valid
    return VectorBatch(torch.from_numpy(h), torch.from_numpy(mask))


def _pad(sampled: Sequence[Resampled]) -> StreamBatch:
    """Return the (N, K) rows of each utterance as (B, *axes, K), with the axes of the largest utterance."""
    rows = [one.rows for one in sampled]
    if any(r.ids is not None for r in rows):
        rows = [_with_ids(r) for r in rows]
    k = max(r.logp.shape[1] for r in rows)
    grid = (len(rows), *(max(sizes) for sizes in zip(*(one.axes for one in sampled), strict=True)))
    logp = np.full((*grid, k), NOTHING, np.float32)
    tail = np.full(grid, NOTHING, np.float32)
    mask = np.zeros(grid, bool)
    ids: NDArray[np.int64] | None = None if rows[0].ids is None else np.zeros((*grid, k), np.int64)
    of_nodes = {
        name: np.zeros(grid, dtype)
        for name, dtype in (("position", np.int64), ("frame", np.int64), ("occupancy", np.float32))
        if getattr(sampled[0], name) is not None
    }
    for b, (row, one) in enumerate(zip(rows, sampled, strict=True)):
        at: Any = (b, *(slice(size) for size in one.axes))
        valid, width = one.valid.reshape(one.axes), row.logp.shape[1]
        logp[(*at, slice(width))] = np.where(
            valid[..., None], row.logp.reshape(*one.axes, width), np.float32(NOTHING)
        )
        tail[at] = np.where(valid, row.tail.reshape(one.axes), np.float32(NOTHING))
        mask[at] = valid
        if ids is not None and row.ids is not None:
            ids[at] = row.ids[:, :1].reshape(
                *one.axes, 1
            )  # entries that a row does not have repeat its first
            ids[(*at, slice(width))] = row.ids.reshape(*one.axes, width)
        for name, array in of_nodes.items():
            array[at] = getattr(one, name).reshape(one.axes)
    tensors = {name: torch.from_numpy(array) for name, array in of_nodes.items()}
    return StreamBatch(
        classes=rows[0].classes,
        logp=torch.from_numpy(logp),
        ids=None if ids is None else torch.from_numpy(ids),
        tail=torch.from_numpy(tail),
        mask=torch.from_numpy(mask),
        temperature=float(rows[0].temperature),
        positions=tensors.get("position"),
        frames=tensors.get("frame"),
        occupancy=tensors.get("occupancy"),
    )


def _with_ids(row: Tempered) -> Tempered:
    """Return rows with the id of every entry, as pruned rows have them."""
    if row.ids is not None:
        return row
    ids = np.broadcast_to(np.arange(row.classes, dtype=np.int32), row.logp.shape)
    return replace(row, ids=ids)


def _pad_heads(heads: Sequence[ResampledHead], lengths: Sequence[int], temperature: float) -> FactoredBatch:
    """Return the (S, D) inputs, and the label sides of lattices, of all utterances padded; and the head."""
    first = heads[0].inputs
    order = None if first.map is None else first.map.order
    if order is None:
        weight, bias = np.array(first.weight), np.array(first.bias)
    else:  # the same tokens in another order: sorting the weight maps them
        weight, bias = first.weight[order], first.bias[order]
    to, student = None, 0
    if first.map is not None:
        student = first.map.classes
        if order is None:
            to = torch.from_numpy(first.map.to.copy())
    mask, dec = _mask(lengths, max(lengths)), None
    sides = [head.inputs.dec for head in heads if head.inputs.dec is not None]
    if sides:
        dec = _pad_rows(sides)
        mask = mask[:, :, None] & _mask([len(side) for side in sides], dec.shape[1])[:, None]
    later, share = None, None
    if any(head.later is not None for head in heads):
        later = _pad_rows([head.inputs.h if head.later is None else head.later for head in heads])
        share = torch.zeros(later.shape[:2])
        for own, head in zip(share, heads, strict=True):
            if head.share is not None:
                own[: len(head.share)] = torch.from_numpy(head.share)
    return FactoredBatch(
        h=_pad_rows([head.inputs.h for head in heads]),
        weight=torch.from_numpy(weight),
        bias=torch.from_numpy(bias),
        mask=mask,
        temperature=float(temperature),
        dec=dec,
        activation=first.activation,
        to=to,
        student=student,
        later=later,
        share=share,
    )


def _pad_rows(rows: Sequence[NDArray[Any]]) -> torch.Tensor:
    """Return (n, D) numbers of each utterance as (B, n, D) float32, 0 in padding."""
    out = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[1]), np.float32)
    for b, row in enumerate(rows):
        out[b, : len(row)] = row
    return torch.from_numpy(out)
