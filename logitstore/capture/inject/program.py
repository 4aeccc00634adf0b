"""View of the program around a running module: its DataLoaders, compiled models, variables and modules."""

from __future__ import annotations

import gc
import os
import sys
import threading
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


def follow_loaders(yielded: Callable[[Any, Any, Any, Any], None]) -> None:
    """Call a function with every batch that a DataLoader yields in this process, not in its workers.

    Args:
        yielded: function of the batch, the loader's iterator, the sampler's index for the batch (item
            numbers, a CutSet, ...; None where it is not known) and the dataset.
    """
    kind: Any = dataloader._BaseDataLoaderIter
    original, next_index, reset = kind.__next__, kind._next_index, kind._reset
    requested: weakref.WeakKeyDictionary[Any, deque[Any]] = weakref.WeakKeyDictionary()

    def resetting(self: Any, *args: Any, **kwargs: Any) -> Any:
        requested[self] = deque()
        return reset(self, *args, **kwargs)

    def requesting(self: Any) -> Any:
        index = next_index(self)  # batches are requested ahead of time from workers, and arrive in order
        requested.setdefault(self, deque()).append(index)
        return index

    def yielding(self: Any) -> Any:
        batch = original(self)
        if get_worker_info() is None:
            indices = requested.get(self)
            index = indices.popleft() if indices else None
            in_order = self._dataset_kind == dataloader._DatasetKind.Map and getattr(self, "_in_order", True)
            yielded(batch, self, index if in_order else None, self._dataset)
        return batch

    kind.__next__, kind._next_index, kind._reset = yielding, requesting, resetting


def follow_compiling(begun: Callable[[Any], None]) -> None:
    """Call a function with everything that torch.compile returns to the program: a module or a function."""
    original = torch.compile

    def compiling(*args: Any, **kwargs: Any) -> Any:
        warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there are global hooks")
        made = original(*args, **kwargs)
        begun(made)
        return made

    torch.compile = compiling


def run_compiled_models_eagerly(wanted: bool) -> None:
    """Run compiled models as if they were not compiled, so that hooks run inside them; or end that."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
        torch.compiler.set_stance("force_eager" if wanted else "default")


def not_compiled(hook: Any) -> Any:
    """Return a hook that torch.compile leaves alone; the same hook where the program does not compile."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo.disable(hook) if dynamo is not None else hook


FAST = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


def modules_without_fast_path(root: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and all below it, but transformer layers of torch and what lies in them.

    These run a fused kernel, whose last bits differ, only where none of their modules has a hook.
    """
    fast = {inner for module in root.modules() if isinstance(module, FAST) for inner in module.modules()}
    yield from (module for module in root.modules() if module not in fast)


class FastPaths:
    """Hooks that switch torch function modes off while a transformer layer of torch runs.

    Under a torch function mode these layers do not run their fused kernel, and the program's numbers would differ in
    their last bits.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()
        before = nn.modules.module.register_module_forward_pre_hook(self._before)
        after = nn.modules.module.register_module_forward_hook(self._after, always_call=True)
        self._handles = [before, after]

    def remove(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def _before(self, module: nn.Module, args: Any) -> None:
        if isinstance(module, FAST) and not torch.compiler.is_compiling():
            guard = torch._C.DisableTorchFunction()
            guard.__enter__()
            self._of_thread.__dict__.setdefault("entered", []).append((module, guard))

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        entered = self._of_thread.__dict__.get("entered")
        if entered and entered[-1][0] is module:
            entered.pop()[1].__exit__(None, None, None)


def frames() -> Iterator[FrameType]:
    """Yield the stack frames of the program that lead here, the innermost first; not torch's and not ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith((*OWN, "<frozen")):
            yield frame
        frame = frame.f_back


def variable(name: str, homes: dict[str, tuple[str, str]] | None = None) -> Any:
    """Return the value of a variable of the program, in the innermost function that has it.

    Args:
        name: name of the variable.
        homes: file and function in which each variable was found first, by its name. A variable of the same
            name in another function may belong to an earlier batch, and is refused. (A compiled function has
            no variables.)

    Raises ``KeyError`` where no function has such a variable.
    """
    for frame in frames():
        if name in frame.f_locals:
            home = frame.f_code.co_filename, frame.f_code.co_name
            if homes is not None and (first := homes.setdefault(name, home)) != home:
                raise KeyError(f"{name} was a variable of {first[1]}() before, and is now one of {home[1]}()")
            return frame.f_locals[name]
    raise KeyError(f"no variable {name!r} where the module is called")


def variable_of_shape(shape: Sequence[int]) -> str:
    """Return the name of a variable that is an integer tensor of this shape; empty where there is none."""
    for frame in frames():
        for name, value in list(frame.f_locals.items()):
            is_integer = isinstance(value, torch.Tensor) and value.dtype in INTEGERS
            if is_integer and tuple(value.shape) == tuple(shape) and name.isidentifier():
                return name
    return ""


def live_modules() -> list[nn.Module]:
    """Return all modules of this process."""
    return [o for o in gc.get_objects() if issubclass(type(o), nn.Module)]


def outermost(path: str, modules: list[nn.Module]) -> list[tuple[nn.Module, nn.Module]]:
    """Return (root, module) for each module at a path below an outermost module that has this path."""
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
    """Return the modules that lie in no other one."""
    inner = {child for m in modules for child in m._modules.values() if child is not None}
    return [m for m in modules if m not in inner]
