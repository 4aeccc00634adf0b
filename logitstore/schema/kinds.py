"""Kinds of streams: what a row of each is, how many an utterance has, and what goes with them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..errors import UnknownName
from ..registry import suggest


@dataclass(frozen=True)
class StreamKind:
    """One kind of teacher output.

    Attributes:
        name: also of its first stream.
        axes: of one utterance; rows are all but the last. Empty: there are no rows, only a transcript.
        labels: rows are driven with token ids, which are stored with them.
        tapped: its module runs in the teacher's ``forward``; others are driven utterance by utterance.
        repeats: there may be several, ``NAME_ANYTHING``.
    """

    name: str
    axes: tuple[str, ...]
    labels: bool = False
    tapped: bool = False
    repeats: bool = False

    @property
    def classes(self) -> bool:
        """Whether a row is a distribution over V classes, and not D numbers."""
        return self.axes[-1:] == ("V",)

    @property
    def frames(self) -> bool:
        """Whether rows follow the teacher's frames, so that a student's rate changes them."""
        return "T" in self.axes

    @property
    def has_transcript(self) -> bool:
        """Whether a transcript can be had from it."""
        return self.classes or not self.axes

    def rows(self, t: int, u: int) -> int:
        """How many rows T frames and U labels have; of a lattice, all its nodes."""
        size = {"T": t, "U": u, "U+1": u + 1}
        return prod(size[a] for a in self.axes[:-1])

    def __str__(self) -> str:
        return f"({', '.join(self.axes)})" if self.axes else "-"


KINDS = {
    k.name: k
    for k in (
        StreamKind("ctc", ("T", "V"), tapped=True),
        StreamKind("rnnt", ("T", "U+1", "V"), labels=True),
        StreamKind("seq2seq", ("U", "V"), labels=True),
        StreamKind("hidden", ("T", "D"), tapped=True, repeats=True),
        StreamKind("text", ()),
    )
}


def kind_of(stream: str) -> StreamKind:
    """The kind of a stream by its name: ``hidden_3`` is ``hidden``; raises ``UnknownName``."""
    name, found, _ = stream.partition("_")
    kind = KINDS.get(name)
    if kind is None or (found and not kind.repeats):
        raise UnknownName(f"no stream {stream!r}", do=suggest(stream, [*KINDS, "hidden_NAME"]))
    return kind
