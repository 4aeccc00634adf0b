"""Probe, inside a process of the user's program: watch the first batches, then say what was seen."""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import get_worker_info

from ...errors import LengthError, TapPathError
from ...teachers.joiners import FoundJoiner, find_joiners
from ...teachers.tap import find_module
from ...teachers.weight_products import PREFIX, split
from ..batch_ids import FoundIds, find_by_index, find_ids, find_texts
from ..inject.batches import parts
from ..inject.lengths import (
    FoundLengths,
    candidates,
    choose,
    possible_lengths,
    possible_lengths_in_variables,
    variables,
)
from ..inject.program import (
    INTEGERS,
    follow_compiling,
    follow_loaders,
    frames,
    live_modules,
    roots,
    run_compiled_models_eagerly,
)
from ..inject.report import ProcessReport
from ..job import ProbeJob
from ..lattices import find_frames
from .observer import EmittedOutput, OutputObserver
from .rank import AXES, HeadCandidate, named, rank

TABLES = re.compile(
    r"(^|[._-])(tokens?|units?|dict|vocab|vocabulary|words|lang_char|bpe|config)[._-]?.*"
    r"\.(txt|json|model|ya?ml)$",
    re.I,
)
IDS = re.compile(
    r"(^|_)(utt|uttid|uid|id|ids|key|keys|name|names|stem|cut|wav|path|file|audio)(_|$|\d)", re.I
)
BLANKS = ("blank_id", "blank_idx", "blank_index", "blank")
CALLS = 64  # of one module in one batch that are looked at
WAIT = 60.0  # seconds for the parent to end this program


@dataclass
class CallContext:
    """What surrounded one call of a module.

    Attributes:
        shape: of its output.
        lengths: what may hold the valid lengths; ``chosen``: what does, where that is sure.
        labels: variables that may hold the labels of a lattice.
    """

    shape: tuple[int, ...]
    lengths: list[FoundLengths]
    chosen: FoundLengths | None
    labels: list[str]


