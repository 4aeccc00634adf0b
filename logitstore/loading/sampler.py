"""A batch sampler that follows epoch plans, for a plain DataLoader and for trainers that take one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from numpy.typing import ArrayLike
from torch.utils.data import Sampler

from ..errors import IdentityError, UsageError
from ..store.reader import Store
from .durations import Durations
from .plan import EpochPlan, PlanSettings

T = TypeVar("T")


class PlanBatchSampler(Sampler[list[int]]):
    """Batches of positions by an :class:`EpochPlan`, for ``DataLoader(dataset, batch_sampler=...)``.

    ::

        dataset = TargetDataset(store)
        sampler = PlanBatchSampler(store, seed=0, seconds_per_batch=120, micro=8)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_targets, num_workers=2)
        for epoch in range(sampler.epoch, 10):
            sampler.set_epoch(epoch)
            for batch in sampler.counted(loader):
                ...
                checkpoint["sampler"] = sampler.state_dict()

    A state says which epoch and how many whole steps are done. Another process, of a world of another size, goes
    on behind them: no utterance is left out or repeated.

    Args:
        utterances: an opened store in stored order, ids, or :class:`Durations`, in the order of the dataset.
        seconds: durations of the ids in seconds; None for a store.
        seed: seed of the order.
        seconds_per_batch, buckets, micro, shards_per_block: as :class:`EpochPlan`.
        rank: number of this process. None: of ``torch.distributed`` if it is initialised, else of the
            environment variable ``RANK``, else 0.
        world: number of processes, likewise, with ``WORLD_SIZE``, else 1. ``accelerate`` shares the batches
            of a sampler among its processes itself: give ``rank=0, world=1`` there.

    Attributes:
        epoch: number of the epoch that the next iteration gives.

    Raises:
        UsageError: as :class:`EpochPlan`; a number of processes that does not divide ``micro``.
    """

    def __init__(
        self,
        utterances: Durations | Store | Sequence[str],
        seconds: ArrayLike | None = None,
        *,
        seed: int,
        seconds_per_batch: float,
        buckets: int | Sequence[float] | None = None,
        micro: int = 1,
        shards_per_block: int | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        bounds: Any = buckets if buckets is None or isinstance(buckets, int) else tuple(buckets)
        self._settings = PlanSettings(seed, seconds_per_batch, bounds, micro, shards_per_block)
        own_rank, own_world = _rank_and_world()
        self._rank = own_rank if rank is None else rank
        self._world = own_world if world is None else world
        self._settings.require_world(self._rank, self._world)
        self._durations = Durations.of(utterances, seconds)
        self._plans: dict[int, EpochPlan] = {}  # of the last epochs asked for
        self.epoch = 0
        self._first_step = 0  # of the next iteration, later than 0 after load_state_dict
        self._taken = 0  # batches of this process since that step
        self._counts_itself = True

    @property
    def plan(self) -> EpochPlan:
        """The plan of the epoch; made when it is first asked for."""
        return self._plan_of(self.epoch)

    def __len__(self) -> int:
        """Return the number of batches that the next iteration gives this process."""
        epoch, first = (self.epoch + 1, 0) if self._is_done() else (self.epoch, self._first_step)
        return (self._plan_of(epoch).steps - first) * self._per_step

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the positions of the utterances of each batch.

        The first iteration goes on behind a loaded state. An iteration behind a finished epoch gives the next
        one, so that trainers that do not call ``set_epoch`` never repeat an order.
        """
        if self._is_done():
            self.epoch, self._first_step = self.epoch + 1, 0
        plan, self._taken = self.plan, 0
        for batch in plan.batches(self._rank, self._world, step=self._first_step):
            self._taken += self._counts_itself
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; the epoch of a loaded state goes on where the state was taken."""
        if epoch != self.epoch or self._is_done():
            self.epoch, self._first_step, self._taken = epoch, 0, 0

    def counted(self, loader: Iterable[T]) -> Iterator[T]:
        """Yield the batches of a loader of this sampler, and count them for :meth:`state_dict`.

        Workers fetch batches ahead of the training loop; a batch counts once the loop has been given it.
        """
        self._counts_itself = False
        try:
            for batch in loader:
                self._taken += 1
                yield batch
        finally:
            self._counts_itself = True

    def state_dict(self, *, step: int | None = None) -> dict[str, Any]:
        """Return the state in at most 200 bytes of JSON: digests of settings and data, epoch and step.

        Args:
            step: number of whole steps of the epoch that are done. None: as many as :meth:`counted` has
                yielded all batches of; without it as the sampler itself has, which is too many where a
                loader has workers.
        """
        done = self._first_step + self._taken // self._per_step if step is None else step
        epoch, done = (self.epoch + 1, 0) if done >= self.plan.steps else (self.epoch, done)
        return {
            "plan": self._settings.digest,
            "data": self._durations.digest,
            "epoch": epoch,
            "step": done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the steps of a state; nothing is read or made for that.

        Raises:
            IdentityError: the state was taken with other data.
            UsageError: the state was taken with other settings, or is no state.
        """
        try:
            plan, data, epoch, step = (state[key] for key in ("plan", "data", "epoch", "step"))
            if not (type(epoch) is type(step) is int and epoch >= 0 and step >= 0):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise UsageError(
                f"this is no state of a PlanBatchSampler: {state!r:.200}",
                do="Give what state_dict() returned.",
            ) from None
        if data != self._durations.digest:
            raise IdentityError(
                f"the state was taken with other data: {data!s:.16}…, here {self._durations.digest[:16]}…",
                why="Its step would stand for other utterances: some would be repeated, others left out.",
                do="Give the same store or ids in the same order, with the same durations, or begin a new epoch.",
            )
        if plan != self._settings.digest:
            raise UsageError(
                f"the state was taken with other settings than {self._settings}",
                why="Its step would stand for other utterances: some would be repeated, others left out.",
                do="Give the same seed, seconds_per_batch, buckets, micro and shards_per_block.",
            )
        self.epoch, self._first_step, self._taken = epoch, step, 0

    def _plan_of(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch; two plans are kept."""
        if epoch not in self._plans:
            self._plans = dict(list(self._plans.items())[-1:])
            self._plans[epoch] = EpochPlan.of(self._durations, self._settings, epoch)
        return self._plans[epoch]

    @property
    def _per_step(self) -> int:
        """Batches that this process takes of a step."""
        return self._settings.micro // self._world

    def _is_done(self) -> bool:
        """Return whether every batch of the epoch was taken."""
        return self._taken > 0 and self._first_step + self._taken // self._per_step >= self.plan.steps


def _rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
