"""What a student is told: decoded rows that serve every temperature, in numpy.

Rows are N frames (CTC) or N lattice nodes (RNN-T, in (T, U+1) order) over V classes. Log-probabilities are
natural logarithms at temperature 1; ``at(temperature)`` gives the same rows as a student uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import Float, Rows, Vectors
from ..errors import MissingUtterance, UsageError
from ..schema.clock import FrameClock
from ..schema.lattice import Nodes


@dataclass(frozen=True)
class Target:
    """One utterance of a store.

    Attributes:
        id: the utterance.
        T: valid teacher frames.
        labels: (U,) int32 token ids that the lattice was driven with, or without one an attention decoder;
            empty where there are none.
        streams: decoded rows by stream name; none of a ``text`` stream, whose transcript is in ``meta``.
        shapes: axes of each stream: ``(T, V)``; ``(T, U+1, V)``, or ``(T, S, V)`` or ``(N, V)`` where a
            lattice keeps some of its nodes; ``(U, V)`` of a decoder; ``(T, D)`` of a layer.
        meta: everything else that was stored: text, seconds, ...
        nodes: by stream, which nodes its rows are; not for lattices that keep all and nothing else.
        blank: id of the blank among the classes.
        clock: when the teacher's frames are; None where nobody said.
        driven: labels of each stream that was driven with any; an attention decoder's end with its end token.
    """

    id: str
    T: int
    labels: NDArray[np.int32]
    streams: Mapping[str, Rows | Vectors]
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
        """Reference text, where the manifest had one."""
        return self.meta.get("text")

    def __getitem__(self, stream: str) -> Rows:
        """The stored form of a stream of distributions; raises ``MissingUtterance`` where it was not dumped,
        ``UsageError`` for plain numbers."""
        rows = self._rows(stream)
        if isinstance(rows, Vectors):
            raise UsageError(
                f"{stream} has no classes: its rows are what a layer gave",
                where=self.id,
                do=f"target.vectors({stream!r}) gives them.",
            )
        return rows

    def _rows(self, stream: str) -> Rows | Vectors:
        try:
            return self.streams[stream]
        except KeyError:
            raise MissingUtterance(
                f"no stream {stream!r}", where=self.id, do=f"It has: {', '.join(self.streams) or 'none'}."
            ) from None

    def vectors(self, stream: str = "hidden") -> Float:
        """(T, D) float32 that a layer gave; raises ``UsageError`` for a stream of distributions."""
        rows = self._rows(stream)
        if not isinstance(rows, Vectors):
            raise UsageError(f"{stream} has classes", where=self.id, do=f"target[{stream!r}] gives its rows.")
        return rows.values()

    def grid(self, stream: str) -> NDArray[np.int64] | None:
        """(T, U+1) row of each node of a lattice, -1 where it is not kept; None for a stream that is none."""
        if stream in self.nodes:
            return self.nodes[stream].grid()
        axes = self.shapes[stream][:-1]
        return np.arange(axes[0] * axes[1]).reshape(axes) if len(axes) == 2 else None

    def log_probs(self, stream: str, temperature: float = 1.0) -> Float:
        """Dense float32 log-probabilities in the stream's own axes, :attr:`shapes`."""
        return self[stream].at(temperature).dense().reshape(self.shapes[stream])
