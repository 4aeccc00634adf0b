"""Log-mel features of the demo teacher, in numpy: 16 kHz, 25 ms windows every 10 ms, 64 mel bands."""

from __future__ import annotations

import numpy as np

SAMPLE_RATE = 16000
WINDOW, SHIFT, FFT = 400, 160, 512  # samples
BANDS = 64
LOW_HZ, HIGH_HZ = 40.0, 7600.0
FLOOR = 1e-8  # of the band energy; quieter than 16-bit rounding noise
SPREAD_FLOOR = 0.2  # of the standard deviation over time, in nats

#: Everything that changes the numbers, for a store's fingerprint.
DESCRIPTION: dict[str, object] = {
    "kind": "logmel",
    "sample_rate": SAMPLE_RATE,
    "window": WINDOW,
    "shift": SHIFT,
    "fft": FFT,
    "taper": "hann",
    "bands": BANDS,
    "low_hz": LOW_HZ,
    "high_hz": HIGH_HZ,
    "floor": FLOOR,
    "frames": "centred, (samples + 80) // 160, ends mirrored, mean of each frame removed",
    "normalise": "per utterance and band: mean 0, standard deviation 1, not below 0.2",
}


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    return np.asarray(2595.0 * np.log10(1.0 + np.asarray(hertz, dtype=np.float64) / 700.0))


def filterbank() -> np.ndarray:
    """Build triangular mel filters over the power spectrum: (FFT // 2 + 1, BANDS) float64."""
    bins = _mel(np.arange(FFT // 2 + 1) * (SAMPLE_RATE / FFT))[:, None]
    edges = np.linspace(_mel(LOW_HZ), _mel(HIGH_HZ), BANDS + 2)
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rise, fall))


_FILTERS = filterbank()
_TAPER = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


def log_mel(audio: np.ndarray) -> np.ndarray:
    """Compute the features of one utterance.

    audio: (samples,) in [-1, 1] at 16 kHz. Returns (T0, 64) float32 with T0 = (samples + 80) // 160; frame i
    is centred on sample 160 i + 80 and the ends are mirrored. Nothing depends on any other utterance.
    Raises ValueError when the audio is not one channel or is shorter than one window (25 ms).
    """
    if audio.ndim != 1 or len(audio) < WINDOW:
        raise ValueError(f"want one channel of at least {WINDOW} samples at {SAMPLE_RATE} Hz: {audio.shape}")
    count = (len(audio) + SHIFT // 2) // SHIFT
    before = (WINDOW - SHIFT) // 2
    padded = np.pad(audio.astype(np.float64), (before, WINDOW), mode="symmetric")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::SHIFT][:count]
    power = np.abs(np.fft.rfft((frames - frames.mean(axis=1, keepdims=True)) * _TAPER, n=FFT)) ** 2
    mel = np.log(power @ _FILTERS + FLOOR)
    spread = np.maximum(mel.std(axis=0), SPREAD_FLOOR)
    return ((mel - mel.mean(axis=0)) / spread).astype(np.float32)


def resample(audio: np.ndarray, have: int, want: int) -> np.ndarray:
    """Change the sample rate of a whole utterance by cutting or extending its spectrum.

    audio: (samples,). Returns (ceil(samples * want / have),) float32. The signal is padded first, since the
    Fourier transform takes it for a loop, and to a length that makes the ratio exact.
    """
    if have == want:
        return audio.astype(np.float32)
    common = int(np.gcd(have, want))
    down, up = have // common, want // common
    blocks = -(-(len(audio) + 512) // down)
    spectrum = np.fft.rfft(np.pad(audio.astype(np.float64), (0, blocks * down - len(audio))))
    cut = np.zeros(blocks * up // 2 + 1, dtype=np.complex128)
    keep = min(len(cut), len(spectrum))
    cut[:keep] = spectrum[:keep]
    out = np.fft.irfft(cut, n=blocks * up) * (want / have)
    return out[: -(-len(audio) * want // have)].astype(np.float32)
