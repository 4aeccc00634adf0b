"""From logits to one row: encode slice by slice where they lie, keep only the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..encodings.base import LOSS, HeadRows, KeepsAlways, LatticeSides
from ..errors import LengthError, NonFinite, UsageError, VocabError
from ..schema.lattice import Form, Nodes, check_nodes, stored
from ..schema.spec import StoreSpec, StreamSpec
from ..storage.base import EncodedRecord
from ..storage.constants import Constants
from .layout import LABELS, columns_of, encoding_of

if TYPE_CHECKING:
    import torch


class Growing:
    """Items appended into one block that doubles.

    A list of small arrays would pin the heap between the large blocks of every slice: resident memory then
    grows with T·U·V although nothing of that size is held.
    """

    def __init__(self) -> None:
        self._block: NDArray[Any] | None = None
        self._used = 0

    def append(self, items: NDArray[Any]) -> None:
        """Copy items behind those there are."""
        need = self._used + len(items)
        if self._block is None or need > len(self._block):
            block = np.empty((need if self._block is None else 2 * need, *items.shape[1:]), items.dtype)
            block[: self._used] = self.array() if self._block is not None else items[:0]
            self._block = block
        self._block[self._used : need] = items
        self._used = need

    def array(self) -> NDArray[Any]:
        """All of them."""
        assert self._block is not None
        return self._block[: self._used]


class RowEncoder:
    """Builds one row: takes logits slice by slice, encodes each where it lies, keeps only the result."""

    def __init__(self, spec: StoreSpec, constants: Constants | None = None) -> None:
        self.spec = spec
        given = constants or {}
        self._streams = {s.name: (s, encoding_of(s, given.get(s.name))) for s in spec.streams}
        self._columns = columns_of(spec)
        self._dtypes = {c.name: c.dtype for c in self._columns}
        self._pieces: dict[str, Growing] = {}
        self._rows: Counter[str] = Counter()
        self._nodes: dict[str, Nodes] = {}

    def take(
        self,
        stream: str,
        logits: torch.Tensor,
        where: str,
        labels: Sequence[int] | None = None,
        *,
        always: torch.Tensor | None = None,
        inputs: torch.Tensor | None = None,
    ) -> None:
        """Encode (…, V) logits of one stream, or (T, D) numbers of a ``hidden`` one.

        With a lattice's (t, U+1, V), or a decoder's (U, V), come its U labels; with (N, V) of some of a
        lattice's nodes the (N, 2) classes that each keeps always: the blank, and the label that comes next
        (the blank again where none does).

        ``inputs`` is what went into the head, (…, D), where the encoding stores that instead; of a lattice
        whose sides are stored, these come instead: (T, J) and, as ``inputs``, (U+1, J). Raises ``NonFinite``,
        ``VocabError`` or ``UsageError``.
        """
        spec, encoding = self._streams[stream]
        if isinstance(encoding, LatticeSides):
            return self._take_sides(spec, encoding, logits, inputs, where)
        assert encoding is not None, stream
        if logits.shape[-1] != spec.size:
            if not spec.stream_kind.classes:
                raise LengthError(
                    f"{stream} gives {logits.shape[-1]} numbers a row, the store {spec.size}", where=where
                )
            raise VocabError(
                f"{stream} gives {logits.shape[-1]} classes, the token table has {spec.classes}", where=where
            )
        flat = logits.reshape(-1, spec.size).float()
        if not len(flat):
            return
        require_finite(flat, stream, where)
        if isinstance(encoding, HeadRows):
            if inputs is None or not encoding.constants:
                raise _wants_inputs(spec, where)
            rows = inputs.reshape(len(flat), -1).float()
            require_finite(rows, f"what goes into the {stream} head", where)
            arrays = encoding.encode(rows, flat)
        elif isinstance(encoding, KeepsAlways):
            arrays = encoding.encode(flat, _always(spec, flat, labels) if always is None else always)
        else:
            arrays = encoding.encode(flat)
        self._keep(stream, arrays)
        self._rows[stream] += len(flat)

    def _take_sides(
        self,
        spec: StreamSpec,
        encoding: LatticeSides,
        enc: torch.Tensor,
        dec: torch.Tensor | None,
        where: str,
    ) -> None:
        if dec is None or not spec.constants:
            raise _wants_inputs(spec, where)
        for side in (enc, dec):
            require_finite(side, f"a side of the {spec.name} lattice", where)
        self._keep(spec.name, encoding.encode_sides(enc.float(), dec.float()))
        self._rows[spec.name] += len(enc) * len(dec)

    def _keep(self, stream: str, arrays: Mapping[str, torch.Tensor]) -> None:
        for name, value in arrays.items():
            full = f"{stream}.{name}"
            array = value.cpu().numpy().astype(self._dtypes.get(full, "float64"), copy=False)
            self._pieces.setdefault(full, Growing()).append(array)

    def choose(self, stream: str, nodes: Nodes) -> None:
        """Which nodes of the lattice the rows are."""
        self._nodes[stream] = nodes
        for name, array in stored(nodes).items():
            held = self._pieces[f"{stream}.{name}"] = Growing()
            held.append(array)

    def finish(
        self, utt_id: str, labels: Mapping[str, Sequence[int]], meta: Mapping[str, Any]
    ) -> EncodedRecord:
        """The row of all that was taken, with the labels of each stream; T is in ``meta``.

        Raises ``LengthError``.
        """
        arrays: dict[str, NDArray[Any]] = {}
        lost = {s.name: p for s in self.spec.streams if (p := self._pieces.get(f"{s.name}.{LOSS}"))}
        for column in self._columns:
            stream, _, name = column.name.partition(".")
            if name == LABELS:
                arrays[column.name] = np.asarray(labels.get(stream, ()), np.int32)
            else:
                pieces = self._pieces.get(column.name)
                if pieces is None:
                    raise LengthError(f"the {stream} stream is empty", where=utt_id)
                arrays[column.name] = pieces.array()
        counted, chosen = self._rows, self._nodes
        self.drop()
        for s in self.spec.streams:
            rows, u = counted[s.name], len(labels.get(s.name, ()))
            form = Form.parse(s.form) if s.kind == "rnnt" else None
            if form and form.whole:
                check_nodes(rows, meta["T"], u, utt_id)
            elif form and not form.framewise:
                if rows != len(chosen[s.name]):
                    raise LengthError(f"{rows} rows of {len(chosen[s.name])} lattice nodes", where=utt_id)
            elif not s.stream_kind.axes:
                if s.name not in meta.get("hyp", {}):
                    raise LengthError(f"no transcript for the {s.name} stream", where=utt_id)
            elif rows != (meta["T"] if form else s.stream_kind.rows(meta["T"], u)):
                counts = f"{u} labels" if not s.stream_kind.frames else f"T is {meta['T']}"
                unit = "rows" if not s.stream_kind.frames else "frames"
                raise LengthError(f"{s.name} has {rows} {unit}, {counts}", where=utt_id)
        if lost:
            meta = {**meta, LOSS: {stream: lost_of(p.array()) for stream, p in lost.items()}}
        return EncodedRecord(utt_id, dict(meta), arrays)

    def drop(self) -> None:
        """Forget what was taken of an utterance."""
        self._pieces, self._rows, self._nodes = {}, Counter(), {}


def label_count(labels: Mapping[str, Sequence[int]]) -> int:
    """U of a row (SPEC S3): the lattice's labels; without one, those of an attention decoder."""
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
            do="Look at this recording; --on-error skip leaves it out and lists it.",
        )


