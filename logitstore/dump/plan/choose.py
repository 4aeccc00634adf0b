"""Choice between measured encodings: the smallest that meets the criteria, and the reason in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ...schema.kinds import kind_of

ALIGNED = 0.99  # share of the teacher's alignments that must pass through the nodes kept
WORTH = 0.9  # a compressor must save a tenth: without one a store is memory-mapped, not unpacked


@dataclass(frozen=True)
class Criterion:
    """Loss that is accepted for a stream.

    Attributes:
        budget: mean nats that a row may lose at every temperature.
        aligned: share of the teacher's alignments that must pass through the lattice nodes kept.
    """

    budget: float
    aligned: float = ALIGNED


@dataclass(frozen=True)
class Measurement:
    """Size, loss and speed of one encoding with one storage backend.

    Attributes:
        stream: name of the stream.
        encoding: the encoding as a user writes it, lattice form included.
        storage: storage backend.
        bytes: bytes of the whole store, extrapolated to the manifest.
        once: part of ``bytes`` that does not grow with the records.
        common: part of ``bytes`` that a second stream of the same store would share: the metadata of records,
            and files that describe the store.
        bytes_per_frame: growing bytes per frame of audio, index, checksums and entries included.
        kl: mean, 99th percentile and maximum of a row's loss in nats, by temperature; of a layer, of the share
            of a row's squared length that is lost, at 1.
        changed: share of rows whose best class is not the teacher's; None for a layer.
        held: share of the teacher's alignments that pass through the nodes kept; 1 where all are kept.
        encoding_speed: seconds of audio encoded and written per second.
        speed: the same with loading and the teacher, one after the other.
    """

    stream: str
    encoding: str
    storage: str
    bytes: int
    once: int
    common: int
    bytes_per_frame: float
    kl: Mapping[float, tuple[float, float, float]]
    changed: float | None
    held: float
    encoding_speed: float
    speed: float

    @property
    def of_layer(self) -> bool:
        """Tell whether the rows are numbers of a layer, not distributions."""
        return not kind_of(self.stream).classes

    @property
    def worst(self) -> tuple[float, float]:
        """(mean KL in nats, temperature) at the temperature with the largest mean KL."""
        return max((mean, t) for t, (mean, _, _) in self.kl.items())

    def meets(self, criterion: Criterion) -> bool:
        """Tell whether the loss is accepted at every temperature."""
        return self.worst[0] <= criterion.budget and self.held >= criterion.aligned

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        lost = {f"{t:g}": {"mean": mean, "p99": p99, "max": most} for t, (mean, p99, most) in self.kl.items()}
        return {
            "encoding": self.encoding,
            "storage": self.storage,
            "bytes_per_frame": round(self.bytes_per_frame, 3),
            "bytes_once": self.once,
            "gigabytes": self.bytes / 1e9,
            **({"relative_error": lost["1"]} if self.of_layer else {"kl": lost}),
            **({} if self.changed is None else {"best_class_changed": self.changed}),
            "alignments": self.held,
            "encode_speed": round(self.encoding_speed, 1),
            "speed": round(self.speed, 1),
        }


@dataclass(frozen=True)
class Choice:
    """One encoding for each stream, and one storage backend.

    Attributes:
        streams: the chosen measurement of each stream.
        storage: storage backend of the store.
        bytes: bytes of the store.
        why: the reason in a sentence, by stream, and by ``storage`` where there was a choice.
    """

    streams: Mapping[str, Measurement]
    storage: str
    bytes: int
    why: Mapping[str, str]


def choose(
    measured: Sequence[Measurement], criteria: Mapping[str, Criterion], max_bytes: float = 0
) -> Choice:
    """Choose the smallest combination in which every stream meets its criterion.

    Args:
        measured: at least one measurement of every stream and storage backend.
        criteria: accepted loss, by stream.
        max_bytes: largest size of the store; where no accepted combination fits, the one that loses least of
            those that fit is chosen. 0 for any size.
    """
    best: tuple[Measurement, ...] = ()
    for storage in dict.fromkeys(m.storage for m in measured):
        here = [[m for m in measured if (m.stream, m.storage) == (s, storage)] for s in criteria]
        found = min(product(*here), key=lambda c: _rank(c, criteria, max_bytes))
        if not best or _better(found, best, criteria, max_bytes):
            best = found
    why = {m.stream: _why(m, measured, criteria[m.stream], max_bytes) for m in best}
    why["storage"] = _why_storage(best, measured)
    return Choice(
        {m.stream: m for m in best}, best[0].storage, weight(best), {k: v for k, v in why.items() if v}
    )


def weight(parts: Sequence[Measurement]) -> int:
    """Return the bytes of a store that holds these streams: the records' metadata counts once."""
    return sum(m.bytes for m in parts) - sum(sorted(m.common for m in parts)[:-1])


