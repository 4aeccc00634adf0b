"""Capture, inside a process of the user's recipe: find the model, take its logits, hand them to a writer."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - registers its end before ours
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import get_worker_info

from .batchids import find_ids, find_texts
from .errors import LengthError, TapError, TapFiredTwice, TapNeverFired, UsageError
from .expression import Expression
from .inject.finder import Finder
from .inject.inside import Report
from .inject.lengths import Lengths, candidates, choose, in_variables, vectors
from .inject.surroundings import follow_loaders, variable
from .joiner import Joiner
from .products import PREFIX, Watch, split
from .scribe import Heard, Scribe, Shape
from .tap import LAYOUTS

OPTIONS = {"ctc": "ctc", "rnnt": "joiner"}  # by stream


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
        self.job, self.session = job, session
        self.paths = {s: str(job[o]) for s, o in OPTIONS.items() if job[o]}
        self._watch_products, self._multiplied = Watch(self._product), False
        self.ids = Expression(job["ids"], "--ids") if job["ids"] else None
        self.lengths = Expression(job["lengths"], "--lengths") if job["lengths"] else None
        self._batch: Any = None
        self._source: Any = None
        self._yielded, self._serial = 0, 0  # batches since the module ran; batches in all
        self._joiner: Joiner | None = None
        self._begin()
        if "rnnt" in self.paths:
            self._joiner = Joiner(job, self._lookup, lambda **said: self._report.write(**said))
        if "ctc" in self.paths:  # the first mode there is: nothing stands below it
            self._watch_products.__enter__()  # type: ignore[no-untyped-call]
        follow_loaders(self._noted)
        keep = self.lengths.modules if self.lengths else ()
        owners = {s: split(p)[0] if p.startswith(PREFIX) else p for s, p in self.paths.items()}
        self._finder = Finder(owners, self._take, self._guard, self._tell, keep, self._place)
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

    def _tell(self, **said: Any) -> None:
        if "state" not in said or self._report.said["state"] in ("torch", "looking"):
            self._report.write(**said)

    def _begin(self) -> None:
        """This process on its own: after a fork, the parent's writer and report stay the parent's."""
        self._inherited = getattr(self, "_scribe", None)  # kept, never closed: its lock is the parent's
        self._scribe: Scribe | None = None
        self._failed = False
        self._ran: dict[str, tuple[Any, int]] = {}  # the batch in which a module ran last, and how often
        self._heard: Heard | None = None  # a batch of which some stream is still to come
        self._report = Report(self.session, state="torch")

    # -- finding the model -------------------------------------------------------------------------------

    def _noted(self, batch: Any, source: Any) -> None:
        """A DataLoader of this process yields a batch."""
        if self._source is None or source is not self._source():
            self._source, self._yielded = weakref.ref(source), 0
            self._finder.search(seldom=True)
        if self._scribe is not None and not self._watch_products.busy:
            self._watch_products.remove()
        self._batch = batch
        self._yielded += 1
        self._serial += 1
        self._finder.outputs.clear()
        self._vectors.clear()

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

    def _place(self, stream: str, root: nn.Module, target: nn.Module) -> tuple[nn.Module, str]:
        if stream == "rnnt" and self._joiner is not None:
            return self._joiner.place(root, target)
        asked = self.paths[stream]
        by_name = asked.startswith(PREFIX)
        weight = split(asked)[1] if by_name else "weight"
        if isinstance(getattr(target, weight, None), torch.Tensor):
            self._watch_products.add(stream, target, weight)
        elif by_name:
            raise TapError(f"{type(target).__name__} has no {weight!r}", where=f"--{OPTIONS[stream]} {asked}")
        return target, "" if by_name else "output"

    def _product(self, stream: str, module: nn.Module, given: torch.Tensor, output: torch.Tensor) -> None:
        """A head that does not run itself: somebody multiplies with its weight."""
        if get_worker_info() is None:
            with self._guard():
                if not self._multiplied:
                    self._multiplied = True
                    self._report.write(ctc=f"a product with the weight of {split(self.paths[stream])[0]}")
                self._take(stream, self._finder.root_of(module), module, output)

    def _take(self, stream: str, root: nn.Module | None, module: nn.Module, output: Any) -> None:
        if self._failed or root is None:
            return
        where = f"--{OPTIONS[stream]} {self.paths[stream]}"
        if self._joiner is not None:
            self._joiner.runs(root)
        joiner = self._joiner if stream == "rnnt" else None
        if joiner is not None:
            logits = joiner.logits(output, where, lambda x: self._has_ids(x, where))
        else:
            logits = self._axes(output, where)
        # A mere wrapper is not always told (SpeechBrain's inference classes); what it holds is.
        if module.training or (root.training and any(m.training for m in root.children())):
            raise TapError(
                "the model is in training mode",
                where=where,
                why="Dropout and batch statistics make every forward say something else.",
            )
        parted = joiner is not None and joiner.parted(logits)
        ids = self._ids(logits, where, None if parted else len(logits))
        if len(ids) != len(logits) and not parted:
            axes = "a joint that runs on some of a batch: --accumulate" if joiner else "its axes: --layout"
            raise LengthError(
                f"{len(ids)} ids for an output of {tuple(logits.shape)}",
                where=where,
                do=f"Say where the ids are: --ids EXPR; {axes}.",
            )
        got = joiner.gathered(logits, len(ids), where) if joiner else [logits]
        if got is None or self._again(stream, ids, tuple(logits.shape), where):
            return
        if self._scribe is None:
            if stream == "ctc" and not self._multiplied:
                self._watch_products.clear()  # a module that runs needs no watching
            alone = Shape(logits.shape[-1])
            self._scribe = self._open(root, self._joiner.shape(module, logits) if self._joiner else alone)
            self._finder.settle()
        if self._scribe.root() is not root:
            raise TapError(
                f"a second model ({type(root).__name__}) runs a module at this path",
                where=where,
                why="Rows of two models in one store cannot be told apart.",
                do="Capture a run of the recipe that decodes with one of them.",
            )
        heard = self._heard
        if heard is None or heard.ids != tuple(ids) or stream in heard.streams:
            self._whole()
            t = 0 if logits.dim() == 2 else max(x.shape[1] for x in got)
            # where no one tensor has the batch's B and T: one that has them, and nothing in it
            about = logits.new_empty(len(ids), t, 0) if parted else logits
            heard = self._heard = self._hear(ids, self._lengths(about, root), t, where)
        if joiner is not None:
            joiner.keep(heard, got, self._scribe.blank, where)
        else:  # a copy: decoders edit logits in place after the layer returns them
            heard.logits = logits.clone() if heard.wanted else logits[:0]
        if len(heard.streams) == len(self.paths):
            self._heard = None
            if heard.wanted:
                self._scribe.put(heard)

    def _axes(self, output: Any, where: str) -> torch.Tensor:
        """(B, T, V), whatever the order of a module's axes."""
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
        if len(shape) != 3:
            what = shape or type(output).__name__
            raise TapError(f"gives {what}, not (B, T, V)", where=where, do="Ask logitstore probe.")
        return torch.as_tensor(output).detach().permute(LAYOUTS[self.job["layout"]])

    def _has_ids(self, x: torch.Tensor, where: str) -> bool:
        try:
            return len(self._ids(x, where, len(x))) == len(x)
        except UsageError:
            return False

    def _hear(self, ids: list[str], lengths: list[int], t: int, where: str) -> Heard:
        """A batch, nothing of it taken yet; raises ``LengthError``."""
        assert self._scribe is not None
        if len(lengths) != len(ids) or (t and max(lengths) > t):
            raise LengthError(
                f"lengths {lengths[:8]} for {len(ids)} utterances in {t} frames",
                where=f"{where}, {ids[0]}",
                why="Lengths in samples or feature frames instead of encoder frames look like this.",
                do="Say where the encoder's output lengths are: --lengths EXPR.",
            )
        found = find_texts(self._batch, len(ids))
        texts = found.values if found else None
        return Heard(tuple(ids), tuple(lengths), self._scribe.wanted(ids), texts)

    def _whole(self) -> None:
        """Raise ``TapNeverFired`` where a batch lacks one of its streams."""
        if self._heard is not None:
            missing = [self.paths[s] for s in self.paths if s not in self._heard.streams]
            raise TapNeverFired(
                f"{', '.join(missing)} did not run in a batch in which the other one did",
                where=self._heard.ids[0],
            )

    def _ids(self, logits: torch.Tensor, where: str, count: int | None) -> list[str]:
        if self.ids is not None and "batch" not in self.ids.names:
            return self._follow(self.ids, logits)
        if self._batch is None:
            raise UsageError(
                "no DataLoader of this process has yielded a batch: nothing says whose logits these are",
                where=where,
                do="Say where the ids are: --ids EXPR, e.g. a variable of your program at that moment.",
            )
        if self._yielded > 1 and all(batch != self._serial for batch, _ in self._ran.values()):
            raise UsageError(
                f"the loader yielded {self._yielded} batches before the module ran",
                where=where,
                why="A loader that fetches ahead, or batches that are left out: whose logits these are "
                "would be a guess.",
                do="Say it with a variable of your program: --ids EXPR.",
            )
        if self.ids is not None:
            return self._follow(self.ids, logits)
        found = find_ids(self._batch, count)
        if not found:
            raise UsageError(
                f"no ids of {logits.shape[0]} utterances in the batch ({_outline(self._batch)})",
                where=where,
                do="Let the dataset return them, or say where they are: --ids EXPR; or the axes: --layout.",
            )
        self.ids = Expression(found[0].expression, "ids")  # the same place in every batch
        self._report.write(ids=found[0].expression)
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
        chosen = choose(found, b, t, type(root).__name__)
        self._watcher.remove()
        self._watcher = None
        self._vectors.clear()
        for path in Expression(chosen.expression, "lengths").modules:
            self._finder.listen(root, path)
        return chosen

    def _lookup(self, name: str, logits: torch.Tensor) -> Any:
        known = {"batch": self._batch, "output": logits, "B": logits.shape[0], "T": logits.shape[1]}
        if name == "modules":
            return self._finder.outputs
        return known[name] if name in known and known[name] is not None else variable(name)

    def _again(self, stream: str, ids: list[str], shape: tuple[int, ...], where: str) -> bool:
        """Whether this call is not the one to keep; raises ``TapFiredTwice`` where nobody said which."""
        batch: Any = self._serial if self.ids is None or "batch" in self.ids.names else tuple(ids)
        before, calls = self._ran.get(stream, (None, 0))
        calls = calls + 1 if batch == before else 1
        self._ran[stream] = batch, calls
        self._yielded = 0
        keep = self.job["call"]
        if keep is not None:
            return bool(calls - 1 != keep)
        if calls > 1:
            raise TapFiredTwice(
                f"the module ran again in one batch, giving {shape}",
                where=f"{where}, {ids[0]}",
                why="Which of them is the answer cannot be guessed; a decoding loop runs it once a step.",
                do="Say which call to keep, counted from 0: --call N; or tap a module that runs once.",
            )
        return False

    # -- the writer --------------------------------------------------------------------------------------

    def _open(self, root: nn.Module, shape: Shape) -> Scribe:
        scribe = Scribe(self.job, self.session, root, self._report, shape)
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
            if not self._failed:
                with suppress(TapNeverFired), self._guard():  # the report says it; nobody hears it here
                    self._whole()
            scribe.close(failed=self._failed)

    def stop(self) -> None:
        """Remove every hook from every module."""
        self._finder.stop()
        self._watch_products.remove()
        if self._watcher is not None:
            self._watcher.remove()
            self._watcher = None


def _outline(batch: Any) -> str:
    if isinstance(batch, dict):
        return ", ".join(f"{k}: {type(v).__name__}" for k, v in list(batch.items())[:12])
    if isinstance(batch, list | tuple):
        return ", ".join(type(v).__name__ for v in batch[:12])
    return type(batch).__name__
