"""Probe inside one process of the program: watches the first batches and reports what was seen.

In the order in which things happen:

1. :class:`ProbeRecorder` is made when the process has imported torch. It follows the process's DataLoaders,
   enters an :class:`~logitstore.capture.probe.observer.OutputObserver` for the rest of the program, and notes
   which files are opened that may be token tables.
2. A batch begins when a loader yields one. In programs without a loader, or with one in another thread, a
   batch begins when the module that ran first runs again.
3. After each module, ``_module_ran`` keeps the tensors that may be lengths. While a module runs that may be
   the head, ``_look_around`` notes the tensors and variables that may hold lengths, labels and ids.
4. After the first batch, ``_find_joiners`` looks for transducers whose joiner capture can run.
5. When enough batches have passed, or the program ends, ``report`` ranks the modules and writes the report.
   The process then waits until the parent process ends the program.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
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
from ..batch_ids import (
    FoundIds,
    find_by_index,
    find_ids,
    find_texts,
    gives,
    repeated_in_dataset,
    stems_are_unique,
    walk,
)
from ..inject.batches import parts
from ..inject.lengths import (
    FoundLengths,
    candidates,
    choose,
    possible_lengths,
    possible_lengths_in_variables,
    ratio_lengths,
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
    variable,
)
from ..inject.report import ProcessReport
from ..job import ProbeJob
from ..lattices import find_frames
from .audio import audio_paths
from .finding import FoundValues, ProbedHead, ProbedJoiner, ProbeReport
from .observer import EmittedOutput, OutputObserver
from .rank import B_AND_T_AXES, HeadCandidate, named, rank

TABLE_FILES = re.compile(
    r"(^|[._-])(tokens?|units?|dict|vocab|vocabulary|words|lang_char|bpe|config)[._-]?.*"
    r"\.(txt|json|model|ya?ml)$",
    re.I,
)
ID_VARIABLES = re.compile(
    r"(^|_)(utt|uttid|uid|id|ids|key|keys|name|names|stem|cut|wav|path|file|audio)(_|$|\d)", re.I
)
BLANK_NAMES = ("blank_id", "blank_idx", "blank_index", "blank")
MAX_CALLS = 64  # of one module in one batch that are looked at
MAX_HEADS = 64  # in the report
MAX_TENSORS = 512  # kept of a batch
SHOWN_VALUES = 8  # of an expression, in the report
WAIT_SECONDS = 60.0  # for the parent process to end this program


@dataclass
class CallContext:
    """Surroundings of one call of a module.

    Attributes:
        shape: shape of its output.
        lengths: tensors that may hold the valid lengths.
        chosen: the one that does, where that is certain.
        labels: variables that may hold the labels of a lattice.
    """

    shape: tuple[int, ...]
    lengths: list[FoundLengths]
    chosen: FoundLengths | None
    labels: list[str]


@dataclass(frozen=True)
class _RunnableJoiner:
    """A joiner that capture can run: class of its model, adapter, encoder module and joiner module."""

    model: str
    found: FoundJoiner
    encoder: nn.Module
    joiner: nn.Module


class SeenIds:
    """Ids that each expression gave over the batches of a loader.

    Utterance ids of two batches differ. An expression that gives one id twice in a pass over the data names
    something else, such as a speaker, or file names that occur in several folders.
    """

    def __init__(self) -> None:
        self._first: dict[str, FoundIds] = {}  # by expression
        self._seen: dict[tuple[str, int], dict[str, int]] = {}  # batch of each id, by expression and pass
        self.repeated: dict[str, str] = {}  # by expression, in words

    def add(self, found: Sequence[FoundIds], data_pass: int, batch: int) -> None:
        """Note the ids of a batch.

        Args:
            found: ids by each expression that gives some.
            data_pass: number of the pass over the data.
            batch: number of the batch, for messages.
        """
        known = bool(self._first)
        for ids in found:
            if not known:
                self._first.setdefault(ids.expression, ids)
            seen = self._seen.setdefault((ids.expression, data_pass), {})
            for utt_id in ids.values:
                if utt_id in seen:
                    self.repeated.setdefault(
                        ids.expression, f"gave {utt_id!r} in batch {seen[utt_id]} and again in batch {batch}"
                    )
                seen[utt_id] = batch

    @property
    def unique(self) -> list[FoundIds]:
        """Ids of the first batch that has any, by the expressions that never repeat an id."""
        return [ids for expression, ids in self._first.items() if expression not in self.repeated]


class ProbeRecorder:
    """Recorder of one process, which may or may not run a model.

    Args:
        job: description of the probe.
        session: session folder.
    """

    def __init__(self, job: ProbeJob, session: Path) -> None:
        self._wanted_batches, self._classes = job.batches, job.classes
        self._report = ProcessReport(session, state="torch")
        self._over = self._compiled = False
        # Batches.
        self._batch: Any = None  # yielded last
        self._yielded = 0
        self._ids = SeenIds()
        self._last_source: weakref.ref[Any] | None = None  # iterator that yielded the last batch
        self._passes = 0
        self._in_thread = False  # whether the loader yields in another thread than the main one
        self._first_module: nn.Module | None = None  # that ran first, where no loader tells batches apart
        self._first_was_training = False
        self._report_after = self._wanted_batches  # batches, where no loader tells them apart
        # Surroundings of modules.
        self._calls: dict[nn.Module, dict[int, list[CallContext]]] = {}  # by batch
        self._id_variables: dict[
            nn.Module, dict[str, list[FoundIds]]
        ] = {}  # by expression, batch after batch
        self._tensors: list[tuple[nn.Module, str, str, torch.Tensor]] = []  # that may hold lengths
        # Joiners, found after the first batch.
        self._joiners: list[_RunnableJoiner] = []
        self._encoder_lengths: dict[nn.Module, list[FoundLengths]] = {}
        self._encoder_ids: dict[nn.Module, dict[str, list[FoundIds]]] = {}
        # A program that ends drops its model before the report is written, so its modules are held here.
        self._tops: list[nn.Module] = []
        self._held_batches: set[int] = set()
        self._opened: list[str] = []
        self._audio: tuple[str, ...] = ()  # files of the first batch
        sys.addaudithook(self._note_opened)
        follow_loaders(self._loader_yielded)
        follow_compiling(self._program_compiles)
        self._observer = OutputObserver()
        self._observer.on_output = self._module_ran
        self._observer.__enter__()  # until the program ends
        atexit.register(self._program_ends, os.getpid())
        Finalize(self, self._program_ends, args=(os.getpid(),), exitpriority=10)

    # -- events of the program ---------------------------------------------------------------------------

    def _program_compiles(self, made: Any) -> None:
        self._compiled = True
        run_compiled_models_eagerly(True)

    def _note_opened(self, event: str, args: tuple[Any, ...]) -> None:
        """Note files that may be token tables when they are opened (an audit hook)."""
        if event == "open" and args and isinstance(args[0], str) and TABLE_FILES.search(Path(args[0]).name):
            self._opened.append(str(Path(args[0]).absolute()))

    def _loader_yielded(self, batch: Any, source: Any, index: Any, dataset: Any) -> None:
        """Note a batch that a DataLoader of this process yields."""
        self._in_thread = threading.current_thread() is not threading.main_thread()
        self._yielded += 1
        if self._yielded > self._wanted_batches and not self._in_thread:
            self._report_and_wait()
        self._batch = batch
        if not self._audio:
            self._audio = audio_paths(batch, index)
        names = {"batch": batch, "index": index, "dataset": dataset}
        found = [*find_ids(batch), *find_by_index(index, dataset, guess=True)]
        found = [ids for ids in found if gives(ids, names.__getitem__)]
        for ids in found:
            if shared := repeated_in_dataset(ids.values, index, dataset):
                self._ids.repeated.setdefault(ids.expression, f"is not unique: {shared}")
        if self._last_source is None or self._last_source() is not source:
            self._last_source = weakref.ref(source)
            self._passes += 1
        self._ids.add(found, self._passes, self._yielded)
        if not self._in_thread:
            self._begin_batch()

    def _begin_batch(self) -> None:
        if self._observer.batch == 1:
            self._find_joiners()
        self._observer.batch += 1
        self._tensors.clear()

    def _begin_batch_by_module(self, module: nn.Module) -> None:
        """Begin a batch where the module that ran first runs again: no loader tells batches apart.

        Some layers run on dummies while they are made, in training mode (SpeechBrain). These do not count.
        """
        if self._first_module is None or (self._first_was_training and not module.training):
            self._first_module, self._first_was_training = module, module.training
            self._observer.forget()
            self._report_after = self._wanted_batches
        if module is self._first_module:
            self._begin_batch()
            if self._observer.batch > self._report_after:
                self._report_after = 2 * self._observer.batch
                self._report_and_wait()

    def _module_ran(
        self,
        module: nn.Module,
        args: Any,
        kwargs: dict[str, Any],
        output: Any,
        emitted: EmittedOutput | None,
    ) -> None:
        """Look at a module that has run; ``emitted`` is None for outputs that cannot be logits."""
        if get_worker_info() is not None or self._over:
            return
        if self._batch is None or self._in_thread:
            self._begin_batch_by_module(module)
        for where, value in (("modules", output), ("inputs", args), ("inputs", kwargs)):
            for rest, tensor in possible_lengths(value, ""):
                self._tensors.append((module, where, rest, tensor))
        del self._tensors[:-MAX_TENSORS]
        batch = self._observer.batch
        if batch not in self._held_batches:
            self._held_batches.add(batch)
            self._tops = roots(live_modules())
        if emitted is not None and len(emitted.shape) >= 3 and emitted.calls[batch] <= MAX_CALLS:
            self._look_around(module, emitted, tuple(_first(output).shape))
        for joiner in self._joiners:
            if module is joiner.encoder:
                self._look_around_encoder(joiner, output)

    def _program_ends(self, pid: int) -> None:
        seen_any = self._observer.emitted or self._observer.products
        if pid == os.getpid() and not self._over and seen_any:
            self.report("ended")

    def _report_and_wait(self) -> None:
        """Write the report and wait for the parent to end the program; go on where nothing was seen."""
        if not self.report("enough"):
            return
        self._over = True
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            time.sleep(0.1)

    # -- surroundings of a module ------------------------------------------------------------------------

    def _count(self) -> int | None:
        """Return B, where the ids of the first batch give it."""
        ids = self._ids.unique
        return len(ids[0].values) if ids else None

    def _look_around(self, module: nn.Module, emitted: EmittedOutput, shape: tuple[int, ...]) -> None:
        """Note lengths (of one batch), labels and ids while a module runs that may be the head."""
        count = self._count() or shape[0]
        if emitted.axis == 1:
            time_axis = 2
        else:
            time_axis = 0 if shape[0] != count == shape[1] else 1
        batch = self._observer.batch
        contexts = self._calls.setdefault(module, {})
        if not contexts or batch in contexts:
            calls = contexts.setdefault(batch, [])
            frames_before = sum(c.shape[time_axis] for c in calls)
            calls.append(self._context(shape, time_axis, frames_before))
        if emitted.calls[batch] == 1:
            for found in filter(lambda ids: gives(ids, variable), _id_variables(count)):
                self._id_variables.setdefault(module, {}).setdefault(found.expression, []).append(found)

    def _context(self, shape: tuple[int, ...], time_axis: int, frames_before: int) -> CallContext:
        """Return the surroundings of a call, which may give the frames after those of the calls before it."""
        b, t = shape[1 if time_axis == 0 else 0], shape[time_axis]
        found: list[FoundLengths] = []
        chosen = None
        for max_frames in (frames_before + t, t) if frames_before else (t,):
            of_variables = candidates(possible_lengths_in_variables(), b, max_frames)
            of_modules = candidates(self._module_tensors(), b, max_frames)
            # A compiled function has no variables.
            found = of_modules + of_variables if self._compiled else of_variables + of_modules
            if found:
                values = (*parts(self._batch, 3), *(v for _, v in variables()))
                inputs = [v for v in values if isinstance(v, torch.Tensor)]
                with suppress(LengthError):
                    chosen = choose(found, b, max_frames, "", inputs)
                break
        if chosen is None and not found:
            found = list(ratio_lengths(walk(self._batch, "batch"), b, t))
            chosen = found[0] if len(found) == 1 else None
        labels = _label_variables(shape[0], shape[2] - 1) if len(shape) == 4 else []
        return CallContext(shape, found, chosen, labels)

    def _module_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the kept tensors, the last first; a module is named by its id until the report is written."""
        for module, where, rest, tensor in reversed(self._tensors):
            yield f"{id(module)}{where}{rest}", tensor

    def _find_joiners(self) -> None:
        """Find the transducers whose joiner capture can run."""
        for top in roots(live_modules()):
            for found in find_joiners(top):
                path = found.encoder.removeprefix("input:")
                with suppress(TapPathError):
                    encoder, joiner = find_module(top, path), find_module(top, found.joint)
                    self._joiners.append(_RunnableJoiner(type(top).__name__, found, encoder, joiner))

    def _look_around_encoder(self, joiner: _RunnableJoiner, output: Any) -> None:
        """Note ids and lengths at the moment in which capture would take the encoder's output."""
        encoder, adapter = joiner.encoder, joiner.found.adapter
        encoded = find_frames(output) if adapter.side == "output" else None
        count = self._count() or (1 if encoded is None else encoded.shape[0])
        for ids in filter(lambda ids: gives(ids, variable), _id_variables(count)):
            self._encoder_ids.setdefault(encoder, {}).setdefault(ids.expression, []).append(ids)
        if encoded is None or encoder in self._encoder_lengths:
            return
        axes = [n for n, size in enumerate(encoded.shape) if size not in (count, adapter.width)]
        t = encoded.shape[axes[0]] if len(axes) == 1 else encoded.shape[1]
        exact = [f for f in candidates(self._module_tensors(), count, t) if max(f.values) == t]
        self._encoder_lengths[encoder] = exact

    # -- the report --------------------------------------------------------------------------------------

    def report(self, state: str) -> bool:
        """Rank the modules and write the report; return whether there is any candidate.

        Args:
            state: ``enough`` where the program can be ended, ``ended`` where it ended itself.
        """
        held = (m for top in self._tops for m in top.modules())
        tops, count = roots(list({*live_modules(), *held})), self._count()
        paths = {m: path for m, (path, _) in named(tops).items()}
        emitted = [*self._observer.emitted.values(), *self._observer.products.values()]
        ranked = rank(emitted, tops, count, self._classes)
        if not ranked:
            return False
        watched = {output.module for output in emitted}
        modules = {path: m for m, path in paths.items() if m in watched}
        best = modules[_module_path(ranked[0].path)]
        texts = find_texts(self._batch, count) if count else None
        report = ProbeReport(
            heads=tuple(self._head(c, modules[_module_path(c.path)], paths) for c in ranked[:MAX_HEADS]),
            joiners=tuple(self._reported_joiners(paths)),
            ids=_shortened(self._ids.unique),
            repeated_ids=tuple(f"{e} {how}" for e, how in self._ids.repeated.items()),
            texts=texts.expression if texts else "",
            opened=tuple(dict.fromkeys(self._opened)),
            audio=self._audio,
            blanks=_blanks(tops),
            batches=max(len(output.calls) for output in emitted if output.module is best),
        )
        self._report.write(state=state, probe=report.to_json())
        return True

    def _head(
        self, candidate: HeadCandidate, module: nn.Module, paths: Mapping[nn.Module, str]
    ) -> ProbedHead:
        """Return a candidate with the surroundings of its calls in the first batch."""
        batches = list(self._calls.get(module, {}).values())
        calls = batches[0] if batches else []
        call, accumulate = _which_call(candidate, calls, self._count())
        context = None
        if calls:  # of the last piece, which shows all frames; or of the answering call
            context = calls[-1] if accumulate else calls[call or 0]
        lengths = [_with_paths(f, paths) for f in context.lengths] if context else []
        chosen = _with_paths(context.chosen, paths).expression if context and context.chosen else ""
        return ProbedHead(
            **{name: getattr(candidate, name) for name in candidate.to_json()},
            lengths=_shortened(lengths),
            lengths_expression=chosen,
            id_variables=_shortened(_changing(self._id_variables.get(module, {}))),
            labels=tuple(context.labels) if context else (),
            call=call,
            accumulate=accumulate,
        )

    def _reported_joiners(self, paths: Mapping[nn.Module, str]) -> Iterator[ProbedJoiner]:
        """Yield the joiners that capture can run."""
        if not self._joiners:
            self._find_joiners()
        for one in self._joiners:
            outputs = [self._observer.emitted[m] for m in one.joiner.modules() if m in self._observer.emitted]
            lengths = [_with_paths(f, paths) for f in self._encoder_lengths.get(one.encoder, [])]
            yield ProbedJoiner(
                convention=one.found.name,
                model=one.model,
                joiner=one.found.joint,
                encoder=one.found.encoder,
                classes=one.found.adapter.classes,
                calls=max((max(output.calls.values()) for output in outputs), default=0),
                lengths=_shortened(lengths),
                lengths_expression=lengths[0].expression if lengths else "",
                id_variables=_shortened(_changing(self._encoder_ids.get(one.encoder, {}))),
            )


