"""Forms of an RNN-T lattice: which nodes (t, u) of T × (U+1) a stream keeps, and how a reader knows them."""

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
FORMS = {
    "full": False,
    "banded": True,
    "path": False,
    "sample": True,
    MEAN: False,
}  # whether it takes a number
BEGIN, POSITIONS, OCCUPANCY = "begin", "positions", "occupancy"
KNOWN = "full, banded:S, path, sample:N, mean-u; each with +occupancy"


@dataclass(frozen=True)
class Form:
    """Which nodes are kept; ``str()`` of it is how the user writes it.

    Attributes:
        name: ``full`` (all), ``banded`` (``size`` label positions a frame, around the teacher's own
            alignment), ``path`` (the most probable alignment: T + U nodes), ``sample`` (``size`` label
            positions, the same in every frame, drawn by the utterance's id) or ``mean-u`` (no node, but the
            mean of a frame's: T rows).
        size: see there; 0 for the others.
        occupancy: whether the probability that an alignment passes a node is kept with it; the mean is
            weighted by it.
    """

    name: str = "full"
    size: int = 0
    occupancy: bool = False

    def __str__(self) -> str:
        size = f":{self.size}" if self.size else ""
        return f"{self.name}{size}{'+occupancy' if self.occupancy else ''}"

    @classmethod
    def parse(cls, text: str) -> Form:
        """``full``, ``banded:5``, ``path+occupancy``, ...; raises ``UsageError``."""
        found = re.fullmatch(r"([a-z-]+)(?::([1-9][0-9]{0,5}))?(\+occupancy)?", text)
        if not found or found[1] not in FORMS or FORMS[found[1]] != bool(found[2]):
            raise UsageError(f"no lattice form {text!r}", do=f"Known: {KNOWN}.")
        return cls(found[1], int(found[2] or 0), bool(found[3]))

    @property
    def aligned(self) -> bool:
        """Whether the teacher's scores of all nodes must be known first."""
        return self.occupancy or self.name in ("banded", "path")

    @property
    def whole(self) -> bool:
        """Whether rows are all nodes and nothing else is stored: what version 1.0 began with."""
        return self.name == "full" and not self.occupancy

    @property
    def framewise(self) -> bool:
        """Whether rows are frames and not nodes."""
        return self.name == MEAN

    @property
    def columns(self) -> tuple[tuple[str, str, str], ...]:
        """Name, dtype and meaning of what is stored beside rows and labels (SPEC S10)."""
        found = []
        if self.name in ("banded", "path"):
            found.append((BEGIN, "int32", "first label position of each frame's nodes"))
        if self.name == "sample":
            found.append((POSITIONS, "int32", "label positions that every frame keeps"))
        if self.occupancy and not self.framewise:
            found.append((OCCUPANCY, "float16", "probability that an alignment passes each node"))
        return tuple(found)


