"""A map-style dataset of targets for a DataLoader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from ..errors import MissingUtterance
from ..targets.clip import Clip, Clipped
from ..targets.target import Target
from .reader import Store, open_store


class TargetDataset(Dataset[Target | Clipped]):
    """Targets of some or all utterances of a store, in a fixed order.

    Zip it with one's own dataset by utterance id, or use it alone with ``collate_fn=collate_targets``. It
    pickles as its location and ids, so it works in worker processes however they start.

    Args:
        store: an opened store or its location.
        ids: utterances, or clips of them, in this order; None for all, in stored order.
        missing: ``error``, or ``skip`` to leave out ids that the store does not hold.

    Raises:
        MissingUtterance: an id that the store does not hold.
    """

    def __init__(
        self, store: Store | Any, ids: Sequence[str | Clip] | None = None, *, missing: str = "error"
    ) -> None:
        self.store = store if isinstance(store, Store) else open_store(store)
        self.ids: list[str | Clip] = list(self.store) if ids is None else list(ids)
        if ids is not None:
            absent = [i for i in self.ids if not all(u in self.store for u in _named(i))]
            if absent and missing != "skip":
                raise MissingUtterance(
                    f"{len(absent)} of {len(self.ids)} utterances are not there, the first {absent[0]!r}",
                    where=str(self.store.place),
                    do="Dump them, or leave them out: missing='skip'.",
                )
            gone = set(absent)
            self.ids = [i for i in self.ids if i not in gone]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Target | Clipped:
        chosen = self.ids[index]
        return self.store.heard(chosen) if isinstance(chosen, Clip) else self.store[chosen]


def _named(chosen: str | Clip) -> Sequence[str]:
    return chosen.ids if isinstance(chosen, Clip) else [chosen]
