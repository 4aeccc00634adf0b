"""Watches a model at work: which modules emit something as wide as a token table, and what becomes of it."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...teachers.weight_products import Products
from ..inject.program import live_modules

ROWS = 512  # of one output that are looked at
CALLS = 4  # of one module in one batch that are looked at
FEW = 16  # calls of one module in one batch; more are a decoding loop
WIDTH = 4  # classes, at least
SOFTMAX = ("log_softmax", "softmax", "logsumexp")
DECISIONS = {"argmax": "argmax", "topk": "topk", "max": "argmax", "ctc_loss": "ctc_loss", "sort": "sort"}
LOGITS = ".logits"
SAME = {
    *(
        "__getitem__",
        "float",
        "double",
        "half",
        "bfloat16",
        "to",
        "type",
        "cpu",
        "cuda",
        "contiguous",
        "clone",
    ),
    *("transpose", "permute", "view", "reshape", "squeeze", "unsqueeze", "flatten", "movedim", "swapaxes"),
    *("contiguous", "detach", "select", "narrow", "unbind", "split", "chunk"),
}


@dataclass
class EmittedOutput:
    """What one module gave.

    Attributes:
        module: it.
        shape: of its first output, axis of the classes, and their number V.
        calls: by batch.
        logz: the largest and the smallest log Σ exp of a row, in nats.
        best: how often each class was the largest of a row; rows looked at.
        after: functions that were given its output, or a view of it, in order; ``steps``: by call of a batch.
        constant: whether every row holds one value only.
        wrapped: it came first in a list or tuple, which no tap takes (an LSTM's output).
        weight: name of the module's weight that a function multiplied with, where the module did not run.
    """

    module: nn.Module
    shape: tuple[int, ...]
    axis: int
    classes: int
    calls: Counter[int] = field(default_factory=Counter)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    logz: tuple[float, float] = (0.0, 0.0)
    best: Counter[int] = field(default_factory=Counter)
    rows: int = 0
    after: list[str] = field(default_factory=list)
    steps: dict[int, list[str]] = field(default_factory=dict)
    constant: bool = True
    wrapped: bool = False
    weight: str = ""

    def became(self, call: int, name: str) -> None:
        """Note that the output of a call was given to a function."""
        for names in (self.after, self.steps.setdefault(call, []) if call < FEW else []):
            names += [name] if name not in names else []


class OutputObserver(TorchFunctionMode):
    """Watches every module call and what torch functions are given of the outputs, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.emitted: dict[nn.Module, EmittedOutput] = {}
        self.products: dict[nn.Module, EmittedOutput] = {}  # of functions with a module's weight
        self._products = Products(self._whose)
        self._weights: dict[int, tuple[weakref.ref[nn.Module], int]] = {}  # by address
        self._weighed = -1  # the batch in which they were looked for
        self.batch = 0
        self.on_output: Any = None  # told (module, args, kwargs, output, EmittedOutput or None) of every call
        # by id of a tensor: it, who gave it, in which call, and whether it still is what was given (or a
        # softmax of it)
        self._origins: dict[int, tuple[weakref.ref[torch.Tensor], EmittedOutput, int, bool]] = {}
        self._hook: Any = None

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._hook = nn.modules.module.register_module_forward_hook(self._ran, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if (found := self._products.completed_by(name, args, kwargs or {}, out)) is not None:
            with torch._C.DisableTorchFunction():
                emitted = self._look(found[0], out, "weight")
                if self.on_output is not None:
                    self.on_output(found[0], args, kwargs or {}, out, emitted)
        if args and isinstance(args[0], torch.Tensor) and (origin := self._origin(args[0])) is not None:
            said = name if name in SOFTMAX else DECISIONS.get(name, "")
            _, _, call, same = self._origins[id(args[0])]
            if said:
                origin.became(call, said)
                if name in SOFTMAX:
                    self._remember(out, origin, call, same=False)
            elif name in SAME:
                for tensor in out if isinstance(out, list | tuple) else (out,):
                    self._remember(tensor, origin, call, same=same)
        return out

    def forget(self) -> None:
        """Begin anew: what ran so far was no batch."""
        self.emitted.clear()
        self.products.clear()
        self.batch, self._weighed = 0, -1

    def _origin(self, tensor: torch.Tensor) -> EmittedOutput | None:
        found = self._origins.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def _remember(self, tensor: Any, origin: EmittedOutput, call: int, *, same: bool = True) -> None:
        if isinstance(tensor, torch.Tensor):
            if len(self._origins) > 4096:
                self._origins = {k: v for k, v in self._origins.items() if v[0]() is not None}
            self._origins[id(tensor)] = (weakref.ref(tensor), origin, call, same)

    def _ran(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        emitted = None
        with torch._C.DisableTorchFunction():
            named = output.get("logits") if isinstance(output, Mapping) else None
            origin = self._origin(named) if isinstance(named, torch.Tensor) else None
            if origin is not None and LOGITS not in origin.after:
                origin.after.append(LOGITS)  # transformers' models say which of their outputs it is
            for tensor in output[:1] if isinstance(output, list | tuple) else (output,):
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dim() >= 1:
                    emitted = self._look(module, tensor)
                    if emitted is not None:
                        emitted.wrapped = tensor is not output
            if self.on_output is not None:
                self.on_output(module, args, kwargs, output, emitted)

    def _whose(self, tensor: torch.Tensor) -> nn.Module | None:
        if self._weighed != self.batch:
            self._weighed = self.batch
            self._weights = {_weight(m): (weakref.ref(m), m.weight.numel()) for m in weighty()}
        try:
            found = self._weights.get(tensor.data_ptr())
        except RuntimeError:  # no storage, while something traces
            return None
        return found[0]() if found is not None and found[1] == tensor.numel() else None

    def _look(self, module: nn.Module, tensor: torch.Tensor, weight: str = "") -> EmittedOutput | None:
        inner = self._origin(tensor)
        if inner is not None and inner.module is not module and self._origins[id(tensor)][3]:
            return None  # a container, that gives what something inside it gave
        axis = tensor.dim() - 1
        if isinstance(module, nn.Conv1d) and tensor.dim() == 3 and tensor.shape[1] == module.out_channels:
            axis = 1
        classes = int(tensor.shape[axis])
        if classes < WIDTH or not tensor.numel():
            return None
        table = self.products if weight else self.emitted
        said = table.get(module)
        if said is None or said.classes != classes:
            said = table[module] = EmittedOutput(module, tuple(tensor.shape), axis, classes, weight=weight)
        said.calls[self.batch] += 1
        if tuple(tensor.shape) not in said.shapes and len(said.shapes) < CALLS:
            said.shapes.append(tuple(tensor.shape))
        self._remember(tensor, said, said.calls[self.batch] - 1)
        if said.calls[self.batch] <= CALLS:
            _measure(said, tensor)
        return said


def weighty() -> Iterator[Any]:
    """Every live module with a weight of its own that has two axes or more."""
    for module in live_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() > 1:
            yield module


def _weight(module: Any) -> int:
    return int(module.weight.data_ptr())


def _measure(said: EmittedOutput, tensor: torch.Tensor) -> None:
    rows = tensor.detach().movedim(said.axis, -1).reshape(-1, said.classes)
    rows = rows[:: max(1, len(rows) // ROWS)][:ROWS].float()
    logz = rows.logsumexp(-1)
    low, high = float(logz.min()), float(logz.max())
    said.logz = (min(low, said.logz[0]), max(high, said.logz[1])) if said.rows else (low, high)
    said.constant = said.constant and bool((rows == rows[:, :1]).all())
    said.best.update(rows.argmax(-1).tolist())
    said.rows += len(rows)
