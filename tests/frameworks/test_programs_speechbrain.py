"""SpeechBrain's programs: `transcribe_file`, and where SPEECHBRAIN names a clone a recipe's own train.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.frameworks.programs import LINES, capture, dump, probe, run, same, wav
from tests.frameworks.teacher_checks import framework

framework("speechbrain")

TRANSCRIBE = """
import sys
from speechbrain.inference.ASR import EncoderASR

asr = EncoderASR.from_hparams(source=sys.argv[1], savedir="saved")
for path in sys.argv[2:]:
    print(path, asr.transcribe_file(path))
"""
# torchaudio reads audio with a library that is not installed here.
SHIM = """
import soundfile, torch, torchaudio

def load(file, **options):
    audio, rate = soundfile.read(file, dtype="float32", always_2d=True)
    return torch.from_numpy(audio.T.copy()), rate

torchaudio.load = load
"""


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim" / "sitecustomize.py").write_text(SHIM)
    return tmp_path / "shim"


def test_transcribe_file(speechbrain_ctc: tuple[Path, Any], tmp_path: Path, shim: Path) -> None:
    folder, _ = speechbrain_ctc
    text = (folder / "hyperparams.yaml").read_text().replace("somebody/somewhere", str(folder))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "hyperparams.yaml").write_text(text)
    (tmp_path / "x.py").write_text(TRANSCRIBE)
    program = [sys.executable, "x.py", "own", *map(wav, LINES[:4])]
    found = probe(program, tmp_path, path=(shim,))
    assert found["ctc"]["path"].endswith("ctc_lin.w")
    assert "--ids 'stem(path)'" in found["command"]
    ours, _ = capture(found, tmp_path, path=(shim,))
    theirs = dump(f"speechbrain:{folder}", tmp_path, LINES[:4])
    same(ours, theirs, atol=1e-4, tokens=False)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_recipes_own_test_stage(batch: int, tmp_path: Path, shim: Path) -> None:
    recipe = Path(os.environ.get("SPEECHBRAIN", "")) / "recipes" / "LibriSpeech" / "ASR" / "CTC" / "train.py"
    if not recipe.exists():
        pytest.skip("set SPEECHBRAIN to a clone of SpeechBrain to run a recipe of its own")
    hparams = (Path(__file__).parent / "speechbrain_ctc.yaml").read_text()
    (tmp_path / "train.yaml").write_text(hparams.replace("BATCH", str(batch)))
    (tmp_path / "data").mkdir()
    for name, lines in (("train", LINES[:4]), ("test", LINES[:8])):
        rows = [f"{x['id']},{x['duration']},{wav(x)},{_plain(x['text'])}\n" for x in lines]
        (tmp_path / "data" / f"{name}.csv").write_text("ID,duration,wav,wrd\n" + "".join(rows))
    program = [sys.executable, recipe, "train.yaml", "--device=cpu"]
    run(*program, cwd=tmp_path, path=(shim,))  # trains its one epoch; after that it tests what it saved
    found = probe(program, tmp_path, path=(shim,))
    assert found["ctc"]["path"] == "ctc_lin.w"
    assert found["ids"][0]["expression"] == "batch.id"
    assert found["texts"] == "batch.wrd"
    assert found["blank"]["index"] == 0
    assert batch == 1 or found["ctc"]["chosen"] == "(wav_lens * T).round()"
    ours, ran = capture(found, tmp_path, path=(shim,))
    assert b"logitstore: store: 8 utterances" in ran.stderr
    said = by_hand(tmp_path, [x["id"] for x in LINES[:8]], batch)
    assert sorted(ours) == sorted(said)
    for utt_id, logits in said.items():
        stored = torch.from_numpy(ours[utt_id].log_probs("ctc"))
        assert stored.shape == logits.shape
        assert (stored - logits.log_softmax(-1)).abs().max() < 4e-3  # float16


def _plain(text: str) -> str:
    return "".join(c for c in text.upper() if c.isascii() and (c.isalpha() or c == " "))


@torch.no_grad()
def by_hand(folder: Path, ids: list[str], batch: int) -> dict[str, torch.Tensor]:
    """What the recipe's model says of its test set, its checkpoint loaded, shortest recordings first."""
    import soundfile
    from hyperpyyaml import load_hyperpyyaml

    here = os.getcwd()
    os.chdir(folder)
    try:
        hparams = load_hyperpyyaml((folder / "train.yaml").read_text())
        hparams["checkpointer"].recover_if_possible()
    finally:
        os.chdir(here)
    modules = hparams["modules"]
    for module in modules.values():
        module.eval()
    said = {}
    lines = sorted((x for x in LINES if x["id"] in ids), key=lambda x: x["duration"])
    for begin in range(0, len(lines), batch):
        part = lines[begin : begin + batch]
        waves = [torch.from_numpy(soundfile.read(wav(x), dtype="float32")[0]) for x in part]
        lens = torch.tensor([len(w) for w in waves]) / max(map(len, waves))
        sig = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        feats = modules["normalize"](hparams["compute_features"](sig), lens, epoch=1)
        enc, _ = modules["Transformer"](modules["CNN"](feats), tgt=None, wav_len=lens)
        logits = modules["ctc_lin"](enc)
        for b, x in enumerate(part):
            said[x["id"]] = logits[b, : round(float(lens[b]) * logits.shape[1])]
    return said