def _rank(
    parts: Sequence[Measurement], criteria: Mapping[str, Criterion], max_bytes: float
) -> tuple[float, ...]:
    """Return a sort key: size beyond the limit, streams that fail, how far they fail, bytes."""
    size = weight(parts)
    heavy = bool(max_bytes) and size > max_bytes
    failing = [m for m in parts if not m.meets(criteria[m.stream])]
    partial = sum(m.held < criteria[m.stream].aligned for m in failing)
    over = max((m.worst[0] / criteria[m.stream].budget for m in failing), default=0.0)
    return (size if heavy else 0, len(failing), partial, over, size)


def _better(
    new: Sequence[Measurement],
    old: Sequence[Measurement],
    criteria: Mapping[str, Criterion],
    max_bytes: float,
) -> bool:
    """Tell whether another storage backend's combination is worth its compressor."""
    *a, new_size = _rank(new, criteria, max_bytes)
    *b, old_size = _rank(old, criteria, max_bytes)
    return a < b or (a == b and new_size < WORTH * old_size)


def _why(m: Measurement, measured: Sequence[Measurement], asked: Criterion, max_bytes: float) -> str:
    same = [o for o in measured if (o.stream, o.storage) == (m.stream, m.storage)]
    good = sorted((o for o in same if o.meets(asked)), key=lambda o: o.bytes)
    mean, at = m.worst
    lose = f"lose at most {asked.budget:g} nats a row on average at each of the temperatures " + ", ".join(
        f"{t:g}" for t in m.kl
    )
    most = f"{mean:.1g} at most, at {at:g}"
    if m.of_layer:
        lose = f"lose at most {asked.budget:g} of a row's squared length on average"
        most = f"{mean:.1g}"
    if good and m is good[0]:
        first = f"the smallest of {len(good)} that {lose}" if len(good) > 1 else f"the only one to {lose}"
        then = (
            f"; {good[1].encoding} comes next, {good[1].bytes / m.bytes:.1f} times as large"
            if good[1:]
            else ""
        )
        return f"{m.encoding} is {first} ({most}){then}."
    if m in good:
        return f"{m.encoding} is one of {len(good)} that {lose} ({most})."
    if max_bytes:
        within = f"No encoding that was tried and fits into {max_bytes / 1e9:g} GB is known to {lose}"
        return f"{within}; of those that fit, {m.encoding} loses least ({most})."
    return f"No encoding that was tried is known to {lose}; {m.encoding} comes nearest ({most})."


def _why_storage(parts: Sequence[Measurement], measured: Sequence[Measurement]) -> str:
    """Compare the chosen storage backend with the others, for the same encodings."""
    own = [(m.stream, m.encoding) for m in parts]
    here, sentences = weight(parts), []
    for storage in dict.fromkeys(m.storage for m in measured):
        same = [m for m in measured if m.storage == storage and (m.stream, m.encoding) in own]
        if storage == parts[0].storage or len(same) < len(own):
            continue
        other = weight(same)
        if here < other:
            sentences.append(f"{parts[0].storage} makes it {1 - here / other:.0%} smaller than {storage}.")
        else:
            sentences.append(
                f"{storage} would save {1 - other / here:.0%}: too little for unpacking every record."
            )
    return " ".join(sentences)
