"""Lattice forms: the nodes (t, u) of an RNN-T lattice of T × (U+1) that a stream stores."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, LengthError, UsageError

MEAN = "mean-u"
FORMS = {"full": False, "banded": True, "path": False, "sample": True, MEAN: False}  # True: takes a number
BEGIN, POSITIONS, OCCUPANCY = "begin", "positions", "occupancy"
POSITION_DTYPE, MAX_POSITION = "uint16", (1 << 16) - 1
KNOWN = "full, banded:S, path, sample:N, mean-u; each with +occupancy"


@dataclass(frozen=True)
class Form:
    """A lattice form: a choice of nodes; ``str()`` gives it as users write it.

    Attributes:
        name: ``full`` (all nodes), ``banded`` (``size`` label positions per frame, around the teacher's own
            alignment), ``path`` (the most probable alignment: T + U nodes), ``sample`` (``size`` label
            positions, the same in every frame, chosen by a hash of the utterance id) or ``mean-u`` (the mean
            over the nodes of each frame: T rows).
        size: number of label positions of ``banded`` and ``sample``; 0 for the other forms.
        occupancy: whether each node is stored with the probability that an alignment passes it; ``mean-u``
            uses these probabilities as weights.
    """

    name: str = "full"
    size: int = 0
    occupancy: bool = False

    def __str__(self) -> str:
        size = f":{self.size}" if self.size else ""
        return f"{self.name}{size}{'+occupancy' if self.occupancy else ''}"

    @classmethod
    def parse(cls, text: str) -> Form:
        """Parse ``full``, ``banded:5``, ``path+occupancy``, ...; raise ``UsageError`` for other text."""
        found = re.fullmatch(r"([a-z-]+)(?::([1-9][0-9]{0,5}))?(\+occupancy)?", text)
        if not found or found[1] not in FORMS or FORMS[found[1]] != bool(found[2]):
            raise UsageError(f"there is no lattice form {text!r}", do=f"Known: {KNOWN}.")
        return cls(found[1], int(found[2] or 0), bool(found[3]))

    @property
    def aligned(self) -> bool:
        """True if the choice of nodes depends on the teacher's scores of all nodes."""
        return self.occupancy or self.name in ("banded", "path")

    @property
    def whole(self) -> bool:
        """True if all nodes and nothing else are stored; the only form of the first version of the format."""
        return self.name == "full" and not self.occupancy

    @property
    def framewise(self) -> bool:
        """True if each row stands for a frame instead of a node."""
        return self.name == MEAN

    @property
    def columns(self) -> tuple[tuple[str, str, str], ...]:
        """(name, dtype, meaning) of the columns beside rows and labels (SPEC S10)."""
        found = []
        if self.name in ("banded", "path"):
            found.append((BEGIN, POSITION_DTYPE, "first label position of each frame's nodes"))
        if self.name == "sample":
            found.append((POSITIONS, POSITION_DTYPE, "label positions that every frame keeps"))
        if self.occupancy and not self.framewise:
            found.append((OCCUPANCY, "float16", "probability that an alignment passes each node"))
        return tuple(found)


@dataclass(frozen=True)
class Nodes:
    """The stored nodes of one utterance, in the order of rows: by frame, then by label position.

    Attributes:
        form: the lattice form that chose the nodes.
        T: number of frames.
        U: number of labels.
        frame: (N,) int64, frame t of each row.
        position: (N,) int64, label position u of each row.
        occupancy: (N,) float32, probability from 0 to 1 of each row; None if not stored.
    """

    form: Form
    T: int
    U: int
    frame: NDArray[np.int64]
    position: NDArray[np.int64]
    occupancy: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def width(self) -> int:
        """Number of rows of every frame; 0 for a path, where it differs from frame to frame."""
        return 0 if self.form.name == "path" else len(self.frame) // self.T

    @property
    def axes(self) -> tuple[int, ...]:
        """Shape of the rows: (T, S), or (T + U,) for a path."""
        return (self.T, self.width) if self.width else (len(self.frame),)

    def grid(self) -> NDArray[np.int64]:
        """Return (T, U+1) int64: the row of each node, -1 for a node that is not stored."""
        rows = np.full((self.T, self.U + 1), -1, np.int64)
        rows[self.frame, self.position] = np.arange(len(self.frame))
        return rows

    def next_labels(self, labels: NDArray[Any], blank: int) -> NDArray[np.int64]:
        """Return (N,) int64: the next label of each node; the blank at the last label position."""
        labels_and_blank = np.append(np.asarray(labels, np.int64), blank)
        return np.asarray(labels_and_blank[self.position])


def full(t: int, u: int, form: Form | None = None) -> Nodes:
    """Return all T · (U+1) nodes."""
    return _tiled(form or Form(), t, u, np.arange(u + 1))


def ranges(form: Form, t: int, u: int, begin: NDArray[Any], width: int) -> Nodes:
    """Return ``width`` label positions of every frame t, from ``begin[t]``; ``begin`` has shape (T,)."""
    position = begin[:, None].astype(np.int64) + np.arange(width)
    return Nodes(form, t, u, np.repeat(np.arange(t), width), position.reshape(-1))


