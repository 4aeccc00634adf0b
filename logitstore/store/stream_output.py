"""The one road from a teacher's output to a record: ``pieces`` of a stream, which ``RecordEncoder`` takes.

A dump, a loop's ``StoreWriter.add``, capture, plan's trials and the comparison with a teacher all cut a stream
into pieces here, so that the same output gives the same bytes wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..schema.lattice import Form, Nodes, full
from ..schema.spec import StreamSpec
from .lattice_nodes import NodePicker, picked_by_caller
from .record_encoder import RecordEncoder, StreamNodes, StreamPiece

FRAMES = 1 << 13  # rows of one piece: about five minutes of 40 ms frames


@dataclass(frozen=True, eq=False)
class StreamOutput:
    """A teacher's output for one stream of one utterance, before encoding; exactly one form of it is given.

    Attributes:
        frames: T, valid teacher frames.
        labels: (U,) label ids that drove a lattice or a decoder.
        rows: (T, V) logits of frames, (U, V) of a decoder, or (T, D) numbers of a layer.
        inputs: (T, D) or (U, D) input of the head, for an encoding that stores it.
        slices: function that gives a lattice's (t, U+1, V) slices along T; called twice for a form that
            follows the teacher's own alignment.
        sides: (T, J) and (U+1, J), the two sides of an additive joiner, for an encoding that stores them.
        chosen: (T, W, V) logits of nodes that the caller chose, and these nodes.
    """

    frames: int
    labels: Sequence[int] = ()
    rows: torch.Tensor | None = None
    inputs: torch.Tensor | None = None
    slices: Callable[[], Iterable[torch.Tensor]] | None = None
    sides: tuple[torch.Tensor, torch.Tensor] | None = None
    chosen: tuple[torch.Tensor, Nodes] | None = None


def pieces(stream: StreamSpec, output: StreamOutput, utt_id: str) -> Iterator[StreamPiece | StreamNodes]:
    """Cut one stream's output into the pieces that a record is encoded from; raises ``NonFinite``."""
    name, labels = stream.name, list(output.labels)
    if output.sides is not None:
        enc, dec = output.sides
        yield StreamPiece(name, enc, inputs=dec)
    elif output.chosen is not None:
        logits, nodes = output.chosen
        rows, always = picked_by_caller(stream, logits, nodes, labels)
        yield StreamPiece(name, rows, labels, always)
        yield StreamNodes(name, nodes)
    elif output.slices is not None:
        picker = NodePicker(stream, labels, utt_id)
        for rows, always in picker.rows(output.slices, output.frames):
            yield StreamPiece(name, rows, labels, always)
        if picker.nodes is not None:
            yield StreamNodes(name, picker.nodes)
    else:
        assert output.rows is not None, name
        every = (
            slice(None) if stream.kind == "seq2seq" else None
        )  # a label's row keeps its label: all at once
        for first in range(0, 1 if every else len(output.rows), FRAMES):
            part = every or slice(first, first + FRAMES)
            inputs = None if output.inputs is None else output.inputs[part]
            yield StreamPiece(name, output.rows[part], labels, inputs=inputs)


def encode(encoder: RecordEncoder, stream: StreamSpec, output: StreamOutput, utt_id: str) -> Nodes | None:
    """Encode one stream of an utterance; return the lattice nodes it keeps, None for all or none."""
    nodes = None
    for piece in pieces(stream, output, utt_id):
        encoder.take(piece, utt_id)
        if isinstance(piece, StreamNodes):
            nodes = piece.nodes
    return nodes


def own_rows(
    stream: StreamSpec,
    output: StreamOutput,
    utt_id: str,
    *,
    nodes: Nodes | None = None,
    index: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return the teacher's own logits, or a layer's numbers, of a stream's stored rows.

    Args:
        stream: the stream's description.
        output: the teacher's output.
        utt_id: id of the utterance, for messages.
        nodes: lattice nodes of the stored rows; None: all of them.
        index: (N,) rows to return, in rising order; None: all.

    Returns:
        (N, V) or (N, D) float64 on the CPU, in the order of the stored rows.
    """
    if output.slices is None:
        assert output.rows is not None, stream.name
        rows = output.rows
    elif Form.parse(stream.form).framewise:
        picker = NodePicker(stream, output.labels, utt_id)
        rows = torch.cat([means for means, _ in picker.rows(output.slices, output.frames)])
    else:
        kept = nodes or full(output.frames, len(output.labels))
        return _node_rows(output.slices, kept, np.arange(len(kept)) if index is None else index)
    if index is not None:
        rows = rows[torch.from_numpy(index).to(rows.device)]
    return np.asarray(rows.double().cpu().numpy())


def _node_rows(
    slices: Callable[[], Iterable[torch.Tensor]], nodes: Nodes, index: NDArray[np.int64]
) -> NDArray[np.float64]:
    frame, position = nodes.frame[index], nodes.position[index]
    found, t = [], 0
    for piece in slices():
        low, high = np.searchsorted(frame, [t, t + len(piece)])
        flat = (frame[low:high] - t) * piece.shape[1] + position[low:high]
        at = torch.from_numpy(flat).to(piece.device)
        found.append(piece.reshape(-1, piece.shape[-1])[at].double().cpu().numpy())
        t += len(piece)
    return np.concatenate(found)
