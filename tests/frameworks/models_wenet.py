"""Settings of small WeNet models, and the clone of WeNet that the tests use."""

from __future__ import annotations

import os
import typing
from pathlib import Path

import pytest
import torch

from logitstore.teachers._fbank import Fbank

TOKENS = ["<blank>", "<unk>", *"▁acehst", "<sos/eos>"]


FBANK = Fbank(16000, 40, scale=32768.0)


def import_clone(monkeypatch: pytest.MonkeyPatch) -> str:
    """Put the clone that WENET names on the path and return its folder; skip the test where there is none."""
    root = os.environ.get("WENET", "")
    if not (Path(root) / "wenet/utils/init_model.py").exists() or not root:
        pytest.skip("set WENET to a clone of WeNet to test its real models")
    try:
        import torchaudio  # noqa: F401
        import yaml  # noqa: F401
    except (ImportError, OSError) as e:
        pytest.skip(f"WeNet needs what does not import: {e}")
    for name in ("Union", "Optional"):  # WeNet imports them from there; torch 2.13 has them no more
        monkeypatch.setattr(torch.nn.modules.conv, name, getattr(typing, name), raising=False)
    monkeypatch.syspath_prepend(root)
    return root


ENCODER = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 24,
    "num_blocks": 2,
    "input_layer": "conv2d",
    "cnn_module_kernel": 5,
    "use_dynamic_chunk": True,
    "causal": True,
}