def band_size(size: int, t: int, u: int) -> int:
    """Return the width of a band that can pass U labels in T frames: ``size``, or more if T is small."""
    return min(max(size, -(-(u + t) // t)), u + 1)


def path(form: Form, t: int, u: int, begin: NDArray[Any]) -> Nodes:
    """Return the T + U nodes of the alignment that enters frame t at label position ``begin[t]``."""
    first = begin.astype(np.int64)
    count = np.append(first[1:], u) - first + 1
    frame = np.repeat(np.arange(t), count)
    index_in_frame = np.arange(len(frame)) - np.repeat(np.cumsum(count) - count, count)
    return Nodes(form, t, u, frame, np.repeat(first, count) + index_in_frame)


def sample(form: Form, t: int, u: int, utt_id: str) -> Nodes:
    """Return ``form.size`` of the U + 1 label positions in every frame, or all if there are fewer.

    The choice depends on the utterance id alone: a position's rank is the BLAKE2b hash of the id, a line
    feed and the position in decimal (SPEC S11).
    """
    ranks = [hashlib.blake2b(f"{utt_id}\n{i}".encode(), digest_size=8).digest() for i in range(u + 1)]
    chosen = sorted(range(u + 1), key=lambda i: ranks[i])[: form.size]
    return _tiled(form, t, u, np.array(sorted(chosen)))


def _tiled(form: Form, t: int, u: int, positions: NDArray[Any]) -> Nodes:
    frame = np.repeat(np.arange(t), len(positions))
    return Nodes(form, t, u, frame, np.tile(positions.astype(np.int64), t))


def stored(nodes: Nodes) -> dict[str, NDArray[Any]]:
    """Return the arrays of :attr:`Form.columns` by name.

    Raises ``LengthError`` for more labels than these arrays can count.
    """
    if nodes.U > MAX_POSITION and POSITION_DTYPE in [dtype for _, dtype, _ in nodes.form.columns]:
        raise LengthError(
            f"there are {nodes.U} labels; the form {nodes.form} stores positions up to {MAX_POSITION} (SPEC S10)",
            do="Cut the recording, or store the form full.",
        )
    first = np.searchsorted(nodes.frame, np.arange(nodes.T))
    arrays: dict[str, NDArray[Any]] = {
        BEGIN: nodes.position[first].astype(POSITION_DTYPE),
        POSITIONS: nodes.position[: nodes.width].astype(POSITION_DTYPE),
    }
    if nodes.occupancy is not None:
        arrays[OCCUPANCY] = nodes.occupancy.astype(np.float16)
    return {name: arrays[name] for name, _, _ in nodes.form.columns}


def restored(
    form: Form, t: int, u: int, rows: int, arrays: Mapping[str, NDArray[Any]], where: str = ""
) -> Nodes:
    """Return the nodes of stored rows.

    Args:
        form: the lattice form of the stream.
        t: number of frames.
        u: number of labels.
        rows: number of stored rows.
        arrays: arrays of :attr:`Form.columns` by name.
        where: the record, for messages.

    Raises:
        FormatError: rows and arrays break SPEC S7 or S11.
    """

    def require(condition: bool, otherwise: str, rule: str = "S11") -> None:
        if not condition:
            raise FormatError(f"{otherwise} (SPEC {rule})", where=where)

    require(t > 0, f"T = {t}", "S7")
    if form.name == "full":
        require(rows == t * (u + 1), f"the lattice has {rows} rows, T = {t} and U = {u}", "S7")
        nodes = full(t, u, form)
    elif form.name == "sample":
        positions = arrays[POSITIONS].astype(np.int64)
        require(
            len(positions) == min(form.size, u + 1), f"there are {len(positions)} of {u + 1} label positions"
        )
        rising = bool((np.diff(positions) > 0).all())
        require(
            rising and positions[0] >= 0 and positions[-1] <= u,
            "label positions are not increasing from 0 to U",
        )
        require(
            rows == t * len(positions),
            f"there are {rows} rows for T = {t} frames and {len(positions)} positions",
        )
        nodes = _tiled(form, t, u, positions)
    else:
        begin = arrays[BEGIN].astype(np.int64)
        require(
            len(begin) == t and not begin[0],
            f"there are {len(begin)} ranges for T = {t} frames, from position {begin[:1]}",
        )
        step = np.diff(begin)
        if form.name == "path":
            require(bool((step >= 0).all()) and begin[-1] <= u, "label positions of the path decrease")
            require(rows == t + u, f"there are {rows} rows for a path of T + U = {t + u} nodes")
            nodes = path(form, t, u, begin)
        else:
            width = rows // t
            wanted = band_size(form.size, t, u)
            require(
                rows == width * t and width == wanted,
                f"there are {rows} rows, not {wanted} in each of T = {t} frames",
            )
            whole = bool(((step >= 0) & (step < width)).all()) and begin[-1] == u + 1 - width
            require(whole, f"ranges of {width} positions do not lead to U = {u}")
            nodes = ranges(form, t, u, begin, width)
    if not form.occupancy:
        return nodes
    occupied = arrays[OCCUPANCY].astype(np.float32)
    require(len(occupied) == rows, f"there are {len(occupied)} occupancies for {rows} rows")
    return Nodes(form, t, u, nodes.frame, nodes.position, occupied)


def check_nodes(rows: int, t: int, u: int, where: str) -> None:
    """Raise ``LengthError`` unless there are T · (U+1) rows, as many as a full lattice has nodes."""
    if rows != t * (u + 1):
        raise LengthError(
            f"there are {rows} lattice nodes for T = {t} and U = {u}, not T·(U+1) = {t * (u + 1)}",
            where=where,
        )