def _module_path(candidate: str) -> str:
    """Return the path of a candidate's module, also where only its weight was used."""
    return split(candidate)[0] if candidate.startswith(PREFIX) else candidate


def _shortened(found: Sequence[FoundIds | FoundLengths]) -> tuple[FoundValues, ...]:
    return tuple(FoundValues(f.expression, tuple(f.values[:SHOWN_VALUES])) for f in found)


def _with_paths(found: FoundLengths, paths: Mapping[nn.Module, str]) -> FoundLengths:
    """Return lengths whose expression names modules by their path, not by their id."""

    def name(match: re.Match[str]) -> str:
        path = next((n for m, n in paths.items() if id(m) == int(match[1])), "?")
        return f'{match[2]}["{path}"]'

    return replace(found, expression=re.sub(r"(\d+)(modules|inputs)", name, found.expression))


def _which_call(
    candidate: HeadCandidate, calls: Sequence[CallContext], count: int | None
) -> tuple[int | None, str]:
    """Return which of several calls in a batch gives the answer, and the axis along which all are joined.

    Args:
        candidate: candidate whose module ran.
        calls: its calls in the first batch.
        count: B, where it is known.
    """
    if candidate.calls < 2 or candidate.joiner or candidate.layout not in B_AND_T_AXES or len(calls) < 2:
        return None, ""
    b, t = B_AND_T_AXES[candidate.layout]
    sizes = [c.shape[b] for c in calls]
    if count is not None and max(sizes) < count == sum(sizes):
        return None, "b"
    total, last = sum(c.shape[t] for c in calls), calls[-1]
    if len(set(sizes)) == 1 and last.chosen is not None and total in last.chosen.values:
        return None, "t"
    return candidate.answering_call, ""


