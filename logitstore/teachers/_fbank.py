"""Kaldi's log-mel filterbank in torch, so that a teacher needs no further package for it.

Equal to Kaldi, torchaudio.compliance.kaldi, kaldifeat and lhotse with dither 0, to float32 rounding.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Fbank:
    """Filterbank of 25 ms frames every 10 ms, Povey window, pre-emphasis 0.97; settings by Kaldi's names.

    Attributes:
        sample_rate: audio samples per second.
        num_mel_bins: number of filters F.
        low_freq: lower edge of the first filter, Hz.
        high_freq: upper edge of the last filter, Hz; zero or negative counts down from the Nyquist frequency.
        snip_edges: true to keep only frames inside the recording; false to mirror the recording at its ends.
        scale: factor of the samples in [-1, 1]; 32768 for recipes that read 16-bit integers.
    """

    sample_rate: int = 16000
    num_mel_bins: int = 80
    low_freq: float = 20.0
    high_freq: float = 0.0
    snip_edges: bool = True
    scale: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return {"kind": "kaldi-fbank", **asdict(self)}

    @property
    def shift(self) -> int:
        """Number of samples between two frames."""
        return self.sample_rate // 100

    def __call__(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """Compute (T0, F) float32 from (samples,) float32; raises ``ValueError`` for less than one frame."""
        length = self.sample_rate * 25 // 1000
        if len(audio) < length:
            raise ValueError(f"{len(audio)} samples are too short for one frame of {length}")
        wave = torch.from_numpy(np.ascontiguousarray(audio, np.float32)) * self.scale
        if not self.snip_edges:
            frames = (len(wave) + self.shift // 2) // self.shift
            left = (length - self.shift) // 2
            right = (frames - 1) * self.shift + length - left - len(wave)
            tail = wave.flip(0)[: max(right, 0)]
            wave = torch.cat((wave[:left].flip(0), wave, tail))
        windows = wave.unfold(0, length, self.shift)
        windows = windows - windows.mean(1, keepdim=True)
        before = torch.cat((windows[:, :1], windows[:, :-1]), 1)
        windows = (windows - 0.97 * before) * _povey(length)
        size = 1 << (length - 1).bit_length()
        power = torch.fft.rfft(windows, size).abs().pow(2)[:, :-1]
        mel: torch.Tensor = power @ _filters(self, size)
        return mel.clamp(min=EPSILON).log()


@lru_cache
def _povey(length: int) -> torch.Tensor:
    return torch.hann_window(length, periodic=False, dtype=torch.float64).pow(0.85).float()


@lru_cache
def _filters(fbank: Fbank, size: int) -> torch.Tensor:
    """Return (size / 2, F) filters: triangles of equal width on the mel scale."""
    nyquist = fbank.sample_rate / 2
    high = fbank.high_freq if fbank.high_freq > 0 else nyquist + fbank.high_freq
    low_mel, high_mel = _mel(np.array([fbank.low_freq, high]))
    edges = np.linspace(low_mel, high_mel, fbank.num_mel_bins + 2)
    mel = _mel(np.arange(size // 2) * fbank.sample_rate / size)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    up, down = (mel - left) / (centre - left), (right - mel) / (right - centre)
    return torch.from_numpy(np.maximum(0.0, np.minimum(up, down))).float()


def _mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    mel: NDArray[np.float64] = 1127.0 * np.log1p(hertz / 700.0)
    return mel
