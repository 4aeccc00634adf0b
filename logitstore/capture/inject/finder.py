"""Search for the captured modules among all live ones, and hooks on them.

The models do not exist yet when the search begins:

1. A hook on all modules is called before any module runs (``_before_any_module``). A module that was never
   seen before starts a search, since the model may be among the new ones.
2. A search (``search``) looks through all live modules of the process for the given paths, and hooks the
   module below the outermost module that has such a path (``_hook_target``).
3. When a captured module has run, ``settle`` removes the hook on all modules. From then on a search runs when
   a new iterator of a loader begins, if a module was made since or enough time has passed: a second model
   must be noticed.
4. When the program compiles, ``hook_again`` replaces the hooks by ones that torch.compile leaves alone.
"""

from __future__ import annotations

import sys
import threading
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
from ...teachers.tap import find_module, first_argument
from .program import live_modules, not_compiled, outermost, roots

PAUSE_FACTOR = 200  # a search that nothing asked for follows after this many times its own duration
ModuleRan = Callable[[str, nn.Module | None, nn.Module, Any], None]
HookAt = Callable[[str, nn.Module, nn.Module], tuple[nn.Module, str]]


class ModuleFinder:
    """Hooks on modules that do not exist yet.

    Args:
        paths: module path by stream, below the outermost module that has it.
        ran: function that is called with stream, root, module and output whenever a hooked module has run.
        guard: context manager around everything that may raise an error in the program.
        report: function that is called with ``state`` (``found`` or ``looking``), and ``near``: suggestions
            for paths that do not exist.
        keep: paths of further modules of the same model, whose last inputs and outputs are kept.
        hook_at: function that is called with stream, root and the module at the path, and returns the module
            to hook and its side: ``output``, ``input``, or empty for none.

    """

    def __init__(
        self,
        paths: Mapping[str, str],
        *,
        ran: ModuleRan,
        guard: Callable[[], AbstractContextManager[None]],
        report: Callable[..., None],
        keep: Iterable[str] = (),
        hook_at: HookAt = lambda stream, root, module: (module, "output"),
    ) -> None:
        self._paths, self._ran, self._guard, self._report = paths, ran, guard, report
        self._kept_paths, self._hook_at = tuple(keep), hook_at
        self._of_thread = threading.local()
        self._known: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._targets: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._roots: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = (
            weakref.WeakKeyDictionary()
        )
        self._hooks: list[tuple[nn.Module, Any, str, Any]] = []  # module, function, side, handle
        self._kept: list[tuple[str, weakref.ref[nn.Module]]] = []
        self._next_search = 0.0
        self._module_made = False  # since the last search, one that may belong to a model with such a path
        self._call_hook: Any = nn.modules.module.register_module_forward_pre_hook(self._before_any_module)
        self._make_hook: Any = nn.modules.module.register_module_module_registration_hook(
            self._after_registration
        )

    @property
    def outputs(self) -> dict[str, Any]:
        """Last output of the kept modules in this thread, by path."""
        found: dict[str, Any] = self._of_thread.__dict__.setdefault("outputs", {})
        return found

    @property
    def inputs(self) -> dict[str, dict[Any, Any]]:
        """Last arguments of the kept modules in this thread, by path, then by position and name."""
        found: dict[str, dict[Any, Any]] = self._of_thread.__dict__.setdefault("inputs", {})
        return found

    def settle(self) -> None:
        """Remove the hook on all modules: a captured module has run."""
        if self._call_hook is not None:
            self._call_hook.remove()
            self._call_hook = None

    def stop(self) -> None:
        """Remove all hooks."""
        self.settle()
        self._make_hook.remove()
        while self._hooks:
            self._hooks.pop()[-1].remove()

    def _hook(self, module: nn.Module, function: Any, side: str) -> None:
        """Hook a module.

        Args:
            module: module to hook.
            function: called as torch calls forward hooks.
            side: ``input``: before it runs; ``output``: after it; ``call``: after it, with keyword arguments
                too.
        """
        hook = not_compiled(function)
        if side == "input":
            handle: Any = module.register_forward_pre_hook(hook, with_kwargs=True)
        else:
            handle = module.register_forward_hook(hook, with_kwargs=side == "call")
        self._hooks.append((module, function, side, handle))

    def hook_again(self) -> None:
        """Replace all hooks by ones that torch.compile leaves alone: the program begins to compile."""
        hooks, self._hooks = self._hooks, []
        for module, function, side, handle in hooks:
            handle.remove()
            self._hook(module, function, side)

    def search(self, *, seldom: bool = False) -> None:
        """Look for the paths among all live modules, and hook what is found.

        With ``seldom``, and once a captured module has run, do so only where a module was made since the last
        search, or enough time has passed to look for copied and unpickled ones.
        """
        begin = time.monotonic()
        if seldom and self._call_hook is None and not self._module_made and begin < self._next_search:
            return
        self._module_made = False
        modules = live_modules()
        self._known.update(modules)
        found = {stream: outermost(path, modules) for stream, path in self._paths.items()}
        for stream, pairs in found.items():
            for root, target in pairs:
                if target not in self._targets:
                    self._targets.add(target)
                    with self._guard():
                        self._hook_target(stream, root, target)
        end = time.monotonic()
        self._next_search = end + PAUSE_FACTOR * (end - begin)
        missing = [self._paths[stream] for stream, pairs in found.items() if not pairs]
        if missing:
            tops = {type(m).__name__: [n for n, _ in m.named_modules() if n] for m in roots(modules)[:8]}
            near = {name: suggest(missing[0], paths[:60]) for name, paths in tops.items()}
            self._report(state="looking", near=near)
        elif self._call_hook is not None:
            self._report(state="found")

    def root_of(self, target: nn.Module) -> nn.Module | None:
        """Return the outermost module of a found one; None where it does not exist any more."""
        found = self._roots.get(target)
        return found() if found is not None else None

    def keep(self, root: nn.Module, path: str) -> None:
        """Keep the last inputs and output of another module of a model."""

        def keep(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            self.outputs[path], self.inputs[path] = output, {**kwargs, **dict(enumerate(args))}

        module = find_module(root, path)
        self._kept.append((path, weakref.ref(module)))
        self._hook(module, keep, "call")

    def forget(self) -> None:
        """Drop the inputs and outputs of the kept modules: the batch is over."""
        self.outputs.clear()
        self.inputs.clear()

    def _after_registration(self, module: nn.Module, name: str, part: nn.Module | None) -> None:
        """Note that a submodule is registered under the first name of a path, as in a new model."""
        first_names = {path.partition(".")[0] for path in self._paths.values()}
        self._module_made = self._module_made or name in first_names

    def _before_any_module(self, module: nn.Module, args: Any) -> None:
        """Search when a module is called that was never seen before.

        Some models make a small module in every forward: one without children starts a search only now and
            then.
        """
        if torch.compiler.is_compiling() or module in self._known or get_worker_info() is not None:
            return
        self._known.add(module)
        if module._modules or time.monotonic() > self._next_search:
            self.search()

    def _hook_target(self, stream: str, root: nn.Module, target: nn.Module) -> None:
        """Hook a found module, or the one that ``hook_at`` names instead."""
        self._roots[target] = weakref.ref(root)
        target, side = self._hook_at(stream, root, target)
        if isinstance(target, torch.jit.ScriptModule):
            raise TapError(
                "a scripted or traced module runs no Python hook",
                where=self._paths[stream],
                do="Load the model from its Python class instead of torch.jit.",
            )
        top = weakref.ref(root)
        for path in self._kept_paths:
            self.keep(root, path)

        def after_call(module: nn.Module, args: Any, output: Any) -> None:
            # copy.deepcopy copies hooks: outputs of a copied model are not this model's.
            if module is target and get_worker_info() is None and not torch._C._is_tracing():
                # Lengths may be in its own output, so that is kept first.
                self.outputs.update((path, output) for path, kept in self._kept if kept() is module)
                with self._guard():
                    self._ran(stream, top(), module, output)

        def before_call(module: nn.Module, args: Any, kwargs: Any) -> None:
            after_call(module, args, first_argument(args, kwargs))

        if side:
            self._hook(target, before_call if side == "input" else after_call, side)
        if (dynamo := sys.modules.get("torch._dynamo")) is not None:
            dynamo.reset()  # a model that was compiled before runs no hook that is registered later
