"""Drives a recipe's own transducer, inside its process, over the lattice that its decoding loop never makes.

The encoder's output of a batch is taken; prediction network and joiner run here, on the labels, utterance by
utterance and slice by slice, in the recipe's own thread, and leave its random numbers and outputs alone.
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
from ..teachers.joiners import FoundJoiner, JoinerAdapter, find, sides
from ..teachers.script import run_file
from ..teachers.tap import find_module
from ..tokens.table import TokenTable
from ..tokens.tokenise import Tokeniser

LAYOUTS = {"BTD": (0, 1, 2), "BDT": (0, 2, 1), "TBD": (1, 0, 2)}
ATTRIBUTES = {"head": "", "normalised": False, "encoder": "", "side": "output", "width": 0, "blank": 0}


@dataclass(frozen=True)
class Driven:
    """The transducer of a model, and the module to take its encoder's output from.

    Attributes:
        found: its drive.
        encoder: that module; ``side`` of it: ``output`` or ``input``.
        where: what messages call it.
    """

    found: FoundJoiner
    encoder: nn.Module
    side: str
    where: str

    @property
    def drive(self) -> JoinerAdapter:
        """How it is run."""
        return self.found.drive

    @property
    def head(self) -> str:
        """Path of what gives its logits, below the outermost module."""
        return ".".join(p for p in (self.found.owner, self.drive.head) if p)

    def classes(self, enc: torch.Tensor) -> int:
        """V, and durations that the drive does not know of; asked of the joiner itself if need be."""
        if self.drive.classes:
            return self.drive.classes
        with unnoticed(enc.device, self.drive.model):
            return int(self.drive.join(*sides(self.drive, enc[0, :1], [])).shape[-1])

    def encoded(self, value: Any) -> torch.Tensor:
        """Frames in what the module gave; raises ``TapError`` where there are none."""
        if (found := frames_in(value)) is not None:
            return found
        what = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise TapError(
            f"gives {what}, no frames (B, T, D)",
            where=self.where,
            do="Say which module gives the encoder's output: --encoder PATH, or --encoder input:PATH.",
        )

    def layouts(self, enc: torch.Tensor, asked: str) -> list[str]:
        """Orders that its axes can have; raises ``LengthError`` where none fits the joiner."""
        width = self.drive.width
        fits = [asked] if asked else ["BTD", "TBD", "BDT"]
        fits = [x for x in fits if not width or enc.permute(LAYOUTS[x]).shape[2] == width]
        if not width and not asked:
            fits.remove("BDT")
        if not fits:
            raise LengthError(
                f"{tuple(enc.shape)} has no axis of the joiner's {width}{f', as {asked}' if asked else ''}",
                where=self.where,
                do="Say which module gives the encoder's output: --encoder PATH; its axes: --encoder-layout.",
            )
        return fits


def resolve(root: nn.Module, job: dict[str, Any]) -> Driven:
    """The transducer of a model, by the job's ``joiner``, ``encoder`` and ``drive``; raises ``TapError``."""
    where, blank = f"--joiner {job['joiner']}", job["blank"]
    if job["drive"]:
        found: FoundJoiner | None = FoundJoiner(
            "script", "", job["joiner"], _script(job["drive"], root, blank)
        )
    else:
        found = find(root, job["joiner"], blank)
    if found is None:
        joint = find_module(root, job["joiner"])
        seen = next((text for m in joint.children() if (text := additive(joint, m))), "")
        raise TapError(
            f"a joiner of no convention that is known here{f' ({seen})' if seen else ''}",
            where=where,
            do="Say how it is run: --drive FILE.py:NAME, an object with project, predict and join "
            "(logitstore.teachers.joiners).",
        )
    place = job["encoder"] or found.encoder
    side, colon, path = place.rpartition(":")
    if not place or (colon and side != "input"):
        raise UsageError(f"--encoder {place!r}", where=where, do="--encoder PATH, or --encoder input:PATH.")
    try:
        encoder = find_module(root, path)
    except TapPathError as e:
        raise TapPathError(e.what, where=f"--encoder {place}", do=e.do) from None
    return Driven(found, encoder, side or "output", f"--encoder {place}")


def _script(place: str, root: nn.Module, blank: int | None) -> JoinerAdapter:
    """The drive of ``NAME(model)`` in a user's file."""
    file, _, name = place.rpartition(":")
    if not Path(file).is_file():
        raise UsageError(f"{place!r} is not FILE.py:NAME", where="--drive")
    module = run_file(Path(file).resolve())
    make = getattr(module, name, None)
    if not callable(make):
        known = [n for n in vars(module) if not n.startswith("_")]
        raise UsageError(f"{file} has no function {name!r}", where="--drive", do=suggest(name, known))
    made: Any = make(root)
    if missing := [n for n in ("project", "predict", "join") if not callable(getattr(made, n, None))]:
        raise UsageError(f"what {name}() gives has no {', '.join(missing)}", where=f"--drive {place}")
    for attribute, value in ATTRIBUTES.items():
        if not hasattr(made, attribute):
            setattr(made, attribute, value)
    made.model = getattr(made, "model", root)
    made.blank = made.blank if blank is None else blank
    if not hasattr(made, "classes"):
        made.classes = 0
    drive: JoinerAdapter = made
    return drive


