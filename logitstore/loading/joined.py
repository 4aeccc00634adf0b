"""Targets joined by utterance id to a dataset of somebody else's, which stays as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset, IterableDataset, default_collate

from ..errors import MissingUtterance, UsageError
from ..registry import suggest
from ..store.lhotse_cuts import CutClips
from ..store.reader import Store, as_store
from ..targets.batch import TargetBatch
from ..targets.clip import Clip, Clipped
from ..targets.missing import check_missing
from ..targets.target import Target

Field = str | int | Callable[[Any], Any]  # a key or position of an example, or a function of it
OPTIONS = tuple(
    name
    for name in inspect.signature(Store.batch).parameters
    if name not in ("self", "ids", "frames", "missing")
)


@dataclass(frozen=True)
class JoinedExample:
    """An example of a dataset with the name of its target beside it.

    Attributes:
        example: the example, as the dataset gave it.
        id: utterance id, or a clip of stored utterances.
        frames: valid frames of the student; None for the teacher's.
    """

    example: Any
    id: str | Clip
    frames: int | None
    _store: Store = field(repr=False)

    @property
    def target(self) -> Target | Clipped:
        """The target, read and decoded when it is asked for; ``MissingUtterance`` where there is none."""
        return self._store.read_clip(self.id) if isinstance(self.id, Clip) else self._store[self.id]


@dataclass(frozen=True)
class TargetCollate:
    """A ``collate_fn`` that returns the collated examples and a ``TargetBatch`` of the same utterances.

    Attributes:
        store: the opened store.
        id: utterance id or clip of an example.
        frames: valid frames of the student for an example; None for the teacher's.
        missing: treatment of utterances without a target, as ``Store.batch``.
        collate_fn: function that collates the examples.
        options: other arguments of ``Store.batch``.
    """

    store: Store
    id: Field
    frames: Field | None
    missing: str
    collate_fn: Callable[[list[Any]], Any]
    options: Mapping[str, Any]

    def join(self, example: Any) -> JoinedExample:
        """Return an example with its id and its frames beside it."""
        utt_id = _value(example, self.id, "id")
        frames = None if self.frames is None else int(_value(example, self.frames, "frames"))
        return JoinedExample(example, utt_id, frames, self.store)

    def __call__(self, joined: Sequence[JoinedExample]) -> tuple[Any, TargetBatch]:
        """Return the collated examples and their targets; with ``missing="skip"`` only examples with a target."""
        if self.missing == "skip":
            held = [one for one in joined if _holds(self.store, one.id)]
            if joined and not held:
                raise MissingUtterance(
                    f"the store holds none of the {len(joined)} utterances of a batch, the first {joined[0].id!r}",
                    where=str(self.store.place),
                    do="Use missing='mask' where a batch may have no targets at all.",
                )
            joined = held
        frames = None if self.frames is None else [one.frames or 0 for one in joined]
        return self.collate_fn([one.example for one in joined]), self._targets(
            [one.id for one in joined], frames
        )

    def of_cuts(self, batch: Any, cuts: Iterable[Any]) -> tuple[Any, TargetBatch]:
        """Return a batch that a dataset made of cuts, and the targets of the cuts.

        ``frames`` is asked for the whole batch here, and gives all lengths.
        """
        ids = [_value(cut, self.id, "id") for cut in cuts]
        frames = None if self.frames is None else [int(n) for n in _value(batch, self.frames, "frames")]
        return batch, self._targets(ids, frames)

    def _targets(self, ids: Sequence[str | Clip], frames: Sequence[int] | None) -> TargetBatch:
        missing = "error" if self.missing == "skip" else self.missing
        return self.store.batch(ids, frames=frames, missing=missing, **self.options)


class JoinedDataset(Dataset[Any]):
    """A map-style dataset with targets; see :func:`with_targets`.

    Attributes:
        dataset: the dataset that was given.
        collate_fn: the ``collate_fn`` for a DataLoader.
    """

    def __init__(self, dataset: Any, collate_fn: TargetCollate) -> None:
        self.dataset, self.collate_fn = dataset, collate_fn

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        """Return a joined example; for a ``CutSet`` of lhotse, the dataset's batch and the targets."""
        if type(index).__name__ == "CutSet":
            return self.collate_fn.of_cuts(self.dataset[index], index)
        return self.collate_fn.join(self.dataset[index])

    def __getitems__(self, indices: Sequence[int]) -> list[JoinedExample]:
        """Return the joined examples of a batch, read at once where the dataset can do so."""
        if callable(read := getattr(self.dataset, "__getitems__", None)):
            return [self.collate_fn.join(example) for example in read(list(indices))]
        return [self[index] for index in indices]


class JoinedIterable(IterableDataset[Any]):
    """An iterable dataset with targets; see :func:`with_targets`.

    Attributes:
        dataset: the dataset that was given.
        collate_fn: the ``collate_fn`` for a DataLoader.
    """

    def __init__(self, dataset: Iterable[Any], collate_fn: TargetCollate) -> None:
        self.dataset, self.collate_fn = dataset, collate_fn

    def __iter__(self) -> Iterator[JoinedExample]:
        return map(self.collate_fn.join, self.dataset)


