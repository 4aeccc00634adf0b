"""Long recordings through the teacher in overlapping chunks, joined without seams.

A chunk begins at a whole teacher frame, and half of each overlap is dropped on either side, so every frame
that is kept has at least that much context. Features are computed on the whole recording, so normalisation
over an utterance stays as it is. Where the encoder sees no further than half an overlap, the joined rows are
those of the whole recording.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, Self

import torch

from ..errors import DiskError, LengthError, TeacherError, UsageError
from ..schema.clock import FRAME_TOLERANCE, exact
from ..schema.spec import TeacherSpec
from ..teachers.protocol import Teacher
from ..tokens.table import TokenTable
from .driver import TeacherDriver, TeacherOutput
from .loader import LoadedUtterance

STORED_AS = "chunks"  # key of TeacherSpec.features: chunks change numbers
IN_MEMORY = 1 << 26  # bytes of one stream's joined rows; larger ones go to a file, so memory does not grow
EDGE_FRAMES = 8  # feature frames by which a recording may differ from what its length says


@dataclass(frozen=True)
class Chunks:
    """Lengths of the chunks of a long recording.

    Attributes:
        frames: teacher frames of a chunk; recordings that are no longer are not cut.
        overlap: teacher frames that a chunk shares with the next one; even.
    """

    frames: int
    overlap: int

    def __post_init__(self) -> None:
        if not (type(self.frames) is int and type(self.overlap) is int and 0 <= self.overlap < self.frames):
            raise UsageError(
                f"chunks of {self.frames} frames that overlap by {self.overlap}",
                do="Make chunks longer than their overlap, e.g. --chunk 30 --overlap 5.",
            )

    @classmethod
    def of_seconds(cls, chunk: Any, overlap: Any, teacher: TeacherSpec) -> Self:
        """Convert seconds to whole frames, an even number of them shared; raises ``UsageError``."""
        shift = Fraction(teacher.frame_shift, teacher.sample_rate)
        frames = int(exact(chunk, "a chunk") / shift)
        return cls(frames, 2 * int(exact(overlap, "an overlap") / shift / 2))

    @classmethod
    def stored(cls, teacher: TeacherSpec) -> Self | None:
        """Read a store's chunks from its teacher's description; None where recordings were not cut."""
        value = teacher.features.get(STORED_AS)
        return cls(**value) if isinstance(value, Mapping) else None

    def described_in(self, teacher: TeacherSpec) -> TeacherSpec:
        """Return the teacher's description with these chunks, so that a store is resumed with no others."""
        return replace(teacher, features={**teacher.features, STORED_AS: asdict(self)})

    def starts(self, frames: int) -> range:
        """Return the first frame of each chunk of a recording of this many frames."""
        step = self.frames - self.overlap
        return range(0, max(frames - self.frames, 0) + step, step)


@dataclass(frozen=True)
class _LongOutput:
    """Batch output of a long recording.

    Attributes:
        enc: (T, J) projected frames of the whole recording; None without an rnnt stream.
        batch_output: output of ``forward`` for the last chunks, with which the decoder runs.
        b: index of the last chunk in that batch.
    """

    enc: torch.Tensor | None
    batch_output: Any
    b: int


