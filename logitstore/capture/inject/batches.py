"""Batches that the program's DataLoaders yielded, and the one among them that a module runs on.

Most loops take a batch and run the model on it: then the batch is the last one that was yielded. Where a
loader fetches ahead (accelerate's, a thread, a generator), several batches wait for the model. Then the batch
is recognised by its objects:

1. Look at the functions of the program that lead to the module, the innermost first.
2. In each, look at the arguments, then at all local variables.
3. A tensor or container that lies in exactly one of the waiting batches names that batch. If none does, a
   tensor whose values are a copy of a tensor in exactly one batch names it (moved to a device, another
   dtype).
4. Where no function holds anything of exactly one batch, the batch is not known, and an error says so.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import FrameType
from typing import Any

import torch

from ...errors import UsageError
from .program import frames

SHARED_TYPES = (str, bytes, int, float, complex, type, type(None))  # one object may be in many batches
HELD_TYPES = (torch.Tensor, Mapping, list, tuple)
MAX_WAITING_BYTES = 1 << 29  # of batches that wait for a module; two wait whatever their size
MAX_WAITING = 64
SAMPLED_VALUES = 64  # of a tensor that is compared with a possible copy


@dataclass(frozen=True, eq=False)
class YieldedBatch:
    """A batch that a DataLoader yielded.

    Attributes:
        number: number of the batch, counted over all loaders of the process from 1.
        batch: the batch itself.
        index: the sampler's index for it: item numbers, a CutSet, ...; None where it is not known.
        dataset: dataset of the loader.
        source: weak reference to the loader's iterator.
        thread: id of the thread in which it was yielded.
    """

    number: int
    batch: Any
    index: Any
    dataset: Any
    source: weakref.ref[Any]
    thread: int = field(default_factory=threading.get_ident)

    @cached_property
    def objects(self) -> dict[int, Any]:
        """Tensors and containers of the batch, by address."""
        held = (p for p in (*parts(self.batch, 4), self.index) if isinstance(p, HELD_TYPES) and _size(p))
        return {id(self.batch): self.batch, **{_address(part): part for part in held}}

    @cached_property
    def tensors(self) -> list[torch.Tensor]:
        """Tensors of the batch that are large enough to recognise a copy by its values."""
        return [o for o in self.objects.values() if _is_recognisable(o)]

    @cached_property
    def bytes(self) -> int:
        """Bytes of all tensors of the batch."""
        return sum(o.nbytes for o in self.objects.values() if isinstance(o, torch.Tensor))


class YieldedBatches:
    """Batches of this process that no captured module has run on yet, and the current one.

    Attributes:
        current: batch that the captured module ran on last.
        ahead: whether a loader was seen fetching ahead of the model.
        others: batches that the module could have run on instead of the claimed one, which its input does not prove.
    """

    def __init__(self) -> None:
        self.current: YieldedBatch | None = None
        self.ahead = False
        self.others: list[YieldedBatch] = []
        self._waiting: list[YieldedBatch] = []
        self._count = 0
        self._lock = threading.Lock()

    def note(self, batch: Any, source: Any, index: Any = None, dataset: Any = None) -> bool:
        """Keep a batch that a loader yields; return whether it is the first of its iterator."""
        with self._lock:
            last = self._waiting[-1] if self._waiting else self.current
            is_first = last is None or last.source() is not source
            if is_first and not self._waiting:
                self.ahead = False
            self._count += 1
            self._waiting.append(YieldedBatch(self._count, batch, index, dataset, weakref.ref(source)))
            while len(self._waiting) > 2 and (
                len(self._waiting) > MAX_WAITING or sum(n.bytes for n in self._waiting) > MAX_WAITING_BYTES
            ):
                del self._waiting[0]
            return is_first

    @property
    def count(self) -> int:
        """Number of batches that the loaders of this process have yielded."""
        return self._count

    def claim(
        self, where: str, proves: Callable[[YieldedBatch, list[YieldedBatch]], bool]
    ) -> YieldedBatch | None:
        """Return the batch that the running module was given; None where no loader yielded any.

        Batches before it are dropped, unless the model's input proves which batch it is: then the model may run on
        them in another thread.

        Args:
            where: location for messages.
            proves: function that tells whether the model's input holds the rows of a batch, and of none of the
                others.

        Raises ``UsageError`` where loaders fetch ahead and the batch is not known.
        """
        self.others = []
        with self._lock:
            waiting = list(self._waiting)
        if waiting:
            newest = [n for n in waiting if n.source() is waiting[-1].source()]
            self.ahead = self.ahead or len(newest) > 1 or newest[-1].thread != threading.get_ident()
            if len(waiting) > len(newest) and not proves(waiting[-1], []):  # of several loaders in turn
                self.ahead = True
        if not self.ahead:
            chosen = waiting[-1] if waiting else self.current
        else:
            possible = [n for n in (self.current, *waiting) if n is not None]
            proven = [n for n in possible if proves(n, [other for other in possible if other is not n])]
            if len(proven) == 1:
                chosen = proven[0]
            else:
                chosen = _recognised(possible)
                self.others = [n for n in waiting if n is not chosen]
            if chosen is None:
                raise UsageError(
                    f"the loader yielded {len(waiting)} batches before the module ran",
                    where=where,
                    why="The loader fetches ahead, or the program leaves batches out, and no function that "
                    "leads to the module holds the tensors of exactly one of them. The utterances of these "
                    "logits are not known.",
                    do="Say them with a variable of your program: --ids EXPR.",
                )
        if chosen is not self.current and chosen is not None:
            with self._lock:
                is_proven = self.ahead and not self.others and len(waiting) > 1
                self._waiting = [
                    n for n in self._waiting if n is not chosen and (is_proven or n.number > chosen.number)
                ]
            self.current = chosen
        return chosen


def _recognised(batches: list[YieldedBatch]) -> YieldedBatch | None:
    """Return the batch that the innermost function holds something of; None where it is not exactly one."""
    kinds = {type(n.batch) for n in batches}
    for frame in frames():
        arguments = _arguments(frame)
        for values in (arguments, frame.f_locals.values()):
            for belongs in (_is_object_of, _is_copy_of):
                held = (_batch_of(value, batches, kinds, belongs) for value in values)
                found = {batch for batch in held if batch is not None}
                if len(found) == 1:
                    return found.pop()
                if found and values is not arguments:
                    return None
    return None


def _batch_of(
    value: Any,
    batches: list[YieldedBatch],
    kinds: set[type],
    belongs: Callable[[Any, YieldedBatch], bool],
) -> YieldedBatch | None:
    """Return the batch that a variable, or something in it, belongs to; None where it is not exactly one."""
    found: set[YieldedBatch] = set()
    for part in parts(value, 2, kinds):
        holders = [n for n in batches if belongs(part, n)]
        if len(holders) == 1:
            found.update(holders)
    return found.pop() if len(found) == 1 else None


def _is_object_of(part: Any, batch: YieldedBatch) -> bool:
    return _address(part) in batch.objects


def _is_copy_of(part: Any, batch: YieldedBatch) -> bool:
    """Return whether a tensor is a copy of one in the batch, on another device or in another dtype."""
    if not _is_recognisable(part):
        return False
    like = [t for t in batch.tensors if t.shape == part.shape]
    return any(torch.equal(_sample(part), _sample(t).to(part.dtype).to("cpu")) for t in like)


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLED_VALUES)].cpu()


def _is_recognisable(part: Any) -> bool:
    return isinstance(part, torch.Tensor) and part.is_floating_point() and part.numel() >= SAMPLED_VALUES


def _size(part: Any) -> int:
    return part.numel() if isinstance(part, torch.Tensor) else len(part)


def _address(part: Any) -> int:
    """Return the address of an object; of a tensor the address of its first item, which views of it share."""
    if isinstance(part, torch.Tensor) and part.numel() and part.layout == torch.strided:
        return -part.data_ptr() or id(part)  # negative, so that no object has the same one
    return id(part)


def _arguments(frame: FrameType) -> list[Any]:
    """Return a function's arguments, as far as their names still hold them."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)  # *args, **kwargs
    return [frame.f_locals[n] for n in code.co_varnames[:count] if n in frame.f_locals]


def parts(value: Any, depth: int, kinds: Iterable[type] | None = None) -> Iterator[Any]:
    """Yield a value and, down to a depth, what it holds.

    Args:
        value: any value.
        depth: levels of mappings, lists and objects to enter.
        kinds: types of objects whose attributes are entered; None: all.
    """
    if isinstance(value, SHARED_TYPES):
        return
    yield value
    if not depth or isinstance(value, torch.Tensor):
        return
    inner: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inner = list(value.values())[:256]
    elif isinstance(value, list | tuple):
        inner = value[:256]
    elif hasattr(value, "__dict__") and (kinds is None or type(value) in kinds):
        inner = list(vars(value).values())
    for one in inner:
        yield from parts(one, depth - 1, kinds)
