"""What surrounds a tapped module while it runs: batch, variables of the user's program, modules."""

from __future__ import annotations

import gc
import os
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils.data import dataloader, get_worker_info

from ... import errors
from ...errors import TapPathError
from ...teachers.tap import find_module

INTEGERS = (torch.int64, torch.int32, torch.int16)
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


def follow_compiling(begun: Callable[[], None]) -> None:
    """Call ``begun()`` whenever the program asks torch to compile something."""
    original = torch.compile

    def compiling(*args: Any, **kwargs: Any) -> Any:
        warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there are global hooks")
        made = original(*args, **kwargs)
        begun()
        return made

    torch.compile = compiling


def eagerly(wanted: bool) -> None:
    """Whether compiled models run as if they were not, so that hooks see what is inside them."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
        torch.compiler.set_stance("force_eager" if wanted else "default")


def frames() -> Iterator[FrameType]:
    """Frames of the user's program that lead here, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith((*OWN, "<frozen")):
            yield frame
        frame = frame.f_back


def variable(name: str, homes: dict[str, tuple[str, str]] | None = None) -> Any:
    """The value of a variable of the user's program, as its innermost frame sees it; raises ``KeyError``.

    Args:
        name: of the variable.
        homes: file and function that each was found in first: another function's variable of that name, of
            the batch before perhaps, is not it. A compiled function keeps none.
    """
    for frame in frames():
        if name in frame.f_locals:
            home = frame.f_code.co_filename, frame.f_code.co_name
            if homes is not None and (first := homes.setdefault(name, home)) != home:
                raise KeyError(f"{name} was a variable of {first[1]}(), and is one of {home[1]}() alone here")
            return frame.f_locals[name]
    raise KeyError(f"no variable {name!r} where the module is called")


def ranges_of(shape: Sequence[int]) -> str:
    """Name of the user's variable that is an integer (B, T, S) tensor: the ranges of a pruned joint."""
    for frame in frames():
        for name, value in list(frame.f_locals.items()):
            whole = isinstance(value, torch.Tensor) and value.dtype in INTEGERS
            if whole and tuple(value.shape) == tuple(shape) and name.isidentifier():
                return name
    return ""


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
