"""Runs the teacher: one batch through encoder, layers and CTC head, then joiner or decoder by utterance."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..encodings.linear_head import linear_head
from ..errors import LengthError, LogitStoreError, TeacherError, VocabError
from ..schema.kinds import kind_of
from ..schema.spec import Head
from ..teachers.layers import by_utterance
from ..teachers.protocol import Teacher
from ..teachers.tap import Tap, find_module
from ..tokens.table import TokenTable
from .loader import LoadedUtterance

SLICE_ELEMENTS = {"cpu": 1 << 18, "other": 1 << 24}
NEEDS = {"rnnt": ("transducer", "join"), "seq2seq": ("decode",)}  # methods of a teacher, by kind of stream


@dataclass(frozen=True)
class TeacherOutput:
    """What the teacher said about one utterance, before any encoding.

    Attributes:
        loaded: the utterance.
        T: valid frames.
        rows: by stream whose module ran in ``forward``, on the device: (T, V) logits, or (T, D) of a layer.
        batch_output: output of ``forward`` for the whole batch.
        b: index of the utterance in that batch.
        inputs: by stream whose head is stored, (T, D) what went into it.
        labels: by stream, token ids that drive it; an attention decoder's with its end token. None missing
            where the manifest gives some.
        notes: what else its row will say.
    """

    loaded: LoadedUtterance
    T: int
    rows: dict[str, torch.Tensor]
    batch_output: Any
    b: int
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


class JoinerRunner:
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

    def lattice(self, output: TeacherOutput) -> Iterator[torch.Tensor]:
        """(t, U+1, V) logits of one utterance's lattice, slice after slice along T.

        The joiner runs on slices of a fixed number of logits, so memory does not grow with T·U·V.
        """
        where = output.loaded.utt.id
        enc, dec = self.sides(output)
        step = max(1, self.slice_elements // (len(dec) * len(self.table)))
        for t in range(0, output.T, step):
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

    def sides(self, output: TeacherOutput) -> tuple[torch.Tensor, torch.Tensor]:
        """(T, J) and (U+1, J) that the joiner of one utterance adds; raises ``LengthError``."""
        labels = output.labels.get("rnnt", [])
        enc, dec = self.project(output, labels)
        if len(enc) != output.T or len(dec) != len(labels) + 1:
            raise LengthError(
                f"transducer() gives {len(enc)} × {len(dec)} nodes, "
                f"where T × (U+1) is {output.T} × {len(labels) + 1}",
                where=output.loaded.utt.id,
            )
        return enc, dec

    def joined(self, enc: torch.Tensor, dec: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What goes into the joiner's head and what comes out, flat, and what join() makes of it."""
        with self._quiet(), self._joint as taps, self._joint_inputs as inputs:
            logits = self.teacher.join(enc, dec)
            return inputs.take("rnnt").flatten(0, -2), taps.take("rnnt").flatten(0, -2), logits

    def project(self, output: TeacherOutput, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected encoder (T, J) and decoder (U+1, J) of one utterance under these labels."""
        with self._quiet():
            enc, dec = self.teacher.transducer(output.batch_output, output.b, labels)
        return enc, dec

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        """What the joiner's head says of (t, J) frames against (u, J) label positions: t · u rows of V."""
        with self._quiet(), self._joint as tap:
            logits = self.teacher.join(enc, dec)
            rows: torch.Tensor = tap.take("rnnt") if self._headed else logits
            # The durations of a TDT joint stand behind its tokens; join() leaves them out.
            return rows[..., : logits.shape[-1]] if isinstance(logits, torch.Tensor) else rows

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """No gradients, no autocast: the numbers the teacher was trained to say."""
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            yield


class TeacherDriver(JoinerRunner):
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
        self.kinds = {name: kind_of(name) for name in streams}
        spec = teacher.describe()
        self.described: dict[str, Head] = {}
        for name, kind in self.kinds.items():
            head = spec.head(name)
            if head is None and kind.axes:
                raise TeacherError(
                    f"it has no {name} head",
                    where=spec.name,
                    do=f"It has: {', '.join(h.stream for h in spec.heads) or 'none'}."
                    + " --hidden PATH names a layer." * (kind.name == "hidden"),
                )
            if head is not None:
                self.described[name] = head
            lacks = [m for m in NEEDS.get(kind.name, ()) if not hasattr(teacher, m)]
            if lacks:
                raise TeacherError(
                    f"{'an' if kind.name == 'rnnt' else 'a'} {name} head, but no "
                    f"{' and '.join(f'{m}()' for m in NEEDS[kind.name])}",
                    where=spec.name,
                    do="logitstore.teachers.protocol documents the protocol.",
                )
        writes = hasattr(teacher, "transcribe") or hasattr(teacher, "wrote")
        if "text" in self.kinds and not writes and not any(k.classes for k in self.kinds.values()):
            raise TeacherError(
                "nothing to write down: it has neither transcribe() nor a stream beside text",
                where=spec.name,
                do="Dump a stream to decode with it: --stream ctc=dense --stream text.",
            )
        self.was_training = any(m.training for m in teacher.model.modules())
        teacher.model.eval()
        teacher.model.to(torch.device(device))
        heads = self.described
        joint = heads["rnnt"].module if "rnnt" in heads else ""
        inputs = bool(joint) and "rnnt" in factored
        super().__init__(teacher, table, torch.device(device), head=joint, inputs=inputs)
        paths = {n: h.module for n, h in heads.items() if n in factored}
        self.heads = {
            n: linear_head(find_module(teacher.model, p), f"{n} at {p!r}") for n, p in paths.items()
        }
        self._taps = {n: self._tap(n) for n in heads if n != "rnnt" and not self._is_layer(n)}
        self._layers = {n: self._tap(n, accumulate=True) for n in heads if self._is_layer(n)}
        self._inputs = {n: self._tap(n, side="input") for n in paths if n != "rnnt"}

    def _tap(self, stream: str, **options: Any) -> Tap:
        head = self.described[stream]
        layouts = {stream: head.layout}
        return Tap(self.teacher.model, {stream: head.module}, layouts=layouts, **options)

    def _is_layer(self, stream: str) -> bool:
        return not self.kinds[stream].classes

    @property
    def model(self) -> nn.Module:
        """The teacher's model."""
        model: nn.Module = self.teacher.model
        return model

    def run(self, batch: Sequence[LoadedUtterance]) -> list[TeacherOutput]:
        """One padded batch through ``forward``; raises an error of the teacher's tree."""
        with self._quiet(), ExitStack() as opened:
            taps, layers, inputs = (
                {n: opened.enter_context(t) for n, t in group.items() if self.kinds[n].tapped}
                for group in (self._taps, self._layers, self._inputs)
            )
            try:
                batch_output = self.teacher.forward(*self.pad([item.features for item in batch]))
            except torch.OutOfMemoryError as e:
                seconds = sum(item.seconds for item in batch)
                raise TeacherError(
                    f"out of memory on {self.device}: {e}",
                    where=f"a batch of {len(batch)} utterances, {seconds:.1f} s",
                    do="Give smaller batches: --batch-seconds. What was sealed stays.",
                ) from e
            logits = {n: tap.take(n) for n, tap in taps.items()}
            below = {n: tap.take(n) for n, tap in inputs.items()}
            calls = {n: tap.take_each(n) for n, tap in layers.items()}
        lengths = self.lengths(batch_output, batch, logits.get("ctc"))
        padded = self._padded(batch_output, lengths, logits.get("ctc"))
        numbers = {n: by_utterance(n, each, lengths, padded) for n, each in calls.items()}
        return [
            TeacherOutput(
                item,
                t,
                {**{n: x[b, :t] for n, x in logits.items()}, **{n: x[b] for n, x in numbers.items()}},
                batch_output,
                b,
                {n: x[b, :t] for n, x in below.items()},
                self._labels(item),
            )
            for b, (item, t) in enumerate(zip(batch, lengths, strict=True))
        ]

    def one_forward(self, outputs: Sequence[TeacherOutput]) -> list[TeacherOutput]:
        """Of what ``run`` gave, what came of one forward: for the self-check."""
        return list(outputs)

    def _padded(self, batch_output: Any, lengths: Sequence[int], logits: torch.Tensor | None) -> int:
        """Frames of a batch at the teacher's rate, padding included."""
        if logits is not None:
            return int(logits.shape[1])
        padded_frames = getattr(self.teacher, "padded_frames", None)
        return int(padded_frames(batch_output)) if padded_frames is not None else max(lengths)

    def _labels(self, loaded: LoadedUtterance) -> dict[str, list[int]]:
        if loaded.labels is None:
            return {}
        return {n: self.with_end(n, loaded.labels) for n, kind in self.kinds.items() if kind.labels}

    def with_end(self, stream: str, labels: Sequence[int]) -> list[int]:
        """Labels of a stream: an attention decoder's end with its end token."""
        end = self.described[stream].end
        return [*labels] if end is None or list(labels[-1:]) == [end] else [*labels, end]

    def pad(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T0, F) zero-padded and (B,) lengths, on the device."""
        lengths = torch.tensor([len(f) for f in features], device=self.device)
        padded = nn.utils.rnn.pad_sequence(list(features), batch_first=True).to(self.device)
        return padded, lengths

    def lengths(
        self, batch_output: Any, batch: Sequence[LoadedUtterance], logits: torch.Tensor | None
    ) -> list[int]:
        """Valid frames of each utterance, checked against what was tapped; raises ``LengthError``."""
        lengths = [int(n) for n in self.teacher.lengths(batch_output)]
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

    def decoded(
        self, output: TeacherOutput, stream: str = "seq2seq", labels: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(U, V) logits of an attention decoder that is made to say an utterance's labels, and (U, D) what
        went into its head where that is stored. Without labels it is made to say its end at once.

        Raises ``LengthError`` or ``VocabError``.
        """
        teacher: Any = self.teacher
        where = output.loaded.utt.id
        labels = output.labels.get(stream, self.with_end(stream, [])) if labels is None else labels
        inputs = None
        with self._quiet(), self._taps[stream] as tap, ExitStack() as opened:
            below = self._inputs.get(stream)
            if below is not None:
                opened.enter_context(below)
            teacher.decode(output.batch_output, output.b, list(labels))
            logits = tap.take(stream)
            inputs = below.take(stream) if below is not None else None
        rows = logits.flatten(0, -2)
        if len(rows) < len(labels) or (logits.dim() == 3 and len(logits) != 1):
            raise LengthError(
                f"decode() gives {tuple(logits.shape)} for {len(labels)} labels, not (1, U, V)",
                where=where,
                why="Row u is what label u is drawn from; rows before the last U are the prompt's.",
                do="Let the decoder see its prompt and all labels but the last.",
            )
        if rows.shape[-1] != len(self.table):
            raise VocabError(
                f"the {stream} head gives {rows.shape[-1]} classes, the token table has {len(self.table)}",
                where=where,
            )
        first = len(rows) - len(labels)
        return rows[first:], None if inputs is None else inputs.flatten(0, -2)[first:]

    def generated(self, output: TeacherOutput, stream: str = "seq2seq") -> tuple[list[int], float]:
        """Tokens that an attention decoder says by itself, its end left out, and their log-probability.

        Greedy. It runs once a token, over all tokens before it; one that never ends is stopped after T.
        """
        end, tokens, score = self.described[stream].end, list[int](), 0.0
        most = min(output.T, int(getattr(self.teacher, "most_labels", output.T)))
        while True:
            last = end if end is not None else self.table.blank
            row = self.decoded(output, stream, [*tokens, last])[0][-1].float()
            if len(tokens) >= most:
                return tokens, score + float(row[last] - row.logsumexp(-1))
            best = int(row.argmax())
            score += float(row[best] - row.logsumexp(-1))
            if best == end:
                return tokens, score
            tokens.append(best)

    def transcribed(self, output: TeacherOutput) -> tuple[str, float | None] | None:
        """Text and score (a natural logarithm) that a black box gives; None where the teacher is none.

        Raises ``TeacherError`` naming the utterance.
        """
        teacher: Any = self.teacher
        where = output.loaded.utt.id
        try:
            if hasattr(teacher, "wrote"):
                found = teacher.wrote(where)
            elif hasattr(teacher, "transcribe"):
                found = teacher.transcribe(output.loaded.samples)
            else:
                return None
        except LogitStoreError:
            raise
        except Exception as e:  # somebody's service: whatever it is, it is named with its utterance
            raise TeacherError(f"transcribe() failed with {type(e).__name__}: {e}", where=where) from e
        text, score = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        if not isinstance(text, str) or not (score is None or isinstance(score, int | float)):
            raise TeacherError(f"transcribe() gives {found!r:.60}, not a text and its score", where=where)
        return text, None if score is None else float(score)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """So many threads inside torch's operators on the CPU, meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
