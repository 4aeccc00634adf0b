"""Epoch plans in accelerate: two processes share every step as they do without it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from logitstore import PlanBatchSampler, open_store
from tests.frameworks.teacher_checks import framework
from tests.support import demo, dumping

framework("accelerate")

PROGRAM = """
import json, sys
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from logitstore import PlanBatchSampler, TargetDataset, collate_targets, open_store

accelerator = Accelerator(cpu=True)
store = open_store(sys.argv[1])
sampler = PlanBatchSampler(store, seed=1, seconds_per_batch=12, micro=2, rank=0, world=1)
loader = DataLoader(TargetDataset(store), batch_sampler=sampler, collate_fn=collate_targets)
prepared = accelerator.prepare_data_loader(loader, device_placement=False)
epochs = []
for epoch in range(2):
    sampler.set_epoch(epoch)
    epochs.append([batch.utt_ids for batch in prepared])
everybody = gather_object([epochs])
if accelerator.is_main_process:
    json.dump(everybody, open(sys.argv[2], "w"))
accelerator.end_training()
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_of_accelerate_share_every_step(tmp_path, processes):
    dumping.run(tmp_path / "s", streams={"ctc": "topk:8"})
    store = open_store(tmp_path / "s")
    program, out = tmp_path / "train.py", tmp_path / "out.json"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    subprocess.run([*command, program, tmp_path / "s", out], check=True, cwd=demo.ROOT)
    ids, alone = list(store), PlanBatchSampler(store, seed=1, seconds_per_batch=12, micro=2)
    ranks = json.loads(out.read_text())
    for epoch in range(2):
        alone.set_epoch(epoch)
        together = [batch for step in zip(*(r[epoch] for r in ranks), strict=True) for batch in step]
        assert together == [[ids[i] for i in batch] for batch in alone]
