"""ESPnet's own inference, `python -m espnet2.bin.asr_inference`, unmodified: probed, then captured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.frameworks.models_espnet import CONDITIONED, CTC, build
from tests.frameworks.programs import LINES, capture, dump, probe, run, same, wav
from tests.frameworks.teacher_checks import framework

framework("espnet2.tasks.asr")

PROGRAM = [sys.executable, "-m", "espnet2.bin.asr_inference"]
FILES = ["--asr_train_config", "asr/config.yaml", "--asr_model_file", "asr/valid.acc.ave.pth"]
DATA = ["--data_path_and_name_and_type", "wav.scp,speech,sound", "--output_dir", "out"]
SEARCH = ["--ngpu", "0", "--beam_size", "2", "--ctc_weight", "1.0"]


@pytest.mark.parametrize("kind", ["plain", "conditioned"])
def test_asr_inference(kind: str, tmp_path: Path) -> None:
    (tmp_path / "asr").mkdir()
    # Self-conditioning, and printing what inner layers say, run the head five times an utterance.
    extra: dict[str, Any] = {"encoder_conf": CONDITIONED} if kind == "conditioned" else {}
    build(tmp_path / "asr", **{**CTC, **extra})
    (tmp_path / "exp").rename(tmp_path / "moved") if (tmp_path / "exp" / "asr").exists() else None
    (tmp_path / "wav.scp").write_text("".join(f"{x['id']} {wav(x)}\n" for x in LINES[:4]))
    program = [*PROGRAM, *DATA, *FILES, *SEARCH]
    found = probe(program, tmp_path)
    assert (found["ctc"]["path"], found["ctc"]["layout"]) == ("ctc.ctc_lo", "BTV")
    assert found["tokens"] == str(tmp_path / "asr" / "config.yaml")
    assert found["blank"]["index"] == 0
    assert ("--call 2" in found["command"]) == (kind == "conditioned")
    ours, ran = capture(found, tmp_path)
    assert b"logitstore: store: 4 utterances" in ran.stderr
    said = (tmp_path / "out" / "1best_recog" / "text").read_bytes()
    same(ours, dump(f"espnet:{tmp_path}/asr", tmp_path, LINES[:4]), atol=1e-5)
    run(*program, cwd=tmp_path)
    assert (tmp_path / "out" / "1best_recog" / "text").read_bytes() == said
