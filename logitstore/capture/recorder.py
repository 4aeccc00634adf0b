"""Capture, inside a process of the user's recipe: find the model, take its logits, hand them to a writer."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - registers its end before ours
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import get_worker_info

from ..errors import LengthError, TapError, TapFiredTwice, TapNeverFired, UsageError
from ..teachers.tap import LAYOUTS
from ..teachers.weight_products import PREFIX, Watch, split
from .expression import Expression
from .inject.batches import Batches
from .inject.finder import Finder
from .inject.inside import Report
from .inject.program import eagerly, follow_compiling, follow_loaders
from .joiner import Joiner
from .locate import Asking
from .pieces import BatchPieces
from .writer import Heard, Scribe, Shape

OPTIONS = {"ctc": "ctc", "rnnt": "joiner"}  # by stream


def begin(job: dict[str, Any], session: Path) -> None:
    """Wait for batches and for the module; called once torch is imported."""
    Capturing(job, session)


class Capturing:
    """One process that may turn out to run the tapped module.

    Args:
        job: see ``logitstore.capture.run``.
        session: folder of reports.
    """

    def __init__(self, job: dict[str, Any], session: Path) -> None:
        self.job, self.session = job, session
        self.paths = {s: str(job[o]) for s, o in OPTIONS.items() if job[o]}
        self._watch_products, self._multiplied = Watch(self._product), False
        self._joiner: Joiner | None = None
        self._begin()
        batches = Batches()
        keep = Expression(job["lengths"], "--lengths").modules if job["lengths"] else ()
        owners = {s: split(p)[0] if p.startswith(PREFIX) else p for s, p in self.paths.items()}
        self._finder = Finder(owners, self._take, self._guard, self._tell, keep, self._place)
        self._asking = Asking(job, batches, self._finder, self._say)
        if "rnnt" in self.paths:
            self._joiner = Joiner(job, self._asking.lookup, self._say)
        if "ctc" in self.paths:  # the first mode there is: nothing stands below it
            self._watch_products.__enter__()  # type: ignore[no-untyped-call]
        follow_loaders(self._noted)
        follow_compiling(self._compiling)
        os.register_at_fork(after_in_child=self._begin)
        excepthook = sys.excepthook

        def died(kind: Any, error: Any, trace: Any) -> None:
            self._failed = True
            excepthook(kind, error, trace)

        sys.excepthook = died

    def _tell(self, **said: Any) -> None:
        if "state" not in said or self._report.said["state"] in ("torch", "looking"):
            self._report.write(**said)

    def _say(self, **said: Any) -> None:
        self._report.write(**said)  # of this process: after a fork it is another one

    def _begin(self) -> None:
        """This process on its own: after a fork, the parent's writer and report stay the parent's."""
        self._inherited = getattr(self, "_scribe", None)  # kept, never closed: its lock is the parent's
        self._scribe: Scribe | None = None
        self._failed = False
        self._ran: dict[str, tuple[Any, int]] = {}  # the batch in which a module ran last, and how often
        self._heard: Heard | None = None  # a batch of which some stream is still to come
        self._pieces: BatchPieces | None = None  # a batch of which some calls are still to come
        self._report = Report(self.session, state="torch")

    # -- finding the model -------------------------------------------------------------------------------

    def _noted(self, batch: Any, source: Any, index: Any, dataset: Any) -> None:
        """A DataLoader of this process yields a batch."""
        if self._asking.batches.note(batch, source, index, dataset):
            self._finder.search(seldom=True)
        if self._scribe is not None and not self._watch_products.busy:
            self._watch_products.remove()
        self._asking.begin()

    def _compiling(self) -> None:
        """The program compiles a model: the first batch runs as it is, so that lengths can be found in it."""
        self._finder.compiling()
        self._asking.compiled = True
        if self._asking.lengths_at is None:
            eagerly(True)

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
                    self._say(ctc=f"a product with the weight of {split(self.paths[stream])[0]}")
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
        # SpeechBrain's interfaces are modules that stay in training mode themselves; what they hold does not.
        if module.training or (root.training and any(m.training for m in root.children())):
            raise TapError(
                "the model is in training mode",
                where=where,
                why="Dropout and batch statistics make every forward say something else.",
            )
        pieces = bool(self.job["accumulate"]) and self._joiner is None
        parted = joiner.parted(logits) if joiner is not None else pieces
        some = parted and self.job["accumulate"] != "t"  # of the batch's utterances, or all of them packed
        ids = self._asking.ids(logits, where, None if some else len(logits))
        if len(ids) != len(logits) and not parted:
            axes = "a joint that runs on some of a batch: --accumulate b" if joiner else "its axes: --layout"
            raise LengthError(
                f"{len(ids)} ids for an output of {tuple(logits.shape)}",
                where=where,
                do=f"Say where the ids are: --ids EXPR; {axes}.",
            )
        got = joiner.gathered(logits, len(ids), where) if joiner else [logits]
        if got is None or (not pieces and self._again(stream, ids, tuple(logits.shape), where)):
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
        if pieces:
            return self._piece(stream, ids, logits, root)
        heard = self._heard
        if heard is None or heard.ids != tuple(ids) or stream in heard.streams:
            self._whole()
            t = 0 if logits.dim() == 2 else max(x.shape[1] for x in got)
            # where no one tensor has the batch's B and T: one that has them, and nothing in it
            about = logits.new_empty(len(ids), t, 0) if parted else logits
            lengths, texts = self._asking.lengths(about, root), self._asking.texts(len(ids))
            heard = self._heard = self._hear(ids, lengths, t, texts)
        if joiner is not None:
            joiner.keep(heard, got, self._scribe.blank, where)
        else:  # a copy: decoders edit logits in place after the layer returns them
            heard.logits = logits.clone() if heard.wanted else logits[:0]
        if len(heard.streams) == len(self.paths):
            self._heard = None
            self._asking.forget()
            if heard.wanted:
                self._scribe.put(heard)

    def _piece(self, stream: str, ids: list[str], logits: torch.Tensor, root: nn.Module) -> None:
        """A piece of a batch: the next frames of all its utterances, or the next of these."""
        where, axis = f"--{OPTIONS[stream]} {self.paths[stream]}", self.job["accumulate"]
        batch, pieces = self._asking.batch(ids), self._pieces
        if pieces is None or pieces.batch != batch:
            self._whole()
            texts = self._asking.texts(len(ids))
            pieces = self._pieces = BatchPieces(batch, tuple(ids), texts, where)
        if axis == "t":
            alone = len(ids) == 1 and self._asking.lengths_at is None  # as long as its pieces are
            return pieces.add(logits, lambda x: [x.shape[1]] if alone else self._asking.lengths(x, root))
        ids, lengths, texts = pieces.next(len(logits), self._asking.lengths(logits, root))
        self._put(logits, self._hear(ids, lengths, logits.shape[1], texts))

    def _put(self, logits: torch.Tensor, heard: Heard) -> None:
        assert self._scribe is not None
        heard.logits = logits.clone()
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
            return len(self._asking.ids(x, where, len(x))) == len(x)
        except UsageError:
            return False

    def _hear(
        self, ids: Sequence[str], lengths: Sequence[int], t: int, texts: tuple[str, ...] | None
    ) -> Heard:
        """A batch, nothing of it taken yet; raises ``LengthError``."""
        assert self._scribe is not None
        if len(lengths) != len(ids) or (t and max(lengths) > t):
            raise LengthError(
                f"lengths {list(lengths[:8])} for {len(ids)} utterances in {t} frames",
                where=ids[0],
                why="Lengths in samples or feature frames instead of encoder frames look like this.",
                do="Say where the encoder's output lengths are: --lengths EXPR.",
            )
        return Heard(tuple(ids), tuple(lengths), self._scribe.wanted(list(ids)), texts)

    def _whole(self) -> None:
        """Take what pieces make; raise ``TapNeverFired`` where a batch lacks one of its streams."""
        pieces, self._pieces = self._pieces, None
        if pieces is not None:
            pieces.check(self.job["accumulate"])
        if pieces is not None and pieces.parts:
            logits, lengths = pieces.whole()
            heard = self._hear(pieces.ids, lengths, logits.shape[1], pieces.texts)
            self._put(logits, heard)
        if self._heard is not None:
            missing = [self.paths[s] for s in self.paths if s not in self._heard.streams]
            raise TapNeverFired(
                f"{', '.join(missing)} did not run in a batch in which the other one did",
                where=self._heard.ids[0],
            )

    def _again(self, stream: str, ids: list[str], shape: tuple[int, ...], where: str) -> bool:
        """Whether this call is not the one to keep; raises ``TapFiredTwice`` where nobody said which."""
        batch = self._asking.batch(ids)
        before, calls = self._ran.get(stream, (None, 0))
        calls = calls + 1 if batch == before else 1
        self._ran[stream] = batch, calls
        keep = self.job["call"]
        if keep is not None:
            return bool(calls - 1 != keep)
        if calls > 1:
            raise TapFiredTwice(
                f"the module ran again in one batch, giving {shape}",
                where=f"{where}, {ids[0]}",
                why="Which of them is the answer cannot be guessed; a decoding loop runs it once a step.",
                do="Say which call to keep, counted from 0: --call N; that they are pieces of "
                "one, --accumulate t (frames) or b (utterances); or tap a module that runs once.",
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
            self.stop()
            if not self._failed:
                with suppress(Exception), self._guard():  # the report says it; nobody hears it here
                    self._whole()
            scribe, self._scribe = self._scribe, None
            scribe.close(failed=self._failed)

    def stop(self) -> None:
        """Remove every hook from every module."""
        self._finder.stop()
        self._watch_products.remove()
        self._asking.stop()
