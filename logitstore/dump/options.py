"""Options and progress of a dump."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..runner.chunks import Chunks
from ..schema.kinds import kind_of
from ..schema.spec import TeacherSpec
from ..storage.shard_size import DEFAULT_SHARD_SIZE, ShardSize
from ..tokens.table import TokenTable
from .blocks import JobPart


@dataclass(frozen=True)
class DumpOptions:
    """Options of :func:`logitstore.dump_logits`.

    Attributes:
        streams: encoding by stream name, with a lattice form where wanted: ``{"ctc": "dense", "rnnt":
            "topk:16/banded:5"}``; ``auto`` for the smallest encoding that a plan accepts. Empty: ``ctc=dense``,
            unless ``layers`` or ``encoding`` name what to dump.
        layers: layers to dump as ``hidden`` streams: ``PATH``, ``NAME=PATH:LAYOUT``, e.g. ``encoder.layers.3``.
        encoding: encoding of the teacher's streams that ``streams`` does not name; empty: these are left out.
        u_sample: label positions of each lattice frame to keep: short for ``rnnt=…/sample:N``.
        storage: storage backend: ``zarr``, ``zarr:blosc``, ``webdataset``, ...
        batch_seconds: seconds of audio in one padded batch; 0 for one utterance at a time.
        device: device of the teacher: ``cpu``, ``cuda``, ``cuda:1``, ...
        shard_size: utterances or audio of one shard; see :class:`logitstore.storage.shard_size.ShardSize`.
        on_error: ``raise``, or ``skip`` to leave out an utterance that fails and list it.
        max_skipped: stop when more utterances are skipped: a number, or a share such as ``1%``.
        part: part i of N of the manifest.
        tokens: token table that the teacher's must equal.
        allow_different: fields of the store's identity that may differ when it is resumed.
        threads: threads that load audio.
        cpu_threads: threads of a teacher on the CPU. Matrix products round differently with another number,
            so it is fixed: any number of jobs on the machine gives the same bytes.
        max_wer: word error rate in percent, over the first references, above which the dump stops.
        skip_checks: reason why a teacher that a check would refuse is right; it is stored. Empty: checks stop
            the dump.
        transcripts: streams whose greedy decode is stored: ``none``, ``ctc`` or ``all``; ``text`` always is.
        chunk: seconds of one chunk of longer recordings; None: recordings run whole.
        overlap: seconds that a chunk shares with the next; half of them are dropped on either side.
    """

    streams: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    encoding: str = ""
    u_sample: int | None = None
    storage: str = "zarr"
    batch_seconds: float = 120.0
    device: str = "cpu"
    shard_size: str = DEFAULT_SHARD_SIZE
    on_error: str = "raise"
    max_skipped: str = "100%"
    part: JobPart = field(default_factory=JobPart)
    tokens: TokenTable | None = None
    allow_different: tuple[str, ...] = ()
    threads: int = 2
    cpu_threads: int = 1
    max_wer: float = 50.0
    skip_checks: str = ""
    transcripts: str = "ctc"
    chunk: Any = None
    overlap: Any = None

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise UsageError(f"on_error is {self.on_error!r}", do="Give raise or skip.")
        if self.transcripts not in ("none", "ctc", "all"):
            raise UsageError(f"transcripts is {self.transcripts!r}", do="Give none, ctc or all.")
        if not re.fullmatch(r"\d{1,9}|\d{1,3}(\.\d{1,6})?%", self.max_skipped):
            raise UsageError(f"max_skipped is {self.max_skipped!r}", do="Give a number or a share: 50, 1%.")
        if self.overlap is not None and self.chunk is None:
            raise UsageError("an overlap without a chunk", do="Give both, e.g. --chunk 30 --overlap 5.")
        ShardSize.parse(self.shard_size)

    def encodings(self, teacher: TeacherSpec) -> dict[str, str]:
        """Return the encoding of every stream to dump; raises ``UsageError``.

        Args:
            teacher: description of the teacher, further layers included.
        """
        found = {h.stream: "vectors" for h in teacher.heads if h.stream in self._layer_names()}
        if self.encoding:
            found |= {h.stream: self.encoding for h in teacher.heads if kind_of(h.stream).classes}
        found |= self.streams or ({} if found else {"ctc": "dense"})
        if self.u_sample is not None:
            if "rnnt" not in found or "/" in found["rnnt"]:
                raise UsageError(
                    f"u_sample={self.u_sample} with rnnt={found.get('rnnt', '')}",
                    do="Sampling is a lattice form: --stream rnnt=topk:16 --u-sample 4, or rnnt=topk:16/sample:4.",
                )
            found["rnnt"] += f"/sample:{self.u_sample}"
        return found

    def _layer_names(self) -> set[str]:
        return {name if found else "hidden" for name, found, _ in (x.partition("=") for x in self.layers)}

    def chunks(self, teacher: TeacherSpec) -> Chunks | None:
        """Return how longer recordings are cut; None where they run whole. Raises ``UsageError``."""
        overlap = 5 if self.overlap is None else self.overlap
        return None if self.chunk is None else Chunks.of_seconds(self.chunk, overlap, teacher)

    def may_skip(self, utterances: int) -> int:
        """Return the number of utterances, of these many, that may be skipped."""
        number = float(self.max_skipped.rstrip("%"))
        return int(number * utterances / 100 if self.max_skipped.endswith("%") else number)


@dataclass
class DumpProgress:
    """Progress of a dump, given to the caller after every batch.

    Attributes:
        total: utterances of the manifest, of all parts.
        done: utterances dumped in this run.
        present: utterances that were sealed before, or by another job meanwhile.
        skipped: utterances listed in ``skipped.jsonl`` in this run.
        seconds: seconds of audio dumped in this run.
        frames: teacher frames dumped in this run.
        bytes: bytes of the shards sealed in this run.
        shards: shards sealed in this run.
        elapsed: seconds since the teacher began.
        findings: findings of the self-check, once it ran.
        planned: encoding taken for each ``auto`` stream, and the reason.
    """

    total: int
    done: int = 0
    present: int = 0
    skipped: int = 0
    seconds: float = 0.0
    frames: int = 0
    bytes: int = 0
    shards: int = 0
    elapsed: float = 0.0
    findings: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()
