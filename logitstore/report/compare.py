"""Comparisons of utterances: two stores, or a store and a student's output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..errors import LogitStoreError, StoreError
from ..schema.spec import StreamSpec
from ..store.reader import Store
from ..targets.decode import greedy_ctc
from ..targets.target import Target
from ..tokens.transcript import edit_distance, words
from .measure import Decodes
from .rows import LARGEST, Numbers, kl
from .student import StudentOutput, divergence, frame_stream


@dataclass(frozen=True)
class ComparedUtterance:
    """Differences of one utterance between two stores A and B, or between a target A and a student B.

    Attributes:
        id: id of the utterance.
        kl: mean KL(A ‖ B) of a row in nats, by stream that both have in one shape.
        peak: largest KL of a row.
        edits: words that differ between the texts of A and B; None where one has no text.
        rates: word error rates of A and of B; None without a reference or a text.
        note: what cannot be compared, and why; empty for nothing.
    """

    id: str
    kl: dict[str, float]
    peak: float
    edits: int | None
    rates: tuple[float | None, float | None]
    note: str = ""

    @property
    def worst(self) -> tuple[float, float]:
        """Key to sort by: the largest mean KL of all streams, then the edits."""
        return max(self.kl.values(), default=0.0), float(self.edits or 0)


def compare_stores(a: Store, b: Store, ids: Iterable[str]) -> list[ComparedUtterance]:
    """Compare utterances that two stores hold, the most different first."""
    found = []
    for utt_id in ids:
        try:
            found.append(_compared(a, b, a[utt_id], b[utt_id]))
        except StoreError as error:
            found.append(ComparedUtterance(utt_id, {}, 0.0, None, (None, None), str(error)))
    return sorted(found, key=lambda one: one.worst, reverse=True)


def _compared(a: Store, b: Store, ours: Target, theirs: Target) -> ComparedUtterance:
    means, peak, notes = dict[str, float](), 0.0, []
    same_tokens = a.tokens == b.tokens
    if not same_tokens:
        notes.append("the token tables differ")
    for spec in a.spec.streams:
        if not spec.stream_kind.classes or spec.name not in theirs.streams or not same_tokens:
            continue
        each = row_divergence(ours, theirs, spec)
        if each is None:
            notes.append(f"{spec.name}: {shape(ours, spec)} against {shape(theirs, spec)}")
        elif len(each):
            means[spec.name], peak = float(each.mean()), max(peak, float(each.max()))
    texts = text_of(a, ours), text_of(b, theirs)
    return ComparedUtterance(
        ours.id,
        means,
        peak,
        _edits(*texts),
        (error_rate(ours.text, texts[0]), error_rate(theirs.text, texts[1])),
        "; ".join(notes),
    )


def shape(target: Target, spec: StreamSpec) -> str:
    """Return the axes of a stream as text."""
    return "×".join(map(str, target.shapes[spec.name]))


def row_divergence(a: Target, b: Target, spec: StreamSpec) -> Numbers | None:
    """Return the (N,) KL(A ‖ B) of each row in nats; None for other shapes and for rows too large."""
    name = spec.name
    if a.shapes[name] != b.shapes.get(name) or np.prod(a.shapes[name], dtype=np.float64) > LARGEST / 8:
        return None
    if name in a.driven and not np.array_equal(a.driven[name], b.driven.get(name, ())):
        return None
    return kl(a[name].at(1.0).dense(), b[name].at(1.0).dense())


def text_of(store: Store, target: Target) -> str | None:
    """Return the first text of an utterance: a transcript, else a decode; None without both."""
    decodes = Decodes(store, target)
    for name in store.spec.transcript_streams:
        text = decodes.text(name)
        if text is not None:
            return text
    return None


def error_rate(reference: str | None, text: str | None) -> float | None:
    """Return the word error rate; None without a reference or a text."""
    if reference is None or text is None:
        return None
    return edit_distance(words(reference), words(text)) / max(len(words(reference)), 1)


def _edits(a: str | None, b: str | None) -> int | None:
    return None if a is None or b is None else edit_distance(words(a), words(b))


def compare_student(store: Store, student: StudentOutput, ids: Iterable[str]) -> list[ComparedUtterance]:
    """Compare a student's output with its targets, the most different first.

    Raises ``UsageError`` for an array of another shape than the store's tokens, or of no log-probabilities.
    """
    spec, found = frame_stream(store), []
    for utt_id in ids:
        logp = student.log_probs(utt_id, spec.classes)
        try:
            target = store[utt_id]
            each = divergence(target, spec.name, logp)
        except LogitStoreError as error:
            found.append(ComparedUtterance(utt_id, {}, 0.0, None, (None, None), str(error)))
            continue
        text = store.tokens.text(greedy_ctc(logp.argmax(axis=1), spec.blank))
        teacher = Decodes(store, target).text(spec.name)
        rates = error_rate(target.text, teacher), error_rate(target.text, text)
        found.append(
            ComparedUtterance(
                utt_id, {spec.name: float(each.mean())}, float(each.max()), _edits(teacher, text), rates
            )
        )
    return sorted(found, key=lambda one: one.worst, reverse=True)
