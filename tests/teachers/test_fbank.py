from __future__ import annotations

import numpy as np
import pytest
import torch

from logitstore.teachers._fbank import Fbank


def noise(n: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(n)).astype(np.float32)


@pytest.mark.parametrize(("samples", "whole", "mirrored"), [(400, 1, 3), (5000, 29, 31), (16000, 98, 100)])
def test_frames_are_counted_as_kaldi_counts_them(samples: int, whole: int, mirrored: int) -> None:
    assert Fbank()(noise(samples)).shape == (whole, 80)
    assert Fbank(snip_edges=False)(noise(samples)).shape == (mirrored, 80)


def test_a_tone_lands_in_the_filter_of_its_frequency() -> None:
    t = np.arange(16000) / 16000
    low, high = (Fbank()(np.sin(2 * np.pi * f * t).astype(np.float32)).mean(0) for f in (300.0, 3000.0))
    assert (int(low.argmax()), int(high.argmax())) == (10, 52)


def test_a_constant_is_silence() -> None:
    assert torch.all(Fbank()(np.full(800, 0.5, np.float32)) < -14)


def test_less_than_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        Fbank()(noise(399))


@pytest.mark.parametrize("samples", [400, 401, 5000, 12345])
@pytest.mark.parametrize(("snip", "high", "scale"), [(True, 0.0, 32768.0), (False, -400.0, 1.0)])
def test_the_numbers_are_those_of_torchaudio(samples: int, snip: bool, high: float, scale: float) -> None:
    try:
        from torchaudio.compliance import kaldi
    except (ImportError, OSError) as e:
        pytest.skip(f"torchaudio does not import: {e}")
    audio = noise(samples)
    wanted = kaldi.fbank(
        torch.from_numpy(audio)[None] * scale,
        num_mel_bins=80,
        dither=0.0,
        snip_edges=snip,
        high_freq=high,
        energy_floor=0.0,
    )
    got = Fbank(snip_edges=snip, high_freq=high, scale=scale)(audio)
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < 1e-3
