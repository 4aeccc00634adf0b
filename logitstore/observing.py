"""Probe, inside a process of the user's program: watch the first batches, then say what was seen."""

from __future__ import annotations

import atexit
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import get_worker_info

from .batchids import Found, find_ids, find_texts
from .candidates import rank
from .drives import Found as Drivable
from .drives import search
from .driving import frames_in
from .errors import TapPathError
from .inject.inside import Report
from .inject.lengths import Lengths, candidates, in_variables, vectors
from .inject.surroundings import INTEGERS, follow_loaders, frames, live_modules, roots
from .observe import Emitted, Observer
from .products import PREFIX, split
from .tap import find_module

TABLES = re.compile(
    r"(^|[._-])(tokens?|units?|dict|vocab|vocabulary|words|lang_char|bpe)[._-]?.*\.(txt|json|model)$", re.I
)
IDS = re.compile(
    r"(^|_)(utt|uttid|uid|id|ids|key|keys|name|names|stem|cut|wav|path|file|audio)(_|$|\d)", re.I
)
WAIT = 60.0  # seconds for the parent to end this program


def begin(job: dict[str, Any], session: Path) -> None:
    """Watch; called once torch is imported."""
    Observing(job, session)


class Observing:
    """One process that may turn out to run the model.

    Args:
        job: ``batches`` to watch, ``classes`` (V) where a token table was given.
        session: folder of reports.
    """

    def __init__(self, job: dict[str, Any], session: Path) -> None:
        self._batches, self._classes = int(job["batches"]), job["classes"]
        self._report = Report(session, state="torch")
        self._batch: Any = None
        self._ids: list[Found] = []  # of the first batch that has any
        self._first: nn.Module | None = None
        self._first_trained = False
        self._notes, self._try_at = 0, self._batches
        self._lengths: dict[nn.Module, list[Lengths]] = {}
        self._at_encoder: dict[nn.Module, list[Lengths]] = {}
        self._encoder_ids: dict[nn.Module, dict[str, list[Found]]] = {}
        self._labels: dict[nn.Module, list[str]] = {}
        self._variables: dict[nn.Module, dict[str, list[Found]]] = {}
        self._vectors: list[tuple[nn.Module, str, torch.Tensor]] = []
        self._opened: list[str] = []
        # model, drive, encoder and joiner, once the first batch has passed
        self._joiners: list[tuple[str, Drivable, nn.Module, nn.Module]] = []
        self._over = False
        sys.addaudithook(self._audit)
        follow_loaders(self._noted)
        self._observer = Observer()
        self._observer.on_output = self._output
        self._observer.__enter__()  # until the program ends
        atexit.register(self._ended, os.getpid())
        Finalize(self, self._ended, args=(os.getpid(),), exitpriority=10)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and args and isinstance(args[0], str) and TABLES.search(Path(args[0]).name):
            self._opened.append(str(Path(args[0]).absolute()))

    def _noted(self, batch: Any, source: Any) -> None:
        self._notes += 1
        if self._notes > self._batches:
            self._enough()
        self._batch = batch
        self._ids = self._ids or find_ids(batch)
        self._next()

    def _next(self) -> None:
        if self._observer.batch == 1:
            self._seek()
        self._observer.batch += 1
        self._vectors.clear()

    def _output(self, module: nn.Module, output: Any, said: Emitted | None) -> None:
        if get_worker_info() is not None or self._over:
            return
        if self._batch is None:  # no DataLoader: a batch begins where the module that ran first runs again
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
        self._vectors += [(module, rest, tensor) for rest, tensor in vectors(output, "")]
        if said is not None and len(said.shape) >= 3 and said.calls[self._observer.batch] <= 1:
            self._surroundings(module, said)
        for _, found, encoder, _ in self._joiners:
            if module is encoder:
                self._encoded(module, found, output)

    def _seek(self) -> None:
        """Transducers whose joiner capture can drive."""
        for top in roots(live_modules()):
            for found in search(top):
                encoder = found.encoder.removeprefix("input:")
                with suppress(TapPathError):
                    parts = find_module(top, encoder), find_module(top, found.joint)
                    self._joiners.append((type(top).__name__, found, *parts))

    def _encoded(self, module: nn.Module, found: Drivable, output: Any) -> None:
        """Where ids and lengths are when capture takes the encoder's output, or another module's input."""
        enc = frames_in(output) if found.drive.side == "output" else None
        count = self._count() or (1 if enc is None else enc.shape[0])
        for ids in _id_variables(count):
            self._encoder_ids.setdefault(module, {}).setdefault(ids.expression, []).append(ids)
        if enc is None or module in self._at_encoder:
            return
        axes = [n for n, size in enumerate(enc.shape) if size not in (count, found.drive.width)]
        t = enc.shape[axes[0]] if len(axes) == 1 else enc.shape[1]
        own = ((f"{id(m)}{rest}", v) for m, rest, v in reversed(self._vectors))
        self._at_encoder[module] = [f for f in candidates(own, count, t) if max(f.values) == t]

    def _surroundings(self, module: nn.Module, said: Emitted) -> None:
        """Where lengths and ids are while a module that may be the head runs."""
        shape, count = said.shape, self._count() or said.shape[0]
        t = shape[2] if said.axis == 1 else shape[0] if shape[0] != count == shape[1] else shape[1]
        if module not in self._lengths:
            returned = ((f"{id(m)}{rest}", v) for m, rest, v in reversed(self._vectors))
            self._lengths[module] = candidates(in_variables(), count, t) + candidates(returned, count, t)
        if len(shape) == 4 and module not in self._labels:
            self._labels[module] = _label_variables(shape[0], shape[2] - 1)
        for found in _id_variables(count):
            self._variables.setdefault(module, {}).setdefault(found.expression, []).append(found)

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
        tops, count = roots(live_modules()), self._count()
        paths = {m: n for top in tops for n, m in top.named_modules()}
        seen = [*self._observer.emitted.values(), *self._observer.products.values()]
        known = {s.module for s in seen}
        modules = {n: m for m, n in paths.items() if m in known}
        ranked = rank(seen, tops, count, self._classes)
        if not ranked:
            return False
        told = []
        for candidate in ranked[:64]:
            module = modules[_path(candidate.path)]
            lengths = [_named(f, paths) for f in self._lengths.get(module, [])]
            variables = _changing(self._variables.get(module, {}))
            labels = self._labels.get(module, [])
            beside = {"lengths": _told(lengths), "variables": _told(variables), "labels": labels}
            told.append({**candidate.to_json(), **beside})
        texts = find_texts(self._batch, count) if count else None
        self._report.write(
            state=state,
            batches=max(len(s.calls) for s in seen if s.module is modules[_path(ranked[0].path)]),
            candidates=told,
            ids=_told(self._ids),
            texts=texts.expression if texts else "",
            opened=list(dict.fromkeys(self._opened)),
            joiners=self._told_joiners(paths),
        )
        return True

    def _told_joiners(self, paths: dict[nn.Module, str]) -> list[dict[str, Any]]:
        """What capture can drive; ``ran``: how often a batch a part of the joiner did."""
        if not self._joiners:
            self._seek()
        told = []
        for model, found, encoder, joint in self._joiners:
            seen = [self._observer.emitted[m] for m in joint.modules() if m in self._observer.emitted]
            told.append(
                {
                    "convention": found.name,
                    "model": model,
                    "joiner": found.joint,
                    "encoder": found.encoder,
                    "classes": found.drive.classes,
                    "ran": max((max(s.calls.values()) for s in seen), default=0),
                    "lengths": _told([_named(f, paths) for f in self._at_encoder.get(encoder, [])]),
                    "variables": _told(_changing(self._encoder_ids.get(encoder, {}))),
                }
            )
        return told


def _path(candidate: str) -> str:
    """Of the module, whether it ran or only its weight was used."""
    return split(candidate)[0] if candidate.startswith(PREFIX) else candidate


def _told(found: Sequence[Found | Lengths]) -> list[dict[str, Any]]:
    return [{"expression": f.expression, "values": f.values[:8]} for f in found]


def _named(found: Lengths, paths: dict[nn.Module, str]) -> Lengths:
    """A module is known by its number while it runs, by its path in the report."""
    match = re.match(r"(\d+)(.*)", found.expression)
    if match is None:
        return found
    path = next((n for m, n in paths.items() if id(m) == int(match[1])), "?")
    return Lengths(f'modules["{path}"]{match[2]}', found.values)


def _changing(found: dict[str, list[Found]]) -> list[Found]:
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


def _id_variables(count: int) -> Iterator[Found]:
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
                yield Found(one if listed is not value else each, values)
