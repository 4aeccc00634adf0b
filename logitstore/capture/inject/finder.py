"""Finds the tapped modules among the live ones, whenever new ones appear, and hooks them."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.data import get_worker_info

from ...errors import TapError
from ...registry import suggest
from ...teachers.tap import find_module, first
from .program import live_modules, outermost, roots

SELDOM = 200  # times longer than a search takes, until the next one
Ran = Callable[[str, nn.Module | None, nn.Module, Any], None]
Place = Callable[[str, nn.Module, nn.Module], tuple[nn.Module, str]]


class Finder:
    """Hooks on modules that do not exist yet.

    Args:
        paths: of the modules, by stream, below the outermost module that has them.
        ran: told stream, root, module and output, whenever one ran.
        guard: around everything that may raise.
        report: told ``state`` (``found`` or ``looking``) and what is ``near`` a path that is not there.
        keep: paths of other modules of the same model, whose last output is kept in ``outputs`` and what they
            were last given, by position and by name, in ``inputs``.
        place: given stream, root and the module at its path, says which module to hook instead, and whether
            its ``output`` or its ``input``; neither: it is watched otherwise.
    """

    def __init__(
        self,
        paths: Mapping[str, str],
        ran: Ran,
        guard: Callable[[], AbstractContextManager[None]],
        report: Callable[..., None],
        keep: Iterable[str] = (),
        place: Place = lambda stream, root, target: (target, "output"),
    ) -> None:
        self._place = place
        self._paths, self._ran, self._guard, self._report = paths, ran, guard, report
        self._keep = tuple(keep)
        self.outputs: dict[str, Any] = {}
        self.inputs: dict[str, dict[Any, Any]] = {}
        self._known: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._targets: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._roots: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = (
            weakref.WeakKeyDictionary()
        )
        self._hooks: list[tuple[nn.Module, Any, str, Any]] = []  # module, function, where it hooks, handle
        self._listened: list[tuple[str, weakref.ref[nn.Module]]] = []
        self._again = 0.0
        self._made = False  # whether a model was made that may have such a path
        self._meeting: Any = nn.modules.module.register_module_forward_pre_hook(self._meet)
        self._making: Any = nn.modules.module.register_module_module_registration_hook(self._make)

    def settle(self) -> None:
        """A tapped module ran: look at no other calls any more."""
        if self._meeting is not None:
            self._meeting.remove()
            self._meeting = None

    def stop(self) -> None:
        """Remove every hook."""
        self.settle()
        self._making.remove()
        while self._hooks:
            self._hooks.pop()[-1].remove()

    def _hook(self, module: nn.Module, function: Any, side: str) -> None:
        """Before a module runs (``input``), after it (``output``), or after it with all its arguments."""
        hook = _uncompiled(function)
        if side == "input":
            handle: Any = module.register_forward_pre_hook(hook, with_kwargs=True)
        else:
            handle = module.register_forward_hook(hook, with_kwargs=side == "call")
        self._hooks.append((module, function, side, handle))

    def compiling(self) -> None:
        """The program begins to compile: hooks that are there must be left out of what is compiled."""
        hooks, self._hooks = self._hooks, []
        for module, function, side, handle in hooks:
            handle.remove()
            self._hook(module, function, side)

    def search(self, *, seldom: bool = False) -> None:
        """Look among all live modules; ``seldom``: once settled, where a second model was made, and now and
        then for one that was not (a copy, an unpickled one)."""
        begin = time.monotonic()
        if seldom and self._meeting is None and not self._made and begin < self._again:
            return
        self._made = False
        modules = live_modules()
        self._known.update(modules)
        found = {stream: outermost(path, modules) for stream, path in self._paths.items()}
        for stream, pairs in found.items():
            for root, target in pairs:
                if target not in self._targets:
                    self._targets.add(target)
                    with self._guard():
                        self._tap(stream, root, target)
        now = time.monotonic()
        self._again = now + SELDOM * (now - begin)
        missing = [self._paths[stream] for stream, pairs in found.items() if not pairs]
        if missing:
            tops = {type(m).__name__: [n for n, _ in m.named_modules() if n] for m in roots(modules)[:8]}
            near = {name: suggest(missing[0], paths[:60]) for name, paths in tops.items()}
            self._report(state="looking", near=near)
        elif self._meeting is not None:
            self._report(state="found")

    def root_of(self, target: nn.Module) -> nn.Module | None:
        """The outermost module that a found one lies in."""
        found = self._roots.get(target)
        return found() if found is not None else None

    def listen(self, root: nn.Module, path: str) -> None:
        """Keep what another module was last given, and returned."""

        def keep(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            self.outputs[path], self.inputs[path] = output, {**kwargs, **dict(enumerate(args))}

        module = find_module(root, path)
        self._listened.append((path, weakref.ref(module)))
        self._hook(module, keep, "call")

    def forget(self) -> None:
        """Drop what other modules said: the batch is over."""
        self.outputs.clear()
        self.inputs.clear()

    def _make(self, module: nn.Module, name: str, part: nn.Module | None) -> None:
        """A module becomes part of another one, as the first step of a tapped path does of its model."""
        self._made = self._made or any(name == path.partition(".")[0] for path in self._paths.values())

    def _meet(self, module: nn.Module, args: Any) -> None:
        """Any module is called: where it was never seen before, the model may be among the new ones.

        Some models make a small module in every forward: one without children makes us look now and then.
        """
        if torch.compiler.is_compiling() or module in self._known or get_worker_info() is not None:
            return
        self._known.add(module)
        if module._modules or time.monotonic() > self._again:
            self.search()

    def _tap(self, stream: str, root: nn.Module, target: nn.Module) -> None:
        self._roots[target] = weakref.ref(root)
        target, side = self._place(stream, root, target)
        if isinstance(target, torch.jit.ScriptModule):
            raise TapError(
                "a scripted or traced module runs no Python hook",
                where=self._paths[stream],
                do="Load the model from its Python class instead of torch.jit.",
            )
        top = weakref.ref(root)
        for path in self._keep:
            self.listen(root, path)

        def ran(module: nn.Module, args: Any, output: Any) -> None:
            # A hook travels with copy.deepcopy: what a copied model says is not what this one says.
            if module is target and get_worker_info() is None:
                # Kept before it is told: its own lengths may be in it.
                self.outputs.update((path, output) for path, kept in self._listened if kept() is module)
                with self._guard():
                    self._ran(stream, top(), module, output)

        def runs(module: nn.Module, args: Any, kwargs: Any) -> None:
            ran(module, args, first(args, kwargs))

        if side:
            self._hook(target, runs if side == "input" else ran, side)
        if (dynamo := sys.modules.get("torch._dynamo")) is not None:
            dynamo.reset()  # what was compiled before runs no hook that came later, and says nothing


def _uncompiled(hook: Any) -> Any:
    """A hook that torch.compile leaves alone; asked only where the program compiles at all."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo.disable(hook) if dynamo is not None else hook
