"""Palette PNGs of small integers, compressed with zlib alone."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .colour import palette

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def quantised(values: NDArray[Any], levels: int) -> NDArray[np.uint8]:
    """Return numbers from 0 to 1 as levels 0 to ``levels - 1``; NaN counts as 0."""
    return np.asarray(np.round(np.clip(np.nan_to_num(values), 0, 1) * (levels - 1)), np.uint8)


def encode(pixels: NDArray[np.uint8], colours: NDArray[np.uint8]) -> bytes:
    """Return a PNG file.

    Args:
        pixels: (height, width) index of each pixel's colour.
        colours: (N, 4) red, green, blue and opacity, N ≤ 256; up to 16 take half a byte a pixel.
    """
    height, width = pixels.shape
    depth = 4 if len(colours) <= 16 else 8
    if depth == 4:
        even = np.pad(pixels, ((0, 0), (0, width % 2)))
        pixels = np.asarray((even[:, ::2] << 4) | even[:, 1::2], np.uint8)
    lines = np.pad(pixels, ((0, 0), (1, 0)))  # each line begins with its filter, none
    header = struct.pack(">IIBBBBB", width, height, depth, 3, 0, 0, 0)
    return _SIGNATURE + b"".join(
        _chunk(kind, data)
        for kind, data in (
            (b"IHDR", header),
            (b"PLTE", colours[:, :3].tobytes()),
            (b"tRNS", colours[:, 3].tobytes()),
            (b"IDAT", zlib.compress(lines.tobytes(), 9)),
            (b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def data_url(values: NDArray[Any], ramp: str, levels: int = 64) -> str:
    """Return a picture of (height, width) numbers from 0 to 1 as a ``data:`` URL.

    Args:
        values: numbers from 0 (transparent) to 1.
        ramp: name of a colour ramp.
        levels: number of colours, at most 256.
    """
    png = encode(quantised(values, levels), palette(ramp, levels))
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
