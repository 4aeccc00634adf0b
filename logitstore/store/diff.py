"""Differences between two stores: in their descriptions, their ids and their targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..schema.kinds import kind_of
from ..schema.spec import differences
from ..targets.target import Target
from .reader import Store, as_store

FLOOR = -20.0  # log-probabilities below this count as equal: less than 2.1e-9
_NO_LABELS = np.zeros(0, np.int32)
_IGNORED = ("storage", "made_with")  # fields of a description that say nothing about the targets


@dataclass
class StoreDiff:
    """The result of :func:`diff_stores`.

    Attributes:
        fields: (field, value in A, value in B) for every field in which the descriptions differ.
        only_a: ids that only A holds.
        only_b: ids that only B holds.
        compared: number of utterances whose targets were compared.
        differing: ids of the compared utterances whose text, labels, shapes or numbers differ.
        largest: by stream, the largest difference of a log-probability in nats (log-probabilities below -20
            count as -20), or of a number of a ``hidden`` stream.
        kl: by stream of classes, the mean KL(A ‖ B) of a row in nats.
    """

    fields: list[tuple[str, Any, Any]]
    only_a: list[str]
    only_b: list[str]
    compared: int = 0
    differing: list[str] = field(default_factory=list)
    largest: dict[str, float] = field(default_factory=dict)
    kl: dict[str, float] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """True if nothing differs but the storage backend and the versions of the libraries."""
        fields = [name for name, _, _ in self.fields if not name.startswith(_IGNORED)]
        return not (fields or self.only_a or self.only_b or self.differing)

    def to_json(self) -> dict[str, Any]:
        """Return the verdict and all differences as JSON values."""
        return {"same": self.same, **vars(self)}


def diff_stores(a: Any, b: Any, *, sample: int = 0, tolerance: float = 0.0) -> StoreDiff:
    """Compare two stores.

    Args:
        a: one store, opened or its folder or URL.
        b: the other store.
        sample: largest number of utterances whose targets are compared, spread evenly; 0 compares all that
            both stores hold.
        tolerance: largest difference of a log-probability (in nats) or of a ``hidden`` number that does not
            count.

    Raises:
        NotAStore: one of them is no store.
        CorruptError, FormatError: a record of either cannot be read.
    """
    a, b = as_store(a), as_store(b)
    in_a, in_b = list(a), set(b)
    only_b = sorted(in_b.difference(in_a))
    found = StoreDiff(description_differences(a, b), [i for i in in_a if i not in in_b], only_b)
    shared = [i for i in in_a if i in in_b]
    if sample and shared:
        shared = shared[:: -(-len(shared) // sample)]
    others = {s.name for s in b.spec.streams}
    comparison = _TargetComparison([s.name for s in a.spec.streams if s.name in others], tolerance)
    for utt_id in shared:
        if comparison.differ(a[utt_id], b[utt_id]):
            found.differing.append(utt_id)
    found.compared = len(shared)
    found.largest = comparison.largest
    found.kl = comparison.mean_kl()
    return found


def description_differences(a: Store, b: Store) -> list[tuple[str, Any, Any]]:
    """Return (field, value in A, value in B) for every field in which the descriptions of two stores differ."""
    found = differences(a.spec, b.spec)
    for key in sorted({*a.spec.made_with, *b.spec.made_with}):
        ours, theirs = a.spec.made_with.get(key), b.spec.made_with.get(key)
        if ours != theirs:
            found.append((f"made_with.{key}", ours, theirs))
    return found


class _TargetComparison:
    """Comparison of targets two by two, with the largest difference and the mean KL of every stream.

    Args:
        streams: names of the streams that both stores have.
        tolerance: largest difference that does not count.
    """

    def __init__(self, streams: list[str], tolerance: float) -> None:
        self._streams, self._tolerance = streams, tolerance
        self.largest = {name: 0.0 for name in streams if kind_of(name).axes}
        self._kl = {name: 0.0 for name in streams if kind_of(name).classes}
        self._rows = dict.fromkeys(self._kl, 0)

    def differ(self, a: Target, b: Target) -> bool:
        """Return whether two targets of one utterance differ, and count by how much."""
        found = [self._stream_differs(name, a, b) for name in self._streams]
        return a.text != b.text or any(found)

    def mean_kl(self) -> dict[str, float]:
        """Return the mean KL(A ‖ B) of a row in nats, by stream of classes."""
        return {name: total / max(self._rows[name], 1) for name, total in self._kl.items()}

    def _stream_differs(self, name: str, a: Target, b: Target) -> bool:
        kind = kind_of(name)
        if not kind.axes:
            return bool(a.meta["hyp"][name]["text"] != b.meta["hyp"][name]["text"])
        other_labels = not np.array_equal(a.driven.get(name, _NO_LABELS), b.driven.get(name, _NO_LABELS))
        if a.shapes[name] != b.shapes[name]:
            return True
        if kind.classes:
            far = self._compare_rows(name, a, b)
        else:
            far = float(np.abs(a.vectors(name) - b.vectors(name)).max(initial=0.0))
        self.largest[name] = max(self.largest[name], far)
        return other_labels or far > self._tolerance

    def _compare_rows(self, name: str, a: Target, b: Target) -> float:
        """Return the largest difference of a log-probability; add up the KL of all rows."""
        p, q = (t.log_probs(name).reshape(-1, t.shapes[name][-1]).astype(np.float64) for t in (a, b))
        probability = np.exp(p)
        self._kl[name] += float(np.where(probability > 0, probability * (p - q), 0.0).sum())
        self._rows[name] += len(p)
        return float(np.abs(np.maximum(p, FLOOR) - np.maximum(q, FLOOR)).max(initial=0.0))
