"""Says in what two stores differ: what they say of themselves, their ids, their targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..schema.kinds import kind_of
from ..schema.spec import differences
from .reader import Store

_NONE = np.zeros(0, np.int32)


@dataclass
class Difference:
    """What :func:`compare` saw.

    Attributes:
        fields: (field, in A, in B) where the stores' descriptions differ.
        only_a: ids that B lacks.
        only_b: ids that A lacks.
        compared: utterances whose targets were compared.
        differing: those of them with other shapes, labels or numbers.
        largest: the largest difference of a log-probability, by stream, in nats; where both are above -20. Of
            a layer's numbers themselves.
        kl: mean KL(A ‖ B) a row, by stream of classes, in nats.
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
        """Whether nothing differs but where and with what libraries they were made, and the storage."""
        fields = [f for f, _, _ in self.fields if not f.startswith(("storage", "made_with"))]
        return not (fields or self.only_a or self.only_b or self.differing)


def compare(a: Store, b: Store, *, sample: int = 0, tolerance: float = 0.0) -> Difference:
    """Compare two stores.

    Args:
        a: one store.
        b: the other.
        sample: compare the targets of at most so many utterances, spread evenly; 0 for all they share.
        tolerance: differences of a log-probability (in nats) or of a layer's number up to this are none.

    Raises:
        CorruptError: a row of either cannot be read.
    """
    ours, theirs = list(a), set(b)
    own = set(ours)
    found = Difference(
        differences(a.spec, b.spec), [i for i in ours if i not in theirs], sorted(theirs - own)
    )
    for key in sorted({*a.spec.made_with, *b.spec.made_with}):
        one, two = a.spec.made_with.get(key), b.spec.made_with.get(key)
        if one != two:
            found.fields.append((f"made_with.{key}", one, two))
    shared = [i for i in ours if i in theirs]
    shared = shared[:: max(1, -(-len(shared) // sample))] if sample and shared else shared
    streams = [s.name for s in a.spec.streams if any(t.name == s.name for t in b.spec.streams)]
    sums: dict[str, float] = dict.fromkeys(streams, 0.0)
    rows: dict[str, int] = dict.fromkeys(streams, 0)
    found.largest = {n: 0.0 for n in streams if kind_of(n).axes}
    for utt_id in shared:
        x, y = a[utt_id], b[utt_id]
        differs = x.text != y.text or any(
            x.driven.get(s, _NONE).tolist() != y.driven.get(s, _NONE).tolist() for s in streams
        )
        for name in streams:
            if not kind_of(name).axes:
                differs |= x.meta["hyp"][name]["text"] != y.meta["hyp"][name]["text"]
                continue
            if x.shapes[name] != y.shapes[name]:
                differs = True
                continue
            if not kind_of(name).classes:
                far = float(np.abs(x.vectors(name) - y.vectors(name)).max(initial=0.0))
                differs |= far > tolerance
                found.largest[name] = max(found.largest[name], far)
                continue
            p, q = (t.log_probs(name).reshape(-1, t.shapes[name][-1]).astype(np.float64) for t in (x, y))
            e = np.exp(p)
            far = float(np.abs(np.maximum(p, -20) - np.maximum(q, -20)).max(initial=0.0))
            differs |= far > tolerance
            found.largest[name] = max(found.largest[name], far)
            sums[name] += float(np.where(e > 0, e * (p - q), 0.0).sum())
            rows[name] += len(p)
        found.compared += 1
        if differs:
            found.differing.append(utt_id)
    found.kl = {n: sums[n] / max(rows[n], 1) for n in streams if kind_of(n).classes}
    return found
