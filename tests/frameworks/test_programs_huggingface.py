"""transformers' own inference, its speech recognition pipeline, in a user's script: probed, then captured."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from tests.frameworks.teacher_checks import framework

framework("transformers")
import transformers  # noqa: E402

from logitstore import open_store  # noqa: E402
from tests.frameworks.models_huggingface import letters, wave_model  # noqa: E402

ROOT = Path(__file__).parents[2]
WAVS = [str(ROOT / "manifests" / "demo" / f"demo-0{i}.flac") for i in range(4)]
SCRIPT = """
import sys
import soundfile
from transformers import pipeline

asr = pipeline("automatic-speech-recognition", model=sys.argv[1])
for path in sys.argv[2:]:
    audio, rate = soundfile.read(path, dtype="float32")
    print(path, asr({"raw": audio, "sampling_rate": rate})["text"])
"""


def run(*command: object, cwd: Path) -> Any:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", "TRANSFORMERS_OFFLINE": "1"}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, timeout=180)


@pytest.mark.parametrize("kind", ["Wav2Vec2", "Hubert"])
def test_the_pipeline_of_transformers(tmp_path: Path, kind: str) -> None:
    model_folder = tmp_path / "model"
    model_folder.mkdir()
    wave_model(kind, model_folder)
    letters(model_folder)
    (tmp_path / "transcribe.py").write_text(SCRIPT)
    program = [sys.executable, "transcribe.py", "model", *WAVS]

    probed = run(sys.executable, "-m", "logitstore", "probe", "--json", "--", *program, cwd=tmp_path)
    assert probed.returncode == 0, probed.stderr
    found = json.loads(probed.stdout.splitlines()[-1])
    assert (found["ctc"]["path"], found["ctc"]["layout"], found["ctc"]["normalised"]) == (
        "lm_head",
        "BTV",
        False,
    )
    assert found["tokens"] == str(model_folder / "vocab.json")
    assert found["blank"]["index"] == 0

    captured = run(sys.executable, "-m", *shlex.split(found["command"]), cwd=tmp_path)
    assert captured.returncode == 0, captured.stderr
    assert captured.stdout == run(*program, cwd=tmp_path).stdout
    extractor = transformers.AutoFeatureExtractor.from_pretrained(model_folder)
    model = transformers.AutoModelForCTC.from_pretrained(model_folder)
    opened = open_store(tmp_path / "store")
    assert sorted(opened) == [Path(wav).stem for wav in WAVS]
    for wav in WAVS:
        audio, rate = soundfile.read(wav, dtype="float32")
        inputs = extractor(audio, sampling_rate=rate, return_tensors="pt")
        with torch.no_grad():
            logits = model(inputs.input_values).logits[0]
        stored = torch.from_numpy(opened[Path(wav).stem]["ctc"].logits())
        torch.testing.assert_close(stored, logits, atol=2e-3, rtol=0)
