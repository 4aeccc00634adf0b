"""Blocks of a manifest, which become shards; the same for any number of jobs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..corpus.audio import stated_seconds
from ..corpus.manifest import Manifest, Utterance
from ..errors import UsageError
from ..storage.shard_size import ShardSize

RECORD_BYTES = 200  # of a record's metadata, for the estimate of a block's bytes
TYPICAL_SECONDS = 10.0  # of an utterance whose duration the manifest does not state


@dataclass(frozen=True)
class Block:
    """Consecutive utterances of the manifest that make one shard.

    Attributes:
        number: index of the block, from 0.
        utterances: utterances in manifest order.
    """

    number: int
    utterances: tuple[Utterance, ...]

    @property
    def name(self) -> str:
        """Name of the shard."""
        return f"{self.number:06d}"


def blocks(
    manifest: Manifest,
    size: ShardSize,
    part: JobPart,
    seconds_of: Callable[[Utterance], float],
    bytes_per_second: float = 0.0,
) -> Iterator[Block]:
    """Yield the blocks of one job's part.

    Boundaries depend on the manifest, the shard size and the encodings alone, never on the number of jobs: job
    i of N takes blocks i, i + N, ..., and the finished store is the same for any N.

    Args:
        manifest: the utterances.
        size: size of a block. Its bytes are estimated, because the boundaries are needed before anything is
            encoded; an utterance whose duration the manifest does not state counts as ten seconds.
        part: part of the blocks that this job takes.
        seconds_of: function that returns the duration of an utterance, reading its header if need be; called
            only if the size limits the amount of audio.
        bytes_per_second: estimate of the encoded bytes of a second of audio.
    """
    number, held, total, stored = 0, list[Utterance](), 0.0, 0.0
    for utt in manifest:
        held.append(utt)
        if size.seconds:
            total += seconds_of(utt)
        if size.bytes:
            stated = stated_seconds(utt)
            stored += RECORD_BYTES + bytes_per_second * (TYPICAL_SECONDS if stated is None else stated)
        if size.complete(len(held), total, stored):
            if part.takes(number):
                yield Block(number, tuple(held))
            number, held, total, stored = number + 1, [], 0.0, 0.0
    if held and part.takes(number):
        yield Block(number, tuple(held))


@dataclass(frozen=True)
class JobPart:
    """Part ``index`` of ``count`` jobs: every ``count``-th block, beginning with block ``index``."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(f"part {self.index} of {self.count} does not exist", do="Parts count from 0.")

    def takes(self, number: int) -> bool:
        return number % self.count == self.index

    def split(self, inner: JobPart) -> JobPart:
        """Return the part of this part that ``inner`` takes."""
        return JobPart(self.index + self.count * inner.index, self.count * inner.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> JobPart:
        """Parse ``i/N`` with i counted from 0; raises ``UsageError``."""
        m = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if not m:
            raise UsageError(f"{text!r} is not a part like 0/4", do="Give index/count, counted from 0.")
        return cls(int(m[1]), int(m[2]))
