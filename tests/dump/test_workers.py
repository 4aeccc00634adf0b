"""Threads and processes that die: what is sealed stays, the error names where, the next run goes on."""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader

from logitstore import TargetDataset, collate_targets, open_store
from logitstore.errors import TeacherError
from logitstore.store.verify import verify_store
from tests.support import demo
from tests.support.dumping import run, same_records


def dies(error, at):
    """A method of the teacher that fails at its ``at``-th call."""
    calls = []

    def method(teacher, *args):
        calls.append(1)
        if len(calls) == at:
            raise error
        return args

    return method


def test_a_loader_thread_that_dies_names_its_utterance(tmp_path):
    boom = dies(RuntimeError("no such filter bank"), 10)

    def features(teacher, audio):
        return teacher.features(*boom(teacher, audio))

    with pytest.raises(
        TeacherError, match=r"demo-.*features\(\) failed with RuntimeError: no such filter bank"
    ):
        run(tmp_path / "s", teacher=demo.Spoiled(features=features), batch_seconds=0.0)
    assert 0 < len(open_store(tmp_path / "s")) < 20
    assert not verify_store(tmp_path / "s").findings
    run(tmp_path / "s", batch_seconds=0.0)
    run(tmp_path / "whole", batch_seconds=0.0)
    assert same_records(tmp_path / "s", tmp_path / "whole")


def test_a_teacher_out_of_memory_says_what_to_do(tmp_path):
    boom = dies(torch.OutOfMemoryError("tried to allocate 80 GiB"), 3)

    def forward(teacher, *args):
        return teacher.forward(*boom(teacher, *args))

    with pytest.raises(TeacherError, match="--batch-seconds"):
        run(tmp_path / "s", teacher=demo.Spoiled(forward=forward))
    run(tmp_path / "s")
    assert len(open_store(tmp_path / "s")) == 20


class Deadly(TargetDataset):
    """Kills the process that reads its seventh utterance."""

    def __getitem__(self, index):
        if index == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_dataloader_worker_that_is_killed_harms_no_store(tmp_path):
    run(tmp_path / "s", limit=8)
    loader = DataLoader(Deadly(tmp_path / "s"), batch_size=2, num_workers=2, collate_fn=collate_targets)
    with pytest.raises(RuntimeError, match="worker"):
        list(loader)
    assert not verify_store(tmp_path / "s").findings
    whole = DataLoader(TargetDataset(tmp_path / "s"), batch_size=2, num_workers=2, collate_fn=collate_targets)
    assert sum(map(len, whole)) == 8
