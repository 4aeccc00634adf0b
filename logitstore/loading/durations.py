"""Durations of utterances in milliseconds: the data that an epoch plan is made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError
from ..store.reader import Store

CHUNK = 100_000  # ids that are hashed at once
MAX_MS = (1 << 31) - 1


class Durations:
    """Durations of N utterances, in the order of a dataset.

    Args:
        utterances: an opened store, whose records' metadata are read once; or N utterance ids.
        seconds: (N,) durations of the ids in seconds; None for a store.
        shards: (N,) number of the shard of each id, for plans that shuffle shards; known of a store.

    Attributes:
        milliseconds: (N,) int32, rounded, so that sums do not depend on the machine.
        shards: (N,) int32, the number of each utterance's shard; None where shards are not known.
        digest: SHA-256 of ids and durations, of a store's identity as well; 32 hexadecimal digits.

    Raises:
        UsageError: no utterances, an utterance without a duration, or another number of durations than ids.
    """

    def __init__(
        self,
        utterances: Store | Sequence[str],
        seconds: ArrayLike | None = None,
        *,
        shards: ArrayLike | None = None,
    ) -> None:
        self._utterances = utterances
        self._sha = hashlib.sha256()
        if isinstance(utterances, Store):
            if seconds is not None or shards is not None:
                raise UsageError(
                    "seconds and shards are given beside a store, which has them",
                    do="Give the store alone, or ids with seconds.",
                )
            values, shards = self._read_store(utterances)
        else:
            if isinstance(utterances, str):
                raise UsageError(
                    f"{utterances!r} is one string", do="Give an opened store, or a list of ids."
                )
            if seconds is None:
                raise UsageError("ids without seconds", do="Give the duration of every id: seconds=[...].")
            values = self._read_ids(utterances, seconds)
        self.milliseconds = self._checked(values)
        self.shards = None if shards is None else np.asarray(shards, np.int32)
        if self.shards is not None and len(self.shards) != len(self):
            raise UsageError(
                f"{len(self.shards)} shard numbers for {len(self)} utterances", do="Give one per utterance."
            )
        for array in (self.milliseconds, self.shards):
            if array is not None:
                self._sha.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        self.digest = self._sha.hexdigest()[:32]

    @classmethod
    def of(cls, utterances: Any, seconds: ArrayLike | None = None) -> Durations:
        """Return durations as they are, or those of a store or of ids."""
        return utterances if isinstance(utterances, Durations) else cls(utterances, seconds)

    def __len__(self) -> int:
        return len(self.milliseconds)

    def name(self, position: int) -> str:
        """Return the id of the utterance at a position."""
        if isinstance(self._utterances, Store):
            return next(islice(self._utterances, position, None))
        return self._utterances[position]

    def _read_ids(self, ids: Sequence[str], seconds: ArrayLike) -> NDArray[np.float64]:
        """Return the seconds of ids as an array, NaN for None; the ids are hashed."""
        values = np.asarray(seconds, np.float64)  # None becomes NaN
        if values.shape != (len(ids),):
            raise UsageError(
                f"durations of the shape {values.shape} for {len(ids)} ids",
                do="Give one number of seconds per id, in the same order.",
            )
        for first in range(0, len(ids), CHUNK):
            self._sha.update("".join(f"{utt_id}\n" for utt_id in ids[first : first + CHUNK]).encode())
        return values

    def _read_store(self, store: Store) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Return the seconds and the shard numbers of a store's records, in stored order; the ids are hashed."""
        self._sha.update(store.spec.identity.encode())
        counts = []
        for shard in store.shards:
            ids = store.entry(shard).record_ids
            counts.append(len(ids))
            self._sha.update(ids.text)
        of_records = (meta.get("seconds") or np.nan for meta in store.metadata())
        values = np.fromiter(of_records, np.float64)
        return values, np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    def _checked(self, seconds: NDArray[np.float64]) -> NDArray[np.int32]:
        """Return seconds as milliseconds; raise ``UsageError`` where one is missing."""
        if not len(seconds):
            raise UsageError("there are no utterances", do="Give at least one.")
        milliseconds = np.rint(seconds * 1000)
        wrong = ~((milliseconds >= 1) & (milliseconds <= MAX_MS))  # NaN is wrong too
        if wrong.any():
            first = int(np.argmax(wrong))
            raise UsageError(
                f"{np.count_nonzero(wrong)} of {len(seconds)} utterances have no duration, the first "
                f"{self.name(first)!r} with {seconds[first]} seconds",
                why="Batches are made of utterances of similar duration.",
                do="Give the seconds of every utterance: EpochPlan(ids, seconds, ...).",
            )
        return milliseconds.astype(np.int32)
