"""WeNet's own `wenet/bin/recognize.py`, unmodified, where WENET names a clone: probed, then captured."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.frameworks.models_wenet import ENCODER, TOKENS
from tests.frameworks.programs import LINES, capture, dump, probe, run, same, wav

# The clone is older than the torch and the torchaudio here: what it imports from the one is gone, and the
# other reads audio with a library that is not installed. Its own files stay as they are.
SHIM = """
import typing
import soundfile, torch, torchaudio
import torch.nn.modules.conv as conv

def load(file, **options):
    audio, rate = soundfile.read(file, dtype="float32", always_2d=True)
    return torch.from_numpy(audio.T.copy()), rate

conv.Union, conv.Optional, torchaudio.load = typing.Union, typing.Optional, load
"""
CONFIG: dict[str, Any] = {
    "input_dim": 40,
    "output_dim": len(TOKENS),
    "encoder": "conformer",
    "encoder_conf": ENCODER,
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 2, "linear_units": 24, "num_blocks": 1},
    "ctc": "ctc",
    "ctc_conf": {"ctc_blank_id": 0},
    "model": "asr_model",
    "model_conf": {"ctc_weight": 0.3},
    "tokenizer": "char",
    "tokenizer_conf": {"symbol_table_path": "data/units.txt", "non_lang_syms_path": None},
    "dataset_conf": {
        "filter_conf": {},
        "resample_conf": {"resample_rate": 16000},
        "fbank_conf": {"num_mel_bins": 40, "dither": 0.1, "frame_shift": 10, "frame_length": 25},
        "batch_conf": {"batch_type": "static", "batch_size": 4},
    },
}


@pytest.mark.parametrize("workers", [0, 2])
def test_recognize(wenet_clone: str, workers: int, tmp_path: Path) -> None:
    import yaml
    from wenet.utils.init_model import init_model

    for folder in ("data", "exp", "shim"):
        (tmp_path / folder).mkdir()
    (tmp_path / "shim" / "sitecustomize.py").write_text(SHIM)
    units = "".join(f"{t} {i}\n" for i, t in enumerate(TOKENS))
    (tmp_path / "data" / "units.txt").write_text(units, encoding="utf-8")
    (tmp_path / "exp" / "train.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    torch.manual_seed(0)
    model = init_model(argparse.Namespace(checkpoint=None), dict(CONFIG))[0].eval()
    torch.save(model.state_dict(), tmp_path / "exp" / "final.pt")
    lines = [
        {"key": x["id"], "wav": wav(x), "txt": "the cat"} for x in LINES[:6]
    ]  # the next is at another rate, and others resample it otherwise
    (tmp_path / "data.list").write_text("".join(json.dumps(x) + "\n" for x in lines))
    said = ["--config", "exp/train.yaml", "--checkpoint", "exp/final.pt", "--test_data", "data.list"]
    said += ["--result_dir", "out", "--modes", "ctc_greedy_search", "--num_workers", str(workers)]
    program: list[object] = [sys.executable, Path(wenet_clone) / "wenet" / "bin" / "recognize.py", *said]

    paths = (wenet_clone, tmp_path / "shim")
    found = probe([*program, "--batch_size", "3"], tmp_path, path=paths)
    assert (found["ctc"]["path"], found["ctc"]["layout"]) == ("ctc.ctc_lo", "BTV")
    assert found["ctc"]["chosen"] == "encoder_lens"
    assert found["tokens"] == str(tmp_path / "data" / "units.txt")
    # A batch of several says a little more or less at the end of the shorter ones than each alone.
    found["command"] = found["command"].replace("--batch_size 3", "--batch_size 1")
    ours, ran = capture(found, tmp_path, path=paths)
    assert b"logitstore: store: 6 utterances" in ran.stderr
    assert b"zarr" not in ran.stderr  # it logs at DEBUG: what logitstore's libraries say is not its own
    text = (tmp_path / "out" / "ctc_greedy_search" / "text").read_bytes()
    run(*program, "--batch_size", "1", cwd=tmp_path, path=paths)
    assert (tmp_path / "out" / "ctc_greedy_search" / "text").read_bytes() == text
    same(ours, dump(f"wenet:{tmp_path}/exp", tmp_path, LINES[:6], path=paths), atol=4e-3)