class Lattices:
    """Lattices of a recipe's batches.

    Args:
        driven: its transducer.
        table: token table.
        job: see ``logitstore.capture.run``: ``durations``, ``tokens``, ``bpe``, ``greedy``.

    ``labels_from`` says where labels come from that the recipe does not give, for the user; ``in_training``
    is how many modules the recipe left in training mode, which here run in eval.
    """

    def __init__(self, driven: Driven, table: TokenTable, job: dict[str, Any]) -> None:
        self._driven, self._drive, self._classes = driven, driven.drive, len(table)
        self.model = self._drive.model
        self._durations, self._table = job["durations"], table
        own: Callable[[str], list[int]] | None = getattr(self._drive, "labels", None)
        how = "by the model's own tokenizer"
        if job["bpe"] or (own is None and job["tokens"]):
            tokeniser = Tokeniser(table, job["bpe"])
            own, how = tokeniser.labels, tokeniser.how
        self._split = None if job["greedy"] else own
        said = f"the batch's texts, {how}; without texts the teacher's own decode"
        self.in_training = sum(m.training for m in self.model.modules())
        self.labels_from = "the teacher's own decode" if self._split is None else said
        self._joining: JoinerRunner | None = None

    def transducer(self, output: Any, b: int, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """As a teacher's; ``output`` is the valid frames of each utterance."""
        return sides(self._drive, output[b], labels)

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        """As a teacher's; raises ``VocabError`` where it is not as wide as the token table."""
        logits = self._drive.join(enc, dec)
        classes = logits.shape[-1] - self._durations
        if classes != self._classes:
            raise wrong_width(classes, self._classes, "the joiner", self._driven.where)
        return logits[..., :classes]

    def spoken(
        self, utt_id: str, enc: torch.Tensor, text: str | None, labels: list[int] | None
    ) -> TeacherOutput:
        """(T, D) of one utterance with labels: those given, its text's, or the teacher's own decode.

        Raises ``TokenError`` for a text without tokens.
        """
        notes: dict[str, Any] = {}
        loaded = LoadedUtterance(Utterance(utt_id, Path()), torch.empty(0), 0.0, labels)
        spoken = TeacherOutput(loaded, len(enc), {}, [enc], 0)
        if labels is None and text is not None and self._split is not None:
            try:
                labels = self._split(text)
            except ValueError as e:
                raise TokenError(
                    f"the text {text!r} is no labels: {e}",
                    where=utt_id,
                    do="Say how it is tokenised: --bpe FILE; or where labels are: --labels EXPR; or take the "
                    "teacher's own decode: --greedy.",
                ) from e
        if labels is None:
            labels, score = search(self._join_on(enc.device), spoken)
            notes = {"labels_from": "rnnt", "labels_score": round(score, 3)}
        return replace(spoken, labels={"rnnt": labels}, notes=notes)

    def slices(self, spoken: TeacherOutput) -> Iterator[torch.Tensor]:
        """(t, U+1, V) logits, slice after slice; see :meth:`.JoinerRunner.lattice`."""
        return self._join_on(spoken.batch_output[0].device).lattice(spoken)

    def _join_on(self, device: torch.device) -> JoinerRunner:
        if self._joining is None or self._joining.device != device:
            self._joining = JoinerRunner(self, self._table, device, head=self._drive.head)
        return self._joining


def frames_in(value: Any) -> torch.Tensor | None:
    """The first tensor of real numbers with three axes, in lists, tuples and dicts of whatever depth."""
    if isinstance(value, torch.Tensor):
        return value.detach() if value.is_floating_point() and value.dim() == 3 else None
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((x for item in inner if (x := frames_in(item)) is not None), None)


@contextmanager
def unnoticed(device: torch.device, model: nn.Module) -> Iterator[None]:
    """What runs here leaves the recipe's random numbers as they were, and its modules in their modes.

    In here they are in eval: what lies in lists, outside the reach of ``eval()``, often is not (SpeechBrain).
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
    """More or fewer classes than tokens; a few more are a TDT joint's durations."""
    more = classes - table
    tdt = (
        f"If the last {more} are the durations of a TDT joint: --durations {more}. " if 0 < more <= 16 else ""
    )
    return VocabError(
        f"{what} gives {classes} classes, the token table has {table}",
        where=where,
        why="A logit's position is its token.",
        do=f"{tdt}Give the table that the model was trained with: --tokens.",
    )