class ProbeRecorder:
    """One process that may turn out to run the model.

    Args:
        job: ``batches`` to watch, ``classes`` (V) where a token table was given.
        session: folder of reports.
    """

    def __init__(self, job: ProbeJob, session: Path) -> None:
        self._batches, self._classes = job.batches, job.classes
        self._report = ProcessReport(session, state="torch")
        self._batch: Any = None
        self._ids: list[FoundIds] = []  # of the first batch that has any
        self._first: nn.Module | None = None
        self._first_trained = False
        self._threaded = False  # whether a loader yields in another thread than the model runs in
        self._notes, self._try_at = 0, self._batches
        self._seen: dict[nn.Module, dict[int, list[CallContext]]] = {}  # by batch, call by call
        self._at_encoder: dict[nn.Module, list[FoundLengths]] = {}
        self._encoder_ids: dict[nn.Module, dict[str, list[FoundIds]]] = {}
        self._variables: dict[nn.Module, dict[str, list[FoundIds]]] = {}
        self._signs: list[tuple[nn.Module, str, str, torch.Tensor]] = []
        self._opened: list[str] = []
        self._tops: list[nn.Module] = []
        self._held: set[int] = set()  # batches in which these were looked up
        # model, drive, encoder and joiner, once the first batch has passed
        self._joiners: list[tuple[str, FoundJoiner, nn.Module, nn.Module]] = []
        self._over = self._compiled = False
        sys.addaudithook(self._audit)
        follow_loaders(self._noted)
        follow_compiling(self._compiling)
        self._observer = OutputObserver()
        self._observer.on_output = self._output
        self._observer.__enter__()  # until the program ends
        atexit.register(self._ended, os.getpid())
        Finalize(self, self._ended, args=(os.getpid(),), exitpriority=10)

    def _compiling(self) -> None:
        self._compiled = True
        run_compiled_models_eagerly(True)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and args and isinstance(args[0], str) and TABLES.search(Path(args[0]).name):
            self._opened.append(str(Path(args[0]).absolute()))

    def _noted(self, batch: Any, source: Any, index: Any, dataset: Any) -> None:
        self._threaded = threading.current_thread() is not threading.main_thread()
        self._notes += 1
        if self._notes > self._batches and not self._threaded:
            self._enough()
        self._batch = batch
        self._ids = self._ids or [*find_ids(batch), *find_by_index(index, dataset, guess=True)]
        if not self._threaded:
            self._next()

    def _next(self) -> None:
        if self._observer.batch == 1:
            self._seek()
        self._observer.batch += 1
        self._signs.clear()

    def _output(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any, said: EmittedOutput | None
    ) -> None:
        if get_worker_info() is not None or self._over:
            return
        if self._batch is None or self._threaded:  # a batch begins where the module that ran first runs again
            if self._first is None or (self._first_trained and not module.training):
                # Some layers run on dummies while they are made, in training mode (SpeechBrain).
                self._first, self._first_trained = module, module.training
                self._observer.forget()
                self._try_at = self._batches
            if module is self._first:
                self._next()
                if self._observer.batch > self._try_at:
                    self._try_at = 2 * self._observer.batch
                    self._enough()
        for where, value in (("modules", output), ("inputs", args), ("inputs", kwargs)):
            self._signs += [(module, where, rest, tensor) for rest, tensor in possible_lengths(value, "")]
        del self._signs[:-512]
        if self._observer.batch not in self._held:  # a program that ends lets its model go before it is asked
            self._held.add(self._observer.batch)
            self._tops = roots(live_modules())
        if said is not None and len(said.shape) >= 3 and said.calls[self._observer.batch] <= CALLS:
            self._surroundings(module, said, tuple(_first(output).shape))
        for _, found, encoder, _ in self._joiners:
            if module is encoder:
                self._encoded(module, found, output)

    def _seek(self) -> None:
        """Transducers whose joiner capture can drive."""
        for top in roots(live_modules()):
            for found in find_joiners(top):
                encoder = found.encoder.removeprefix("input:")
                with suppress(TapPathError):
                    both = find_module(top, encoder), find_module(top, found.joint)
                    self._joiners.append((type(top).__name__, found, *both))

    def _encoded(self, module: nn.Module, found: FoundJoiner, output: Any) -> None:
        """Where ids and lengths are when capture takes the encoder's output, or another module's input."""
        enc = find_frames(output) if found.adapter.side == "output" else None
        count = self._count() or (1 if enc is None else enc.shape[0])
        for ids in _id_variables(count):
            self._encoder_ids.setdefault(module, {}).setdefault(ids.expression, []).append(ids)
        if enc is None or module in self._at_encoder:
            return
        axes = [n for n, size in enumerate(enc.shape) if size not in (count, found.adapter.width)]
        t = enc.shape[axes[0]] if len(axes) == 1 else enc.shape[1]
        own = ((f"{id(m)}{where}{rest}", v) for m, where, rest, v in reversed(self._signs))
        self._at_encoder[module] = [f for f in candidates(own, count, t) if max(f.values) == t]

    def _surroundings(self, module: nn.Module, said: EmittedOutput, shape: tuple[int, ...]) -> None:
        """Where lengths and ids are while a module that may be the head runs."""
        count = self._count() or shape[0]
        axis = 2 if said.axis == 1 else 0 if shape[0] != count == shape[1] else 1
        batches = self._seen.setdefault(module, {})
        if not batches or self._observer.batch in batches:  # the first batch will do
            calls = batches.setdefault(self._observer.batch, [])
            calls.append(self._look(shape, axis, sum(c.shape[axis] for c in calls)))
        if said.calls[self._observer.batch] == 1:
            for found in _id_variables(count):
                self._variables.setdefault(module, {}).setdefault(found.expression, []).append(found)

    def _look(self, shape: tuple[int, ...], axis: int, before: int) -> CallContext:
        """The surroundings of one call; ``before``: frames of the calls before it, whose rest this may be."""
        found: list[FoundLengths] = []
        chosen, b, t = None, shape[1 if axis == 0 else 0], shape[axis]
        for frames_ in (before + t, t) if before else (t,):
            told = ((f"{id(m)}{where}{rest}", v) for m, where, rest, v in reversed(self._signs))
            mine, found = (
                candidates(possible_lengths_in_variables(), b, frames_),
                candidates(told, b, frames_),
            )
            found = found + mine if self._compiled else mine + found  # a compiled function keeps no variables
            given = [p for p in (*parts(self._batch, 3), *(v for _, v in variables())) if _is_tensor(p)]
            if found:
                with suppress(LengthError):
                    chosen = choose(found, b, frames_, "", given)
                break
        labels = _label_variables(shape[0], shape[2] - 1) if len(shape) == 4 else []
        return CallContext(shape, found, chosen, labels)

    def _count(self) -> int | None:
        return len(self._ids[0].values) if self._ids else None

    def _ended(self, pid: int) -> None:
        if pid == os.getpid() and not self._over and (self._observer.emitted or self._observer.products):
            self.say("ended")

    def _enough(self) -> None:
        """Say what was seen, and wait for the parent to end the program; nothing, where nothing was seen."""
        if not self.say("enough"):
            return
        self._over = True
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            time.sleep(0.1)

    def say(self, state: str) -> bool:
        """Write the report, if there is any candidate."""
        held = (m for top in self._tops for m in top.modules())
        tops, count = roots(list({*live_modules(), *held})), self._count()
        paths = {m: path for m, (path, _) in named(tops).items()}
        emitted = [*self._observer.emitted.values(), *self._observer.products.values()]
        known = {s.module for s in emitted}
        modules = {n: m for m, n in paths.items() if m in known}
        ranked = rank(emitted, tops, count, self._classes)
        if not ranked:
            return False
        told = []
        for candidate in ranked[:64]:
            module = modules[_path(candidate.path)]
            batches = list(self._seen.get(module, {}).values())
            calls = batches[0] if batches else []
            call, joined = _which(candidate, calls, count)
            seen = calls[-1 if joined else call or 0] if calls else None
            lengths = [_named(f, paths) for f in seen.lengths] if seen else []
            chosen = _named(seen.chosen, paths).expression if seen and seen.chosen else ""
            variables_ = _changing(self._variables.get(module, {}))
            told.append(
                {
                    **candidate.to_json(),
                    "lengths": _told(lengths),
                    "chosen": chosen,
                    "variables": _told(variables_),
                    "labels": seen.labels if seen else [],
                    "call": call,
                    "accumulate": joined,
                }
            )
        texts = find_texts(self._batch, count) if count else None
        self._report.write(
            state=state,
            batches=max(len(s.calls) for s in emitted if s.module is modules[_path(ranked[0].path)]),
            candidates=told,
            ids=_told(self._ids),
            texts=texts.expression if texts else "",
            opened=list(dict.fromkeys(self._opened)),
            joiners=self._told_joiners(paths),
            blanks=_blanks(tops),
        )
        return True

    def _told_joiners(self, paths: dict[nn.Module, str]) -> list[dict[str, Any]]:
        """What capture can drive; ``ran``: how often a batch a part of the joiner did."""
        if not self._joiners:
            self._seek()
        told = []
        for model, found, encoder, joint in self._joiners:
            seen = [self._observer.emitted[m] for m in joint.modules() if m in self._observer.emitted]
            lengths = [_named(f, paths) for f in self._at_encoder.get(encoder, [])]
            told.append(
                {
                    "convention": found.name,
                    "model": model,
                    "joiner": found.joint,
                    "encoder": found.encoder,
                    "classes": found.adapter.classes,
                    "ran": max((max(s.calls.values()) for s in seen), default=0),
                    "lengths": _told(lengths),
                    "chosen": lengths[0].expression if lengths else "",
                    "variables": _told(_changing(self._encoder_ids.get(encoder, {}))),
                }
            )
        return told