def _blanks(tops: Sequence[nn.Module]) -> dict[str, int]:
    """Return the blank ids that models name, by path: known attributes, and transformers' padding token."""
    found: dict[str, int] = {}
    for path, module in (pair for top in tops for pair in top.named_modules()):
        for name in BLANK_NAMES:
            value = vars(module).get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                found[f"{path}.{name}" if path else name] = value
        pad = getattr(getattr(module, "config", None), "pad_token_id", None)
        if type(module).__name__.endswith("ForCTC") and isinstance(pad, int):
            found["config.pad_token_id"] = pad
    return found


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, list | tuple) else output


def _changing(found: Mapping[str, list[FoundIds]]) -> list[FoundIds]:
    """Return the variables whose values differ in every batch, as ids do."""
    batches = max(map(len, found.values()), default=0)
    return [ids[0] for ids in found.values() if len({x.values for x in ids}) == batches]


def _label_variables(count: int, most: int) -> list[str]:
    """Return the names of variables of the program that may be the labels of a lattice: (B, U) integers."""
    found: dict[str, None] = {}
    for frame in frames():
        for name, value in list(frame.f_locals.items()):
            is_integer = isinstance(value, torch.Tensor) and value.dtype in INTEGERS
            if is_integer and tuple(value.shape) == (count, most) and name.isidentifier():
                found.setdefault(name)
    return list(found)


def _id_variables(count: int) -> Iterator[FoundIds]:
    """Yield the variables of the program that may be ids: a string, or one string for each utterance.

    Paths are shortened to their stem where no file of the same stem is in a neighbouring folder.
    """
    seen: set[str] = set()
    for frame in frames():
        for name, value in list(frame.f_locals.items()):
            if name in seen or not name.isidentifier() or not ID_VARIABLES.search(name):
                continue
            if name.startswith("__"):
                continue
            seen.add(name)
            is_one = isinstance(value, str | Path)
            listed = [value] if is_one else value
            if not isinstance(listed, list | tuple) or len(listed) != count:
                continue
            if not all(isinstance(v, str | Path) and str(v) for v in listed):
                continue
            function = ""
            if any("/" in str(v) for v in listed):
                function = "stem" if stems_are_unique(listed) else "str"
            values = tuple(Path(v).stem if function == "stem" else str(v) for v in listed)
            if not function:
                yield FoundIds(name, values)
            elif is_one:
                yield FoundIds(f"{function}({name})", values)
            else:
                yield FoundIds(f"[{function}(x) for x in {name}]", values)