class ChunkedDriver(TeacherDriver):
    """Driver that cuts recordings that are longer than a chunk.

    Args:
        chunks: lengths of the chunks.
        batch_seconds: seconds of audio of the chunks that run at once; at least one chunk runs.
        teacher: any teacher.
        table: its token table.
        streams: names of the streams to take; each has a row a frame.
        device: device to run on.
        factored: names of the streams with a stored head.
    """

    def __init__(
        self,
        chunks: Chunks,
        batch_seconds: float,
        teacher: Teacher,
        table: TokenTable,
        streams: Sequence[str],
        device: str,
        factored: Collection[str] = (),
    ) -> None:
        super().__init__(teacher, table, streams, device, factored)
        without_frames = [name for name, kind in self.kinds.items() if not kind.frames]
        if without_frames:
            raise UsageError(
                f"a {without_frames[0]} stream cannot be dumped in chunks",
                why="It belongs to a whole recording and has no frames along which chunks could be joined.",
                do="Dump it without --chunk, or only streams with frames with it.",
            )
        self._chunks, self._spec = chunks, self.teacher.describe()
        seconds = Fraction(chunks.frames * self._spec.frame_shift, self._spec.sample_rate)
        self._at_once = max(1, int(exact(float(batch_seconds), "a batch") / seconds))

    def run(self, batch: Sequence[LoadedUtterance]) -> list[TeacherOutput]:
        """Run the short utterances as one batch, then each long one in chunks."""
        ratios = [self._feature_ratio(item) for item in batch]
        short = [n for n, ratio in enumerate(ratios) if not ratio]
        outputs = dict(zip(short, super().run([batch[n] for n in short]) if short else (), strict=True))
        for n, ratio in enumerate(ratios):
            if ratio:
                outputs[n] = self._run_long(batch[n], ratio)
        return [outputs[n] for n in range(len(batch))]

    def one_forward(self, outputs: Sequence[TeacherOutput]) -> list[TeacherOutput]:
        """Return the outputs of short utterances; where all are long, the first chunk of the first one."""
        short = [o for o in outputs if not isinstance(o.batch_output, _LongOutput)]
        if short:
            return short
        first = outputs[0].loaded
        return super().run([self._chunk(first, 0, self._feature_ratio(first))])

    def project(self, output: TeacherOutput, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return projected encoder and decoder; a long recording's decoder runs once, over all labels."""
        long = output.batch_output
        if not isinstance(long, _LongOutput):
            return super().project(output, labels)
        assert long.enc is not None
        _, dec = super().project(replace(output, batch_output=long.batch_output, b=long.b), labels)
        return long.enc, dec

    def _feature_ratio(self, item: LoadedUtterance) -> int:
        """Return the feature frames of a teacher frame for a long recording, 0 for a short one.

        Raises ``TeacherError`` where the ratio is not a whole number.
        """
        spec, count = self._spec, len(item.features)
        samples = round(item.seconds * spec.sample_rate)
        if samples <= self._chunks.frames * spec.frame_shift:
            return 0
        ratio = round(Fraction(count * spec.frame_shift, samples))
        if not ratio or abs(count - Fraction(samples * ratio, spec.frame_shift)) > EDGE_FRAMES:
            raise TeacherError(
                f"{count} feature frames for {samples / spec.frame_shift:.1f} teacher frames",
                where=item.utt.id,
                why="Chunks begin at whole frames of both, and here their ratio is not a whole number.",
                do="Correct frame_shift in describe(), or dump without --chunk.",
            )
        return ratio

    def _chunk(self, item: LoadedUtterance, start: int, ratio: int) -> LoadedUtterance:
        """Cut one chunk from teacher frame ``start`` on."""
        features = item.features[start * ratio : (start + self._chunks.frames) * ratio]
        seconds = len(features) * self._spec.frame_shift / (ratio * self._spec.sample_rate)
        return replace(item, features=features, seconds=seconds)

    def _run_long(self, item: LoadedUtterance, ratio: int) -> TeacherOutput:
        """Run one long recording chunk by chunk and join the rows."""
        frames = -(-len(item.features) // ratio)
        starts, encs, last = self._chunks.starts(frames), [], None
        rows: dict[str, _GrowingRows] = {}
        inputs: dict[str, _GrowingRows] = {}
        for first in range(0, len(starts), self._at_once):
            some = starts[first : first + self._at_once]
            outputs = super().run([self._chunk(item, start, ratio) for start in some])
            for start, output in zip(some, outputs, strict=True):
                low, high = self._kept_frames(output, start, is_last=start == starts[-1])
                for joined, of_chunk in ((rows, output.rows), (inputs, output.inputs)):
                    for name, values in of_chunk.items():
                        joined.setdefault(name, _GrowingRows(frames + FRAME_TOLERANCE)).append(
                            values[low:high]
                        )
                if "rnnt" in self.streams:
                    encs.append(super().project(output, [])[0][low:high])
                last = output
        assert last is not None
        enc = torch.cat(encs) if encs else None
        return replace(
            last,
            loaded=item,
            T=starts[-1] + last.T,
            rows={name: joined.tensor() for name, joined in rows.items()},
            batch_output=_LongOutput(enc, last.batch_output, last.b),
            b=0,
            inputs={name: joined.tensor() for name, joined in inputs.items()},
        )

    def _kept_frames(self, output: TeacherOutput, start: int, *, is_last: bool) -> tuple[int, int]:
        """Return the range of a chunk's frames to keep; raises ``LengthError`` for too few or too many."""
        chunks, half = self._chunks, self._chunks.overlap // 2
        low = half if start else 0
        high = output.T if is_last else chunks.frames - half
        if max(low, high) > output.T or (not is_last and abs(output.T - chunks.frames) > FRAME_TOLERANCE):
            raise LengthError(
                f"a chunk of {chunks.frames} frames from frame {start} gave {output.T}, not {high}",
                where=output.loaded.utt.id,
                why="Chunks can only be joined where frame i of a chunk is frame start + i of the recording.",
                do="Give a longer --overlap, or dump without --chunk.",
            )
        return low, high


class _GrowingRows:
    """Rows appended one chunk after the other, in a temporary file where they are too many for memory.

    Args:
        room: largest number of rows.
    """

    def __init__(self, room: int) -> None:
        self._room, self._used = room, 0
        self._all: torch.Tensor | None = None

    def append(self, rows: torch.Tensor) -> None:
        """Copy rows behind the present ones; raises ``DiskError``."""
        if self._all is None:
            self._all = _empty_rows(self._room, rows)
        self._all[self._used : self._used + len(rows)] = rows
        self._used += len(rows)

    def tensor(self) -> torch.Tensor:
        """Return all rows."""
        assert self._all is not None
        return self._all[: self._used]


def _empty_rows(room: int, like: torch.Tensor) -> torch.Tensor:
    """Allocate rows on the device, or in an unlinked file where they are many; raises ``DiskError``."""
    count = room * like[0].numel()
    if count * like.element_size() <= IN_MEMORY:
        return torch.empty((room, *like.shape[1:]), dtype=like.dtype, device=like.device)
    try:
        with tempfile.NamedTemporaryFile(prefix="logitstore-") as file:
            # A full disk fails here, and not in the middle of a write.
            os.posix_fallocate(file.fileno(), 0, count * like.element_size())
            flat = torch.from_file(file.name, shared=True, size=count, dtype=like.dtype)
    except OSError as e:
        raise DiskError(
            f"no space for the logits of a long recording: {e.strerror}",
            where=tempfile.gettempdir(),
            do="Make room there, or name another folder: TMPDIR.",
        ) from None
    return flat.view(room, *like.shape[1:])


def make_driver(
    chunks: Chunks | None,
    batch_seconds: float,
    teacher: Teacher,
    table: TokenTable,
    streams: Sequence[str],
    device: str,
    factored: Collection[str] = (),
) -> TeacherDriver:
    """Make a ``ChunkedDriver``, or a ``TeacherDriver`` where ``chunks`` is None; same arguments."""
    if chunks is None:
        return TeacherDriver(teacher, table, streams, device, factored)
    return ChunkedDriver(chunks, batch_seconds, teacher, table, streams, device, factored)
