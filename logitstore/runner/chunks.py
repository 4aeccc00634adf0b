"""Long recordings through the teacher in overlapping chunks, joined without seams.

A chunk begins at a whole teacher frame and half of each overlap is dropped on either side, so every frame
that is kept has at least that much context. Features are computed of the whole recording: what normalises by
the utterance goes on doing so. Where the encoder sees no further than half an overlap, the join is the whole.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, Self

import torch

from ..errors import DiskError, LengthError, TeacherError, UsageError
from ..schema.clock import STRAY, exact
from ..schema.spec import TeacherSpec
from .driver import TeacherDriver, TeacherOutput
from .loader import LoadedUtterance

BY_FRAME = ("rows", "inputs")  # fields of TeacherOutput that hold a row a frame, by stream
STORED_AS = "chunks"  # key of TeacherSpec.features: it changes numbers
IN_MEMORY = 1 << 26  # bytes of one stream's joined rows; of more, memory does not grow with the recording
EDGES = 8  # feature frames by which a whole recording may have more or fewer than its length says


@dataclass(frozen=True)
class Chunks:
    """How long recordings are cut.

    Attributes:
        frames: teacher frames of a chunk; what is no longer is not cut at all.
        overlap: teacher frames that a chunk shares with the next; even.
    """

    frames: int
    overlap: int

    def __post_init__(self) -> None:
        if not (type(self.frames) is int and type(self.overlap) is int and 0 <= self.overlap < self.frames):
            raise UsageError(
                f"chunks of {self.frames} frames that overlap by {self.overlap}",
                do="A chunk is longer than its overlap: --chunk 30 --overlap 5.",
            )

    @classmethod
    def of_seconds(cls, chunk: Any, overlap: Any, teacher: TeacherSpec) -> Self:
        """Whole frames, an even number of them shared; raises ``UsageError``."""
        shift = Fraction(teacher.frame_shift, teacher.sample_rate)
        return cls(int(exact(chunk, "a chunk") / shift), 2 * int(exact(overlap, "an overlap") / shift / 2))

    @classmethod
    def stored(cls, teacher: TeacherSpec) -> Self | None:
        """Those that a store was dumped with; None where it was not cut."""
        value = teacher.features.get(STORED_AS)
        return cls(**value) if isinstance(value, Mapping) else None

    def told(self, teacher: TeacherSpec) -> TeacherSpec:
        """The teacher as a store describes it, so that none is resumed with others."""
        return replace(teacher, features={**teacher.features, STORED_AS: asdict(self)})

    def begins(self, frames: int) -> range:
        """First frames of the chunks of a recording of so many."""
        step = self.frames - self.overlap
        return range(0, max(frames - self.frames, 0) + step, step)


@dataclass(frozen=True)
class _Long:
    """What is kept of the forwards of one long recording: (T, J) projected frames, and any one output."""

    enc: torch.Tensor | None
    batch_output: Any
    b: int


class ChunkedDriver(TeacherDriver):
    """A driver that cuts what is longer than a chunk.

    Args:
        chunks: how.
        batch_seconds: audio of the chunks that run at once; one at least.
        given: as for :class:`logitstore.runner.driver.TeacherDriver`.
    """

    def __init__(self, chunks: Chunks, batch_seconds: float, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        odd = [name for name, kind in self.kinds.items() if not kind.frames]
        if odd:
            raise UsageError(
                f"{odd[0]} of chunks",
                why="It is output of a whole recording, and there is no time along which to join its parts.",
                do="Dump it without --chunk, or streams of frames alone with it.",
            )
        self._chunks, self._spec = chunks, self.teacher.describe()
        seconds = Fraction(chunks.frames * self._spec.frame_shift, self._spec.sample_rate)
        self._at_once = max(1, int(exact(float(batch_seconds), "a batch") / seconds))

    def run(self, batch: Sequence[LoadedUtterance]) -> list[TeacherOutput]:
        """Short ones together, as ever; then each long one in chunks."""
        sizes = [self._per_frame(item) for item in batch]
        short = [n for n, size in enumerate(sizes) if not size]
        outputs = dict(zip(short, super().run([batch[n] for n in short]) if short else (), strict=True))
        for n, size in enumerate(sizes):
            if size:
                outputs[n] = self._join(batch[n], size)
        return [outputs[n] for n in range(len(batch))]

    def one_forward(self, outputs: Sequence[TeacherOutput]) -> list[TeacherOutput]:
        """What came of one forward: the short ones; where all are long, the first chunk of the first."""
        short = [s for s in outputs if not isinstance(s.batch_output, _Long)]
        first = outputs[0].loaded
        return short or super().run([self._chunk(first, 0, self._per_frame(first))])

    def project(self, output: TeacherOutput, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """As for a whole recording; the decoder of a long one runs once, over all its labels."""
        long = output.batch_output
        if not isinstance(long, _Long):
            return super().project(output, labels)
        assert long.enc is not None
        _, dec = super().project(replace(output, batch_output=long.batch_output, b=long.b), labels)
        return long.enc, dec

    def _per_frame(self, item: LoadedUtterance) -> int:
        """Feature frames of a teacher frame, where a recording is long; else 0. Raises ``TeacherError``."""
        spec, count = self._spec, len(item.features)
        samples = round(item.seconds * spec.sample_rate)
        size = round(Fraction(count * spec.frame_shift, samples))
        if samples <= self._chunks.frames * spec.frame_shift:
            return 0
        if not size or abs(count - Fraction(samples * size, spec.frame_shift)) > EDGES:
            raise TeacherError(
                f"{count} feature frames for {samples / spec.frame_shift:.1f} teacher frames",
                where=item.utt.id,
                why="Chunks begin at whole frames of both; these have no whole ratio.",
                do="Correct frame_shift in describe(), or dump without --chunk.",
            )
        return size

    def _chunk(self, item: LoadedUtterance, begin: int, size: int) -> LoadedUtterance:
        features = item.features[begin * size : (begin + self._chunks.frames) * size]
        seconds = len(features) * self._spec.frame_shift / (size * self._spec.sample_rate)
        return replace(item, features=features, seconds=seconds)

    def _join(self, item: LoadedUtterance, size: int) -> TeacherOutput:
        frames = -(-len(item.features) // size)
        begins, encs, last = self._chunks.begins(frames), [], None
        joined: dict[str, dict[str, _Joined]] = {field: {} for field in BY_FRAME}
        for first in range(0, len(begins), self._at_once):
            some = begins[first : first + self._at_once]
            chunks = super().run([self._chunk(item, begin, size) for begin in some])
            for begin, output in zip(some, chunks, strict=True):
                low, high = self._kept(output, begin, begin == begins[-1])
                for field, whole in joined.items():
                    for name, rows in getattr(output, field).items():
                        whole.setdefault(name, _Joined(frames + STRAY)).append(rows[low:high])
                if "rnnt" in self.streams:
                    encs.append(super().project(output, [])[0][low:high])
                last = output
        assert last is not None
        fields: dict[str, Any] = {
            field: {name: rows.tensor() for name, rows in whole.items()} for field, whole in joined.items()
        }
        enc = torch.cat(encs) if encs else None
        batch_output = _Long(enc, last.batch_output, last.b)
        return replace(last, loaded=item, T=begins[-1] + last.T, batch_output=batch_output, b=0, **fields)

    def _kept(self, output: TeacherOutput, begin: int, ends: bool) -> tuple[int, int]:
        """The frames of a chunk that are kept; raises ``LengthError`` where it gave too few or too many."""
        chunks, half = self._chunks, self._chunks.overlap // 2
        low, high = half if begin else 0, output.T if ends else chunks.frames - half
        if max(low, high) > output.T or (not ends and abs(output.T - chunks.frames) > STRAY):
            raise LengthError(
                f"a chunk of {chunks.frames} frames from frame {begin} gave {output.T}, not {high}",
                where=output.loaded.utt.id,
                why="Chunks can only be joined where frame i of one is frame i of the whole.",
                do="Give a longer --overlap, or dump without --chunk.",
            )
        return low, high


class _Joined:
    """Rows one behind the other; where they are many, in a file without a name instead of memory.

    Args:
        room: rows that there may be.
    """

    def __init__(self, room: int) -> None:
        self._room, self._used = room, 0
        self._all: torch.Tensor | None = None

    def append(self, rows: torch.Tensor) -> None:
        """Copy rows behind those there are; raises ``DiskError``."""
        if self._all is None:
            self._all = _space(self._room, rows)
        self._all[self._used : self._used + len(rows)] = rows
        self._used += len(rows)

    def tensor(self) -> torch.Tensor:
        """All of them."""
        assert self._all is not None
        return self._all[: self._used]


def _space(room: int, like: torch.Tensor) -> torch.Tensor:
    """Space for so many rows like these, where they lie, or on the CPU in a file that nobody else sees."""
    count = room * like[0].numel()
    if count * like.element_size() <= IN_MEMORY:
        return torch.empty((room, *like.shape[1:]), dtype=like.dtype, device=like.device)
    try:
        with tempfile.NamedTemporaryFile(prefix="logitstore-") as file:
            os.posix_fallocate(file.fileno(), 0, count * like.element_size())  # full disks say so here
            flat = torch.from_file(file.name, shared=True, size=count, dtype=like.dtype)
    except OSError as e:
        raise DiskError(
            f"no space for the logits of a long recording: {e.strerror}",
            where=tempfile.gettempdir(),
            do="Make room there, or name another folder: TMPDIR.",
        ) from None
    return flat.view(room, *like.shape[1:])


def driver_of(chunks: Chunks | None, batch_seconds: float, *given: Any, **named: Any) -> TeacherDriver:
    """A driver, in chunks where any are asked for; see :class:`logitstore.runner.driver.TeacherDriver`."""
    return (
        TeacherDriver(*given, **named)
        if chunks is None
        else ChunkedDriver(chunks, batch_seconds, *given, **named)
    )
