"""Lattices of a program's own transducer, computed inside its process.

A decoding loop never computes the whole lattice. Capture takes the encoder's output of a batch and runs the
model's prediction network and joiner on the labels itself: utterance by utterance, slice by slice, in the
program's own thread. The program's random numbers and outputs do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..corpus.manifest import Utterance
from ..encodings.linear_head import additive
from ..errors import LengthError, TapError, TapPathError, TokenError, UsageError, VocabError
from ..registry import suggest
from ..runner.driver import JoinerRunner, TeacherOutput
from ..runner.loader import LoadedUtterance
from ..runner.transcribe import search
from ..teachers.joiners import FoundJoiner, JoinerAdapter, find_joiner, sides
from ..teachers.script import run_file
from ..teachers.tap import find_module
from ..tokens.table import TokenTable
from ..tokens.tokenise import Tokeniser
from .job import CaptureOptions

TO_BTD = {"BTD": (0, 1, 2), "BDT": (0, 2, 1), "TBD": (1, 0, 2)}  # permutations of encoder outputs
ADAPTER_DEFAULTS = {"head": "", "normalised": False, "encoder": "", "side": "output", "width": 0, "blank": 0}
MAX_DURATIONS = 16


@dataclass(frozen=True)
class RecipeTransducer:
    """Transducer of the program's model, and the module whose output or input its joiner is run on.

    Attributes:
        found: joiner adapter, and where the joiner is below the model.
        encoder: module that is hooked.
        side: ``output`` of that module, or its ``input``.
        where: name for messages.
    """

    found: FoundJoiner
    encoder: nn.Module
    side: str
    where: str

    @property
    def adapter(self) -> JoinerAdapter:
        """Adapter that runs the joiner."""
        return self.found.adapter

    @property
    def head(self) -> str:
        """Path of the module that computes the logits, below the outermost module."""
        return ".".join(p for p in (self.found.owner, self.adapter.head) if p)

    def classes(self, encoded: torch.Tensor) -> int:
        """Return V and the durations of a TDT joiner that the adapter does not count; may run the joiner."""
        if self.adapter.classes:
            return self.adapter.classes
        with without_side_effects(encoded.device, self.adapter.model):
            return int(self.adapter.join(*sides(self.adapter, encoded[0, :1], [])).shape[-1])

    def encoder_frames(self, value: Any) -> torch.Tensor:
        """Return the frames in a module's output or input; raise ``TapError`` where there are none."""
        if (found := find_frames(value)) is not None:
            return found
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise TapError(
            f"gives {shape}, no frames (B, T, D)",
            where=self.where,
            do="Say which module gives the encoder's output: --encoder PATH, or --encoder input:PATH.",
        )

    def possible_layouts(self, encoded: torch.Tensor, given: str) -> list[str]:
        """Return the axis orders that fit the joiner's input width.

        Args:
            encoded: frames, with three axes.
            given: layout of the options; empty where none is given.

        Raises ``LengthError`` where none fits.
        """
        width = self.adapter.width
        layouts = [given] if given else ["BTD", "TBD", "BDT"]
        if width:
            layouts = [x for x in layouts if encoded.permute(TO_BTD[x]).shape[2] == width]
        elif not given:
            layouts.remove("BDT")
        if not layouts:
            as_given = f", as {given}" if given else ""
            raise LengthError(
                f"{tuple(encoded.shape)} has no axis of the joiner's {width}{as_given}",
                where=self.where,
                do="Say which module gives the encoder's output: --encoder PATH; its axes: --encoder-layout.",
            )
        return layouts


def find_transducer(root: nn.Module, options: CaptureOptions) -> RecipeTransducer:
    """Return the transducer of a model, by the options ``joiner``, ``encoder`` and ``joiner_adapter``.

    Raises ``TapError`` for a joiner that no adapter fits, and ``UsageError`` for a wrong option.
    """
    where, blank = f"--joiner {options.joiner}", options.blank
    found: FoundJoiner | None
    if options.joiner_adapter:
        adapter = _adapter_of_file(options.joiner_adapter, root, blank)
        found = FoundJoiner("script", "", options.joiner, adapter)
    else:
        found = find_joiner(root, options.joiner, blank)
    if found is None:
        joiner = find_module(root, options.joiner)
        seen = next((text for m in joiner.children() if (text := additive(joiner, m))), "")
        raise TapError(
            f"no joiner adapter that is known here fits this joiner{f' ({seen})' if seen else ''}",
            where=where,
            do="Say how it is run: --joiner-adapter FILE.py:NAME, a function that returns an object with "
            "project, predict and join (logitstore.teachers.joiners).",
        )
    place = options.encoder or found.encoder
    side, colon, path = place.rpartition(":")
    if not place or (colon and side != "input"):
        raise UsageError(
            f"{place!r} names no module",
            where=f"--encoder, for {where}",
            do="Write --encoder PATH, or --encoder input:PATH.",
        )
    try:
        encoder = find_module(root, path)
    except TapPathError as e:
        raise TapPathError(e.what, where=f"--encoder {place}", do=e.do) from None
    return RecipeTransducer(found, encoder, side or "output", f"--encoder {place}")


