"""Whose logits are these? The batches that loaders yielded, and which of them a module that runs was given.

Most loops take a batch and run the model on it: then there is one batch that it can be. Where a loader
fetches ahead (accelerate's, a thread, a generator), the batch is told by its objects: the innermost function
of the program that holds a tensor, or a container, of exactly one of the batches says which.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import FrameType
from typing import Any

import torch

from ...errors import UsageError
from .program import frames

PLAIN = (str, bytes, int, float, complex, type, type(None))  # one object may stand in many batches
HELD = (torch.Tensor, Mapping, list, tuple)
KEPT = 1 << 29  # bytes of batches that wait for a module to run; two wait whatever they weigh
WAITING = 64  # batches, at most
SAMPLE = 64  # values of a tensor that are compared with a copy of it


@dataclass(frozen=True, eq=False)
class Noted:
    """A batch that a DataLoader yielded.

    Attributes:
        number: counted over all loaders of the process, from 1.
        batch: what it yielded; ``index``: what its sampler said; ``dataset``: what it took the batch from.
        source: its iterator.
        thread: in which it was yielded.
    """

    number: int
    batch: Any
    index: Any
    dataset: Any
    source: weakref.ref[Any]
    thread: int = field(default_factory=threading.get_ident)

    @cached_property
    def objects(self) -> dict[int, Any]:
        """Tensors and containers that it holds, by address."""
        held = (p for p in (*parts(self.batch, 4), self.index) if isinstance(p, HELD) and _size(p))
        return {id(self.batch): self.batch, **{_address(part): part for part in held}}

    @cached_property
    def tensors(self) -> list[torch.Tensor]:
        """Those of its tensors that a copy can be known by."""
        return [o for o in self.objects.values() if _telling(o)]

    @cached_property
    def bytes(self) -> int:
        return sum(o.nbytes for o in self.objects.values() if isinstance(o, torch.Tensor))


class Batches:
    """What the loaders of this process yielded and no module was run on yet, and the batch at work."""

    def __init__(self) -> None:
        self.current: Noted | None = None
        self.ahead = False  # whether a loader was seen fetching ahead
        self._waiting: list[Noted] = []
        self._count = 0
        self._lock = threading.Lock()

    def note(self, batch: Any, source: Any, index: Any = None, dataset: Any = None) -> bool:
        """A loader yields a batch; True where it is the first of its iterator."""
        with self._lock:
            last = self._waiting[-1] if self._waiting else self.current
            fresh = last is None or last.source() is not source
            if fresh and not self._waiting:
                self.ahead = False
            self._count += 1
            self._waiting.append(Noted(self._count, batch, index, dataset, weakref.ref(source)))
            while len(self._waiting) > 2 and (
                len(self._waiting) > WAITING or sum(n.bytes for n in self._waiting) > KEPT
            ):
                del self._waiting[0]
            return fresh

    def claim(self, where: str) -> Noted | None:
        """The batch that a module which runs now was given; None where no loader yielded any.

        Raises ``UsageError`` where it would be a guess.
        """
        with self._lock:
            waiting = list(self._waiting)
        if waiting:
            newest = [n for n in waiting if n.source() is waiting[-1].source()]
            self.ahead = self.ahead or len(newest) > 1 or newest[-1].thread != threading.get_ident()
        if not self.ahead:
            chosen = waiting[-1] if waiting else self.current
        else:
            among = [n for n in (self.current, *waiting) if n is not None]
            chosen = _held(among)
            if chosen is None:
                raise UsageError(
                    f"the loader yielded {len(waiting)} batches before the module ran",
                    where=where,
                    why="It fetches ahead, or batches are left out; and no function that leads here holds "
                    "the tensors of exactly one of them: whose logits these are would be a guess.",
                    do="Say it with a variable of your program: --ids EXPR.",
                )
        if chosen is not self.current and chosen is not None:
            with self._lock:
                self._waiting = [n for n in self._waiting if n.number > chosen.number]
            self.current = chosen
        return chosen


def _held(among: list[Noted]) -> Noted | None:
    """The one of several batches whose objects the innermost frame that holds any of them holds."""
    kinds = {type(n.batch) for n in among}
    for frame in frames():
        arguments = _arguments(frame)
        for values in (arguments, frame.f_locals.values()):
            for told in (_same, _copied):
                found = {n for v in values for n in [_only(v, among, kinds, told)] if n is not None}
                if len(found) == 1:
                    return found.pop()
                if found and values is not arguments:
                    return None
    return None


def _only(value: Any, among: list[Noted], kinds: set[type], told: Any) -> Noted | None:
    """The batch that a variable, or something in it, is of; None where it is of none, or of several."""
    found: set[Noted] = set()
    for part in parts(value, 2, kinds):
        holders = [n for n in among if told(part, n)]
        if len(holders) == 1:
            found.update(holders)
    return found.pop() if len(found) == 1 else None


def _same(part: Any, noted: Noted) -> bool:
    return _address(part) in noted.objects


def _copied(part: Any, noted: Noted) -> bool:
    """Whether a tensor is a copy of one of the batch: on another device, in another dtype."""
    if not _telling(part):
        return False
    like = [t for t in noted.tensors if t.shape == part.shape]
    return any(torch.equal(_sample(part), _sample(t).to(part.dtype).to("cpu")) for t in like)


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLE)].cpu()


def _telling(part: Any) -> bool:
    return isinstance(part, torch.Tensor) and part.is_floating_point() and part.numel() >= SAMPLE


def _size(part: Any) -> int:
    return part.numel() if isinstance(part, torch.Tensor) else len(part)


def _address(part: Any) -> int:
    """Where something lies; of a tensor its first item, which views of it share."""
    if isinstance(part, torch.Tensor) and part.numel() and part.layout == torch.strided:
        return -part.data_ptr() or id(part)  # below zero: never the address of an object
    return id(part)


def _arguments(frame: FrameType) -> list[Any]:
    """What the function was called with, as far as it still has it under that name."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)  # *args, **kwargs
    return [frame.f_locals[n] for n in code.co_varnames[:count] if n in frame.f_locals]


def parts(value: Any, depth: int, kinds: Iterable[type] | None = None) -> Iterator[Any]:
    """A value and what it holds, if it is a mapping, a list or an object (of ``kinds``, if given)."""
    if isinstance(value, PLAIN):
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
