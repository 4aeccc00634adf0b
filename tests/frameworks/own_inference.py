"""A framework's own inference in a user's script: probed, and the printed command run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import soundfile
import torch

from logitstore import open_store

ROOT = Path(__file__).parents[2]
WAVS = [str(ROOT / "manifests" / "demo" / f"demo-0{i}.flac") for i in range(3)]


def run(*command: object, cwd: Path) -> Any:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "LANG": "C.UTF-8"}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, timeout=300)


def audio(wav: str) -> Any:
    """(samples,) float32 at 16 kHz."""
    said, rate = soundfile.read(wav, dtype="float32")
    assert rate == 16000
    return said


def probed_and_captured(script: str, folder: Path, *args: object) -> tuple[dict[str, Any], Any, Any]:
    """What probe found, the store that the command it printed made, and its process.

    The script's own output is the same with capture and without.
    """
    (folder / "transcribe.py").write_text(script)
    program = [sys.executable, "transcribe.py", *args, *WAVS]
    probed = run(sys.executable, "-m", "logitstore", "probe", "--json", "--", *program, cwd=folder)
    assert probed.returncode == 0, probed.stderr.decode()
    found = json.loads(probed.stdout.splitlines()[-1])
    words = shlex.split(found["command"])
    words[words.index("--out") : words.index("--out")] = ["--stream", "rnnt=dense"]  # V is less than sixteen
    captured = run(sys.executable, "-m", *words, cwd=folder)
    assert captured.returncode == 0, captured.stderr.decode()
    plain = run(*program, cwd=folder)
    ctc_logits = [[x for x in p.stdout.splitlines() if x[:1] == b"/"] for p in (captured, plain)]
    assert ctc_logits[0] == ctc_logits[1], plain.stderr.decode()
    assert len(ctc_logits[0]) == len(WAVS)
    return found, open_store(folder / "store"), captured


def check_lattices(store: Any, wanted: Any) -> None:
    """Every utterance's lattice is what ``wanted(wav, labels)`` gives, (T, U+1, V)."""
    assert sorted(store) == [Path(wav).stem for wav in WAVS]
    for wav in WAVS:
        row = store[Path(wav).stem]
        own = wanted(wav, row.labels.tolist()).float().log_softmax(-1)
        said = row["rnnt"].at(1.0)
        logp = torch.from_numpy(said.logp)
        assert own.shape[:2] == (row.T, row.U + 1)
        torch.testing.assert_close(logp, own.flatten(0, 1), atol=1e-2, rtol=2e-3)
        assert store.record(Path(wav).stem).meta["labels_from"] == "rnnt"
