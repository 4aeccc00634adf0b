"""What surrounds a tapped module while it runs: batch, variables of the user's program, modules."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils.data import dataloader, get_worker_info

from .. import errors
from ..errors import TapPathError
from ..tap import find_module

OWN = tuple(os.path.join(os.path.dirname(os.path.abspath(p)), "") for p in (torch.__file__, errors.__file__))


def follow_loaders(noted: Callable[[Any, Any, Any, Any], None]) -> None:
    """Call ``noted(batch, iterator, index, dataset)`` with every batch a DataLoader yields here, not in its
    workers.

    The index is what its sampler said of the batch: numbers of items, a CutSet, ...; None where nobody knows.
    """
    kind: Any = dataloader._BaseDataLoaderIter
    original, next_index, reset = kind.__next__, kind._next_index, kind._reset
    asked: weakref.WeakKeyDictionary[Any, deque[Any]] = weakref.WeakKeyDictionary()

    def resetting(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked[self] = deque()
        return reset(self, *args, **kwargs)

    def asking(self: Any) -> Any:
        index = next_index(self)  # workers are asked ahead, and answer in order
        asked.setdefault(self, deque()).append(index)
        return index

    def following(self: Any) -> Any:
        batch = original(self)
        if get_worker_info() is None:
            indices = asked.get(self)
            index = indices.popleft() if indices else None
            counted = self._dataset_kind == dataloader._DatasetKind.Map and getattr(self, "_in_order", True)
            noted(batch, self, index if counted else None, self._dataset)
        return batch

    kind.__next__, kind._next_index, kind._reset = following, asking, resetting


def frames() -> Iterator[FrameType]:
    """Frames of the user's program that lead here, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith((*OWN, "<frozen")):
            yield frame
        frame = frame.f_back


def variable(name: str) -> Any:
    """The value of a variable of the user's program, as its innermost frame sees it; raises ``KeyError``."""
    for frame in frames():
        if name in frame.f_locals:
            return frame.f_locals[name]
    raise KeyError(f"no variable {name!r} where the module is called")


def live_modules() -> list[nn.Module]:
    """Every module of this process."""
    return [o for o in gc.get_objects() if issubclass(type(o), nn.Module)]


def outermost(path: str, modules: list[nn.Module]) -> list[tuple[nn.Module, nn.Module]]:
    """(root, target) of each different module at a path below the outermost modules that have one there."""
    having: dict[nn.Module, nn.Module] = {}
    for module in modules:
        try:
            having[module] = find_module(module, path)
        except (TapPathError, AttributeError):  # half-built modules have no children yet
            continue
    for root in list(having):
        for inner in list(root.modules())[1:]:
            having.pop(inner, None)
    found: dict[nn.Module, nn.Module] = {}
    for root, target in having.items():
        found.setdefault(target, root)
    return [(root, target) for target, root in found.items()]


def roots(modules: list[nn.Module]) -> list[nn.Module]:
    """Modules that lie in no other one."""
    inner = {child for m in modules for child in m._modules.values() if child is not None}
    return [m for m in modules if m not in inner]