def _wants_inputs(spec: StreamSpec, where: str) -> UsageError:
    return UsageError(
        f"{spec.encoding} stores what goes into the {spec.name} head, and was given logits",
        where=where,
        do=f'Give it as well, inputs={{"{spec.name}": h}}; let logitstore dump drive the teacher; or store '
        "dense, topk or nucleus.",
    )


def _always(spec: StreamSpec, rows: torch.Tensor, labels: Sequence[int] | None) -> torch.Tensor:
    """(N, F) classes that every row keeps: the blank, and at each lattice node the label that comes next; of
    a decoder, which knows no blank, the label of the row."""
    if spec.kind == "seq2seq" and labels is not None and len(labels) == len(rows):
        return rows.new_tensor(list(labels)).long()[:, None]
    blank = rows.new_full((len(rows), 1), spec.blank).long()
    if spec.kind != "rnnt" or labels is None:
        return blank
    nodes = [*labels, spec.blank]  # nothing comes next at the last
    following = blank.new_tensor(nodes).repeat(len(rows) // len(nodes))
    return blank.expand(-1, 2).clone().index_copy_(1, blank.new_tensor([1]), following[:, None])


def lost_of(nats: NDArray[Any]) -> list[float]:
    """Mean, 99th percentile and maximum of what the rows of one utterance lose, to three digits."""
    values = (nats.mean(), np.quantile(nats, 0.99, method="higher"), nats.max())
    return [float(f"{v:.2e}") for v in values]
