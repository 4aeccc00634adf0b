"""Codes of the inputs of a head (SPEC E16): integers predicted from the frame before, residuals entropy coded.

A frame has a step and a size. Its first ``size`` residuals are coded, all others are 0; a code is what the codes
of the frame before predict, plus the residual times the step. Everything a reader does is integer arithmetic, so
that readers in any language get the same codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ._rans import LaneDecoder, LaneEncoder, Tables

Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]
FRACTION = 256  # coefficients of the prediction are whole numbers over this
LARGEST = 1 << 27  # most numbers in the pieces that are decoded together
MOST_CODE = 1 << 30
MOST_RESIDUAL = 32767
LANE_SYMBOLS, MOST_LANES = 512, 64  # a lane costs three bytes: one for every 512 symbols
HEADER = np.dtype([("frames", "<u2"), ("lanes", "<u2"), ("words", "<u4")])


@dataclass(frozen=True, eq=False)
class CodeModel:
    """Constants of the codes of r numbers a frame.

    Attributes:
        predict: (r, r) int16: a frame's prediction is round(codes of the frame before @ predict / 256).
        begin: (r,) int32 prediction of the first frame.
        steps: (Q,) int32 factors of the residuals.
        sizes: (G,) int16 numbers of residuals.
        step_tables: (Q + 1, Q) uint16 frequencies of a frame's step after that of the frame before; the last
            row is that of the first frame.
        size_tables: (Q · (G + 1), G) uint16 frequencies of a frame's size, for its step and the size of the
            frame before.
        contexts: (Q, G, r) uint8 table of each residual, by step and size.
        tables: (K, A) uint16 frequencies of residuals; the last symbol is an escape.
    """

    predict: NDArray[Any]
    begin: NDArray[Any]
    steps: NDArray[Any]
    sizes: NDArray[Any]
    step_tables: NDArray[Any]
    size_tables: NDArray[Any]
    contexts: NDArray[Any]
    tables: NDArray[Any]

    @classmethod
    def of(cls, constants: Mapping[str, NDArray[Any]], prefix: str = "") -> CodeModel:
        """Return the model of a stream's constants; raises ``FormatError``."""
        model = cls(**{name: constants[prefix + name] for name in cls.__dataclass_fields__})
        for found, name in (
            (model._steps, "step_tables"),
            (model._sizes, "size_tables"),
            (model._codes, "tables"),
        ):
            found.check(prefix + name)
        return model

    def constants(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, in the dtypes that a store keeps."""
        dtypes = {
            "predict": "int16",
            "begin": "int32",
            "steps": "int32",
            "sizes": "int16",
            "contexts": "uint8",
        }
        return {n: getattr(self, n).astype(dtypes.get(n, "uint16")) for n in self.__dataclass_fields__}

    @cached_property
    def _steps(self) -> Tables:
        return Tables(self.step_tables.astype(np.int64))

    @cached_property
    def _sizes(self) -> Tables:
        return Tables(self.size_tables.astype(np.int64))

    @cached_property
    def _codes(self) -> Tables:
        return Tables(self.tables.astype(np.int64))

    @cached_property
    def prediction(self) -> NDArray[np.float64]:
        """(r, r) predict / 256: exact in float64, and so are its products with codes."""
        return self.predict.astype(np.float64) / FRACTION

    @property
    def width(self) -> int:
        """r."""
        return len(self.begin)

    def unpack(self, records: Sequence[Bytes]) -> list[NDArray[np.int32]]:
        """Return the (n, r) codes of each record; all pieces of all records are decoded together."""
        pieces = [(number, piece) for number, data in enumerate(records) for piece in _pieces(data)]
        found = self._decode([piece for _, piece in pieces])
        parts: list[list[NDArray[np.int32]]] = [[] for _ in records]
        for (number, _), codes in zip(pieces, found, strict=True):
            parts[number].append(codes)
        none = np.zeros((0, self.width), np.int32)
        return [np.concatenate(p) if len(p) != 1 else p[0] for p in ([*q] or [none] for q in parts)]

    def _decode(self, pieces: Sequence[_Piece]) -> list[NDArray[np.int32]]:
        if not pieces:
            return []
        order = sorted(range(len(pieces)), key=lambda n: -pieces[n].frames)  # longest first
        ordered = [pieces[n] for n in order]
        frames = np.array([p.frames for p in ordered])
        if int(frames.sum()) * self.width > LARGEST:
            raise FormatError(f"{int(frames.sum())} frames of codes at once (SPEC E16)")
        end = np.cumsum([len(p.words) for p in ordered])
        begin = end - [len(p.words) for p in ordered]
        words = np.concatenate([p.words for p in ordered])
        lanes = LaneDecoder(words, begin, end, np.array([p.lanes for p in ordered]))
        step, size = self._classes(lanes, frames)
        used = self.sizes.astype(np.int64)[size]
        inside = np.arange(frames[0]) < frames[:, None]
        step, size, used = step[inside], size[inside], used[inside]  # one record after the other
        coded = np.arange(self.width) < used[:, None]
        rows = self.contexts[step, size][coded].astype(np.intp)
        last = np.cumsum(frames)
        symbols_end = np.cumsum(used)[last - 1]
        count = np.diff(symbols_end, prepend=0)
        symbols = lanes.all(self._codes, rows, symbols_end - count, count)
        residual = (symbols >> 1).astype(np.int64) ^ -(symbols & 1).astype(np.int64)
        escaped = np.flatnonzero(symbols == self.tables.shape[1] - 1)
        of_record = np.searchsorted(symbols_end, escaped, "right")
        escapes = np.bincount(of_record, minlength=len(frames))
        lanes.finish(escapes)
        nth = np.arange(len(escaped)) - (np.cumsum(escapes) - escapes)[of_record]
        residual[escaped] = words[end[of_record] - 1 - nth].view(np.int16)  # from the last word backwards
        added = np.zeros(coded.shape)
        added[coded] = residual * np.repeat(self.steps.astype(np.int64)[step], used)
        codes = self._predicted(added, frames)
        out: list[NDArray[np.int32]] = [np.zeros((0, 0), np.int32)] * len(pieces)
        for n, till in zip(order, last, strict=True):
            out[n] = codes[till - pieces[n].frames : till]
        return out

    def _classes(self, lanes: LaneDecoder, frames: Integers) -> tuple[Integers, Integers]:
        """Return the (B, T) steps and sizes of all frames, 0 behind a record's last."""
        some, most = len(frames), int(frames.max())
        q, g = np.zeros((some, most), np.int64), np.zeros((some, most), np.int64)
        sizes = len(self.sizes)
        step, size = np.full(some, len(self.steps)), np.full(some, sizes)
        live = (frames[:, None] > np.arange(most)).sum(0)
        for t in range(most):
            n = live[t]
            step = lanes.one_each(self._steps, step[:n])
            size = lanes.one_each(self._sizes, step * (sizes + 1) + size[:n])
            q[:n, t], g[:n, t] = step, size
        return q, g

    def _predicted(self, added: NDArray[np.float64], frames: Integers) -> NDArray[np.int32]:
        """Return codes from what each frame adds to its prediction; rows are one record after the other."""
        first, most = np.cumsum(frames) - frames, int(frames.max())
        live = (frames[:, None] > np.arange(most)).sum(0)
        codes, prediction = np.empty_like(added), self.prediction
        for t in range(most):
            rows = first[: live[t]] + t
            before = self.begin if t == 0 else np.floor(codes[rows - 1] @ prediction + 0.5)
            codes[rows] = before + added[rows]
        if len(codes) and not np.abs(codes).max() < MOST_CODE:
            raise FormatError(f"a code of {np.abs(codes).max():g} (SPEC E16)")
        return codes.astype(np.int32)

    def pack(self, step: Integers, size: Integers, residual: Integers) -> Bytes:
        """Return one piece.

        Args:
            step: (n,) index of each frame's step.
            size: (n,) index of its size.
            residual: (n, r) residuals, 0 from the frame's size on.
        """
        used = np.arange(self.width) < self.sizes.astype(np.int64)[size][:, None]
        rows = self.contexts[step, size][used].astype(np.int64)
        values = np.clip(residual[used], -MOST_RESIDUAL, MOST_RESIDUAL)
        symbols, escape = zigzag(values), self.tables.shape[1] - 1
        escaped = values[symbols >= escape].astype(np.int16).view(np.uint16)
        lanes = min(max(1, len(rows) // LANE_SYMBOLS), MOST_LANES)
        encoder = LaneEncoder(lanes)
        encoder.put_all(self._codes, rows, np.minimum(symbols, escape))
        before_step = np.concatenate([[len(self.steps)], step[:-1]])
        before_size = np.concatenate([[len(self.sizes)], size[:-1]])
        size_rows = step * (len(self.sizes) + 1) + before_size
        for t in range(len(step) - 1, -1, -1):
            encoder.put(self._sizes, size_rows[t : t + 1], size[t : t + 1])
            encoder.put(self._steps, before_step[t : t + 1], step[t : t + 1])
        words = np.concatenate([encoder.words(), escaped[::-1]]).astype("<u2")
        header = np.array([(len(step), lanes, len(words))], HEADER)
        return np.concatenate([header.view(np.uint8), words.view(np.uint8)])


@dataclass(frozen=True, eq=False)
class _Piece:
    """A piece of codes: its frames, its lanes, and its words."""

    frames: int
    lanes: int
    words: NDArray[np.uint16]


def _pieces(data: Bytes) -> list[_Piece]:
    """Split a record's bytes into pieces; raises ``FormatError``."""
    found, at = [], 0
    data = np.ascontiguousarray(data)
    while at < len(data):
        if len(data) - at < HEADER.itemsize:
            raise FormatError("a piece of codes is shorter than its header (SPEC E16)")
        (frames, lanes, words) = data[at : at + HEADER.itemsize].view(HEADER)[0].tolist()
        at += HEADER.itemsize
        body = data[at : at + 2 * words]
        if len(body) < 2 * words or not frames or not lanes:
            raise FormatError(f"{len(body)} bytes of codes, where {2 * words} are announced (SPEC E16)")
        found.append(_Piece(frames, lanes, np.frombuffer(body.tobytes(), "<u2")))
        at += 2 * words
    return found


def zigzag(values: Integers) -> Integers:
    """Return 0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ..."""
    return np.asarray((values << 1) ^ (values >> 63))
