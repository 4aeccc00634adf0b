"""Heads that never run: products with a module's weight, made by a function: ``F.linear(x, head.weight)``."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

PREFIX = "fn:"
NAMES = {"linear", "conv1d", "matmul", "__matmul__", "__rmatmul__", "mm", "addmm", "einsum"}
SUMS = {"add", "__add__", "__radd__", "__iadd__", "add_"}
BIAS = "bias"
Owner = Callable[[torch.Tensor], nn.Module | None]  # whose weight a tensor is, or a whole view of


def split(path: str) -> tuple[str, str]:
    """``fn:ctc_output.1.weight`` → path of the module and name of the weight, which may be left out."""
    path = path.removeprefix(PREFIX)
    above, _, name = path.rpartition(".")
    return (above, name) if name.endswith("weight") else (path, "weight")


class Products:
    """Tells which calls of torch functions are a head's logits.

    Args:
        owner: says whose weight a tensor is.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        # by id of a product that lacks its bias: it, its module, and what was multiplied
        self._bare: dict[int, tuple[weakref.ref[torch.Tensor], nn.Module, torch.Tensor]] = {}

    def seen(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> tuple[nn.Module, torch.Tensor] | None:
        """Module and what was multiplied, where this call, given its output, finished a head's logits."""
        if name in SUMS and self._bare:
            return self._completed(args)
        if name not in NAMES or not isinstance(out, torch.Tensor):
            return None
        given = list(_tensors((*args, *kwargs.values())))
        for at, tensor in enumerate(given):
            owner = self._owner(tensor) if tensor.dim() > 1 else None
            if owner is None or _running(owner):
                continue
            rest = [t for n, t in enumerate(given) if n != at]
            bias = getattr(owner, BIAS, None)
            multiplied = next((t for t in rest if t is not bias and t.dim() > 1), tensor)
            if bias is None or any(same(t, bias) for t in rest):
                return owner, multiplied
            self._bare = {k: v for k, v in self._bare.items() if v[0]() is not None}
            self._bare[id(out)] = weakref.ref(out), owner, multiplied
            return None
        return None

    def _completed(self, args: tuple[Any, ...]) -> tuple[nn.Module, torch.Tensor] | None:
        """A bias is added to a product that lacked it."""
        given = list(_tensors(args))
        for tensor in given:
            found = self._bare.get(id(tensor))
            if found is not None and found[0]() is tensor:
                bias = getattr(found[1], BIAS, None)
                if any(bias is not None and same(t, bias) for t in given):
                    del self._bare[id(tensor)]
                    return found[1], found[2]
        return None


class Watch(TorchFunctionMode):
    """Calls ``told(name, given, output)`` of every product with the weight of a watched module."""

    def __init__(self, told: Callable[[str, nn.Module, torch.Tensor, torch.Tensor], None]) -> None:
        super().__init__()
        self._told = told
        self._watched: list[tuple[str, weakref.ref[nn.Module], str]] = []
        self._products = Products(self._whose)

    def add(self, name: str, module: nn.Module, parameter: str) -> None:
        """Watch another one."""
        self._watched.append((name, weakref.ref(module), parameter))

    @property
    def busy(self) -> bool:
        """Whether it watches anything."""
        return bool(self._watched)

    def clear(self) -> None:
        """Watch nothing any more."""
        self._watched.clear()

    def remove(self) -> None:
        """Stop; where others stand above this one, they go on and this one watches nothing."""
        self.clear()
        stack = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        if stack and stack[-1] is self:
            self.__exit__(None, None, None)

    def _whose(self, tensor: torch.Tensor) -> nn.Module | None:
        for _, module, parameter in self._watched:
            owner = module()
            weight = getattr(owner, parameter, None)
            if isinstance(weight, torch.Tensor) and same(tensor, weight):
                return owner
        return None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._watched:
            found = self._products.seen(getattr(func, "__name__", ""), args, kwargs or {}, out)
            if found is not None:
                for name, module, _ in list(self._watched):
                    if module() is found[0]:
                        self._told(name, found[0], found[1], out)
        return out


def same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether one is the other, or a view of all of it."""
    if tensor is other:
        return True
    try:
        return tensor.numel() == other.numel() and tensor.data_ptr() == other.data_ptr() != 0
    except RuntimeError:  # tensors without storage, while something traces
        return False


def _running(module: nn.Module) -> bool:
    """Whether this is the module's own call, which its hooks tell of."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(8):
        if frame is None:
            return False
        if frame.f_code is nn.Module._call_impl.__code__ and frame.f_locals.get("self") is module:
            return True
        frame = frame.f_back
    return False


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
