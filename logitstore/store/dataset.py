"""A map-style dataset of targets for a DataLoader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from ..errors import MissingUtterance, UsageError
from ..targets.batch import collate_targets
from ..targets.clip import Clip, Clipped
from ..targets.keywords import checked_keywords
from ..targets.target import Target
from .reader import Store, open_store

MISSING = ("error", "skip")


class TargetDataset(Dataset[Target | Clipped]):
    """Targets of some or all utterances of a store, in a fixed order.

    ::

        collate = functools.partial(collate_targets, temperature=2.0)
        loader = DataLoader(TargetDataset("store"), batch_size=16, collate_fn=collate, num_workers=4)

    A dataset pickles as the store's location and the ids, so worker processes can be spawned or forked.

    Args:
        store: an opened store, or its location.
        ids: utterance ids or clips, in the order of the dataset; None for all utterances, in stored order.
        missing: ``error``, or ``skip`` to leave out ids that the store does not hold.

    Raises:
        MissingUtterance: an id that the store does not hold.
        UsageError: another value of ``missing``.
    """

    @checked_keywords(
        {"collate_targets, collate_fn=functools.partial(collate_targets, ...)": collate_targets}
    )
    def __init__(
        self, store: Store | Any, ids: Sequence[str | Clip] | None = None, *, missing: str = "error"
    ) -> None:
        if missing not in MISSING:
            raise UsageError(f"missing={missing!r}", do=f"Known: {', '.join(MISSING)}.")
        self.store = store if isinstance(store, Store) else open_store(store)
        self.ids: list[str | Clip] = list(self.store) if ids is None else list(ids)
        if ids is None:
            return
        absent = [i for i in self.ids if not all(utt_id in self.store for utt_id in _utterances(i))]
        if absent and missing == "error":
            raise MissingUtterance(
                f"{len(absent)} of {len(self.ids)} utterances are not in the store, the first {absent[0]!r}",
                where=str(self.store.place),
                do="Dump them, or leave them out with missing='skip'.",
            )
        left_out = set(absent)
        self.ids = [i for i in self.ids if i not in left_out]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Target | Clipped:
        """Read one target, or a clip's targets; raises what :meth:`Store.__getitem__` raises."""
        chosen = self.ids[index]
        return self.store.read_clip(chosen) if isinstance(chosen, Clip) else self.store[chosen]

    def __getitems__(self, indices: Sequence[int]) -> list[Target | Clipped]:
        """Read the targets of a batch in the order of the dataset, and return them as they were asked for."""
        found = {index: self[index] for index in sorted(set(indices))}
        return [found[index] for index in indices]


def _utterances(chosen: str | Clip) -> Sequence[str]:
    """Return the ids of the utterances that an id or a clip reads."""
    return chosen.ids if isinstance(chosen, Clip) else [chosen]
