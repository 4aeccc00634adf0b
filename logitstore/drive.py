"""Runs the teacher: one batch through the encoder and the CTC head, then the joiner slice by slice."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .batches import Loaded
from .errors import LengthError, TeacherError, VocabError
from .head import linear_head
from .spec import Head
from .tap import Tap, find_module
from .teachers.base import Teacher
from .vocab import TokenTable

SLICE_ELEMENTS = {"cpu": 1 << 18, "other": 1 << 24}


@dataclass(frozen=True)
class Spoken:
    """What the teacher said about one utterance, before any encoding.

    Attributes:
        loaded: the utterance.
        T: valid frames.
        ctc: (T, V) logits on the device; None where there is no such stream.
        hidden: (T, D) what went into the ctc head, where that is stored; else None.
        output: what ``forward`` gave for its batch, and ``b``, its place in it: for the joiner.
        notes: what else its row will say.
    """

    loaded: Loaded
    T: int
    ctc: torch.Tensor | None
    output: Any
    b: int
    hidden: torch.Tensor | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Joining:
    """A transducer's joiner, tapped and run over whole lattices, slice by slice.

    Args:
        teacher: with ``transducer`` and ``join``; ``model`` is what the head's path starts from.
        table: its token table.
        device: where it runs.
        head: path of its logits below the model, as ``Tap`` takes it; empty: what ``join`` returns.
        inputs: take what goes into the head as well.
    """

    def __init__(
        self, teacher: Any, table: TokenTable, device: torch.device, *, head: str = "", inputs: bool = False
    ) -> None:
        self.teacher: Any = teacher
        self.table, self.device = table, device
        self.slice_elements = SLICE_ELEMENTS["cpu" if device.type == "cpu" else "other"]
        self._joint = Tap(teacher.model, {"rnnt": head} if head else {})
        self._joint_inputs = Tap(teacher.model, {"rnnt": head} if inputs else {}, side="input")
        self._headed = bool(head)

    def lattice(self, spoken: Spoken) -> Iterator[torch.Tensor]:
        """(t, U+1, V) logits of one utterance's lattice, slice after slice along T.

        The joiner runs on slices of a fixed number of logits, so memory does not grow with T·U·V.
        """
        where = spoken.loaded.utt.id
        enc, dec = self.sides(spoken)
        step = max(1, self.slice_elements // (len(dec) * len(self.table)))
        for t in range(0, spoken.T, step):
            piece = enc[t : t + step]
            logits = self.join(piece, dec)
            if logits.shape[-1] != len(self.table):
                raise VocabError(
                    f"the joiner gives {logits.shape[-1]} classes, the token table has {len(self.table)}",
                    where=where,
                )
            if logits.numel() != len(piece) * len(dec) * len(self.table):
                raise LengthError(
                    f"the joiner gives {tuple(logits.shape)} for {len(piece)} × {len(dec)} nodes", where=where
                )
            yield logits.reshape(len(piece), len(dec), len(self.table))

    def sides(self, spoken: Spoken) -> tuple[torch.Tensor, torch.Tensor]:
        """(T, J) and (U+1, J) that the joiner of one utterance adds; raises ``LengthError``."""
        labels = spoken.loaded.labels or []
        enc, dec = self.project(spoken, labels)
        if len(enc) != spoken.T or len(dec) != len(labels) + 1:
            raise LengthError(
                f"transducer() gives {len(enc)} × {len(dec)} nodes, "
                f"where T × (U+1) is {spoken.T} × {len(labels) + 1}",
                where=spoken.loaded.utt.id,
            )
        return enc, dec

    def joined(self, enc: torch.Tensor, dec: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What goes into the joiner's head and what comes out, flat, and what join() makes of it."""
        with self._quiet(), self._joint as outputs, self._joint_inputs as inputs:
            said = self.teacher.join(enc, dec)
            return inputs.take("rnnt").flatten(0, -2), outputs.take("rnnt").flatten(0, -2), said

    def project(self, spoken: Spoken, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected encoder (T, J) and decoder (U+1, J) of one utterance under these labels."""
        with self._quiet():
            enc, dec = self.teacher.transducer(spoken.output, spoken.b, labels)
        return enc, dec

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        """What the joiner's head says of (t, J) frames against (u, J) label positions: t · u rows of V."""
        with self._quiet(), self._joint as tap:
            said = self.teacher.join(enc, dec)
            rows: torch.Tensor = tap.take("rnnt") if self._headed else said
            # The durations of a TDT joint stand behind its tokens; join() leaves them out.
            return rows[..., : said.shape[-1]] if isinstance(said, torch.Tensor) else rows

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """No gradients, no autocast: the numbers the teacher was trained to say."""
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            yield


class Driver(Joining):
    """A teacher on a device, tapped.

    Args:
        teacher: put to eval, whatever mode it comes in.
        table: its token table.
        streams: names of the streams to take.
        device: e.g. ``cpu``, ``cuda:0``.
        factored: those of the streams whose head is stored, so that its input is taken as well.
    """

    def __init__(
        self,
        teacher: Teacher,
        table: TokenTable,
        streams: Sequence[str],
        device: str,
        factored: Collection[str] = (),
    ) -> None:
        self.streams = tuple(streams)
        spec = teacher.describe()
        heads: dict[str, Head] = {}
        for name in streams:
            head = spec.head(name)
            if head is None:
                raise TeacherError(
                    f"it has no {name} head",
                    where=spec.name,
                    do=f"It has: {', '.join(h.stream for h in spec.heads)}.",
                )
            heads[name] = head
        if "rnnt" in heads and not all(hasattr(teacher, m) for m in ("transducer", "join")):
            raise TeacherError(
                "an rnnt head, but no transducer() and join()",
                where=spec.name,
                do="logitstore.teachers.base documents the protocol.",
            )
        self.was_training = any(m.training for m in teacher.model.modules())
        teacher.model.eval()
        teacher.model.to(torch.device(device))
        joint = heads["rnnt"].module if "rnnt" in heads else ""
        inputs = bool(joint) and "rnnt" in factored
        super().__init__(teacher, table, torch.device(device), head=joint, inputs=inputs)
        batch_heads = {n: h for n, h in heads.items() if n != "rnnt"}
        self._tap = Tap(
            teacher.model,
            {n: h.module for n, h in batch_heads.items()},
            layouts={n: h.layout for n, h in batch_heads.items()},
        )
        paths = {n: h.module for n, h in heads.items() if n in factored}
        self.heads = {
            n: linear_head(find_module(teacher.model, p), f"{n} at {p!r}") for n, p in paths.items()
        }
        self._inputs = Tap(
            teacher.model,
            {n: p for n, p in paths.items() if n != "rnnt"},
            layouts={n: h.layout for n, h in batch_heads.items()},
            side="input",
        )

    @property
    def model(self) -> nn.Module:
        """The teacher's model."""
        model: nn.Module = self.teacher.model
        return model

    def run(self, batch: Sequence[Loaded]) -> list[Spoken]:
        """One padded batch through ``forward``; raises an error of the teacher's tree."""
        with self._quiet(), self._tap as tap, self._inputs as inputs:
            try:
                output = self.teacher.forward(*self.pad([item.features for item in batch]))
            except torch.OutOfMemoryError as e:
                seconds = sum(item.seconds for item in batch)
                raise TeacherError(
                    f"out of memory on {self.device}: {e}",
                    where=f"a batch of {len(batch)} utterances, {seconds:.1f} s",
                    do="Give smaller batches: --batch-seconds. What was sealed stays.",
                ) from e
            logits = tap.take("ctc") if "ctc" in self.streams else None
            hidden = inputs.take("ctc") if "ctc" in self.heads else None
        lengths = self.lengths(output, batch, logits)
        return [
            Spoken(
                item,
                t,
                None if logits is None else logits[b, :t],
                output,
                b,
                None if hidden is None else hidden[b, :t],
            )
            for b, (item, t) in enumerate(zip(batch, lengths, strict=True))
        ]

    def pad(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T0, F) zero-padded and (B,) lengths, on the device."""
        lengths = torch.tensor([len(f) for f in features], device=self.device)
        padded = nn.utils.rnn.pad_sequence(list(features), batch_first=True).to(self.device)
        return padded, lengths

    def lengths(self, output: Any, batch: Sequence[Loaded], logits: torch.Tensor | None) -> list[int]:
        """Valid frames of each utterance, checked against what was tapped; raises ``LengthError``."""
        lengths = [int(n) for n in self.teacher.lengths(output)]
        if len(lengths) != len(batch):
            raise LengthError(f"{len(lengths)} lengths for a batch of {len(batch)}")
        if logits is not None:
            if logits.dim() != 3 or len(logits) != len(batch):
                raise LengthError(
                    f"the ctc tap gives {tuple(logits.shape)} for a batch of {len(batch)}, not (B, T, V)",
                    do="Name its layout in the head: BVT or TBV.",
                )
            if logits.shape[-1] != len(self.table):
                raise VocabError(
                    f"the ctc head gives {logits.shape[-1]} classes, the token table has {len(self.table)}",
                    why="A logit's position is its token.",
                    do="Give the table the teacher was trained with: --tokens.",
                )
            for item, t in zip(batch, lengths, strict=True):
                if t > logits.shape[1]:
                    raise LengthError(
                        f"length {t} beyond the {logits.shape[1]} frames of its batch",
                        where=item.utt.id,
                        why="Lengths in samples or feature frames instead of encoder frames look like this.",
                        do="Return the encoder's output lengths from lengths().",
                    )
        return lengths


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """So many threads inside torch's operators on the CPU, meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
