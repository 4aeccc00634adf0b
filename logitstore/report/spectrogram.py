"""Spectrograms of recordings on the time axis of a teacher's frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BANDS = 40
COLUMNS = 420  # columns of a picture at most
LEVELS = 16
LONGEST = 1e6  # seconds of an axis at most
RANGE = 55.0  # decibels below the loudest that are drawn at most


def spectrogram(audio: NDArray[np.float32], rate: int, seconds: float) -> NDArray[np.float64]:
    """Return (BANDS, columns) log-mel energies from 0 to 1, the highest band first.

    Args:
        audio: (samples,) of one channel.
        rate: samples per second.
        seconds: length of the axis; shorter audio is followed by silence, longer audio is cut.
    """
    window = max(int(0.025 * rate), 32)
    columns = int(np.clip(seconds / 0.01, 1, COLUMNS))
    seconds = min(seconds, LONGEST)
    size = 1 << (window - 1).bit_length()
    centres = ((np.arange(columns) + 0.5) * seconds * rate / columns).astype(np.int64)
    padded = np.pad(audio.astype(np.float64), (window, 2 * window))  # the last window is silence
    begin = np.minimum(centres + window - window // 2, len(padded) - window)
    frames = padded[begin[:, None] + np.arange(window)] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, size)) ** 2 @ _mel(size, rate).T
    decibels = 10 * np.log10(power + 1e-10)
    loudest = float(np.percentile(decibels, 99.5))
    floor = max(loudest - RANGE, float(np.percentile(decibels, 30)))
    return np.clip((decibels - floor) / max(loudest - floor, 1.0), 0, 1).T[::-1]


def _mel(size: int, rate: int) -> NDArray[np.float64]:
    """Return (BANDS, size / 2 + 1) weights of triangular bands, evenly spaced on the mel scale."""
    top = 2595 * np.log10(1 + min(rate / 2, 8000) / 700)
    edges = 700 * (10 ** (np.linspace(30, top, BANDS + 2) / 2595) - 1)
    hertz = np.arange(size // 2 + 1) * rate / size
    rising = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    weights = np.maximum(0, np.minimum(rising, falling))
    return np.asarray(weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9))
