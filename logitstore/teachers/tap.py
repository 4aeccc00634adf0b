"""Taps: hooks that take the output or input of named modules of a model without changing the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from .. import registry
from ..errors import LengthError, TapError, TapFiredTwice, TapNeverFired, TapPathError
from .weight_products import PREFIX, Watch, split

WRAPPERS = ("module", "_orig_mod")  # attributes of DataParallel and DDP, and of torch.compile
LAYOUTS = {"BTV": (0, 1, 2), "BVT": (0, 2, 1), "TBV": (1, 0, 2)}
SIDES = ("output", "input")


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own module inside DataParallel, DistributedDataParallel or torch.compile."""
    while True:
        inner = next((m for n, m in model.named_children() if n in WRAPPERS), None)
        if inner is None or len(list(model.children())) != 1:
            return model
        model = inner


def find_module(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a dotted path below a model; raises ``TapPathError`` naming its siblings.

    Wrappers (DataParallel, torch.compile) are looked through; a path may also name them, as the keys of a
    checkpoint do (``module.ctc_output.1``).
    """
    module, walked = unwrap(model), ""
    for part in path.split(".") if path else ():
        children = dict(module.named_children())
        if part in WRAPPERS and part not in children:
            continue
        if part not in children:
            raise TapPathError(
                f"{type(module).__name__} has no module {part!r}",
                where=f"tap {path!r} below {walked or 'the model'}",
                do=registry.suggest(part, children),
            )
        module = unwrap(children[part])
        walked = f"{walked}.{part}" if walked else part
    return module


def unpack(packed: torch.Tensor, frames: Sequence[int], positions: Sequence[int]) -> list[torch.Tensor]:
    """Split the rows of a joiner that skips padding into one (T, U+1, V) lattice for each utterance.

    Args:
        packed: (sum of T·(U+1), V) output of the joiner, utterance after utterance.
        frames: number of frames T of every utterance.
        positions: number of label positions U+1 of every utterance.

    Raises ``LengthError`` where rows are left over or missing.
    """
    rows = [t * u for t, u in zip(frames, positions, strict=True)]
    if sum(rows) != packed.shape[0]:
        raise LengthError(f"{packed.shape[0]} packed rows, but T times U+1 over the batch is {sum(rows)}")
    parts = torch.split(packed, rows)
    return [p.reshape(t, u, -1) for p, t, u in zip(parts, frames, positions, strict=True)]


class Tap:
    """Context manager that takes the output or input of named modules of a model, batch by batch.

    ::

        with Tap(model, {"ctc": "ctc_output.1"}) as tap:
            for batch in loader:
                model(batch)
                logits = tap.take("ctc")  # (B, T, V), the Linear's output in front of the log-softmax

    Paths are checked when the tap is made. Each module must run exactly once between two calls of
    :meth:`take`, so that a skipped or repeated head is an error and never a silent mistake. The hooks are
    removed on any exit, and they never change the module's output.

    A path is dotted, below the model: ``encoder.layers.3``. These forms exist besides:

    * ``joint.joint_after_projection()`` names a method, for logits that are made without calling a module;
    * ``fn:ctc_lo.weight`` names a weight, for logits that are a product with it (``F.linear``, ``matmul``);
    * ``encoder[0]`` takes one part of a tuple, list or mapping that the module gives.

    Args:
        model: any ``nn.Module``; DataParallel, DistributedDataParallel and torch.compile are looked through.
        modules: path of the module by the name of its stream.
        layouts: axes of the output by stream where they are not ``BTV``: ``BVT`` or ``TBV``.
        side: ``output`` or ``input`` of the modules; the input is the first argument.
        accumulate: allow several calls per batch and concatenate them along the second axis from the end.
        keep: by stream, index of the one call to keep of several per batch (``-1`` for the last).
        training: allow a model in training mode, which gives random logits.

    Raises:
        TapPathError: a path names no module; the error lists the module's siblings.
        TapError: a scripted or traced module, which runs no Python hook; an unknown side or layout.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, str],
        *,
        layouts: Mapping[str, str] | None = None,
        side: str = "output",
        accumulate: bool = False,
        keep: Mapping[str, int] | None = None,
        training: bool = False,
    ) -> None:
        self._root = unwrap(model)
        self._modules = {name: _owner(model, path) for name, path in modules.items()}
        self._paths, self._layouts = dict(modules), dict(layouts or {})
        self._side, self._accumulate, self._keep = side, accumulate, dict(keep or {})
        self._training = training
        self._caught: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
        self._shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in modules}
        self._handles: list[Any] = []
        if side not in SIDES:
            raise TapError(f"no side {side!r}", do=f"Known: {', '.join(SIDES)}.")
        for name, module in self._modules.items():
            if isinstance(module, torch.jit.ScriptModule):
                raise TapError(
                    "a scripted or traced module runs no Python hook",
                    where=self._where(name),
                    do="Load the model from its Python class instead of torch.jit.",
                )
            if (layout := self._layouts.get(name, "BTV")) not in LAYOUTS:
                raise TapError(f"no layout {layout!r}", do=f"Known: {', '.join(LAYOUTS)}.")

    def __enter__(self) -> Self:
        for name, module in self._modules.items():
            path, _ = _split(self._paths[name])
            if path.startswith(PREFIX):
                watch = Watch(self._product)
                watch.add(name, module, split(path)[1])
                watch.__enter__()  # type: ignore[no-untyped-call]
                self._handles.append(watch)
            elif path.endswith("()"):
                self._handles.append(_Method(module, _method(path), self._catcher(name)))
            elif self._side == "input":  # before the module runs: it may work in place
                hook = self._before(name, module)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._after(name, module)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        self.clear()

    def _where(self, name: str) -> str:
        return f"tap {name} at {self._paths[name]!r}"

    # copy.deepcopy copies hooks too, so each hook ignores calls of any other module than its own.

    def _after(self, name: str, module: nn.Module) -> Any:
        def hook(caller: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if caller is module:
                self._catch(name, output)

        return hook

    def _before(self, name: str, module: nn.Module) -> Any:
        def hook(caller: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if caller is module:
                self._catch(name, first_argument(args, kwargs))

        return hook

    def _product(self, name: str, module: nn.Module, given: torch.Tensor, output: torch.Tensor) -> None:
        self._catch(name, given if self._side == "input" else output)

    def _catcher(self, name: str) -> Callable[[tuple[Any, ...], dict[str, Any], Callable[..., Any]], Any]:
        def run(args: tuple[Any, ...], kwargs: dict[str, Any], method: Callable[..., Any]) -> Any:
            if self._side == "input":
                self._catch(name, first_argument(args, kwargs))
                return method(*args, **kwargs)
            output = method(*args, **kwargs)
            self._catch(name, output)
            return output

        return run

    def _catch(self, name: str, value: Any) -> None:
        _, part = _split(self._paths[name])
        parts = tuple(value.values()) if isinstance(value, Mapping) else value
        parts = parts if isinstance(parts, tuple | list) else ()
        if part is not None and part < len(parts):
            value = parts[part]
        if not isinstance(value, torch.Tensor):
            inside = [f"[{i}]" for i, v in enumerate(parts) if isinstance(v, torch.Tensor)]
            raise TapError(
                f"gives {type(value).__name__}, not a tensor",
                where=self._where(name),
                do=f"Append the part's number to the path: {', '.join(inside)}." if inside else "",
            )
        if not self._training and (self._root.training or self._modules[name].training):
            raise TapError(
                "the model is in training mode",
                where=self._where(name),
                why="Dropout and batch statistics give other logits in every forward.",
                do="Call model.eval() first.",
            )
        self._shapes[name].append(tuple(value.shape))
        if self._accumulate or name in self._keep or len(self._shapes[name]) == 1:
            # Decoders edit logits in place after the layer has returned them.
            self._caught[name].append(value.detach().clone())

    def clear(self) -> None:
        """Drop all tensors taken so far."""
        for name, caught in self._caught.items():
            caught.clear()
            self._shapes[name].clear()

    def take(self, name: str) -> torch.Tensor:
        """Return a stream's tensor of this batch, and drop it: (B, T, V), or as it is for another rank.

        The dtype is the module's own, e.g. float16 of a model in half precision.

        Raises ``TapNeverFired`` where the module did not run, and ``TapFiredTwice`` where it ran several
        times.
        """
        caught, shapes, where = list(self._caught[name]), list(self._shapes[name]), self._where(name)
        self._caught[name].clear()
        self._shapes[name].clear()
        calls = len(shapes)
        if not calls:
            raise TapNeverFired(
                "the module did not run in this batch",
                where=where,
                why="A scripted or bypassed module runs no hook; nor does one that torch.compile compiled "
                "before the tap opened.",
                do="Open the tap before the first compiled batch, or tap another module, a method, or the "
                f"product with its weight ({PREFIX}{self._paths[name]}.weight): logitstore probe lists "
                "the candidates.",
            )
        if name in self._keep:
            value = self._chosen(caught, self._keep[name], where)
        elif calls > 1 and not self._accumulate:
            raise TapFiredTwice(
                f"the module ran {calls} times in one batch, giving {', '.join(map(str, shapes[:4]))}"
                f"{', …' if calls > 4 else ''}",
                where=where,
                why="Nothing tells which of these calls gives the logits.",
                do="Tap a module that runs once, name the call to keep, or allow accumulation.",
            )
        else:
            value = caught[0] if calls == 1 else torch.cat(caught, dim=max(caught[0].dim() - 2, 0))
        return self._in_order(name, value)

    def take_each(self, name: str) -> list[torch.Tensor]:
        """Return the tensors of every call of this batch, in order, and drop them.

        For a tap with ``accumulate``. Raises ``TapNeverFired``.
        """
        caught = [self._in_order(name, value) for value in self._caught[name]]
        if not caught:
            self.take(name)  # raises TapNeverFired
        self._caught[name].clear()
        self._shapes[name].clear()
        return caught

    def _in_order(self, name: str, value: torch.Tensor) -> torch.Tensor:
        layout = LAYOUTS[self._layouts.get(name, "BTV")]
        return value.permute(layout) if value.dim() == 3 and layout != (0, 1, 2) else value

    def _chosen(self, caught: list[torch.Tensor], call: int, where: str) -> torch.Tensor:
        try:
            return caught[call]
        except IndexError:
            raise TapNeverFired(
                f"call {call} was to be kept, but the module ran {len(caught)} times", where=where
            ) from None


class _Method:
    """Method of one object, replaced by a wrapper until ``remove``."""

    def __init__(self, owner: Any, name: str, run: Any) -> None:
        self._owner, self._name = owner, name
        self._before = vars(owner).get(name)
        method = getattr(owner, name)

        def replacement(*args: Any, **kwargs: Any) -> Any:
            return run(args, kwargs, method)

        setattr(owner, name, replacement)

    def remove(self) -> None:
        if self._before is None:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._before)


def _split(path: str) -> tuple[str, int | None]:
    """Split ``encoder[0]`` into the path and the number of the part; None where it names no part."""
    found = re.fullmatch(r"(.*?)(?:\[([0-9]{1,4})\])?", path, re.DOTALL)
    assert found is not None
    return found[1], int(found[2]) if found[2] else None


def _owner(model: nn.Module, path: str) -> nn.Module:
    """Return the module of a path, or the one that has its method or weight; raises ``TapPathError``."""
    path, _ = _split(path)
    if path.startswith(PREFIX):
        above, name = split(path)
        module = find_module(model, above)
        if not isinstance(getattr(module, name, None), torch.Tensor):
            known = [n for n, p in module.named_parameters(recurse=False) if p.dim() > 1]
            raise TapPathError(
                f"{type(module).__name__} has no weight {name!r}",
                where=f"tap {path!r}",
                do=registry.suggest(name, known),
            )
        return module
    if not path.endswith("()"):
        return find_module(model, path)
    module = find_module(model, path[:-2].rpartition(".")[0])
    if not callable(getattr(module, _method(path), None)):
        kind = type(module)
        known = [n for n in dir(kind) if n[0] != "_" and getattr(kind, n) is not getattr(nn.Module, n, None)]
        raise TapPathError(
            f"{type(module).__name__} has no method {_method(path)!r}",
            where=f"tap {path!r}",
            do=registry.suggest(_method(path), known),
        )
    return module


def _method(path: str) -> str:
    return path[:-2].rpartition(".")[2]


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first argument of a call, positional or by name; None for a call without arguments."""
    return args[0] if args else next(iter(kwargs.values()), None)