def _path(candidate: str) -> str:
    """Of the module, whether it ran or only its weight was used."""
    return split(candidate)[0] if candidate.startswith(PREFIX) else candidate


def _told(found: Sequence[FoundIds | FoundLengths]) -> list[dict[str, Any]]:
    return [{"expression": f.expression, "values": f.values[:8]} for f in found]


def _named(found: FoundLengths, paths: dict[nn.Module, str]) -> FoundLengths:
    """A module is known by its number while it runs, by its path in the report."""

    def name(match: re.Match[str]) -> str:
        path = next((n for m, n in paths.items() if id(m) == int(match[1])), "?")
        return f'{match[2]}["{path}"]'

    return replace(found, expression=re.sub(r"(\d+)(modules|inputs)", name, found.expression))


def _which(
    candidate: HeadCandidate, calls: Sequence[CallContext], count: int | None
) -> tuple[int | None, str]:
    """Which of several calls a batch is the answer, or along which axis (``t``, ``b``) they are one."""
    if candidate.calls < 2 or candidate.joiner or candidate.layout not in AXES or len(calls) < 2:
        return None, ""
    b, t = AXES[candidate.layout]
    sizes = [c.shape[b] for c in calls]
    if count is not None and max(sizes) < count == sum(sizes):
        return None, "b"
    total, last = sum(c.shape[t] for c in calls), calls[-1]
    if len(set(sizes)) == 1 and last.chosen is not None and total in last.chosen.values:
        return None, "t"
    return candidate.call, ""


