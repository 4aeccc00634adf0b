"""Epoch plans: which utterances each batch of an epoch holds, for any number of processes.

A plan is a pure function of durations and settings. Random numbers are raw output of PCG64, whose values numpy
keeps the same in every version (NEP 19), and all sums are sums of integers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError
from ..store.reader import Store
from .durations import Durations

DEFAULT_BUCKETS = 30
MIN_RANDOM_BITS = 16  # of a sort key


@dataclass(frozen=True)
class PlanSettings:
    """Settings of an epoch plan that are the same in every epoch; :class:`EpochPlan` describes them."""

    seed: int
    seconds_per_batch: float
    buckets: int | tuple[float, ...] | None = None
    micro: int = 1
    shards_per_block: int | None = None

    def __post_init__(self) -> None:
        for name in ("seed", "micro", "shards_per_block"):
            value = getattr(self, name)
            if value is None and name == "shards_per_block":
                continue
            if type(value) is not int or value < (name != "seed"):
                least = "0 or more" if name == "seed" else "1 or more"
                raise UsageError(f"{name}={value!r}", do=f"Give a whole number, {least}.")
        if not self.seconds_per_batch > 0:
            raise UsageError(f"seconds_per_batch={self.seconds_per_batch!r}", do="Give seconds above 0.")
        if isinstance(self.buckets, bool) or (isinstance(self.buckets, int) and self.buckets < 1):
            raise UsageError(f"buckets={self.buckets!r}", do="Give 1 or more, or a list of upper bounds.")
        if self.buckets is not None and not isinstance(self.buckets, int):
            bounds = tuple(float(bound) for bound in self.buckets)
            if not bounds or bounds[0] <= 0 or any(a >= b for a, b in pairwise(bounds)):
                raise UsageError(
                    f"buckets={self.buckets!r}", do="Give upper bounds in seconds in ascending order."
                )
            object.__setattr__(self, "buckets", bounds)

    @property
    def milliseconds(self) -> int:
        """Longest batch in milliseconds."""
        return round(self.seconds_per_batch * 1000)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the settings; 32 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    def require_world(self, rank: int, world: int) -> None:
        """Raise ``UsageError`` unless so many processes share every step equally and the rank is one of them."""
        if world < 1 or self.micro % world:
            divisors = [str(w) for w in range(1, self.micro + 1) if self.micro % w == 0]
            raise UsageError(
                f"{world} processes cannot share a step of micro={self.micro} batches equally",
                why="Every process takes the same number of batches of a step.",
                do=f"Use {', '.join(divisors)} processes, or a micro that {world} divides.",
            )
        if not 0 <= rank < world:
            raise UsageError(f"rank {rank} of {world} processes", do=f"Ranks go from 0 to {world - 1}.")


class EpochPlan:
    """The batches of one epoch, the same for every number of processes and workers.

    ::

        plan = EpochPlan(store, seed=0, epoch=3, seconds_per_batch=120, micro=8)
        for positions in plan.batches(rank=1, world=4):
            ids_of_batch = [ids[i] for i in positions]          # ids = list(store)

    A step is ``micro`` batches. A world of W processes shares each step: W divides ``micro``, and a process takes
    ``micro / W`` batches of every step, so that W = 1, 2, 4 and 8 train on the same steps with ``micro=8``. Every
    utterance is in exactly one batch of the epoch. A batch holds utterances of one bucket, that is of similar
    duration, and a step holds batches of one bucket as far as possible.

    Args:
        utterances: an opened store, in stored order; utterance ids; or :class:`Durations`.
        seconds: durations of the ids in seconds; None for a store.
        seed: seed of the order, 0 or more.
        epoch: number of the epoch, from 0; each has another order.
        seconds_per_batch: most seconds of a batch with its padding: number of utterances times the longest.
        buckets: number of buckets of about equal total duration, or their upper bounds in seconds. None for
            30, or fewer where the data would not fill a step of each.
        micro: batches of a step.
        shards_per_block: number of shards that are read at a time: the shards are shuffled, and utterances
            are shuffled within blocks of that many of them. None shuffles over the whole store.

    Attributes:
        durations: the durations that the plan was made from.
        settings: the settings that are the same in every epoch.
        epoch: number of the epoch.
        order: (N,) int64 positions of the utterances, batch after batch.
        begin: (steps × micro + 1,) int64, the first item of each batch in ``order``, and the end.
        steps: number of steps.

    Raises:
        UsageError: an utterance longer than a batch, an empty bucket, an utterance without a duration, fewer
            utterances than a step has batches, or a setting out of range.
    """

    def __init__(
        self,
        utterances: Durations | Store | Sequence[str],
        seconds: ArrayLike | None = None,
        *,
        seed: int,
        epoch: int = 0,
        seconds_per_batch: float,
        buckets: int | Sequence[float] | None = None,
        micro: int = 1,
        shards_per_block: int | None = None,
    ) -> None:
        bounds: Any = buckets if buckets is None or isinstance(buckets, int) else tuple(buckets)
        settings = PlanSettings(seed, seconds_per_batch, bounds, micro, shards_per_block)
        self._make(Durations.of(utterances, seconds), settings, epoch)

    @classmethod
    def of(cls, durations: Durations, settings: PlanSettings, epoch: int) -> EpochPlan:
        """Return the plan of an epoch by settings that are checked already."""
        plan = cls.__new__(cls)
        plan._make(durations, settings, epoch)
        return plan

    def _make(self, durations: Durations, settings: PlanSettings, epoch: int) -> None:
        if type(epoch) is not int or epoch < 0:
            raise UsageError(f"epoch={epoch!r}", do="Give a whole number, 0 or more.")
        self.durations, self.settings, self.epoch = durations, settings, epoch
        random = np.random.PCG64(np.random.SeedSequence([settings.seed, epoch]))
        bucket_at, buckets, capacity = _buckets(durations, settings)
        group = bucket_at[durations.milliseconds]
        blocks = 1
        if settings.shards_per_block is not None:
            block_of_shard, blocks = _blocks(durations, settings.shards_per_block, random)
            group += block_of_shard[durations.shards] * buckets
        by_group = _shuffled_by(group, blocks * buckets, random)
        sizes = np.bincount(group, minlength=blocks * buckets)
        begin = _batches(sizes, np.tile(capacity, blocks), settings.micro)
        self.steps = (len(begin) - 1) // settings.micro
        # the block of a step is that of its first utterance
        block_of_step = group[by_group[begin[: -1 : settings.micro]]] // buckets
        steps = _shuffled_by(block_of_step, blocks, random)
        self.order, self.begin = _by_step(by_group, begin, steps, settings.micro)

    def __len__(self) -> int:
        """Return the number of batches, of all processes together."""
        return len(self.begin) - 1

    def __getitem__(self, batch: int) -> NDArray[np.int64]:
        """Return the positions of the utterances of a batch, counted over all processes from 0."""
        if not 0 <= batch < len(self):
            raise IndexError(f"batch {batch} of {len(self)}")
        return self.order[self.begin[batch] : self.begin[batch + 1]]

    def batches(self, rank: int = 0, world: int = 1, *, step: int = 0) -> Iterator[list[int]]:
        """Yield the positions of the utterances of each batch of one process.

        Args:
            rank: number of the process, from 0.
            world: number of processes.
            step: first step.

        Raises:
            UsageError: the number of processes does not divide ``micro``.
        """
        self.settings.require_world(rank, world)
        return (self[batch].tolist() for batch in range(step * self.settings.micro + rank, len(self), world))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all batches in order; 64 hexadecimal digits."""
        sha = hashlib.sha256()
        for array in (self.order, self.begin):
            sha.update(array.astype("<i8", copy=False).tobytes())
        return sha.hexdigest()

    @property
    def padding(self) -> float:
        """Share of the padded seconds of all batches that is padding."""
        milliseconds = self.durations.milliseconds[self.order].astype(np.int64)
        longest = np.maximum.reduceat(milliseconds, self.begin[:-1])
        return 1 - int(milliseconds.sum()) / int((longest * np.diff(self.begin)).sum())


