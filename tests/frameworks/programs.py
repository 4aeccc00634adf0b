"""A framework's own program, probed, captured by the printed command, compared with a teacher's dump."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from logitstore import open_store

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "manifests" / "demo.jsonl"
LINES = [json.loads(line) for line in DEMO.read_text("utf-8").splitlines()]
LOGITSTORE = (sys.executable, "-m", "logitstore")


def wav(line: dict[str, Any]) -> str:
    return str(DEMO.parent / line["audio"])


def run(*command: object, cwd: Path, path: tuple[object, ...] = (), check: bool = True) -> Any:
    """A finished process; ``path``: folders of modules besides logitstore's."""
    env = {**os.environ, "PYTHONPATH": ":".join(map(str, (ROOT, *path))), "LANG": "C.UTF-8"}
    env |= {"TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, timeout=300)
    assert ran.returncode == 0 or not check, ran.stderr.decode()[-4000:]
    return ran


def probe(program: list[object], cwd: Path, *options: object, path: tuple[object, ...] = ()) -> Any:
    """What a probe of a program found."""
    ran = run(*LOGITSTORE, "probe", "--json", *options, "--", *program, cwd=cwd, path=path)
    return json.loads(ran.stdout.splitlines()[-1])


def capture(found: Any, cwd: Path, *options: str, path: tuple[object, ...] = ()) -> Any:
    """The store that the printed command makes, and what the command said."""
    words = shlex.split(found["command"])
    assert words[:2] == ["logitstore", "capture"]
    ran = run(*LOGITSTORE, *words[1:2], *options, *words[2:], cwd=cwd, path=path)
    return open_store(cwd / "store"), ran


def dump(
    teacher: str, cwd: Path, lines: list[dict[str, Any]], *options: str, path: tuple[object, ...] = ()
) -> Any:
    """The store that a teacher's dump makes of demo lines, without their texts."""
    kept = [{"id": line["id"], "audio": wav(line)} for line in lines]
    (cwd / "dumped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    said = ("--teacher", teacher, "--manifest", "dumped.jsonl", "--out", "dumped", "--batch-seconds", "0")
    gate = ("--skip-checks", "random weights")
    run(*LOGITSTORE, "dump", *said, *gate, *options, cwd=cwd, path=path)
    return open_store(cwd / "dumped")


def same(ours: Any, theirs: Any, *, atol: float = 2e-3, tokens: bool = True) -> None:
    """Two stores hold the same utterances, frames and log-probabilities."""
    assert sorted(ours) == sorted(theirs)
    for utt_id in theirs:
        a, b = ours[utt_id].log_probs("ctc"), theirs[utt_id].log_probs("ctc")
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= atol, utt_id
    assert ours.spec.tokens["blank"] == theirs.spec.tokens["blank"]
    if tokens:
        assert ours.tokens == theirs.tokens
