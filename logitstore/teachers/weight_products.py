"""Products with a module's weight: logits that ``F.linear(x, head.weight)`` gives without a module call."""

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
# Gives the module that has a tensor, or all of its base, as a weight.
Owner = Callable[[torch.Tensor], nn.Module | None]


def split(path: str) -> tuple[str, str]:
    """Split ``fn:ctc_output.1.weight`` into the module's path and the weight's name."""
    path = path.removeprefix(PREFIX)
    above, _, name = path.rpartition(".")
    return (above, name) if name.endswith("weight") else (path, "weight")


class Products:
    """Recogniser of torch function calls that compute a head's logits.

    Args:
        owner: function that gives the module that has a tensor as its weight, or None.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        # By id of a product that still lacks its bias: the product, its module, and the head's input.
        self._without_bias: dict[int, tuple[weakref.ref[torch.Tensor], nn.Module, torch.Tensor]] = {}

    def completed_by(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> tuple[nn.Module, torch.Tensor] | None:
        """Return module and input of the head that this call gave the logits of; None for any other call.

        Args:
            name: name of the torch function.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
            out: result of the call.
        """
        if name in SUMS and self._without_bias:
            return self._completed_by_bias(args)
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
            self._without_bias = {k: v for k, v in self._without_bias.items() if v[0]() is not None}
            self._without_bias[id(out)] = weakref.ref(out), owner, multiplied
            return None
        return None

    def _completed_by_bias(self, args: tuple[Any, ...]) -> tuple[nn.Module, torch.Tensor] | None:
        """Return module and input of the product to which this call added the bias."""
        given = list(_tensors(args))
        for tensor in given:
            found = self._without_bias.get(id(tensor))
            if found is not None and found[0]() is tensor:
                bias = getattr(found[1], BIAS, None)
                if any(bias is not None and same(t, bias) for t in given):
                    del self._without_bias[id(tensor)]
                    return found[1], found[2]
        return None


class Watch(TorchFunctionMode):
    """Torch function mode that reports every product with the weight of a watched module.

    Args:
        report: called with name, module, input and output of every product.
    """

    def __init__(self, report: Callable[[str, nn.Module, torch.Tensor, torch.Tensor], None]) -> None:
        super().__init__()
        self._report = report
        self._watched: list[tuple[str, weakref.ref[nn.Module], str]] = []
        self._products = Products(self._owner_of)

    def add(self, name: str, module: nn.Module, parameter: str) -> None:
        """Watch a weight of a module, reported under this name."""
        self._watched.append((name, weakref.ref(module), parameter))

    @property
    def busy(self) -> bool:
        """True while any weight is watched."""
        return bool(self._watched)

    def clear(self) -> None:
        """Stop watching every weight."""
        self._watched.clear()

    def remove(self) -> None:
        """Stop watching, and leave the mode unless another function mode has been entered since."""
        self.clear()
        stack = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        if stack and stack[-1] is self:
            self.__exit__(None, None, None)

    def _owner_of(self, tensor: torch.Tensor) -> nn.Module | None:
        for _, module, parameter in self._watched:
            owner = module()
            weight = getattr(owner, parameter, None)
            if isinstance(weight, torch.Tensor) and same(tensor, weight):
                return owner
        return None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._watched:
            found = self._products.completed_by(getattr(func, "__name__", ""), args, kwargs or {}, out)
            if found is not None:
                for name, module, _ in list(self._watched):
                    if module() is found[0]:
                        self._report(name, found[0], found[1], out)
        return out


def same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two tensors are the same one, or one a view of all of the other."""
    if tensor is other:
        return True
    try:
        return tensor.numel() == other.numel() and tensor.data_ptr() == other.data_ptr() != 0
    except RuntimeError:  # a tensor without storage, while torch traces
        return False


def _running(module: nn.Module) -> bool:
    """Tell whether the present call comes from the module's own forward, which its hooks report."""
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
