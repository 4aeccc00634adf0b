"""Encoding of one utterance: pieces of logits in, the record's named arrays out.

Each piece is encoded on the device where its logits are; only the encoded arrays are kept, so memory does not
grow with T·U·V. This module loads no torch: a reader of arrays imports it too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..encodings import FOR_LOGITS, LOSS, LatticeSides, encode_logits, stores_sides, takes_head_inputs
from ..errors import LengthError, NonFinite, UsageError, VocabError
from ..schema.lattice import Form, Nodes, check_nodes, stored
from ..schema.spec import StoreSpec, StreamSpec
from ..storage.base import EncodedRecord
from ..storage.constants import Constants
from .layout import LABELS, columns_of, encoding_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class StreamPiece:
    """Consecutive rows of one stream, before encoding.

    Attributes:
        stream: name of the stream.
        rows: (…, V) logits, e.g. (t, V) of frames or (t, U+1, V) of a lattice; (t, D) numbers of a layer. Of a
            lattice that is stored by its two sides, the encoder's side (T, J).
        labels: (U,) label ids of a whole lattice or of a decoder.
        always: (N, F) classes that each row keeps whatever their probability; None: from ``labels``.
        inputs: (…, D) input of the head, for an encoding that stores it. Of a lattice that is stored by its
            two sides, the decoder's side (U+1, J).
    """

    stream: str
    rows: torch.Tensor
    labels: Sequence[int] | None = None
    always: torch.Tensor | None = None
    inputs: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class StreamNodes:
    """The lattice nodes that the rows of a stream belong to.

    Attributes:
        stream: name of the stream.
        nodes: the nodes, in row order.
    """

    stream: str
    nodes: Nodes


class GrowingArray:
    """An array that items are appended to; its memory block doubles when it is full.

    A list of small arrays would pin the heap between the large blocks of every piece: resident memory would
    then grow with T·U·V although nothing of that size is held.
    """

    def __init__(self) -> None:
        self._block: NDArray[Any] | None = None
        self._used = 0

    def append(self, items: NDArray[Any]) -> None:
        """Copy items behind the present ones."""
        need = self._used + len(items)
        if self._block is None or need > len(self._block):
            block = np.empty((need if self._block is None else 2 * need, *items.shape[1:]), items.dtype)
            if self._block is not None:
                block[: self._used] = self._block[: self._used]
            self._block = block
        self._block[self._used : need] = items
        self._used = need

    def array(self) -> NDArray[Any]:
        """Return all items, without a copy; at least one ``append`` must have come before."""
        assert self._block is not None
        return self._block[: self._used]


class RecordEncoder:
    """Encoder of one utterance at a time: ``take`` its pieces, then ``finish`` the record.

    Args:
        spec: the store's description.
        constants: arrays that the store keeps once, by stream, e.g. a head's weight.
    """

    def __init__(self, spec: StoreSpec, constants: Constants | None = None) -> None:
        self.spec = spec
        given = constants or {}
        self._streams = {s.name: (s, encoding_of(s, given.get(s.name))) for s in spec.streams}
        self._columns = columns_of(spec)
        self._dtypes = {c.name: c.dtype for c in self._columns}
        self._arrays: dict[str, GrowingArray] = {}
        self._rows: Counter[str] = Counter()
        self._nodes: dict[str, Nodes] = {}

    def take(self, piece: StreamPiece | StreamNodes, utt_id: str) -> None:
        """Encode the next piece of the utterance.

        Raises:
            NonFinite: a logit is NaN or infinite.
            VocabError: the last axis is not V.
            LengthError: the last axis is not D of a layer.
            UsageError: the encoding stores the head's input, which was not given.
        """
        if isinstance(piece, StreamNodes):
            self._nodes[piece.stream] = piece.nodes
            for name, array in stored(piece.nodes).items():
                held = self._arrays[f"{piece.stream}.{name}"] = GrowingArray()
                held.append(array)
            return
        spec, encoding = self._streams[piece.stream]
        if stores_sides(encoding):
            return self._take_sides(spec, encoding, piece, utt_id)
        assert encoding is not None, piece.stream
        _check_width(spec, piece.rows, utt_id)
        flat = piece.rows.reshape(-1, spec.size).float()
        if not len(flat):
            return
        require_finite(flat, spec.name, utt_id)
        if takes_head_inputs(encoding):
            if piece.inputs is None or not encoding.constants:
                raise _wants_inputs(spec, utt_id)
            inputs = piece.inputs.reshape(len(flat), -1).float()
            require_finite(inputs, f"the input of the {spec.name} head", utt_id)
            arrays = encoding.encode(inputs, flat)
        else:
            arrays = encode_logits(encoding, flat, lambda: _always(spec, flat, piece))
        self._keep(spec.name, arrays)
        self._rows[spec.name] += len(flat)

    def finish(
        self, utt_id: str, labels: Mapping[str, Sequence[int]], meta: Mapping[str, Any]
    ) -> EncodedRecord:
        """Return the record of all pieces taken, and begin the next utterance.

        Args:
            utt_id: id of the utterance.
            labels: (U,) label ids by stream.
            meta: the record's metadata (SPEC S3); ``T`` is the number of valid teacher frames.

        Raises ``LengthError`` where rows, T and U disagree or a stream has no row.
        """
        arrays: dict[str, NDArray[Any]] = {}
        lost = {s.name: p for s in self.spec.streams if (p := self._arrays.get(f"{s.name}.{LOSS}"))}
        for column in self._columns:
            stream, _, name = column.name.partition(".")
            if name == LABELS:
                arrays[column.name] = np.asarray(labels.get(stream, ()), column.dtype)
                continue
            held = self._arrays.get(column.name)
            if held is None:
                raise LengthError(f"the {stream} stream is empty", where=utt_id)
            arrays[column.name] = held.array()
        counted, nodes = self._rows, self._nodes
        self.drop()
        for spec in self.spec.streams:
            u = len(labels.get(spec.name, ()))
            _check_rows(spec, counted[spec.name], nodes.get(spec.name), u, meta, utt_id)
        if lost:
            meta = {**meta, LOSS: {stream: summary_of_loss(p.array()) for stream, p in lost.items()}}
        return EncodedRecord(utt_id, dict(meta), arrays)

    def drop(self) -> None:
        """Forget the pieces of the present utterance."""
        self._arrays, self._rows, self._nodes = {}, Counter(), {}

    def _take_sides(self, spec: StreamSpec, encoding: LatticeSides, piece: StreamPiece, utt_id: str) -> None:
        enc, dec = piece.rows, piece.inputs
        if dec is None or not spec.constants:
            raise _wants_inputs(spec, utt_id)
        for side in (enc, dec):
            require_finite(side, f"a side of the {spec.name} lattice", utt_id)
        self._keep(spec.name, encoding.encode_sides(enc.float(), dec.float()))
        self._rows[spec.name] += len(enc) * len(dec)

    def _keep(self, stream: str, arrays: Mapping[str, torch.Tensor]) -> None:
        for name, value in arrays.items():
            full = f"{stream}.{name}"
            array = value.cpu().numpy().astype(self._dtypes.get(full, "float64"), copy=False)
            self._arrays.setdefault(full, GrowingArray()).append(array)


def label_count(labels: Mapping[str, Sequence[int]]) -> int:
    """Return U of a record (SPEC S3): the lattice's labels; without a lattice, an attention decoder's."""
    return len(labels.get("rnnt", next(iter(labels.values()), ())))


def require_finite(rows: torch.Tensor, stream: str, where: str) -> None:
    """Raise ``NonFinite`` naming the first logit of (N, V) rows, N > 0, that is NaN or infinite."""
    low, high = rows.aminmax()
    if not bool(low.isfinite() & high.isfinite()):
        row, column = (~rows.isfinite()).nonzero()[0].tolist()
        raise NonFinite(
            f"{stream} holds {rows[row, column].item()} at row {row}, class {column}",
            where=where,
            why="A student would learn nothing but NaN from it.",
            do='Look at this recording; on_error="skip" (--on-error skip) leaves it out and lists it.',
        )


def summary_of_loss(nats: NDArray[Any]) -> list[float]:
    """Return mean, 99th percentile and maximum of the rows' losses in nats, to three digits.

    Args:
        nats: (N,) at one temperature; or (N, 4) at temperatures 1, 2 and 4 and whether the best class changes:
            then the same at each of these, and the share of rows whose best class changes.
    """
    columns = nats.reshape(len(nats), -1).T
    found: list[float] = []
    for number, column in enumerate(columns[:3]):
        values = (column.mean(), np.quantile(column, 0.99, method="higher"), column.max())
        found += [float(f"{v:.1e}" if number else f"{v:.2e}") for v in values]
    return found + [float(f"{column.mean():.1e}") for column in columns[3:]]


def _check_width(spec: StreamSpec, rows: torch.Tensor, utt_id: str) -> None:
    width = rows.shape[-1]
    if width == spec.size:
        return
    if not spec.stream_kind.classes:
        raise LengthError(f"{spec.name} gives {width} numbers a row, the store {spec.size}", where=utt_id)
    raise VocabError(
        f"{spec.name} gives {width} classes, the token table has {spec.classes}",
        where=utt_id,
        why="A logit's position is its token.",
        do="Give the token table that the teacher was trained with.",
    )


def _check_rows(
    spec: StreamSpec, rows: int, nodes: Nodes | None, u: int, meta: Mapping[str, Any], utt_id: str
) -> None:
    """Raise ``LengthError`` unless a stream has as many rows as T, U and its lattice form say."""
    form = Form.parse(spec.form) if spec.kind == "rnnt" else None
    if form is not None and form.whole:
        check_nodes(rows, meta["T"], u, utt_id)
    elif form is not None and not form.framewise:
        count = 0 if nodes is None else len(nodes)
        if rows != count:
            raise LengthError(f"{spec.name} has {rows} rows for {count} lattice nodes", where=utt_id)
    elif not spec.stream_kind.axes:
        if spec.name not in meta.get("hyp", {}):
            raise LengthError(f"no transcript for the {spec.name} stream", where=utt_id)
    else:
        wanted = meta["T"] if form is not None else spec.stream_kind.rows(meta["T"], u)
        if rows != wanted:
            unit, count_of = (
                ("frames", f"T is {meta['T']}") if spec.stream_kind.frames else ("rows", f"{u} labels")
            )
            raise LengthError(f"{spec.name} has {rows} {unit}, {count_of}", where=utt_id)


def _wants_inputs(spec: StreamSpec, where: str) -> UsageError:
    return UsageError(
        f"{spec.encoding} stores the input of the {spec.name} head, but only logits were given",
        where=where,
        do=f'Give the input too, inputs={{"{spec.name}": h}}; let a dump drive the teacher; or choose an '
        f"encoding of logits: {FOR_LOGITS}.",
    )


def _always(spec: StreamSpec, rows: torch.Tensor, piece: StreamPiece) -> torch.Tensor:
    """Return (N, F) classes that every row keeps.

    These are the blank, and at a lattice node the label that comes next; of a decoder, which has no blank, the
    label of the row.
    """
    if piece.always is not None:
        return piece.always
    labels = piece.labels
    if spec.kind == "seq2seq" and labels is not None and len(labels) == len(rows):
        return rows.new_tensor(list(labels)).long()[:, None]
    blank = rows.new_full((len(rows), 1), spec.blank).long()
    if spec.kind != "rnnt" or labels is None:
        return blank
    positions = blank.new_tensor([*labels, spec.blank])  # no label comes next at the last position
    following = positions.repeat(len(rows) // len(positions))
    both = blank.new_empty((len(rows), 2))
    both[:, 0], both[:, 1] = blank[:, 0], following
    return both
