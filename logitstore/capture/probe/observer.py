"""Observation of a running model: outputs that are as wide as a token table, and their further use.

While an :class:`OutputObserver` is entered, it sees two things. A hook on all modules gives it every output.
As a torch function mode it sees every torch function, and so learns that an output, or a view of it, is given
to a softmax, an argmax or a loss, and that a function multiplies with a module's weight.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...teachers.weight_products import Products
from ..inject.program import live_modules

MEASURED_ROWS = 512  # of one output
MEASURED_CALLS = 4  # of one module in one batch
NOTED_CALLS = 16  # of one module in one batch, whose further use is noted call by call
MIN_CLASSES = 4
MAX_ORIGINS = 4096  # tensors that are remembered before dead ones are dropped
SOFTMAX = ("log_softmax", "softmax", "logsumexp")
DECISIONS = {"argmax": "argmax", "topk": "topk", "max": "argmax", "ctc_loss": "ctc_loss", "sort": "sort"}
LOGITS = ".logits"
VIEWS = frozenset(  # functions whose output holds the same numbers
    [
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
        "detach",
        "transpose",
        "permute",
        "view",
        "reshape",
        "squeeze",
        "unsqueeze",
        "flatten",
        "movedim",
        "swapaxes",
        "select",
        "narrow",
        "unbind",
        "split",
        "chunk",
    ]
)
OnOutput = Callable[[nn.Module, Any, dict[str, Any], Any, "EmittedOutput | None"], None]


@dataclass
class EmittedOutput:
    """Outputs of one module.

    Attributes:
        module: module that gave them.
        shape: shape of the first output.
        axis: axis of the classes.
        classes: V.
        calls: number of calls by batch.
        shapes: different shapes of the first outputs.
        logz: smallest and largest log Σ exp of a row, in nats.
        best: number of rows of which each class was the largest.
        rows: number of rows measured.
        after: functions that were given an output or a view of it, in order.
        steps: the same for each call of a batch.
        constant: whether every row holds one value only.
        wrapped: whether it came first in a list or tuple, which no tap takes (output of an LSTM).
        weight: name of the weight that a function multiplied with, where the module itself did not run.
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

    def given_to(self, call: int, function: str) -> None:
        """Note that the output of a call was given to a function."""
        if function not in self.after:
            self.after.append(function)
        if call < NOTED_CALLS:
            step = self.steps.setdefault(call, [])
            if function not in step:
                step.append(function)

    def measure(self, tensor: torch.Tensor) -> None:
        """Measure some rows of an output: their log-normalisers and largest classes."""
        rows = tensor.detach().movedim(self.axis, -1).reshape(-1, self.classes)
        rows = rows[:: max(1, len(rows) // MEASURED_ROWS)][:MEASURED_ROWS].float()
        logz = rows.logsumexp(-1)
        low, high = float(logz.min()), float(logz.max())
        if self.rows:
            low, high = min(low, self.logz[0]), max(high, self.logz[1])
        self.logz = low, high
        self.constant = self.constant and bool((rows == rows[:, :1]).all())
        self.best.update(rows.argmax(-1).tolist())
        self.rows += len(rows)


@dataclass(frozen=True)
class _Origin:
    """Module output that a tensor comes from.

    Attributes:
        tensor: the tensor.
        output: outputs of the module.
        call: call of the batch.
        unchanged: whether the tensor still holds the same numbers, and is no softmax of them.
    """

    tensor: weakref.ref[torch.Tensor]
    output: EmittedOutput
    call: int
    unchanged: bool


class OutputObserver(TorchFunctionMode):
    """Observer of all module calls and torch functions, while it is entered.

    Attributes:
        emitted: outputs by module.
        products: products with a module's weight, by module.
        batch: number of the current batch; the owner counts it.
        on_output: called with module, args, kwargs, output and its measurements (or None) after each call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.emitted: dict[nn.Module, EmittedOutput] = {}
        self.products: dict[nn.Module, EmittedOutput] = {}
        self.batch = 0
        self.on_output: OnOutput | None = None
        self._products = Products(self._owner_of_weight)
        self._weights: dict[int, tuple[weakref.ref[nn.Module], int]] = {}  # module and size, by address
        self._weights_batch = -1  # batch in which the weights were looked up
        self._origins: dict[int, _Origin] = {}  # by id of the tensor
        self._hook: Any = None

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._hook = nn.modules.module.register_module_forward_hook(self._module_ran, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch._C._is_tracing():  # what is computed here would become a part of the trace
            return out
        name = getattr(func, "__name__", "")
        if (found := self._products.completed_by(name, args, kwargs or {}, out)) is not None:
            module = found[0]
            with torch._C.DisableTorchFunction():
                emitted = self._note(module, out, "weight")
                if self.on_output is not None:
                    self.on_output(module, args, kwargs or {}, out, emitted)
        if args and isinstance(args[0], torch.Tensor) and (origin := self._origin(args[0])) is not None:
            if name in SOFTMAX:
                origin.output.given_to(origin.call, name)
                self._remember(out, origin.output, origin.call, unchanged=False)
            elif name in DECISIONS:
                origin.output.given_to(origin.call, DECISIONS[name])
            elif name in VIEWS:
                for tensor in out if isinstance(out, list | tuple) else (out,):
                    self._remember(tensor, origin.output, origin.call, unchanged=origin.unchanged)
        return out

    def forget(self) -> None:
        """Drop all observations: the modules that ran so far did not run on a batch."""
        self.emitted.clear()
        self.products.clear()
        self.batch, self._weights_batch = 0, -1

    def _origin(self, tensor: torch.Tensor) -> _Origin | None:
        found = self._origins.get(id(tensor))
        return found if found is not None and found.tensor() is tensor else None

    def _remember(self, tensor: Any, output: EmittedOutput, call: int, *, unchanged: bool = True) -> None:
        if isinstance(tensor, torch.Tensor):
            if len(self._origins) > MAX_ORIGINS:
                self._origins = {k: v for k, v in self._origins.items() if v.tensor() is not None}
            self._origins[id(tensor)] = _Origin(weakref.ref(tensor), output, call, unchanged)

    def _module_ran(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        emitted = None
        if torch._C._is_tracing():
            return
        with torch._C.DisableTorchFunction():
            logits = output.get("logits") if isinstance(output, Mapping) else None
            origin = self._origin(logits) if isinstance(logits, torch.Tensor) else None
            if origin is not None and LOGITS not in origin.output.after:
                origin.output.after.append(LOGITS)  # transformers' models name their logits
            first = output[:1] if isinstance(output, list | tuple) else (output,)
            for tensor in first:
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dim() >= 1:
                    emitted = self._note(module, tensor)
                    if emitted is not None:
                        emitted.wrapped = tensor is not output
            if self.on_output is not None:
                self.on_output(module, args, kwargs, output, emitted)

    def _owner_of_weight(self, tensor: torch.Tensor) -> nn.Module | None:
        """Return the module whose weight a tensor is; the weights are looked up once per batch."""
        if self._weights_batch != self.batch:
            self._weights_batch = self.batch
            self._weights = {
                int(m.weight.data_ptr()): (weakref.ref(m), m.weight.numel()) for m in _with_weight()
            }
        try:
            found = self._weights.get(tensor.data_ptr())
        except RuntimeError:  # tensors have no storage while something traces
            return None
        return found[0]() if found is not None and found[1] == tensor.numel() else None

    def _note(self, module: nn.Module, tensor: torch.Tensor, weight: str = "") -> EmittedOutput | None:
        """Note and measure an output; None where it is too narrow, or a container gives an inner one's."""
        inner = self._origin(tensor)
        if inner is not None and inner.output.module is not module and inner.unchanged:
            return None
        axis = tensor.dim() - 1
        if isinstance(module, nn.Conv1d) and tensor.dim() == 3 and tensor.shape[1] == module.out_channels:
            axis = 1
        classes = int(tensor.shape[axis])
        if classes < MIN_CLASSES or not tensor.numel():
            return None
        table = self.products if weight else self.emitted
        emitted = table.get(module)
        if emitted is None or emitted.classes != classes:
            emitted = table[module] = EmittedOutput(module, tuple(tensor.shape), axis, classes, weight=weight)
        emitted.calls[self.batch] += 1
        calls = emitted.calls[self.batch]
        if tuple(tensor.shape) not in emitted.shapes and len(emitted.shapes) < MEASURED_CALLS:
            emitted.shapes.append(tuple(tensor.shape))
        self._remember(tensor, emitted, calls - 1)
        if calls <= MEASURED_CALLS:
            emitted.measure(tensor)
        return emitted


def _with_weight() -> Iterator[Any]:
    """Yield the live modules with a weight of their own that has two axes or more."""
    for module in live_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # has its parameters in another form
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() > 1:
            yield module
