"""The choice between measured encodings: the smallest that keeps what was asked, and why in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ...schema.kinds import kind_of

ALIGNED = 0.99  # of the teacher's alignments must run through the nodes that a lattice keeps
WORTH = 0.9  # a compressor must save a tenth: a store without one is mapped, not unpacked


@dataclass(frozen=True)
class Asked:
    """What is good enough for a stream.

    Attributes:
        budget: nats that a row may lose on average, at every temperature.
        aligned: share of the teacher's alignments that the nodes of a lattice must hold.
    """

    budget: float
    aligned: float = ALIGNED


@dataclass(frozen=True)
class Measured:
    """What one encoding costs and keeps.

    Attributes:
        stream: its name.
        encoding: as a user writes it, form included.
        storage: that it was written with.
        bytes: of the whole manifest, extrapolated, with what is kept once.
        once: of these, kept once.
        common: of these, what a second stream in the same store would share.
        bytes_per_frame: of the audio, also of a decoder's rows, of which there are U; index, checksums and
            entries included, without what is kept once.
        kl: mean and 99th percentile of nats a row, by temperature; of a layer, to which none applies, of the
            share of its squared length that a row loses, at 1.
        held: share of the teacher's alignments that the lattice's nodes hold; 1 where it keeps all.
        encoding_speed: seconds of audio that are encoded and written in one.
        speed: the same, loading and the teacher included, one after the other.
    """

    stream: str
    encoding: str
    storage: str
    bytes: int
    once: int
    common: int
    bytes_per_frame: float
    kl: Mapping[float, tuple[float, float]]
    held: float
    encoding_speed: float
    speed: float

    @property
    def of_layer(self) -> bool:
        """Whether rows are numbers, and no distributions."""
        return not kind_of(self.stream).classes

    @property
    def worst(self) -> tuple[float, float]:
        """Mean nats where they are most, and that temperature."""
        return max((mean, t) for t, (mean, _) in self.kl.items())

    def keeps(self, asked: Asked) -> bool:
        """Whether no temperature loses more, and no alignment of weight is left out."""
        return self.worst[0] <= asked.budget and self.held >= asked.aligned

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        lost = {f"{t:g}": {"mean": mean, "p99": p99} for t, (mean, p99) in self.kl.items()}
        return {
            "encoding": self.encoding,
            "storage": self.storage,
            "bytes_per_frame": round(self.bytes_per_frame, 3),
            "bytes_once": self.once,
            "gigabytes": self.bytes / 1e9,
            **({"relative_error": lost["1"]} if self.of_layer else {"kl": lost}),
            "alignments": self.held,
            "encode_speed": round(self.encoding_speed, 1),
            "speed": round(self.speed, 1),
        }


@dataclass(frozen=True)
class Choice:
    """One encoding a stream, and a storage for all.

    Attributes:
        streams: chosen, by stream.
        storage: of the store.
        bytes: of the store.
        why: a sentence a stream, and one for the storage where there was a choice.
    """

    streams: Mapping[str, Measured]
    storage: str
    bytes: int
    why: Mapping[str, str]


def choose(measured: Sequence[Measured], asked: Mapping[str, Asked], max_bytes: float = 0) -> Choice:
    """The smallest combination in which every stream is good enough.

    Args:
        measured: at least one of every stream and storage.
        asked: by stream.
        max_bytes: that the store may weigh; where nothing good enough fits, what loses least of what does.
            0 for any weight.
    """
    best: tuple[Measured, ...] = ()
    for storage in dict.fromkeys(m.storage for m in measured):
        here = [[m for m in measured if (m.stream, m.storage) == (s, storage)] for s in asked]
        found = min(product(*here), key=lambda c: _rank(c, asked, max_bytes))
        if not best or _better(found, best, asked, max_bytes):
            best = found
    why = {m.stream: _why(m, measured, asked[m.stream], max_bytes) for m in best}
    why["storage"] = _why_storage(best, measured)
    return Choice(
        {m.stream: m for m in best}, best[0].storage, weight(best), {k: v for k, v in why.items() if v}
    )


def weight(parts: Sequence[Measured]) -> int:
    """Bytes of a store that holds these streams: what its rows say of themselves counts once."""
    return sum(m.bytes for m in parts) - sum(sorted(m.common for m in parts)[:-1])


def _rank(parts: Sequence[Measured], asked: Mapping[str, Asked], max_bytes: float) -> tuple[float, ...]:
    """Smaller is better: heavier than allowed, streams not good enough, what they lack, bytes."""
    size = weight(parts)
    heavy = bool(max_bytes) and size > max_bytes
    failing = [m for m in parts if not m.keeps(asked[m.stream])]
    partial = sum(m.held < asked[m.stream].aligned for m in failing)
    over = max((m.worst[0] / asked[m.stream].budget for m in failing), default=0.0)
    return (size if heavy else 0, len(failing), partial, over, size)


def _better(
    new: Sequence[Measured], old: Sequence[Measured], asked: Mapping[str, Asked], max_bytes: float
) -> bool:
    """Whether another storage's combination is worth it."""
    *a, new_size = _rank(new, asked, max_bytes)
    *b, old_size = _rank(old, asked, max_bytes)
    return a < b or (a == b and new_size < WORTH * old_size)


def _why(m: Measured, measured: Sequence[Measured], asked: Asked, max_bytes: float) -> str:
    same = [o for o in measured if (o.stream, o.storage) == (m.stream, m.storage)]
    good = sorted((o for o in same if o.keeps(asked)), key=lambda o: o.bytes)
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
        within = f"Nothing tried that fits into {max_bytes / 1e9:g} GB is known to {lose}"
        return f"{within}; of what fits, {m.encoding} loses least ({most})."
    return f"Nothing tried is known to {lose}; {m.encoding} comes nearest ({most})."


def _why_storage(parts: Sequence[Measured], measured: Sequence[Measured]) -> str:
    """How the chosen storage compares with the others, for the same encodings."""
    own = [(m.stream, m.encoding) for m in parts]
    here, said = weight(parts), []
    for storage in dict.fromkeys(m.storage for m in measured):
        same = [m for m in measured if m.storage == storage and (m.stream, m.encoding) in own]
        if storage == parts[0].storage or len(same) < len(own):
            continue
        other = weight(same)
        if here < other:
            said.append(f"{parts[0].storage} makes it {1 - here / other:.0%} smaller than {storage}.")
        else:
            said.append(f"{storage} would save {1 - other / here:.0%}: too little to unpack every row for.")
    return " ".join(said)