def _adapter_of_file(place: str, root: nn.Module, blank: int | None) -> JoinerAdapter:
    """Return what the function of ``FILE.py:NAME`` makes for a model, missing attributes filled in."""
    file, _, name = place.rpartition(":")
    if not Path(file).is_file():
        raise UsageError(f"{place!r} is not FILE.py:NAME, or there is no such file", where="--joiner-adapter")
    module = run_file(Path(file).resolve())
    make = getattr(module, name, None)
    if not callable(make):
        known = [n for n in vars(module) if not n.startswith("_")]
        raise UsageError(
            f"{file} has no function {name!r}", where="--joiner-adapter", do=suggest(name, known)
        )
    made: Any = make(root)
    if missing := [n for n in ("project", "predict", "join") if not callable(getattr(made, n, None))]:
        raise UsageError(
            f"the object that {name}() returns has no {', '.join(missing)}", where=f"--joiner-adapter {place}"
        )
    for attribute, value in ADAPTER_DEFAULTS.items():
        if not hasattr(made, attribute):
            setattr(made, attribute, value)
    made.model = getattr(made, "model", root)
    made.blank = made.blank if blank is None else blank
    if not hasattr(made, "classes"):
        made.classes = 0
    adapter: JoinerAdapter = made
    return adapter


class RecipeLattices:
    """Computation of lattices with a program's own transducer.

    Args:
        transducer: transducer of the program's model.
        table: token table.
        options: settings of the capture; ``durations``, ``tokens``, ``bpe`` and ``greedy`` are used.

    Attributes:
        model: model that holds prediction network and joiner.
        labels_from: source of labels that the program does not give, in words, for the user.
        in_training: number of modules that the program left in training mode; here they run in eval mode.
    """

    def __init__(self, transducer: RecipeTransducer, table: TokenTable, options: CaptureOptions) -> None:
        self._where, self._adapter = transducer.where, transducer.adapter
        self.model = self._adapter.model
        self._durations, self._table = options.durations, table
        tokenise: Callable[[str], list[int]] | None = getattr(self._adapter, "labels", None)
        how = "by the model's own tokenizer"
        if options.bpe or (tokenise is None and options.tokens):
            tokeniser = Tokeniser(table, options.bpe)
            tokenise, how = tokeniser.labels, tokeniser.how
        self._tokenise = None if options.greedy else tokenise
        if self._tokenise is None:
            self.labels_from = "the teacher's own decode"
        else:
            self.labels_from = f"the batch's texts, {how}; without texts the teacher's own decode"
        self.in_training = sum(m.training for m in self.model.modules())
        self._runner: JoinerRunner | None = None

    def transducer(self, output: Any, b: int, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (T, J) and (U+1, J), as :class:`logitstore.teachers.protocol.Transducer` does.

        ``output`` is a list of the valid encoder frames (T, D) of each utterance.
        """
        return sides(self._adapter, output[b], labels)

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        """Return (t, U+1, V) logits; raise ``VocabError`` where V is not the size of the token table."""
        logits = self._adapter.join(enc, dec)
        classes = logits.shape[-1] - self._durations
        if classes != len(self._table):
            raise wrong_width(classes, len(self._table), "the joiner", self._where)
        return logits[..., :classes]

    def with_labels(
        self, utt_id: str, enc: torch.Tensor, text: str | None, labels: list[int] | None
    ) -> TeacherOutput:
        """Return one utterance's encoder output with the labels that its lattice is computed for.

        Args:
            utt_id: utterance id.
            enc: (T, D) valid encoder frames.
            text: reference text; used where ``labels`` is None.
            labels: label ids; None where the program gives none. Without labels and text, the teacher's own
                greedy decode is used and noted in the record.

        Raises ``TokenError`` for a text that cannot be tokenised.
        """
        notes: dict[str, Any] = {}
        loaded = LoadedUtterance(Utterance(utt_id, Path()), torch.empty(0), 0.0, labels)
        output = TeacherOutput(loaded, len(enc), {}, [enc], 0)
        if labels is None and text is not None and self._tokenise is not None:
            try:
                labels = self._tokenise(text)
            except ValueError as e:
                raise TokenError(
                    f"the text {text!r} cannot be tokenised: {e}",
                    where=utt_id,
                    do="Say how it is tokenised: --bpe FILE; or where labels are: --labels EXPR; or take the "
                    "teacher's own decode: --greedy.",
                ) from e
        if labels is None:
            labels, score = search(self._runner_on(enc.device), output)
            notes = {"labels_from": "rnnt", "labels_score": round(score, 3)}
        return replace(output, labels={"rnnt": labels}, notes=notes)

    def slices(self, output: TeacherOutput) -> Iterator[torch.Tensor]:
        """Yield the lattice in slices of (t, U+1, V) logits."""
        return self._runner_on(output.batch_output[0].device).lattice(output)

    def _runner_on(self, device: torch.device) -> JoinerRunner:
        if self._runner is None or self._runner.device != device:
            self._runner = JoinerRunner(self, self._table, device, head=self._adapter.head)
        return self._runner


def find_frames(value: Any) -> torch.Tensor | None:
    """Return the first floating-point tensor with three axes in a value or its lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return value.detach() if value.is_floating_point() and value.dim() == 3 else None
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((x for item in inner if (x := find_frames(item)) is not None), None)


@contextmanager
def without_side_effects(device: torch.device, model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode; restore the program's random state and the modes of its modules afterwards.

    Modules that lie in lists, outside the reach of ``eval()``, are often in training mode (SpeechBrain).
    """
    devices = [device] if device.type == "cuda" else []
    training = [m for m in model.modules() if m.training]
    try:
        for module in training:
            module.training = False
        with torch.random.fork_rng(devices), torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def wrong_width(classes: int, table: int, what: str, where: str) -> VocabError:
    """Return the error for logits that are not as wide as the token table.

    Args:
        classes: V of the logits.
        table: number of tokens.
        what: module, for the message.
        where: location, for the message.
    """
    more = classes - table
    tdt = ""
    if 0 < more <= MAX_DURATIONS:
        tdt = f"If the last {more} are the durations of a TDT joiner: --durations {more}. "
    return VocabError(
        f"{what} gives {classes} classes, the token table has {table}",
        where=where,
        why="The position of a logit is the id of its token.",
        do=f"{tdt}Give the table that the model was trained with: --tokens.",
    )
