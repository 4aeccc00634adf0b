"""One utterance of a store, decoded: rows of every stream, labels and metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import DecodedRows, Float, Rows, has_classes, has_numbers
from ..errors import MissingUtterance, UsageError
from ..schema.clock import FrameClock
from ..schema.lattice import Nodes


@dataclass(frozen=True)
class Target:
    """One utterance of a store.

    Attributes:
        id: utterance id.
        T: valid frames of the teacher.
        labels: (U,) int32 token ids of the lattice; without a lattice those of the attention decoder; empty
            without either.
        streams: decoded rows by stream name. A ``text`` stream has no rows; its transcript is in ``meta``.
        shapes: axes of each stream: ``(T, V)`` of ``ctc``; ``(T, U+1, V)`` of ``rnnt``, or ``(T, S, V)`` or
            ``(N, V)`` where a lattice keeps some of its nodes; ``(U, V)`` of ``seq2seq``; ``(T, D)`` of
            ``hidden``.
        meta: record metadata: ``seconds``, ``text``, ``hyp``, ...
        nodes: lattice nodes of the rows, by stream; absent for lattices that keep all nodes without
            occupancy.
        blank: id of the blank among the classes.
        clock: times of the teacher's frames; None where they are not known.
        driven: label ids of each stream that has labels; an attention decoder's include the end token.
    """

    id: str
    T: int
    labels: NDArray[np.int32]
    streams: Mapping[str, DecodedRows]
    shapes: Mapping[str, tuple[int, ...]]
    meta: Mapping[str, Any] = field(default_factory=dict)
    nodes: Mapping[str, Nodes] = field(default_factory=dict)
    blank: int = 0
    clock: FrameClock | None = None
    driven: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)

    @property
    def U(self) -> int:
        """Number of labels."""
        return len(self.labels)

    @property
    def text(self) -> str | None:
        """Reference text of the manifest; None where it has none."""
        return self.meta.get("text")

    def __getitem__(self, stream: str) -> Rows:
        """Return the rows of a stream of distributions.

        Raises:
            MissingUtterance: a stream that the store does not hold.
            UsageError: a stream of a layer's numbers; :meth:`vectors` returns these.
        """
        rows = self._rows(stream)
        if not has_classes(rows):
            raise UsageError(
                f"{stream} has no classes: its rows are the numbers of a layer",
                where=self.id,
                do=f"Call target.vectors({stream!r}).",
            )
        return rows

    def vectors(self, stream: str = "hidden") -> Float:
        """Return the (T, D) float32 numbers of a layer.

        Raises:
            MissingUtterance: a stream that the store does not hold.
            UsageError: a stream of distributions.
        """
        rows = self._rows(stream)
        if not has_numbers(rows):
            raise UsageError(
                f"{stream} has classes: its rows are distributions, not the numbers of a layer",
                where=self.id,
                do=f"Use target[{stream!r}].",
            )
        return rows.values()

    def _rows(self, stream: str) -> DecodedRows:
        try:
            return self.streams[stream]
        except KeyError:
            raise MissingUtterance(
                f"there is no stream {stream!r}",
                where=self.id,
                do=f"It has: {', '.join(self.streams) or 'none'}.",
            ) from None

    def grid(self, stream: str) -> NDArray[np.int64] | None:
        """Return the (T, U+1) row index of each lattice node, -1 where not kept; None for other streams."""
        if stream in self.nodes:
            return self.nodes[stream].grid()
        axes = self.shapes[stream][:-1]
        return np.arange(axes[0] * axes[1]).reshape(axes) if len(axes) == 2 else None

    def _repr_html_(self) -> str:
        from .notebook import target_html

        return target_html(self)

    def plot(
        self,
        streams: Sequence[str] | None = None,
        *,
        tokens: Sequence[str] | None = None,
        temperature: float = 1.0,
    ) -> Any:
        """Return a ``matplotlib.figure.Figure`` with a panel for each stream of classes.

        A stream of frames is drawn as the posteriorgram of the classes that reach a probability of 0.04, with
        the blank as a line; a lattice as the occupancy of its nodes, or the probability of the blank.

        Args:
            streams: names of streams; None for all that have classes.
            tokens: tokens of the classes, e.g. ``store.tokens.tokens``; None for their ids.
            temperature: temperature of the probabilities, 1 or more.

        Raises:
            UsageError: matplotlib is not installed, or a stream has no classes.
        """
        from .plot import plot_target

        return plot_target(self, streams, tokens=tokens, temperature=temperature)

    def log_probs(self, stream: str, temperature: float = 1.0) -> Float:
        """Return dense float32 log-probabilities (nats) in the stream's axes, :attr:`shapes`.

        Raises:
            UsageError: a temperature below 1, or a stream of a layer's numbers.
        """
        return self[stream].at(temperature).dense().reshape(self.shapes[stream])