def _buckets(
    durations: Durations, settings: PlanSettings
) -> tuple[NDArray[np.int64], int, NDArray[np.int64]]:
    """Return the bucket of every duration in milliseconds, how many there are, and utterances a batch of each.

    Durations are counted by milliseconds, so that no array of all utterances is sorted.
    """
    limit, count = settings.milliseconds, np.bincount(durations.milliseconds)
    longest = len(count) - 1
    if longest > limit:
        position = int(np.argmax(durations.milliseconds))
        raise UsageError(
            f"{int(count[limit + 1 :].sum())} utterances are longer than a batch, the longest "
            f"{durations.name(position)!r} with {longest / 1000:g} s",
            do=f"Give seconds_per_batch of {longest / 1000:g} or more, or leave such utterances out.",
        )
    if isinstance(settings.buckets, tuple):
        bounds = np.rint(np.array(settings.buckets) * 1000)
        if bounds[-1] < longest:
            raise UsageError(
                f"the last bucket ends at {settings.buckets[-1]:g} s, the longest utterance has "
                f"{longest / 1000:g} s",
                do="Add an upper bound that is as long.",
            )
        bucket_at, number = np.searchsorted(bounds, np.arange(longest + 1)), len(bounds)
    else:
        total = count * np.arange(longest + 1)
        number = settings.buckets or _number_of_buckets(int(total.sum()), settings)
        middle = np.cumsum(total) - total // 2
        bucket_at = np.minimum(middle * number // int(total.sum()), number - 1)
    used = np.flatnonzero(count)
    filled = np.unique(bucket_at[used])
    if len(filled) < number:
        if settings.buckets is not None:
            empty = int(np.setdiff1d(np.arange(number), filled)[0])
            raise UsageError(
                f"bucket {empty} of {number} (from 0) is empty: no utterance has such a duration",
                do=f"Give fewer buckets; {len(filled)} hold utterances.",
            )
        bucket_at, number = np.searchsorted(filled, bucket_at), len(filled)
    longest_of = np.zeros(number, np.int64)
    np.maximum.at(longest_of, bucket_at[used], used)
    return bucket_at.astype(np.int64), number, limit // longest_of


def _number_of_buckets(total: int, settings: PlanSettings) -> int:
    """Return 30 buckets, or as many as have enough milliseconds for one step each."""
    return min(DEFAULT_BUCKETS, max(1, total // (settings.milliseconds * settings.micro)))


def _blocks(
    durations: Durations, shards_per_block: int, random: np.random.PCG64
) -> tuple[NDArray[np.int64], int]:
    """Return the block of every shard in a new order of the shards, and the number of blocks."""
    if durations.shards is None:
        raise UsageError(
            "the shards of the ids are not known",
            why="shards_per_block shuffles shards.",
            do="Give a store, or Durations(ids, seconds, shards=...).",
        )
    shards = int(durations.shards.max()) + 1
    block = np.empty(shards, np.int64)
    block[_shuffled_by(np.zeros(shards, np.int64), 1, random)] = np.arange(shards) // shards_per_block
    return block, -(-shards // shards_per_block)


def _shuffled_by(group: NDArray[np.int64], groups: int, random: np.random.PCG64) -> NDArray[np.int64]:
    """Return positions in the order of their groups, shuffled within each.

    The keys hold group, random bits and position; they all differ, so that every way to sort gives one order.
    """
    count = len(group)
    position_bits, group_bits = count.bit_length(), groups.bit_length()
    if position_bits + group_bits > 64 - MIN_RANDOM_BITS:
        raise UsageError(
            f"{count} utterances in {groups} groups are too many for one plan",
            do="Give fewer buckets, or more shards_per_block.",
        )
    keys = random.random_raw(count)
    keys >>= np.uint64(group_bits)
    keys &= ~np.uint64((1 << position_bits) - 1)
    keys |= group.astype(np.uint64) << np.uint64(64 - group_bits)
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    keys &= np.uint64((1 << position_bits) - 1)
    return keys.astype(np.int64)


def _batches(sizes: NDArray[np.int64], capacity: NDArray[np.int64], micro: int) -> NDArray[np.int64]:
    """Return where each batch begins and the end, (batches + 1,); their number is a multiple of ``micro``.

    The batches of a group differ by at most one utterance in size. The largest batches are halved until their
    number is a multiple.
    """
    count, first, begins = int(sizes.sum()), 0, []
    if count < micro:
        raise UsageError(
            f"{count} utterances do not fill one step of micro={micro} batches",
            do="Give a smaller micro, or more utterances.",
        )
    for size, most in zip(sizes.tolist(), capacity.tolist(), strict=True):
        batches = -(-size // most)
        begins.append(first + np.arange(batches) * size // max(batches, 1))
        first += size
    begin = np.append(np.concatenate(begins), count)
    while missing := -(len(begin) - 1) % micro:
        size = np.diff(begin)
        largest = np.sort(np.argsort(-size, kind="stable")[:missing])
        largest = largest[size[largest] > 1]
        begin = np.insert(begin, largest + 1, begin[largest] + size[largest] // 2)
    return begin


def _by_step(
    order: NDArray[np.int64], begin: NDArray[np.int64], steps: NDArray[np.int64], micro: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ``order`` and ``begin`` with the steps in another order."""
    batches = (steps[:, None] * micro + np.arange(micro)).ravel()
    size = np.diff(begin)[batches]
    moved = np.concatenate([np.zeros(1, np.int64), np.cumsum(size)])
    return order[np.arange(len(order)) + np.repeat(begin[batches] - moved[:-1], size)], moved
