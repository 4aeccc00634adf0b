"""Capture inside one process of the program: hooks its model and hands the logits to a writer.

In the order in which things happen:

1. :class:`CaptureRecorder` is made when the process has imported torch. It follows the process's DataLoaders
   (``inject.batches``), waits for the captured modules to appear and hooks them (``inject.finder``), and
   watches for products with the weight of a CTC head, which some programs compute without running the head.
2. A hook calls ``_module_ran`` with each output. The output is brought to (B, T, V), or to the joiner's form
   (``joiner``). Its ids are looked up (``locate``), and calls that are not the one to store are skipped.
3. The first output opens the writer (``writer``), which makes the store or checks that it was made with the
   same settings.
4. The outputs of one batch are gathered in a ``CapturedBatch``: one per stream, or several pieces of the CTC
   logits (``pieces``). When the program goes on to the next batch, it goes to the writer.
5. At the end of the process, ``_close`` finishes the last batch and closes the writer. It also runs where the
   program ends by an exception or by SIGTERM: the utterances that are whole are kept.

An error in a hook is a refusal: it is raised in the program and written into the report, because the program may
catch it, and the utterances that are not sealed yet are dropped, because the same may be wrong with them. A process
that forks starts anew in its child: the writer belongs to the parent.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - registers its end before ours
import os
import signal
import sys
import threading
from collections.abc import Hashable, Iterator, Sequence
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
from .inject.batches import YieldedBatches
from .inject.finder import ModuleFinder
from .inject.inputs import ModelInputs
from .inject.parent import owner_lives
from .inject.program import FastPaths, follow_compiling, follow_loaders, run_compiled_models_eagerly
from .inject.report import ProcessReport
from .job import CaptureJob
from .joiner import JoinerCapture
from .locate import BatchLocator
from .pieces import BatchPieces
from .writer import CapturedBatch, CaptureWriter, HeadShape

CHECKED_EVERY = 16  # calls after which it is looked at again whether the model is in training mode
SAME_IN_TRAINING = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.Identity, nn.Flatten),
    *(nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.GLU, nn.Softmax, nn.LogSoftmax),
)
MAX_WARM_UP = 16  # calls before the first batch of a loader
REMEMBERED_CALLS = 64  # batches whose calls are counted; several threads may run the model at a time


class CaptureRecorder:
    """Recorder of one process, which may or may not run the captured modules.

    Args:
        job: description of the capture.
        session: session folder.

    Attributes:
        report: report of this process to the parent process.
    """

    report: ProcessReport
    _writer: CaptureWriter | None

    def __init__(self, job: CaptureJob, session: Path) -> None:
        self._job, self._options, self._session = job, job.options, session
        self._paths = self._options.paths
        self._begin_process()
        self._products = Watch(self._product_computed)
        self._product_noted = False
        self._fast_paths = FastPaths()
        kept_modules: frozenset[str] = frozenset()
        if self._options.lengths:
            kept_modules = Expression(self._options.lengths, "--lengths").modules
        self._finder = ModuleFinder(
            {s: split(path)[0] if path.startswith(PREFIX) else path for s, path in self._paths.items()},
            ran=self._module_ran,
            guard=self._hook,
            report=self._report_search,
            keep=kept_modules,
            hook_at=self._hook_at,
        )
        self._inputs = ModelInputs()
        self._locator = BatchLocator(self._options, YieldedBatches(), self._finder, self._inputs, self._note)
        self._joiner: JoinerCapture | None = None
        if "rnnt" in self._paths:
            self._joiner = JoinerCapture(self._options, self._locator, self._note)
        if "ctc" in self._paths:  # entered before any other torch function mode, so it lies below all of them
            self._products.__enter__()  # type: ignore[no-untyped-call]
        follow_loaders(self._loader_yielded)
        follow_compiling(self._program_compiles)
        os.register_at_fork(after_in_child=self._begin_process)
        self._note_uncaught_errors()
        self._catch_signals()

    def _begin_process(self) -> None:
        """Start without a writer: at first, and in each forked child."""
        # The writer of the parent process is kept and never closed here: its lock is the parent's.
        self._inherited = getattr(self, "_writer", None)
        self._writer = None
        self._refused = False  # by an error in a hook
        self._interrupted = False  # by an error of the program, or by a signal
        self._lock = threading.RLock()  # hooks may run in several threads
        self._in_hook = 0  # id of the thread that runs a hook
        self._signal = 0  # arrived while a hook ran
        self._calls: dict[tuple[str, Hashable], int] = {}  # by stream and batch, of the last batches
        self._last_call: tuple[str, Hashable] | None = None
        self._calls_seen = 0
        self._warm_up_calls: dict[str, int] = {}  # by stream
        self._batch: CapturedBatch | None = None  # batch that lacks the output of a stream
        self._batches = 0  # begun so far
        self._pieces: BatchPieces | None = None  # batch that lacks some pieces of its CTC logits
        self._held: list[CapturedBatch] = []  # outputs of the last batch, until it is over
        self._held_key: Hashable = None
        self._seen_over = False  # whether a batch was over before
        self.report = ProcessReport(self._session, state="torch")

    def _note_uncaught_errors(self) -> None:
        """Note when the program ends with an uncaught exception: its last batch may lack a part."""
        excepthook = sys.excepthook

        def note_and_show(kind: Any, error: Any, trace: Any) -> None:
            self._interrupted = True
            excepthook(kind, error, trace)

        sys.excepthook = note_and_show

    def _catch_signals(self) -> None:
        """Close the writer before SIGTERM or SIGHUP ends the program, unless it handles them itself."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            with suppress(ValueError):  # not the main thread
                if signal.getsignal(number) == signal.SIG_DFL:
                    signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: Any) -> None:
        if self._in_hook == threading.get_ident():  # the hook must end first: it may be writing
            self._signal = number
        else:
            self._end_by_signal(number)

    def _end_by_signal(self, number: int) -> None:
        """Close the writer and let the signal end the process."""
        signal.signal(number, signal.SIG_DFL)
        try:
            self._interrupted = True
            self._close(os.getpid())
        finally:
            os.kill(os.getpid(), number)

    # -- reports -----------------------------------------------------------------------------------------

    def _note(self, name: str, text: str) -> None:
        self.report.note(name, text)  # self.report is another one after a fork

    def _report_search(self, **fields: Any) -> None:
        """Report how the search for the modules goes, unless the process is further than that."""
        if "state" not in fields or self.report.fields["state"] in ("torch", "looking"):
            self.report.write(**fields)

    @contextmanager
    def _hook(self) -> Iterator[None]:
        """Run the code of a hook: one thread at a time; signals wait for its end, and an error is a refusal."""
        with self._lock:
            outer, self._in_hook = self._in_hook, threading.get_ident()
            try:
                yield
            except Exception as e:
                self._refused = True
                self.report.write(state="refused", error=f"{type(e).__name__}: {e}")
                raise
            finally:
                self._in_hook = outer
                if self._signal and not outer and threading.current_thread() is threading.main_thread():
                    self._end_by_signal(self._signal)

    def _end_with_owner(self) -> bool:
        """End the program where the process that started it is dead, as SIGKILL leaves it; return whether it is."""
        if owner_lives(self._session):
            return False
        self._interrupted = True
        self._close(os.getpid())
        self.stop()
        self._refused = True  # nothing more is taken, where the program ignores the signal
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    # -- events of the program ---------------------------------------------------------------------------

    def _loader_yielded(self, batch: Any, source: Any, index: Any, dataset: Any) -> None:
        """Note a batch that a DataLoader of this process yields."""
        with self._hook():
            if not self._refused and not self._end_with_owner():
                self._note_batch(batch, source, index, dataset)

    def _note_batch(self, batch: Any, source: Any, index: Any, dataset: Any) -> None:
        is_first = self._locator.batches.note(batch, source, index, dataset)
        if is_first:
            self._finder.search(seldom=True)
        if not self._locator.batches.ahead:
            self._write_held()
        if self._writer is not None and not self._products.busy:
            self._products.remove()
            self._fast_paths.remove()
        self._locator.loader_yields()

    def _program_compiles(self, made: Any) -> None:
        """Run the first batch of a compiled model without compiling, so that its lengths can be found."""
        self._finder.hook_again()
        self._inputs.detach()
        if isinstance(made, nn.Module):
            self._inputs.attach_to(made)
        self._locator.compiled = True
        if self._locator.lengths_expression is None:
            run_compiled_models_eagerly(True)
            self._note(
                "compiled",
                "the first batch ran without compiling, so that its lengths could be found; its last bits may differ "
                "from a compiled run. With --lengths every batch runs compiled",
            )

    def _hook_at(self, stream: str, root: nn.Module, module: nn.Module) -> tuple[nn.Module, str]:
        """Return the module to hook, and its side; an empty side where only its weight is watched."""
        if not self._locator.compiled:
            self._inputs.attach(root)
        if stream == "rnnt" and self._joiner is not None:
            return self._joiner.hook_at(root, module)
        path = self._paths[stream]
        by_weight = path.startswith(PREFIX)
        weight = split(path)[1] if by_weight else "weight"
        if isinstance(getattr(module, weight, None), torch.Tensor):
            self._products.add(stream, module, weight)
        elif by_weight:
            raise TapError(f"{type(module).__name__} has no {weight!r}", where=self._options.flag(stream))
        return module, "" if by_weight else "output"

    def _product_computed(
        self, stream: str, module: nn.Module, given: torch.Tensor, output: torch.Tensor
    ) -> None:
        """Take logits that are a product with a head's weight, computed without running the head."""
        if get_worker_info() is not None:
            return
        with self._hook():
            if not self._product_noted:
                self._product_noted = True
                self._note("ctc", f"a product with the weight of {split(self._paths[stream])[0]}")
            self._module_ran(stream, self._finder.root_of(module), module, output)

    def _module_ran(self, stream: str, root: nn.Module | None, module: nn.Module, output: Any) -> None:
        """Take the output of a hooked module.

        Args:
            stream: ``ctc`` or ``rnnt``.
            root: outermost module that has it; None where that does not exist any more.
            module: hooked module.
            output: output of the module, or its input where that is hooked.
        """
        if self._refused or root is None or self._end_with_owner():
            return
        where = self._options.flag(stream)
        if self._is_warm_up(stream):
            return
        joiner = self._joiner if stream == "rnnt" else None
        if self._joiner is not None:
            self._joiner.model_runs(root)
        if joiner is not None:
            logits = joiner.take(output, where, lambda x: self._has_ids(x, where))
        else:
            logits = self._to_btv(output, where)
        if self._calls_seen % CHECKED_EVERY == 0:
            _require_eval(self._running_part(root), where)
        self._calls_seen += 1
        in_pieces = bool(self._options.accumulate) and self._joiner is None
        is_partial = joiner.is_partial(logits) if joiner is not None else in_pieces
        ids = self._ids_of(logits, where, joiner, is_partial)
        outputs = joiner.complete(logits, len(ids), where) if joiner is not None else [logits]
        if outputs is None:
            return
        if not in_pieces and self._skips_call(stream, ids, tuple(logits.shape), where):
            return
        if self._writer is None:
            self._writer = self._open_writer(stream, root, module, logits)
        if self._writer.root() is not root:
            raise TapError(
                f"a second model ({type(root).__name__}) runs a module at this path",
                where=where,
                why="The records of two models cannot be told apart in one store.",
                do="Capture a run of the program that decodes with one of them.",
            )
        if in_pieces:
            self._add_piece(stream, ids, logits, root)
        else:
            self._add_stream(stream, ids, outputs, is_partial, root)

    def _is_warm_up(self, stream: str) -> bool:
        """Return whether the model runs before any loader has yielded a batch, on dummies, and is not stored."""
        if not self._locator.ids_from_loader or self._locator.batches.count:
            return False
        calls = self._warm_up_calls[stream] = self._warm_up_calls.get(stream, 0) + 1
        if calls > MAX_WARM_UP:
            return False  # the ids are not found, and an error says so
        self._locator.forget()
        self._note("warm-up", f"{calls} calls before the first batch of a loader are not stored")
        return True

    def _ids_of(
        self, logits: torch.Tensor, where: str, joiner: JoinerCapture | None, is_partial: bool
    ) -> list[str]:
        """Return the ids of a batch; raise ``LengthError`` where there are not B of them."""
        # Frames of all utterances have B on their first axis; utterances in pieces and packed lattices do
        # not.
        some_utterances = is_partial and self._options.accumulate != "t"
        ids = self._locator.ids(logits, where, None if some_utterances else len(logits))
        if len(ids) != len(logits) and not is_partial:
            axes = (
                "a joiner that runs on parts of a batch: --accumulate b" if joiner else "its axes: --layout"
            )
            raise LengthError(
                f"{len(ids)} ids for an output of {tuple(logits.shape)}",
                where=where,
                do=f"Say where the ids are: --ids EXPR; {axes}.",
            )
        return ids

    def _has_ids(self, x: torch.Tensor, where: str) -> bool:
        try:
            return len(self._locator.ids(x, where, len(x))) == len(x)
        except UsageError:
            return False

    def _to_btv(self, output: Any, where: str) -> torch.Tensor:
        """Return a CTC output as (B, T, V)."""
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
        if len(shape) != 3:
            raise TapError(
                f"gives {shape or type(output).__name__}, not (B, T, V)",
                where=where,
                do="Run logitstore probe to find the module that gives the logits.",
            )
        return torch.as_tensor(output).detach().permute(LAYOUTS[self._options.layout])

    def _skips_call(self, stream: str, ids: list[str], shape: tuple[int, ...], where: str) -> bool:
        """Count the calls of a batch; return whether this one is not stored.

        Raises ``TapFiredTwice`` for a second call where the options do not say which one to store.
        """
        key = stream, self._locator.batch_key(ids)
        if key != self._last_call and not isinstance(
            key[1], int
        ):  # ids come again in another pass over the data
            self._calls.pop(key, None)
        self._last_call = key
        calls = self._calls[key] = self._calls.pop(key, 0) + 1
        while len(self._calls) > REMEMBERED_CALLS:
            del self._calls[next(iter(self._calls))]
        if self._options.call is not None:
            return calls - 1 != self._options.call
        if calls > 1:
            raise TapFiredTwice(
                f"the module ran again in one batch, giving {shape}",
                where=f"{where}, {ids[0]}",
                why="Which call gives the answer is not certain; a decoding loop runs it once a step.",
                do="Say which call to keep, counted from 0: --call N; that they are pieces of "
                "one, --accumulate t (frames) or b (utterances); or name a module that runs once.",
            )
        return False

    # -- gathering a batch -------------------------------------------------------------------------------

    def _add_stream(
        self, stream: str, ids: list[str], outputs: list[torch.Tensor], is_partial: bool, root: nn.Module
    ) -> None:
        """Put the output of one stream into its batch; write the batch once all streams are there."""
        assert self._writer is not None
        batch = self._batch
        if batch is None or batch.ids != tuple(ids) or stream in batch.streams:
            self._finish_batch()
            first = outputs[0]
            t = 0 if first.dim() == 2 else max(x.shape[1] for x in outputs)
            # Lengths are looked up by B and T; an output in parts has another first axis.
            about = first.new_empty(len(ids), t, 0) if is_partial else first
            lengths, texts = self._locator.lengths(about, root), self._locator.texts(len(ids))
            if stream == "ctc":
                if skipped := self._options.skip_rows:
                    lengths, t = [n - skipped for n in lengths], t - skipped
                    outputs = [first := first[:, skipped:]]
                elif more := self._locator.rows_beside_frames(lengths, t):
                    self._note(
                        "rows",
                        f"each utterance has {more} rows more than its input has frames; queries or prompts are "
                        f"stored as frames. --skip-rows {more} leaves them out where they come first",
                    )
            self._check_batch(stream, ids, lengths, t)
            batch = self._batch = self._new_batch(ids, lengths, t, texts, None if is_partial else first)
        if stream == "rnnt":
            assert self._joiner is not None
            self._joiner.add_to(batch, outputs, self._writer.blank, self._options.flag(stream))
        else:  # a copy: decoders edit logits in place after the layer has returned them
            self._writer.check_present(batch, outputs[0])
            batch.logits = outputs[0].clone() if batch.wanted else outputs[0][:0]
        if len(batch.streams) == len(self._paths):
            self._batch = None
            self._hold(batch, ids)
            self._locator.forget()

    def _check_batch(self, stream: str, ids: Sequence[str], lengths: Sequence[int], t: int) -> None:
        """Raise an error where the lengths contradict the batch that the ids are taken from."""
        if len(lengths) == len(ids):
            self._locator.check_batch(ids, lengths, t, self._options.flag(stream))

    def _add_piece(self, stream: str, ids: list[str], logits: torch.Tensor, root: nn.Module) -> None:
        """Take a piece of a batch's CTC logits: the next frames of all utterances, or the next utterances."""
        batch, pieces = self._locator.batch_key(ids), self._pieces
        if pieces is None or pieces.batch != batch:
            self._finish_batch()
            texts = self._locator.texts(len(ids))
            pieces = self._pieces = BatchPieces(batch, tuple(ids), texts, self._options.flag(stream))
            self._locator.require_proof(ids, self._options.flag(stream))
        if self._options.accumulate == "t":
            # One utterance is as long as its pieces, where nothing says otherwise.
            alone = len(ids) == 1 and self._locator.lengths_expression is None
            pieces.add_frames(logits, lambda x: [x.shape[1]] if alone else self._locator.lengths(x, root))
            return
        if not self._locator.starts_at(pieces.done):
            raise LengthError(
                "the pieces of a batch do not follow one another",
                where=f"{self._options.flag(stream)}, {ids[0]}",
                do="Capture a run of the program that runs the model on whole batches.",
            )
        own_lengths = self._locator.lengths(logits, root)
        part, lengths, texts = pieces.next_utterances(len(logits), own_lengths)
        self._hold_ctc(logits, self._new_batch(part, lengths, logits.shape[1], texts, logits), batch)

    def _hold_ctc(self, logits: torch.Tensor, batch: CapturedBatch, key: Hashable) -> None:
        assert self._writer is not None
        self._writer.check_present(batch, logits)
        batch.logits = logits.clone()
        self._hold(batch, key=key)

    def _hold(self, batch: CapturedBatch, ids: Sequence[str] = (), *, key: Hashable = None) -> None:
        """Keep a batch's outputs until the batch is over: a second call of the module would put them in doubt."""
        assert self._writer is not None
        key = self._locator.batch_key(ids) if key is None else key
        if key != self._held_key:
            self._write_held()
        self._held_key = key
        if batch.wanted:
            self._writer.check(batch)
            self._held.append(batch)

    def _write_held(self) -> None:
        """Write the outputs of the last batch, which is over."""
        held, self._held = self._held, []
        self._seen_over = self._seen_over or bool(held)
        for batch in held:
            assert self._writer is not None
            self._writer.put(batch)

    def _new_batch(
        self,
        ids: Sequence[str],
        lengths: Sequence[int],
        t: int,
        texts: tuple[str, ...] | None,
        output: torch.Tensor | None,
    ) -> CapturedBatch:
        """Claim the ids and return a batch without outputs.

        Args:
            ids: utterance ids.
            lengths: valid frames of each utterance.
            t: T; 0 where it is not known.
            texts: reference texts; None where there are none.
            output: padded output of the batch; None where there is none.

        Raises ``LengthError`` where the lengths do not fit T frames.
        """
        assert self._writer is not None
        if len(lengths) != len(ids) or (t and max(lengths) > t):
            raise LengthError(
                f"lengths {list(lengths[:8])} for {len(ids)} utterances in {t} frames",
                where=ids[0],
                why="Lengths in samples or feature frames instead of encoder frames look like this.",
                do="Say where the encoder's output lengths are: --lengths EXPR.",
            )
        number = self._locator.batch.number if self._locator.batch is not None else self._batches + 1
        self._batches += 1
        wanted, present = self._writer.wanted(ids, number, lengths, output)
        batch = CapturedBatch(tuple(ids), tuple(lengths), wanted, texts, present)
        self._writer.check_present(batch)
        return batch

    def _finish_batch(self) -> None:
        """Join and write the pieces of the last batch; raise an error where a part of it is missing."""
        pieces, self._pieces = self._pieces, None
        if pieces is not None:
            pieces.check_complete(self._options.accumulate)
            if pieces.parts:
                logits, lengths = pieces.joined_frames()
                batch = self._new_batch(pieces.ids, lengths, logits.shape[1], pieces.texts, logits)
                self._hold_ctc(logits, batch, pieces.batch)
        if self._batch is not None:
            missing = [path for stream, path in self._paths.items() if stream not in self._batch.streams]
            raise TapNeverFired(
                f"{', '.join(missing)} did not run in a batch in which the other one did",
                where=self._batch.ids[0],
            )

    # -- the writer --------------------------------------------------------------------------------------

    def _open_writer(
        self, stream: str, root: nn.Module, module: nn.Module, logits: torch.Tensor
    ) -> CaptureWriter:
        """Open the writer at the first output, and see to it that it is closed at the end of the process."""
        if stream == "ctc" and not self._product_noted:
            self._products.clear()  # the head runs, so its weight needs no watching
        if self._joiner is not None:
            shape = self._joiner.head_shape(module, logits)
        else:
            shape = HeadShape(logits.shape[-1])
        writer = CaptureWriter(self._job, self._session, root, self.report, shape)
        # Finalize runs at the end of a child of multiprocessing, the other one at the end of a program. Both
        # run before the executors end that storage backends work with: concurrent.futures registered itself
        # first, and the last one registered runs first.
        pid = os.getpid()
        Finalize(self, self._close, args=(pid,), exitpriority=10)
        getattr(threading, "_register_atexit", atexit.register)(self._close, pid)
        self._finder.settle()
        return writer

    def _close(self, pid: int) -> None:
        """Finish the last batch and close the writer, in the process that opened it."""
        if pid != os.getpid() or self._writer is None:
            return
        with suppress(Exception), self._hook():  # nothing above would show the error
            self.stop()
            try:
                if not (self._refused or self._interrupted):
                    self._finish_batch()
                if not self._refused and (self._seen_over or not self._interrupted):
                    self._write_held()
            except Exception:
                self._refused = True
                raise
            finally:
                writer, self._writer = self._writer, None
                writer.close(keep=not self._refused)

    def _running_part(self, root: nn.Module) -> nn.Module:
        """Return the part of the model that the program runs: capture runs joiner and decoder itself, in eval mode."""
        transducer = self._joiner.transducer if self._joiner is not None else None
        return root if transducer is None or transducer.side == "input" else transducer.encoder

    def stop(self) -> None:
        """Remove all hooks."""
        self._finder.stop()
        self._inputs.detach()
        self._products.remove()
        self._fast_paths.remove()
        self._locator.stop()


def _require_eval(root: nn.Module, where: str) -> None:
    """Raise ``TapError`` where the model is in training mode.

    Its layers without inner modules decide. Wrappers, as SpeechBrain's interfaces, and layers that are the same in both
    modes may be in training mode: those that quantisation made in place of others are.
    """
    layers = [(path, m) for path, m in root.named_modules() if not m._modules and not _is_quantised(m)]
    training = [(path, m) for path, m in layers if m.training]
    if not training:
        return
    matters = [path for path, m in training if not isinstance(m, SAME_IN_TRAINING)]
    if matters or len(training) == len(layers):
        raise TapError(
            f"the model is in training mode, for example {(matters or [training[0][0]])[0] or 'itself'}",
            where=where,
            why="Dropout and batch statistics make each forward give other logits.",
            do="Call model.eval() before decoding.",
        )


def _is_quantised(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.ao.", "torch.nn.quantized", "torch.nn.intrinsic"))