def with_targets(
    dataset: Any,
    store: Store | Any,
    *,
    id: Field | None = None,
    frames: Field | None = None,
    missing: str = "error",
    collate_fn: Callable[[list[Any]], Any] = default_collate,
    **options: Any,
) -> JoinedDataset | JoinedIterable:
    """Join the targets of a store to a dataset, which is not changed.

    ::

        joined = with_targets(dataset, store, id="id", frames=lambda x: x["frames"] // 4, collate_fn=collate)
        for inputs, targets in DataLoader(joined, batch_size=16, collate_fn=joined.collate_fn):
            ...

    Targets of a batch are read at once, in the worker that collates it.

    Args:
        dataset: a map-style or an iterable dataset: of PyTorch, ``datasets``, webdataset, SpeechBrain; or a
            dataset of lhotse, which a sampler gives whole ``CutSet`` objects.
        store: an opened store, or its location.
        id: key or position of the utterance id in an example, or a function from the example to an id or a
            :class:`~logitstore.targets.clip.Clip`. None: ``id``, ``utt_id``, ``utt`` or ``__key__``, the first
            that the example has; for cuts, ``CutClips(store)``.
        frames: likewise, the valid frames of the student for an example; for a dataset of cuts, the lengths
            of a whole batch. None keeps the teacher's frames.
        missing: treatment of examples without a target. ``error``: refused. ``mask``: their rows in the
            batch are masked. ``skip``: the examples are left out of their batch as well.
        collate_fn: function that collates a list of the dataset's examples.
        options: other arguments of ``Store.batch``: ``temperature``, ``method``, ``ratio``, ``streams``, ...

    Returns:
        A dataset of :class:`JoinedExample` of the same style, with the ``collate_fn`` that a DataLoader needs.

    Raises:
        UsageError: an unknown argument, a dataset that is neither indexed nor iterated over; later, an
            example without an id.
        MissingUtterance: later, an id that the store does not hold, with ``error``.
    """
    check_missing(missing)
    for name in options:
        if name not in OPTIONS:
            raise UsageError(f"with_targets has no argument {name!r}", do=suggest(name, OPTIONS))
    opened = as_store(store)
    collate = TargetCollate(opened, _IdOf(opened) if id is None else id, frames, missing, collate_fn, options)
    if not isinstance(dataset, IterableDataset) and hasattr(dataset, "__getitem__"):
        return JoinedDataset(dataset, collate)
    if hasattr(dataset, "__iter__"):
        return JoinedIterable(dataset, collate)
    raise UsageError(
        f"a {type(dataset).__name__} is no dataset",
        do="Give an object with __getitem__ or __iter__.",
    )


class _IdOf:
    """A function from an example to its utterance id, by the usual keys; from a cut of lhotse to its clip."""

    KEYS = ("id", "utt_id", "utt", "__key__")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._clips: CutClips | None = None

    def __call__(self, example: Any) -> str | Clip:
        if type(example).__name__ in ("MonoCut", "MultiCut", "MixedCut", "PaddingCut"):
            if self._clips is None:
                self._clips = CutClips(self._store)
            return self._clips(example)
        for key in self.KEYS:
            if isinstance(example, Mapping) and key in example:
                return _checked_id(example[key], f"example[{key!r}]")
        raise UsageError(
            f"an example of the type {type(example).__name__} has none of the keys {', '.join(self.KEYS)}",
            why="The target of an example is found by its utterance id.",
            do="Say where the id is: with_targets(..., id=KEY), or a function of the example.",
        )


def _value(example: Any, where: Field, name: str) -> Any:
    """Return a field of an example; raise ``UsageError`` where it is not there."""
    if callable(where):
        value = where(example)
    else:
        try:
            value = example[where]
        except (KeyError, IndexError, TypeError, AttributeError):
            known = f" Its keys: {', '.join(map(str, example))}." if isinstance(example, Mapping) else ""
            raise UsageError(
                f"{name}={where!r} is not in an example of the type {type(example).__name__}",
                do=f"Give a key or position that every example has, or a function of the example.{known}",
            ) from None
    return _checked_id(value, f"{name}={where!r}") if name == "id" else value


def _checked_id(value: Any, where: str) -> str | Clip:
    """Return an utterance id or a clip; raise ``UsageError`` for anything else."""
    if not isinstance(value, str | Clip):
        raise UsageError(
            f"{where} gives {value!r:.50}, which is no utterance id",
            do="Ids are strings; a function may return a string or a Clip.",
        )
    return value


def _holds(store: Store, chosen: str | Clip) -> bool:
    """Return whether a store holds every utterance of an id or a clip."""
    return all(utt_id in store for utt_id in (chosen.ids if isinstance(chosen, Clip) else [chosen]))
