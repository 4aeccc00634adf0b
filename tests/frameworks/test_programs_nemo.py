"""NeMo's programs: `model.transcribe`, and where NEMO names a clone its own transcribe_speech.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.frameworks.models_nemo import build
from tests.frameworks.programs import LINES, capture, dump, probe, same, wav
from tests.frameworks.teacher_checks import framework

framework("nemo.collections.asr")

TRANSCRIBE = """
import sys
from nemo.collections.asr.models import ASRModel

model = ASRModel.restore_from(sys.argv[1], map_location="cpu")
if "hybrid" in sys.argv[1]:
    model.change_decoding_strategy(decoder_type="ctc")
print(model.transcribe(sys.argv[2:], batch_size=2, num_workers=0))
"""
HEADS = {"ctc": "decoder.decoder_layers.0", "hybrid": "ctc_decoder.decoder_layers.0"}


def saved(kind: str, tokenizer: Path, folder: Path) -> Any:
    """A model whose config has what `transcribe` looks for."""
    from omegaconf import open_dict

    model, path = build(kind, tokenizer, folder)
    with open_dict(model.cfg):
        model.cfg.validation_ds = {"use_start_end_token": False}
    model.save_to(str(path))
    return path


def check(found: Any, kind: str, path: Path, folder: Path) -> None:
    assert (found["ctc"]["path"], found["ctc"]["layout"]) == (HEADS[kind], "BVT")
    assert found["ctc"]["lengths"]
    assert found["blank"]["index"] == found["ctc"]["classes"] - 1  # as the model's own loss says
    assert found["ids"][0]["expression"] == "[x.id for x in index]"  # the cuts that lhotse sampled
    ours, _ = capture(found, folder)
    same(ours, dump(f"nemo:{path}", folder, LINES[:5]), atol=2e-3, tokens=False)


@pytest.mark.parametrize("kind", list(HEADS))
def test_transcribe(kind: str, nemo_tokenizer: Path, tmp_path: Path) -> None:
    path = saved(kind, nemo_tokenizer, tmp_path)
    (tmp_path / "x.py").write_text(TRANSCRIBE)
    program = [sys.executable, "x.py", path, *map(wav, LINES[:5])]
    check(probe(program, tmp_path), kind, path, tmp_path)


def test_transcribe_speech(nemo_tokenizer: Path, tmp_path: Path) -> None:
    script = Path(os.environ.get("NEMO", "")) / "examples" / "asr" / "transcribe_speech.py"
    if not script.exists():
        pytest.skip("set NEMO to a clone of NeMo to run its transcribe_speech.py")
    path = saved("ctc", nemo_tokenizer, tmp_path)
    lines = [{"audio_filepath": wav(x), "duration": x["duration"], "text": x["text"]} for x in LINES[:5]]
    (tmp_path / "manifest.json").write_text("".join(json.dumps(x) + "\n" for x in lines))
    said = [f"model_path={path}", "dataset_manifest=manifest.json", "output_filename=out.json"]
    program = [sys.executable, script, *said, "batch_size=2", "amp=False"]
    check(probe(program, tmp_path), "ctc", path, tmp_path)
