"""Capture, inside a process of the user's recipe: find the model, take its logits, hand them to a writer."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - registers its end before ours
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import get_worker_info

from .batchids import find_ids, find_texts
from .errors import LengthError, TapError, TapFiredTwice, UsageError
from .expression import Expression
from .inject.inside import Report
from .inject.lengths import Lengths, candidates, choose, in_variables, vectors
from .inject.surroundings import follow_loaders, live_modules, outermost, roots, variable
from .registry import suggest
from .scribe import Heard, Scribe
from .tap import LAYOUTS, find_module

SELDOM = 200  # times longer than a search takes, until the next one


def begin(job: dict[str, Any], session: Path) -> None:
    """Wait for batches and for the module; called once torch is imported."""
    Capturing(job, session)


class Capturing:
    """One process that may turn out to run the tapped module.

    Args:
        job: see ``logitstore.capture``.
        session: folder of reports.
    """

    def __init__(self, job: dict[str, Any], session: Path) -> None:
        self.job, self.session, self.path = job, session, str(job["ctc"])
        self.ids = Expression(job["ids"], "--ids") if job["ids"] else None
        self.lengths = Expression(job["lengths"], "--lengths") if job["lengths"] else None
        self._known: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._targets: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._handles: list[Any] = []  # of every hook on a module
        self._outputs: dict[str, Any] = {}
        self._batch: Any = None
        self._source: Any = None
        self._search_again = 0.0
        self._yielded, self._serial = 0, 0  # batches since the module ran; batches in all
        self._begin()
        follow_loaders(self._noted)
        self._finder: Any = nn.modules.module.register_module_forward_pre_hook(self._meet)
        # until it is known where the lengths are: what every module returned in this batch
        self._vectors: list[tuple[weakref.ref[nn.Module], str, torch.Tensor]] = []
        self._watcher: Any = None
        if self.lengths is None:
            self._watcher = nn.modules.module.register_module_forward_hook(self._watch)
        os.register_at_fork(after_in_child=self._begin)
        excepthook = sys.excepthook

        def died(kind: Any, error: Any, trace: Any) -> None:
            self._failed = True
            excepthook(kind, error, trace)

        sys.excepthook = died

    def _begin(self) -> None:
        """This process on its own: after a fork, the parent's writer and report stay the parent's."""
        self._inherited = getattr(self, "_scribe", None)  # kept, never closed: its lock is the parent's
        self._scribe: Scribe | None = None
        self._failed = False
        self._ran: Any = None  # the batch in which the module ran last, and how often
        self._calls = 0
        self._report = Report(self.session, state="torch")

    # -- finding the model -------------------------------------------------------------------------------

    def _noted(self, batch: Any, source: Any) -> None:
        """A DataLoader of this process yields a batch."""
        if self._source is None or source is not self._source():
            self._source, self._yielded = weakref.ref(source), 0
            if self._finder is not None or time.monotonic() > self._search_again:
                self._search()
        self._batch = batch
        self._yielded += 1
        self._serial += 1
        self._outputs.clear()
        self._vectors.clear()

    def _meet(self, module: nn.Module, args: Any) -> None:
        """Any module is called: where it was never seen before, the model may be among the new ones.

        Some models make a small module in every forward: one without children makes us look now and then.
        """
        if module in self._known or get_worker_info() is not None:
            return
        self._known.add(module)
        if module._modules or time.monotonic() > self._search_again:
            self._search()

    def _search(self) -> None:
        begin = time.monotonic()
        modules = live_modules()
        self._known.update(modules)
        for root, target in outermost(self.path, modules):
            if target not in self._targets:
                self._targets.add(target)
                with self._guard():
                    self._tap(root, target)
        now = time.monotonic()
        self._search_again = now + SELDOM * (now - begin)  # for a second model, made later
        if self._targets:
            if self._report.said["state"] in ("torch", "looking"):
                self._report.write(state="found")
            return
        tops = {type(m).__name__: [n for n, _ in m.named_modules() if n] for m in roots(modules)[:8]}
        self._report.write(
            state="looking", near={name: suggest(self.path, paths[:60]) for name, paths in tops.items()}
        )

    def _tap(self, root: nn.Module, target: nn.Module) -> None:
        if isinstance(target, torch.jit.ScriptModule):
            raise TapError(
                "a scripted or traced module runs no Python hook",
                where=f"--ctc {self.path}",
                do="Load the model from its Python class instead of torch.jit.",
            )
        top = weakref.ref(root)

        def ran(module: nn.Module, args: Any, output: Any) -> None:
            if module is target and get_worker_info() is None:
                with self._guard():
                    self._take(top(), module, output)

        self._handles.append(target.register_forward_hook(_uncompiled(ran)))
        for path in self.lengths.modules if self.lengths else ():
            self._listen(root, path)

    def _listen(self, root: nn.Module, path: str) -> None:
        """Keep the last output of a module that the lengths come from."""

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self._outputs[path] = output

        self._handles.append(find_module(root, path).register_forward_hook(_uncompiled(keep)))

    def _watch(self, module: nn.Module, args: Any, output: Any) -> None:
        for rest, tensor in vectors(output, ""):
            self._vectors.append((weakref.ref(module), rest, tensor))
            del self._vectors[:-256]

    # -- taking the logits -------------------------------------------------------------------------------

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """What is wrong stops the recipe, and is said again when it ended: it may catch the error."""
        try:
            yield
        except Exception as e:
            self._failed = True
            self._report.write(state="failed", error=f"{type(e).__name__}: {e}")
            raise

    def _take(self, root: nn.Module | None, module: nn.Module, output: Any) -> None:
        if self._failed or root is None:
            return
        where = f"--ctc {self.path}"
        if not isinstance(output, torch.Tensor) or output.dim() != 3:
            what = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise TapError(f"gives {what}, not (B, T, V)", where=where, do="Ask logitstore probe.")
        if root.training or module.training:
            raise TapError(
                "the model is in training mode",
                where=where,
                why="Dropout and batch statistics make every forward say something else.",
            )
        logits = output.detach().permute(LAYOUTS[self.job["layout"]])
        b, t = logits.shape[:2]
        ids = self._ids(logits)
        if len(ids) != b:
            raise LengthError(
                f"{len(ids)} ids for an output of {tuple(output.shape)}, layout {self.job['layout']}",
                where=where,
                do="Name its axes with --layout, or say where the ids are with --ids EXPR.",
            )
        if self._again(ids, tuple(output.shape), where):
            return
        if self._scribe is None:
            self._scribe = self._open(root, logits.shape[-1])
            if self._finder is not None:
                self._finder.remove()
                self._finder = None
        elif self._scribe.root() is not root:
            raise TapError(
                f"a second model ({type(root).__name__}) runs a module at this path",
                where=where,
                why="Rows of two models in one store cannot be told apart.",
                do="Capture a run of the recipe that decodes with one of them.",
            )
        wanted = self._scribe.wanted(ids)
        lengths = self._lengths(logits, root)
        if max(lengths) > t or len(lengths) != b:
            raise LengthError(
                f"lengths {lengths[:8]} for an output of {tuple(output.shape)}",
                where=f"{where}, {ids[0]}",
                why="Lengths in samples or feature frames instead of encoder frames look like this.",
                do="Say where the encoder's output lengths are: --lengths EXPR.",
            )
        if not wanted:
            return
        found = find_texts(self._batch, b)
        texts = found.values if found else None
        # A copy: decoders edit logits in place after the layer returns them.
        self._scribe.put(Heard(tuple(ids), logits.clone(), tuple(lengths), wanted, texts))

    def _ids(self, logits: torch.Tensor) -> list[str]:
        if self.ids is not None and "batch" not in self.ids.names:
            return self._follow(self.ids, logits)
        if self._batch is None:
            raise UsageError(
                "no DataLoader of this process has yielded a batch: nothing says whose logits these are",
                where=f"--ctc {self.path}",
                do="Say where the ids are: --ids EXPR, e.g. a variable of your program at that moment.",
            )
        if self._yielded > 1 and self._ran != self._serial:
            raise UsageError(
                f"the loader yielded {self._yielded} batches before the module ran",
                where=f"--ctc {self.path}",
                why="A loader that fetches ahead, or batches that are left out: whose logits these are "
                "would be a guess.",
                do="Say it with a variable of your program: --ids EXPR.",
            )
        if self.ids is not None:
            return self._follow(self.ids, logits)
        found = find_ids(self._batch, logits.shape[0])
        if not found:
            raise UsageError(
                f"no ids of {logits.shape[0]} utterances in the batch ({_outline(self._batch)})",
                where=f"--ctc {self.path}",
                do="Let the dataset return them, or say where they are: --ids EXPR; or the axes: --layout.",
            )
        return list(found[0].values)

    def _follow(self, ids: Expression, logits: torch.Tensor) -> list[str]:
        value = ids.value(lambda name: self._lookup(name, logits))
        return [str(i) for i in ([value] if isinstance(value, str | int) else list(value))]

    def _lengths(self, logits: torch.Tensor, root: nn.Module) -> list[int]:
        if self.lengths is None:
            found = self._settle(logits, root)
            self.lengths = Expression(found.expression, "lengths")
            self._report.write(lengths=found.expression)
            return list(found.values)
        value = self.lengths.value(lambda name: self._lookup(name, logits))
        if isinstance(value, torch.Tensor):
            value = value.reshape(-1).tolist()
        return [round(v) for v in (value if isinstance(value, list | tuple) else [value])]

    def _settle(self, logits: torch.Tensor, root: nn.Module) -> Lengths:
        """Where the lengths are, from the first batch: a variable by preference, for people can read it."""
        b, t = logits.shape[:2]
        names = {m: n for n, m in root.named_modules()}
        returned = [(names[m], rest, v) for ref, rest, v in self._vectors if (m := ref()) in names]
        found = candidates(in_variables(), b, t)
        found += candidates(((f'modules["{n}"]{rest}', v) for n, rest, v in reversed(returned)), b, t)
        chosen = choose(found, b, t, f"--ctc {self.path}")
        self._watcher.remove()
        self._watcher = None
        self._vectors.clear()
        for path in Expression(chosen.expression, "lengths").modules:
            self._listen(root, path)
        return chosen

    def _lookup(self, name: str, logits: torch.Tensor) -> Any:
        known = {"batch": self._batch, "output": logits, "B": logits.shape[0], "T": logits.shape[1]}
        if name == "modules":
            return self._outputs
        return known[name] if name in known and known[name] is not None else variable(name)

    def _again(self, ids: list[str], shape: tuple[int, ...], where: str) -> bool:
        """Whether this call is not the one to keep; raises ``TapFiredTwice`` where nobody said which."""
        by_batch = self.ids is None or "batch" in self.ids.names
        batch: Any = self._serial if by_batch else tuple(ids)
        self._calls = self._calls + 1 if batch == self._ran else 1
        self._ran, self._yielded = batch, 0
        keep = self.job["call"]
        if keep is not None:
            return bool(self._calls - 1 != keep)
        if self._calls > 1:
            raise TapFiredTwice(
                f"the module ran again in one batch, giving {shape}",
                where=f"{where}, {ids[0]}",
                why="Which of them is the answer cannot be guessed; a decoding loop runs it once a step.",
                do="Say which call to keep, counted from 0: --call N; or tap a module that runs once.",
            )
        return False

    # -- the writer --------------------------------------------------------------------------------------

    def _open(self, root: nn.Module, classes: int) -> Scribe:
        scribe = Scribe(self.job, self.session, root, classes, self._report)
        # At the end of a child that multiprocessing made, and of a program: there before the executors end,
        # which storages work with (concurrent.futures registered itself first; last in, first out).
        pid = os.getpid()
        Finalize(self, self._close, args=(pid,), exitpriority=10)
        getattr(threading, "_register_atexit", atexit.register)(self._close, pid)
        return scribe

    def _close(self, pid: int) -> None:
        if pid == os.getpid() and self._scribe is not None:
            scribe, self._scribe = self._scribe, None
            self.stop()
            scribe.close(failed=self._failed)

    def stop(self) -> None:
        """Remove every hook from every module."""
        for handle in [*self._handles, self._finder, self._watcher]:
            if handle is not None:
                handle.remove()
        self._handles.clear()
        self._finder = self._watcher = None


def _uncompiled(hook: Any) -> Any:
    """A hook that torch.compile leaves alone; asked only where the program compiles at all."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo.disable(hook) if dynamo is not None else hook


def _outline(batch: Any) -> str:
    if isinstance(batch, dict):
        return ", ".join(f"{k}: {type(v).__name__}" for k, v in list(batch.items())[:12])
    if isinstance(batch, list | tuple):
        return ", ".join(type(v).__name__ for v in batch[:12])
    return type(batch).__name__
