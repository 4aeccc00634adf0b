"""Taps: take what a named module of somebody's model gives, without touching the model.

A tap is a context manager. Its paths are checked when it opens; inside, each tapped module must run exactly
once per batch; its hooks are removed on any exit.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from . import registry
from .errors import TapError, TapFiredTwice, TapNeverFired, TapPathError

WRAPPERS = ("module", "_orig_mod")  # DataParallel / DDP, torch.compile
LAYOUTS = {"BTV": (0, 1, 2), "BVT": (0, 2, 1), "TBV": (1, 0, 2)}


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside DataParallel, DistributedDataParallel or torch.compile."""
    while True:
        inner = next((m for n, m in model.named_children() if n in WRAPPERS), None)
        if inner is None or len(list(model.children())) != 1:
            return model
        model = inner


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, looking through wrappers; raises ``TapPathError`` listing siblings."""
    module, walked = unwrap(model), ""
    for part in path.split(".") if path else ():
        children = dict(module.named_children())
        if part not in children:
            raise TapPathError(
                f"{type(module).__name__} has no module {part!r}",
                where=f"tap {path!r} below {walked or 'the model'}",
                do=registry.suggest(part, children),
            )
        module = unwrap(children[part])
        walked = f"{walked}.{part}" if walked else part
    return module


class Tap:
    """Hooks on named modules of a model.

    Args:
        model: any ``nn.Module``; wrappers are looked through.
        modules: path of the module for every stream to take.
        layouts: axes of a stream's output where they are not ``BTV``.
        side: ``output`` or ``input`` of the module.
        accumulate: allow several calls per batch and concatenate them along the first axis but one.

    Raises:
        TapPathError: no module at a path.
        TapError: a scripted module, which runs no Python hook.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, str],
        *,
        layouts: Mapping[str, str] | None = None,
        side: str = "output",
        accumulate: bool = False,
    ) -> None:
        self._modules = {name: find_module(model, path) for name, path in modules.items()}
        self._paths, self._layouts = dict(modules), dict(layouts or {})
        self._side, self._accumulate = side, accumulate
        self._caught: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
        self._handles: list[Any] = []
        for name, module in self._modules.items():
            if isinstance(module, torch.jit.ScriptModule):
                raise TapError(
                    "a scripted or traced module runs no Python hook",
                    where=f"tap {name} at {modules[name]!r}",
                    do="Load the model from its Python class instead of torch.jit.",
                )
            if (layout := self._layouts.get(name, "BTV")) not in LAYOUTS:
                raise TapError(f"no layout {layout!r}", do=f"Known: {', '.join(LAYOUTS)}.")

    def __enter__(self) -> Self:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        self.clear()

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            value = output if self._side == "output" else args[0]
            if not isinstance(value, torch.Tensor):
                raise TapError(
                    f"gives {type(value).__name__}, not a tensor",
                    where=f"tap {name} at {self._paths[name]!r}",
                )
            # A copy: decoders edit logits in place after the layer returns them.
            self._caught[name].append(value.detach().clone())

        return hook

    def clear(self) -> None:
        """Forget what was caught."""
        for caught in self._caught.values():
            caught.clear()

    def take(self, name: str) -> torch.Tensor:
        """What the module gave in this batch, as (B, T, V) (or as it came, for other ranks); forgets it.

        Raises ``TapNeverFired`` or ``TapFiredTwice``.
        """
        caught, where = self._caught[name], f"tap {name} at {self._paths[name]!r}"
        calls = len(caught)
        if not calls:
            raise TapNeverFired(
                "the module did not run in this batch",
                where=where,
                why="A scripted, compiled or bypassed module runs no hook.",
                do="Tap another module: logitstore probe lists the candidates.",
            )
        if calls > 1 and not self._accumulate:
            shapes = ", ".join(str(tuple(c.shape)) for c in caught[:4])
            caught.clear()
            raise TapFiredTwice(
                f"the module ran {calls} times in one batch, giving {shapes}",
                where=where,
                why="Which of them is the answer cannot be guessed.",
                do="Tap a module that runs once, or allow accumulation.",
            )
        value = caught[0] if calls == 1 else torch.cat(caught, dim=max(caught[0].dim() - 2, 0))
        caught.clear()
        layout = LAYOUTS[self._layouts.get(name, "BTV")]
        return value.permute(layout) if value.dim() == 3 and layout != (0, 1, 2) else value
