"""accelerate's loaders, one batch ahead, and transformers' Trainer on them: ids by what was sampled."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.frameworks.programs import LINES, capture, probe, wav
from tests.frameworks.teacher_checks import framework

framework("accelerate")
framework("transformers")
import transformers  # noqa: E402

from tests.frameworks.models_huggingface import letters, wave_model  # noqa: E402

DATA = """
import sys
import soundfile, torch
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCTC

class Recordings(Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return {"input_values": torch.from_numpy(soundfile.read(self.paths[i], dtype="float32")[0])}

def collate(items):
    waves = [x["input_values"] for x in items]
    lengths = torch.tensor([len(w) for w in waves])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    return {"input_values": padded, "attention_mask": mask.long()}

model = AutoModelForCTC.from_pretrained(sys.argv[1]).eval()
data = Recordings(sys.argv[2:])
"""
LOOP = """
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
model, loader = accelerator.prepare(model, DataLoader(data, batch_size=2, collate_fn=collate))
with torch.no_grad():
    for batch in loader:
        print(model(**batch).logits.argmax(-1).shape)
"""
TRAINER = """
from transformers import Trainer, TrainingArguments

args = TrainingArguments("out", per_device_eval_batch_size=2, use_cpu=True, report_to=[])
print(Trainer(model, args, data_collator=collate).predict(data).predictions.shape)
"""


@pytest.mark.parametrize("program", [LOOP, TRAINER], ids=["loop", "Trainer"])
def test_one_batch_ahead(program: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model: Any = wave_model("Wav2Vec2-layer", tmp_path / "model")
    letters(tmp_path / "model")
    (tmp_path / "x.py").write_text(DATA + program)
    command = [sys.executable, "x.py", "model", *map(wav, LINES[:5])]
    found = probe(command, tmp_path)
    assert found["ctc"]["path"] == "lm_head"
    assert found["ids"][0]["expression"] == "[stem(dataset.paths[i]) for i in index]"
    ours, ran = capture(found, tmp_path)
    assert b"logitstore: store: 5 utterances" in ran.stderr
    sys.path.insert(0, str(tmp_path))
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "model")
    import soundfile

    for line in LINES[:5]:
        wave = soundfile.read(wav(line), dtype="float32")[0]
        stored = torch.from_numpy(ours[line["id"]].log_probs("ctc"))
        with torch.no_grad():
            own = model(torch.from_numpy(wave)[None]).logits[0].log_softmax(-1)
        assert extractor is not None
        assert stored.shape == own.shape
        assert (stored - own).abs().max() < 4e-3
