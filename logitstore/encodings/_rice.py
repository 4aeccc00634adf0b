"""Small integers as bits (SPEC E16): Rice codes for axes that are seldom 0, coded gaps between nonzeros for others.

Golomb-Rice codes (Golomb 1966; Rice 1979) with one fixed parameter per axis come within a few percent of an
arithmetic coder and need no tables. numpy codes a whole utterance at once: decoding only has to find the
positions of the ones that end unary numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError

Codes = NDArray[np.int64]
Bits = NDArray[np.uint8]
MOST = 32767  # codes are clipped to ± MOST, which bounds the length of a unary number
LARGEST = 1 << 27  # most numbers in one piece
PARAMETERS = range(8)


def choose(codes: Codes) -> NDArray[np.int8]:
    """Return the (r,) int8 parameters that code a sample in the fewest bits: k ≥ 0 for Rice, -1 - k for gaps.

    Args:
        codes: (N, r) integers.
    """
    chosen = np.zeros(codes.shape[1], np.int8)
    for axis, column in enumerate(codes.T):
        z = _zigzag(column)
        cost = {k: int(((z >> k) + 1 + k).sum()) for k in PARAMETERS}
        where = np.flatnonzero(column)
        gaps = np.diff(where, prepend=-1) - 1
        apart = int(np.abs(column[where]).sum()) + len(where)
        cost |= {-1 - k: int(((gaps >> k) + 1 + k).sum()) + apart for k in PARAMETERS}
        chosen[axis] = min(cost, key=lambda k: (cost[k], -k))
    return chosen


def pack(codes: Codes, parameters: NDArray[np.int8]) -> Bits:
    """Return (N, r) integers as one piece: bytes that begin with their own length, so that pieces may be joined.

    Args:
        codes: (N, r) integers, clipped to ± 32767.
        parameters: (r,) of :func:`choose`.
    """
    codes = np.clip(codes, -MOST, MOST)
    bits: list[Bits] = []
    dense = np.flatnonzero(parameters >= 0)
    if len(dense):
        z, k = _zigzag(codes[:, dense]), parameters[dense].astype(np.int64)
        for bit in range(int(k.max())):
            bits.append(((z[:, k > bit] >> bit) & 1).astype(np.uint8).reshape(-1))
        bits.append(_unary((z >> k).reshape(-1)))
    for parameter in np.unique(parameters[parameters < 0]):
        shift = -1 - int(parameter)
        values = codes[:, parameters == parameter].reshape(-1)
        where = np.flatnonzero(values)
        gaps, values = np.diff(where, prepend=-1) - 1, values[where]
        bits.append(np.unpackbits(np.array([len(where)], ">u4").view(np.uint8)))
        bits += [((gaps >> bit) & 1).astype(np.uint8) for bit in range(shift)]
        bits += [_unary(gaps >> shift), (values < 0).astype(np.uint8), _unary(np.abs(values) - 1)]
    body = np.packbits(np.concatenate(bits)) if bits else np.zeros(0, np.uint8)
    return np.concatenate([np.array([len(codes), len(body)], "<u4").view(np.uint8), body])


def unpack(data: Bits, parameters: NDArray[np.int8]) -> Codes:
    """Return the (N, r) integers of all pieces; raises ``FormatError`` for bytes that are no pieces."""
    found, at = [], 0
    data = np.ascontiguousarray(data)
    while at < len(data):
        head = data[at : at + 8]
        if len(head) < 8:
            raise FormatError("a piece of codes is shorter than its header (SPEC E16)")
        frames, size = (int(n) for n in head.view("<u4"))
        body = data[at + 8 : at + 8 + size]
        if len(body) < size or frames * len(parameters) > LARGEST:
            raise FormatError(f"{len(body)} bytes of codes, where {size} are announced (SPEC E16)")
        found.append(_piece(_Reader(body), frames, parameters))
        at += 8 + size
    return np.concatenate(found) if found else np.zeros((0, len(parameters)), np.int64)


class _Reader:
    """A reader of bits, from the first to the last."""

    def __init__(self, body: Bits) -> None:
        self._bits, self._at = np.unpackbits(body), 0

    def take(self, count: int) -> Codes:
        bits = self._bits[self._at : self._at + count]
        if len(bits) < count:
            raise FormatError(f"codes end {count - len(bits)} bits early (SPEC E16)")
        self._at += count
        return bits.astype(np.int64)

    def unary(self, count: int) -> Codes:
        ones = np.flatnonzero(self._bits[self._at :])[:count]
        if len(ones) < count:
            raise FormatError(f"codes end {count - len(ones)} numbers early (SPEC E16)")
        self._at += int(ones[-1]) + 1 if count else 0
        return np.diff(ones, prepend=-1) - 1

    def number(self) -> int:
        return int(self.take(32) @ (1 << np.arange(31, -1, -1)))


def _piece(bits: _Reader, frames: int, parameters: NDArray[np.int8]) -> Codes:
    out = np.zeros((frames, len(parameters)), np.int64)
    dense = np.flatnonzero(parameters >= 0)
    if len(dense):
        z, k = np.zeros((frames, len(dense)), np.int64), parameters[dense].astype(np.int64)
        for bit in range(int(k.max())):
            longer = k > bit
            z[:, longer] |= bits.take(frames * int(longer.sum())).reshape(frames, int(longer.sum())) << bit
        z |= bits.unary(z.size).reshape(z.shape) << k
        out[:, dense] = (z >> 1) ^ -(z & 1)
    for parameter in np.unique(parameters[parameters < 0]):
        shift, which = -1 - int(parameter), np.flatnonzero(parameters == parameter)
        values = np.zeros(frames * len(which), np.int64)
        count = bits.number()
        gaps = np.zeros(count, np.int64)
        for bit in range(shift):
            gaps |= bits.take(count) << bit
        where = np.cumsum((gaps | bits.unary(count) << shift) + 1) - 1
        sign = 1 - 2 * bits.take(count)
        if count and where[-1] >= len(values):
            raise FormatError("a code beyond the last frame (SPEC E16)")
        values[where] = sign * (bits.unary(count) + 1)
        out[:, which] = values.reshape(frames, len(which))
    return out


def _zigzag(codes: Codes) -> Codes:
    """Return 0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ..."""
    return np.asarray((codes << 1) ^ (codes >> 63))


def _unary(numbers: Codes) -> Bits:
    """Return the bits of unary numbers: as many zeros as the number says, and a one."""
    ends = np.cumsum(numbers + 1)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    bits[ends - 1] = 1
    return bits