@dataclass(frozen=True)
class Nodes:
    """The nodes of one utterance, row by row: frame after frame, in each from the lowest position up.

    Attributes:
        form: that chose them.
        T: frames.
        U: labels.
        frame: (N,) int64 t of each row.
        position: (N,) int64 u of each row.
        occupancy: (N,) float32, 0 to 1; None where it is not kept.
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
        """Rows of every frame; 0 for a path, whose frames have different numbers of them."""
        return 0 if self.form.name == "path" else len(self.frame) // self.T

    @property
    def axes(self) -> tuple[int, ...]:
        """(T, S), or (T + U,) for a path."""
        return (self.T, self.width) if self.width else (len(self.frame),)

    def grid(self) -> NDArray[np.int64]:
        """(T, U+1) row of each node, -1 where it is not kept."""
        rows = np.full((self.T, self.U + 1), -1, np.int64)
        rows[self.frame, self.position] = np.arange(len(self.frame))
        return rows

    def next_labels(self, labels: NDArray[Any], blank: int) -> NDArray[np.int64]:
        """(N,) the label that each node would emit; the blank at the last position."""
        behind = np.append(np.asarray(labels, np.int64), blank)
        return np.asarray(behind[self.position])


def full(t: int, u: int, form: Form | None = None) -> Nodes:
    """All T · (U+1) nodes."""
    return _tiled(form or Form(), t, u, np.arange(u + 1))


def ranges(form: Form, t: int, u: int, begin: NDArray[Any], width: int) -> Nodes:
    """``width`` positions of every frame, from ``begin`` (T,)."""
    position = begin[:, None].astype(np.int64) + np.arange(width)
    return Nodes(form, t, u, np.repeat(np.arange(t), width), position.reshape(-1))


def band_size(size: int, t: int, u: int) -> int:
    """Positions of a range that can follow U labels in T frames: ``size``, more where T is too short."""
    return min(max(size, -(-(u + t) // t)), u + 1)


def path(form: Form, t: int, u: int, begin: NDArray[Any]) -> Nodes:
    """The alignment that enters frame t at ``begin[t]``: T + U nodes."""
    first = begin.astype(np.int64)
    count = np.append(first[1:], u) - first + 1
    frame = np.repeat(np.arange(t), count)
    since = np.arange(len(frame)) - np.repeat(np.cumsum(count) - count, count)
    return Nodes(form, t, u, frame, np.repeat(first, count) + since)


def sample(form: Form, t: int, u: int, utt_id: str) -> Nodes:
    """``form.size`` of the U + 1 label positions (all where there are fewer), the same whoever draws them.

    A position's rank is the BLAKE2b hash of the id, a line feed and the position in decimal (SPEC S11).
    """
    ranks = [hashlib.blake2b(f"{utt_id}\n{i}".encode(), digest_size=8).digest() for i in range(u + 1)]
    chosen = sorted(range(u + 1), key=lambda i: ranks[i])[: form.size]
    return _tiled(form, t, u, np.array(sorted(chosen)))


def _tiled(form: Form, t: int, u: int, positions: NDArray[Any]) -> Nodes:
    frame = np.repeat(np.arange(t), len(positions))
    return Nodes(form, t, u, frame, np.tile(positions.astype(np.int64), t))


def stored(nodes: Nodes) -> dict[str, NDArray[Any]]:
    """The arrays of :attr:`Form.columns`."""
    first = np.searchsorted(nodes.frame, np.arange(nodes.T))
    arrays: dict[str, NDArray[Any]] = {
        BEGIN: nodes.position[first].astype(np.int32),
        POSITIONS: nodes.position[: nodes.width].astype(np.int32),
    }
    if nodes.occupancy is not None:
        arrays[OCCUPANCY] = nodes.occupancy.astype(np.float16)
    return {name: arrays[name] for name, _, _ in nodes.form.columns}


def restored(
    form: Form, t: int, u: int, rows: int, arrays: Mapping[str, NDArray[Any]], where: str = ""
) -> Nodes:
    """The nodes of ``rows`` stored rows; raises ``FormatError`` where they break SPEC S7 or S11."""

    def require(right: bool, what: str, rule: str = "S11") -> None:
        if not right:
            raise FormatError(f"{what} (SPEC {rule})", where=where)

    require(t > 0, f"T = {t}", "S7")
    if form.name == "full":
        require(rows == t * (u + 1), f"the lattice has {rows} rows, T = {t} and U = {u}", "S7")
        nodes = full(t, u, form)
    elif form.name == "sample":
        positions = arrays[POSITIONS]
        require(len(positions) == min(form.size, u + 1), f"{len(positions)} label positions of {u + 1}")
        rising = bool((np.diff(positions) > 0).all())
        require(rising and positions[0] >= 0 and positions[-1] <= u, "label positions that are none")
        require(rows == t * len(positions), f"{rows} rows of T = {t} frames at {len(positions)} positions")
        nodes = _tiled(form, t, u, positions)
    else:
        begin = arrays[BEGIN].astype(np.int64)
        require(len(begin) == t and not begin[0], f"{len(begin)} ranges of T = {t} frames, from {begin[:1]}")
        step = np.diff(begin)
        if form.name == "path":
            require(bool((step >= 0).all()) and begin[-1] <= u, "a path that goes back")
            require(rows == t + u, f"{rows} rows of a path of T + U = {t + u}")
            nodes = path(form, t, u, begin)
        else:
            width = rows // t
            wanted = band_size(form.size, t, u)
            require(rows == width * t and width == wanted, f"{rows} rows, not {wanted} in T = {t} frames")
            whole = bool(((step >= 0) & (step < width)).all()) and begin[-1] == u + 1 - width
            require(whole, f"ranges of {width} that do not lead to U = {u}")
            nodes = ranges(form, t, u, begin, width)
    if not form.occupancy:
        return nodes
    occupied = arrays[OCCUPANCY].astype(np.float32)
    require(len(occupied) == rows, f"{len(occupied)} occupancies for {rows} rows")
    return Nodes(form, t, u, nodes.frame, nodes.position, occupied)


def check_nodes(rows: int, t: int, u: int, where: str) -> None:
    """A full lattice has T · (U+1) nodes; raises ``LengthError`` otherwise."""
    if rows != t * (u + 1):
        raise LengthError(
            f"{rows} lattice nodes for T = {t} and U = {u}, where there are T·(U+1) = {t * (u + 1)}",
            where=where,
        )
