"""Stream kinds: the axes of each, the number of rows of an utterance, and the need for labels."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..errors import UnknownName
from ..registry import suggest


@dataclass(frozen=True)
class StreamKind:
    """One kind of teacher output.

    Attributes:
        name: name of the kind, and of its only or first stream.
        axes: axes of one utterance; the last is that of a row. Empty for transcripts, which have no rows.
        labels: whether rows depend on token ids, which are stored with them.
        tapped: whether its module runs in the teacher's ``forward``; others run utterance by utterance.
        repeats: whether a teacher may have several such streams, ``NAME_ANYTHING``.
    """

    name: str
    axes: tuple[str, ...]
    labels: bool = False
    tapped: bool = False
    repeats: bool = False

    @property
    def classes(self) -> bool:
        """True if a row is a distribution over V classes; false if it is a vector of D numbers."""
        return self.axes[-1:] == ("V",)

    @property
    def frames(self) -> bool:
        """True if rows belong to teacher frames, so that targets depend on the student's frame rate."""
        return "T" in self.axes

    @property
    def has_transcript(self) -> bool:
        """True if a transcript can be decoded from it, or is stored as it."""
        return self.classes or not self.axes

    def rows(self, t: int, u: int) -> int:
        """Return the number of rows for T frames and U labels; for a lattice, the number of all its nodes."""
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
    """Return the kind of a stream by its name, e.g. ``hidden`` for ``hidden_3``; raise ``UnknownName``."""
    name, found, _ = stream.partition("_")
    kind = KINDS.get(name)
    if kind is None or (found and not kind.repeats):
        raise UnknownName(f"there is no stream {stream!r}", do=suggest(stream, [*KINDS, "hidden_NAME"]))
    return kind
