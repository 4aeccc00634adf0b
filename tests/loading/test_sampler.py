"""The batch sampler: exactly once, whatever the workers, the world and the moment of a restart."""

import hashlib
import json
import random
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader

from logitstore import Durations, PlanBatchSampler, TargetDataset, collate_targets
from logitstore.errors import IdentityError, UsageError
from tests.loading.test_plan import WORLDS

SETTINGS = {"seed": 1, "seconds_per_batch": 100, "micro": 24}


@pytest.fixture(scope="module")
def durations(corpus):
    return Durations(corpus[0], corpus[1])


def sampler(durations, rank=0, world=1, **settings):
    return PlanBatchSampler(durations, rank=rank, world=world, **{**SETTINGS, **settings})


def train(durations, world, state, until):
    """Train all processes of a world for some steps from a state on; return their batches by step, and the state."""
    per_step, taken, states = 24 // world, [], []
    for rank in range(world):
        own = sampler(durations, rank, world)
        own.load_state_dict(state)
        batches = []
        for batch in own.counted(own):
            batches.append(batch)
            if len(batches) == until * per_step:
                break
        taken.append(batches)
        states.append(own.state_dict())
    assert all(s == states[0] for s in states)
    count = len(taken[0]) // per_step
    return [
        sorted(b for own in taken for b in own[n * per_step : (n + 1) * per_step]) for n in range(count)
    ], states[0]


def test_killed_at_random_steps_and_resumed_in_another_world_every_utterance_is_read_once(durations):
    whole = sampler(durations)
    generator, kills = random.Random(0), 0
    for epoch in range(3):
        state, found = {**whole.state_dict(), "epoch": epoch, "step": 0}, []
        while state["epoch"] == epoch:
            steps, state = train(durations, generator.choice(WORLDS), state, generator.randint(1, 4))
            found += steps
            kills += 1
        whole.set_epoch(epoch)
        batches = list(whole)
        assert found == [sorted(batches[n : n + 24]) for n in range(0, len(batches), 24)]
        assert sorted(i for step in found for batch in step for i in batch) == list(range(len(durations)))
    assert kills > 10


def test_a_state_is_small_and_needs_no_plan(durations):
    own = sampler(durations)
    own.load_state_dict({**own.state_dict(), "epoch": 10**6, "step": 10**7})
    assert list(own._plans) == [0]  # the plan of the loaded epoch is not made yet
    assert len(json.dumps({**own.state_dict(step=0), "epoch": 10**6, "step": 10**7})) <= 200


def test_a_state_of_other_data_or_settings_is_refused_by_name(durations, corpus):
    ids, seconds, _ = corpus
    state = sampler(durations).state_dict()
    with pytest.raises(IdentityError, match="other data"):
        sampler(Durations([*ids[:-1], "other"], seconds)).load_state_dict(state)
    with pytest.raises(IdentityError, match="other data"):
        sampler(Durations(ids, [*seconds[:-1], 1.0])).load_state_dict(state)
    for changed in ({"seed": 2}, {"seconds_per_batch": 101}, {"buckets": 4}, {"micro": 12}):
        with pytest.raises(UsageError, match="other settings"):
            sampler(durations, **changed).load_state_dict(state)
    for wrong in ({}, None, {**state, "step": -1}, {**state, "epoch": "1"}):
        with pytest.raises(UsageError, match="no state of a PlanBatchSampler"):
            sampler(durations).load_state_dict(wrong)


def test_a_world_that_does_not_divide_micro_is_refused(durations):
    with pytest.raises(UsageError, match="5 processes"):
        sampler(durations, 0, 5)
    with pytest.raises(UsageError, match="rank 2"):
        sampler(durations, 2, 2)


def of_store(store, **settings):
    return PlanBatchSampler(store, **{"seed": 1, "seconds_per_batch": 12, "micro": 2, **settings})


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_every_number_of_workers_gives_the_same_epoch(store, workers):
    loader = DataLoader(
        TargetDataset(store), batch_sampler=of_store(store), collate_fn=collate_targets, num_workers=workers
    )
    found = [batch.utt_ids for batch in loader]
    ids = list(store)
    assert found == [tuple(ids[i] for i in batch) for batch in of_store(store)]
    assert sorted(i for batch in found for i in batch) == sorted(ids)
    assert len(loader) == len(found)


def test_batches_that_workers_fetch_ahead_are_not_counted(store):
    own = of_store(store)
    loader = DataLoader(TargetDataset(store), batch_sampler=own, collate_fn=collate_targets, num_workers=2)
    total, found = len(own), []
    for batch in own.counted(loader):
        found.append(batch.utt_ids)
        if len(found) == 2:
            state = own.state_dict()
            break
    assert (state["step"], own.state_dict(step=2)["step"]) == (1, 2)
    resumed = of_store(store)
    resumed.load_state_dict(state)
    resumed.set_epoch(0)
    assert len(resumed) == total - 2
    rest = DataLoader(TargetDataset(store), batch_sampler=resumed, collate_fn=collate_targets)
    found += [batch.utt_ids for batch in resumed.counted(rest)]
    assert sorted(i for batch in found for i in batch) == sorted(store)
    assert resumed.state_dict() == {**state, "epoch": 1, "step": 0}
    assert len(resumed) == total


def test_an_iteration_behind_a_finished_epoch_gives_the_next(store):
    own, named = of_store(store), of_store(store)
    loader = DataLoader(TargetDataset(store), batch_sampler=own, collate_fn=collate_targets, num_workers=2)
    ids = list(store)
    for epoch in range(3):
        named.set_epoch(epoch)
        assert [b.utt_ids for b in loader] == [tuple(ids[i] for i in batch) for batch in named]
        assert own.epoch == epoch
    first = list(named.plan.batches())
    own.set_epoch(2)  # again
    assert list(own) == first


PROGRAM = """
import json, sys
import torch.distributed as dist
from torch.utils.data import DataLoader
from logitstore import PlanBatchSampler, TargetDataset, collate_targets, open_store

dist.init_process_group("gloo")
store = open_store(sys.argv[1])
sampler = PlanBatchSampler(store, seed=1, seconds_per_batch=12, micro=2)
loader = DataLoader(TargetDataset(store), batch_sampler=sampler, collate_fn=collate_targets)
own = [batch.utt_ids for batch in sampler.counted(loader)]
everybody = [None, None]
dist.all_gather_object(everybody, own)
if dist.get_rank() == 0:
    json.dump([everybody, sampler.state_dict()], open(sys.argv[2], "w"))
dist.destroy_process_group()
"""


def test_two_processes_of_torchrun_share_every_step(place, store, tmp_path):
    program, out = tmp_path / "train.py", tmp_path / "out.json"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, program, place, out], check=True)
    ranks, state = json.loads(out.read_text())
    together = [batch for step in zip(*ranks, strict=True) for batch in step]
    alone = of_store(store)
    ids = list(store)
    assert together == [[ids[i] for i in batch] for batch in alone]
    assert digest(together) == digest([[ids[i] for i in b] for b in of_store(store, rank=0, world=1)])
    assert state == alone.state_dict()


def digest(batches):
    return hashlib.sha256(json.dumps(batches).encode()).hexdigest()