def _blanks(tops: Sequence[nn.Module]) -> dict[str, int]:
    """What models say their blank is: numbers of telling names, and transformers' padding token."""
    found: dict[str, int] = {}
    for path, module in (pair for top in tops for pair in top.named_modules()):
        for name in BLANKS:
            value = vars(module).get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                found[f"{path}.{name}" if path else name] = value
        pad = getattr(getattr(module, "config", None), "pad_token_id", None)
        if type(module).__name__.endswith("ForCTC") and isinstance(pad, int):
            found["config.pad_token_id"] = pad
    return found


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, list | tuple) else output


def _changing(found: dict[str, list[FoundIds]]) -> list[FoundIds]:
    """Ids are others in every batch."""
    batches = max(map(len, found.values()), default=0)
    return [f[0] for f in found.values() if len({x.values for x in f}) == batches]


def _label_variables(count: int, most: int) -> list[str]:
    """Variables of the user's program that could be the labels of a lattice: (B, U) integers."""
    found: dict[str, None] = {}
    for frame in frames():
        for name, value in list(frame.f_locals.items()):
            whole = isinstance(value, torch.Tensor) and value.dtype in INTEGERS
            if whole and tuple(value.shape) == (count, most) and name.isidentifier():
                found.setdefault(name)
    return list(found)


def _id_variables(count: int) -> Iterator[FoundIds]:
    """Variables of the user's program that could be ids: a string, or one for each utterance."""
    seen: set[str] = set()
    for frame in frames():
        for name, value in list(frame.f_locals.items()):
            if name in seen or not name.isidentifier() or not IDS.search(name) or name.startswith("__"):
                continue
            seen.add(name)
            listed = [value] if isinstance(value, str | Path) else value
            if not isinstance(listed, list | tuple) or len(listed) != count:
                continue
            if all(isinstance(v, str | Path) and str(v) for v in listed):
                path = any("/" in str(v) for v in listed)
                one, each = (f"stem({name})", f"[stem(x) for x in {name}]") if path else (name, name)
                values = tuple(Path(v).stem if path else str(v) for v in listed)
                yield FoundIds(one if listed is not value else each, values)
