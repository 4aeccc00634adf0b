"""What to plan, and what a plan says: sizes and losses of every encoding tried, and which one to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...encodings.rows import TEMPERATURES
from ...errors import UsageError
from ...runner.chunks import Chunks
from ...runner.gpu import require_device
from ...schema.kinds import kind_of
from ...storage.entries import DEFAULT_SHARD_SIZE, ShardSize
from .choose import Asked, Choice, Measured
from .contenders import BUDGET, Wish
from .extent import Extent

PLANNED = ("ctc", "rnnt", "seq2seq", "hidden")  # kinds of streams that encodings are measured on


@dataclass(frozen=True)
class PlanOptions:
    """How to plan.

    Attributes:
        streams: what is wished for each.
        storages: to try; the first is taken unless another saves a good deal.
        sample: utterances to run.
        temperatures: that rows are compared at.
        max_kl: nats that a row may lose on average at each of them, where a stream's wish says nothing else;
            of a layer's row, the share of its squared length that it may lose.
        max_gb: of the store; 0 for any size.
        batch_seconds, device, shard_size, cpu_threads, transcripts, skip_gate, chunks: as the dump will have
            them.
    """

    streams: Mapping[str, Wish]
    storages: tuple[str, ...] = ("zarr", "zarr:zstd")
    sample: int = 50
    temperatures: tuple[float, ...] = TEMPERATURES
    max_kl: float = BUDGET
    max_gb: float = 0.0
    batch_seconds: float = 120.0
    device: str = "cpu"
    shard_size: str = DEFAULT_SHARD_SIZE
    cpu_threads: int = 1
    transcripts: str = "ctc"
    skip_gate: str = ""
    chunks: Chunks | None = None

    def __post_init__(self) -> None:
        require_device(self.device)
        ShardSize.parse(self.shard_size)
        for t in self.temperatures:
            if not 1 <= t <= 16:
                raise UsageError(f"a temperature of {t:g}", do="From 1 to 16.")
        if other := [name for name in self.streams if kind_of(name).name not in PLANNED]:
            raise UsageError(
                f"no plan for {', '.join(other)}",
                do=f"Planned are {', '.join(PLANNED)}: say what to do with the others.",
            )
        for name, wish in self.streams.items():
            if wish.form and name != "rnnt":
                raise UsageError(
                    f"{name}=auto/{wish.form}: only an rnnt stream has lattice nodes to choose from"
                )
        if not self.streams or not self.temperatures or not self.max_kl > 0 or self.sample < 1:
            raise UsageError("nothing to plan", do="Streams, temperatures, utterances and a budget above 0.")

    def asked(self) -> dict[str, Asked]:
        """What is good enough, by stream. Whoever names a lattice form knows what it leaves out."""
        return {
            name: Asked(wish.budget or self.max_kl, **({"aligned": 0.0} if wish.form else {}))
            for name, wish in self.streams.items()
        }


@dataclass(frozen=True)
class Plan:
    """What was measured, and what to take.

    Attributes:
        teacher: its name.
        extent: of the manifest, and the sample.
        heard: utterances, seconds and frames of the sample that the teacher ran on.
        failed: why the others of it could not be used.
        speeds: seconds of audio in one, of loading (``load``), the encoder and an attention decoder
            (``teacher``) and the joiner (``joiner``), each by itself.
        measured: every encoding tried, with every storage.
        refused: by stream, encoding and reason.
        choice: what to take.
        asked: what is good enough, by stream.
        findings: of the self-check.
    """

    teacher: str
    extent: Extent
    heard: tuple[int, float, int]
    failed: tuple[str, ...]
    speeds: Mapping[str, float]
    measured: tuple[Measured, ...]
    refused: tuple[tuple[str, str, str], ...]
    choice: Choice
    asked: Mapping[str, Asked]
    findings: tuple[str, ...] = ()

    @property
    def mean_seconds(self) -> float:
        """Of an utterance of the sample."""
        return self.heard[1] / self.heard[0]

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``schema`` grows when a key changes its meaning."""
        utterances, seconds, frames = self.heard
        hours = self.extent.hours(self.mean_seconds)
        return {
            "schema": 1,
            "teacher": self.teacher,
            "manifest": {
                "utterances": self.extent.utterances,
                "hours": hours,
                "hours_from": self.extent.hours_from(self.mean_seconds),
                "frames": round(frames / seconds * hours * 3600),
            },
            "sample": {
                "utterances": utterances,
                "seconds": seconds,
                "frames": frames,
                "chosen": "the same distance apart in the manifest",
                "failed": list(self.failed),
            },
            "speed": dict(self.speeds),
            "streams": {
                s: {
                    "max_kl": self.asked[s].budget,
                    "candidates": [
                        {**m.to_json(), "good_enough": m.keeps(self.asked[s])}
                        for m in self.measured
                        if m.stream == s
                    ],
                    "refused": [{"encoding": e, "reason": r} for of, e, r in self.refused if of == s],
                    "recommended": chosen.encoding,
                    "why": self.choice.why[s],
                }
                for s, chosen in self.choice.streams.items()
            },
            "storage": self.choice.storage,
            "gigabytes": self.choice.bytes / 1e9,
        }
