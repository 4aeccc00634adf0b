"""The fixed plan of a dump: which utterances make which shard, whoever dumps it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..corpus.manifest import Manifest, Utterance
from ..errors import UsageError
from .world import Part

DEFAULT_SHARD_SIZE = "500"


@dataclass(frozen=True)
class ShardSize:
    """How much of the manifest makes one shard.

    Attributes:
        utterances: at most so many; 0 for no such bound.
        seconds: close a shard once it holds so many seconds of audio; 0 for no such bound.
    """

    utterances: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> ShardSize:
        """``500`` utterances, or an amount of audio: ``90s``, ``30m``, ``2h``."""
        m = re.fullmatch(r"(\d{1,9})([smh]?)", text)
        if not m or int(m[1]) == 0:
            raise UsageError(
                f"{text!r} is no shard size", do="Give utterances (500) or an amount of audio (90s, 30m, 2h)."
            )
        if not m[2]:
            return cls(utterances=int(m[1]))
        return cls(seconds=float(int(m[1]) * {"s": 1, "m": 60, "h": 3600}[m[2]]))


@dataclass(frozen=True)
class Block:
    """Consecutive utterances of the manifest that make one shard.

    Attributes:
        number: from 0, in manifest order.
        utterances: in manifest order.
    """

    number: int
    utterances: tuple[Utterance, ...]

    @property
    def name(self) -> str:
        """Of its shard."""
        return f"{self.number:06d}"


def blocks(
    manifest: Manifest, size: ShardSize, part: Part, seconds_of: Callable[[Utterance], float]
) -> Iterator[Block]:
    """The blocks of one job's part.

    Boundaries depend on the manifest and the shard size alone, never on the number of jobs: job i of N takes
    blocks i, i + N, ..., and the finished store is the same for any N.
    """
    number, held, total = 0, list[Utterance](), 0.0
    for utt in manifest:
        held.append(utt)
        if size.seconds:
            total += seconds_of(utt)
        if (size.utterances and len(held) >= size.utterances) or (size.seconds and total >= size.seconds):
            if part.takes(number):
                yield Block(number, tuple(held))
            number, held, total = number + 1, [], 0.0
    if held and part.takes(number):
        yield Block(number, tuple(held))
