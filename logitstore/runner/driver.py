"""Running a teacher: batches through encoder, layers and CTC head; joiner and decoder by utterance."""

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
from ..schema.spec import Head, TeacherSpec
from ..teachers.layers import split_layer
from ..teachers.protocol import Teacher
from ..teachers.tap import Tap, find_module
from ..tokens.table import TokenTable
from .loader import LoadedUtterance

SLICE_ELEMENTS = {"cpu": 1 << 18, "other": 1 << 24}  # logits of one slice of a lattice, by device
REQUIRED_METHODS = {"rnnt": ("transducer", "join"), "seq2seq": ("decode",)}  # of a teacher, by kind of stream


@dataclass(frozen=True)
class TeacherOutput:
    """Output of the teacher for one utterance, before any encoding.

    Attributes:
        loaded: the utterance.
        T: number of valid frames.
        rows: by stream of a module that runs in ``forward``, on the device: (T, V) logits, or (T, D) of a
            hidden layer.
        batch_output: output of ``forward`` for the whole batch, for joiner and decoder.
        b: index of the utterance in that batch.
        inputs: by stream with a stored head, (T, D) input of the head.
        labels: by stream that needs labels, their token ids, an attention decoder's with the end token. Empty
            where the manifest gives none.
        notes: further metadata of the utterance's record.
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
    """Transducer's joiner with a tap on its head, run over whole lattices in slices of frames.

    Args:
        teacher: object with ``transducer``, ``join`` and ``model``, from which the head's path starts.
        table: its token table.
        device: device of the model.
        head: path of the joiner's head, as ``Tap`` takes it; empty to take the result of ``join``.
        inputs: take the head's input too.
    """

    def __init__(
        self, teacher: Any, table: TokenTable, device: torch.device, *, head: str = "", inputs: bool = False
    ) -> None:
        self.teacher: Any = teacher
        self.table, self.device = table, device
        self.slice_elements = SLICE_ELEMENTS["cpu" if device.type == "cpu" else "other"]
        self._joint = Tap(teacher.model, {"rnnt": head} if head else {})
        self._joint_inputs = Tap(teacher.model, {"rnnt": head} if inputs else {}, side="input")
        self._has_head = bool(head)

    def lattice(self, output: TeacherOutput) -> Iterator[torch.Tensor]:
        """Yield one utterance's lattice as (t, U+1, V) logits, slice after slice along T.

        A slice has a fixed number of logits, so memory does not grow with T·U·V. Raises ``LengthError`` or
        ``VocabError`` where the joiner's output has another shape.
        """
        where = output.loaded.utt.id
        classes = len(self.table)
        enc, dec = self.sides(output)
        step = max(1, self.slice_elements // (len(dec) * classes))
        for t in range(0, output.T, step):
            piece = enc[t : t + step]
            logits = self.join(piece, dec)
            if logits.shape[-1] != classes:
                raise VocabError(
                    f"the joiner gives {logits.shape[-1]} classes, the token table has {classes}", where=where
                )
            if logits.numel() != len(piece) * len(dec) * classes:
                raise LengthError(
                    f"the joiner gives {tuple(logits.shape)} for {len(piece)} × {len(dec)} nodes", where=where
                )
            yield logits.reshape(len(piece), len(dec), classes)

    def sides(self, output: TeacherOutput) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the joiner's two sides, (T, J) and (U+1, J), of an utterance; raises ``LengthError``."""
        labels = output.labels.get("rnnt", [])
        enc, dec = self.project(output, labels)
        if len(enc) != output.T or len(dec) != len(labels) + 1:
            raise LengthError(
                f"transducer() gives {len(enc)} × {len(dec)} nodes, "
                f"where T × (U+1) is {output.T} × {len(labels) + 1}",
                where=output.loaded.utt.id,
            )
        return enc, dec

    def project(self, output: TeacherOutput, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return projected encoder (T, J) and decoder (U+1, J) of one utterance under given labels."""
        with self._plain_numbers():
            enc, dec = self.teacher.transducer(output.batch_output, output.b, labels)
        return enc, dec

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        """Return the head's logits of (t, J) frames with (u, J) label positions, t · u rows of V."""
        with self._plain_numbers(), self._joint as tap:
            joined = self.teacher.join(enc, dec)
            rows: torch.Tensor = tap.take("rnnt") if self._has_head else joined
            # join() leaves out the durations of a TDT joint, which follow the tokens in the head's output.
            return rows[..., : joined.shape[-1]] if isinstance(joined, torch.Tensor) else rows

    def joined(self, enc: torch.Tensor, dec: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return the head's input (N, D), its output (N, V), and the result of ``join``."""
        with self._plain_numbers(), self._joint as taps, self._joint_inputs as inputs:
            result = self.teacher.join(enc, dec)
            return inputs.take("rnnt").flatten(0, -2), taps.take("rnnt").flatten(0, -2), result

    @contextmanager
    def _plain_numbers(self) -> Iterator[None]:
        """Turn off gradients and autocast, so that the model runs in the precision of its weights."""
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            yield


class TeacherDriver(JoinerRunner):
    """Teacher on a device, with taps on the modules of its streams.

    Args:
        teacher: any teacher; its model is put into eval mode.
        table: its token table.
        streams: names of the streams to take.
        device: device to run on, e.g. ``cpu`` or ``cuda:0``.
        factored: names of the streams with a stored head, so that the head's input is taken too.
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
        self.described = self._find_heads(teacher, spec)
        self._require_text(teacher, spec)
        self.was_training = any(m.training for m in teacher.model.modules())
        teacher.model.eval()
        teacher.model.to(torch.device(device))
        heads = self.described
        joint = heads["rnnt"].module if "rnnt" in heads else ""
        joint_inputs = bool(joint) and "rnnt" in factored
        super().__init__(teacher, table, torch.device(device), head=joint, inputs=joint_inputs)
        paths = {n: h.module for n, h in heads.items() if n in factored}
        self.heads = {
            n: linear_head(find_module(teacher.model, p), f"{n} at {p!r}") for n, p in paths.items()
        }
        layers = [n for n in heads if not self.kinds[n].classes]
        self._taps = {n: self._tap(n) for n in heads if n != "rnnt" and n not in layers}
        self._layers = {n: self._tap(n, accumulate=True) for n in layers}
        self._inputs = {n: self._tap(n, side="input") for n in paths if n != "rnnt"}

    def _find_heads(self, teacher: Teacher, spec: TeacherSpec) -> dict[str, Head]:
        """Return the streams' heads; raises ``TeacherError`` for a missing head or method."""
        found: dict[str, Head] = {}
        for name, kind in self.kinds.items():
            head = spec.head(name)
            if head is None and kind.axes:
                hint = " Name a layer: --hidden PATH." if kind.name == "hidden" else ""
                raise TeacherError(
                    f"the teacher has no {name} head",
                    where=spec.name,
                    do=f"It has: {', '.join(h.stream for h in spec.heads) or 'none'}.{hint}",
                )
            if head is not None:
                found[name] = head
            required = REQUIRED_METHODS.get(kind.name, ())
            if any(not hasattr(teacher, method) for method in required):
                article = "an" if kind.name == "rnnt" else "a"
                raise TeacherError(
                    f"{article} {name} head, but no {' and '.join(f'{m}()' for m in required)}",
                    where=spec.name,
                    do="logitstore.teachers.protocol documents the protocol.",
                )
        return found

    def _require_text(self, teacher: Teacher, spec: TeacherSpec) -> None:
        """Raise ``TeacherError`` for a text stream with no transcript to store."""
        gives_text = hasattr(teacher, "transcribe") or hasattr(teacher, "stored_transcript")
        if "text" in self.kinds and not gives_text and not any(k.classes for k in self.kinds.values()):
            raise TeacherError(
                "no transcript for the text stream: no transcribe(), and no other stream to decode",
                where=spec.name,
                do="Dump a stream to decode with it: --stream ctc=dense --stream text.",
            )

    def _tap(self, stream: str, *, side: str = "output", accumulate: bool = False) -> Tap:
        head = self.described[stream]
        return Tap(
            self.teacher.model,
            {stream: head.module},
            layouts={stream: head.layout},
            side=side,
            accumulate=accumulate,
        )

    @property
    def model(self) -> nn.Module:
        """The teacher's model."""
        model: nn.Module = self.teacher.model
        return model

    def run(self, batch: Sequence[LoadedUtterance]) -> list[TeacherOutput]:
        """Run one padded batch through ``forward``; raises errors of the teacher's tree."""
        with self._plain_numbers(), ExitStack() as opened:
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
                    do="Run smaller batches (batch_seconds, --batch-seconds). Sealed shards are kept.",
                ) from e
            logits = {n: tap.take(n) for n, tap in taps.items()}
            head_inputs = {n: tap.take(n) for n, tap in inputs.items()}
            calls = {n: tap.take_each(n) for n, tap in layers.items()}
        lengths = self.lengths(batch_output, batch, logits.get("ctc"))
        padded = self._padded_frames(batch_output, lengths, logits.get("ctc"))
        hidden = {n: split_layer(n, each, lengths, padded) for n, each in calls.items()}
        outputs = []
        for b, (item, t) in enumerate(zip(batch, lengths, strict=True)):
            rows = {n: x[b, :t] for n, x in logits.items()} | {n: x[b] for n, x in hidden.items()}
            below = {n: x[b, :t] for n, x in head_inputs.items()}
            outputs.append(TeacherOutput(item, t, rows, batch_output, b, below, self._labels(item)))
        return outputs

    def one_forward(self, outputs: Sequence[TeacherOutput]) -> list[TeacherOutput]:
        """Return the outputs of ``run`` that came from one forward, for the self-check: here all."""
        return list(outputs)

    def _padded_frames(self, batch_output: Any, lengths: Sequence[int], logits: torch.Tensor | None) -> int:
        """Return the frames of a batch at the teacher's rate, padding included."""
        if logits is not None:
            return int(logits.shape[1])
        padded_frames = getattr(self.teacher, "padded_frames", None)
        return int(padded_frames(batch_output)) if padded_frames is not None else max(lengths)

    def _labels(self, loaded: LoadedUtterance) -> dict[str, list[int]]:
        if loaded.labels is None:
            return {}
        return {n: self.with_end(n, loaded.labels) for n, kind in self.kinds.items() if kind.labels}

    def with_end(self, stream: str, labels: Sequence[int]) -> list[int]:
        """Return labels of a stream, an attention decoder's with its end token behind them."""
        end = self.described[stream].end
        return [*labels] if end is None or list(labels[-1:]) == [end] else [*labels, end]

    def pad(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad features with zeros to (B, T0, F), and return their lengths (B,), both on the device."""
        lengths = torch.tensor([len(f) for f in features], device=self.device)
        padded = nn.utils.rnn.pad_sequence(list(features), batch_first=True).to(self.device)
        return padded, lengths

    def lengths(
        self, batch_output: Any, batch: Sequence[LoadedUtterance], logits: torch.Tensor | None
    ) -> list[int]:
        """Return the valid frames of each utterance, checked against the CTC logits.

        Raises ``LengthError`` or ``VocabError``.
        """
        lengths = [int(n) for n in self.teacher.lengths(batch_output)]
        if len(lengths) != len(batch):
            raise LengthError(f"{len(lengths)} lengths for a batch of {len(batch)}")
        if logits is None:
            return lengths
        if logits.dim() != 3 or len(logits) != len(batch):
            raise LengthError(
                f"the ctc tap gives {tuple(logits.shape)} for a batch of {len(batch)}, not (B, T, V)",
                do="Name its layout in the head: BVT or TBV.",
            )
        if logits.shape[-1] != len(self.table):
            raise VocabError(
                f"the ctc head gives {logits.shape[-1]} classes, the token table has {len(self.table)}",
                why="A logit's position is its token.",
                do="Give the table that the teacher was trained with: tokens=, --tokens.",
            )
        for item, t in zip(batch, lengths, strict=True):
            if t > logits.shape[1]:
                raise LengthError(
                    f"length {t} beyond the {logits.shape[1]} frames of its batch",
                    where=item.utt.id,
                    why="These look like lengths in samples or feature frames instead of encoder frames.",
                    do="Return the encoder's output lengths from lengths().",
                )
        return lengths

    def decoded(
        self, output: TeacherOutput, stream: str = "seq2seq", labels: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run an attention decoder on an utterance's labels (teacher forcing).

        Args:
            output: one utterance.
            stream: name of the decoder's stream.
            labels: token ids with the end token; None for the utterance's own, or the end token alone where
                it has none.

        Returns:
            (U, V) logits, and the (U, D) input of the head where the head is stored.

        Raises ``LengthError`` or ``VocabError``.
        """
        teacher: Any = self.teacher
        where = output.loaded.utt.id
        if labels is None:
            labels = output.labels.get(stream, self.with_end(stream, []))
        inputs = None
        with self._plain_numbers(), self._taps[stream] as tap, ExitStack() as opened:
            input_tap = self._inputs.get(stream)
            if input_tap is not None:
                opened.enter_context(input_tap)
            teacher.decode(output.batch_output, output.b, list(labels))
            logits = tap.take(stream)
            inputs = input_tap.take(stream) if input_tap is not None else None
        rows = logits.flatten(0, -2)
        if len(rows) < len(labels) or (logits.dim() == 3 and len(logits) != 1):
            raise LengthError(
                f"decode() gives {tuple(logits.shape)} for {len(labels)} labels, not (1, U, V)",
                where=where,
                why="Row u is the distribution of label u; rows before the last U belong to the prompt.",
                do="Run the decoder on its prompt and all labels but the last.",
            )
        if rows.shape[-1] != len(self.table):
            raise VocabError(
                f"the {stream} head gives {rows.shape[-1]} classes, the token table has {len(self.table)}",
                where=where,
            )
        first = len(rows) - len(labels)
        return rows[first:], None if inputs is None else inputs.flatten(0, -2)[first:]

    def generated(self, output: TeacherOutput, stream: str = "seq2seq") -> tuple[list[int], float]:
        """Decode an utterance greedily by an attention decoder, which runs once a token.

        Returns:
            Token ids without the end token, and their log-probability. Decoding stops after T tokens.
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
        """Return text and log-probability of a recogniser that gives texts; None for any other teacher.

        Raises ``TeacherError`` naming the utterance.
        """
        teacher: Any = self.teacher
        where = output.loaded.utt.id
        try:
            if hasattr(teacher, "stored_transcript"):
                found = teacher.stored_transcript(where)
            elif hasattr(teacher, "transcribe"):
                found = teacher.transcribe(output.loaded.samples)
            else:
                return None
        except LogitStoreError:
            raise
        except Exception as e:  # the teacher is the user's code: any error is reported with its utterance
            raise TeacherError(f"transcribe() failed with {type(e).__name__}: {e}", where=where) from e
        text, score = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        if not isinstance(text, str) or not (score is None or isinstance(score, int | float)):
            raise TeacherError(f"transcribe() gives {found!r:.60}, not a text and its score", where=where)
        return text, None if score is None else float(score)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Set the number of threads of torch's operators on the CPU for the length of a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
