"""Epoch plans: every utterance once, the same steps for every number of processes, refusals by name."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from logitstore import Durations, EpochPlan
from logitstore.errors import UsageError

WORLDS = [1, 2, 3, 4, 6, 8, 12]
SETTINGS = {"seed": 7, "seconds_per_batch": 60, "micro": 24}


def steps(plan, world):
    """Return the batches of an epoch by step, as the processes of a world take them one after the other."""
    per_step = plan.settings.micro // world
    ranks = [list(plan.batches(rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    return [
        sorted(batch for batches in ranks for batch in batches[n : n + per_step])
        for n in range(0, len(ranks[0]), per_step)
    ]


def test_every_utterance_is_in_exactly_one_batch(corpus):
    ids, seconds, _ = corpus
    for epoch in range(3):
        plan = EpochPlan(ids, seconds, epoch=epoch, **SETTINGS)
        found = [i for batch in plan.batches() for i in batch]
        assert sorted(found) == list(range(len(ids)))
        assert len(plan) == plan.steps * 24


def test_every_world_takes_the_same_steps(corpus):
    ids, seconds, _ = corpus
    plan = EpochPlan(ids, seconds, **SETTINGS)
    found = {hashlib.sha256(repr(steps(plan, world)).encode()).hexdigest() for world in WORLDS}
    assert len(found) == 1


def test_no_batch_is_longer_than_allowed_with_its_padding(corpus):
    ids, seconds, _ = corpus
    plan = EpochPlan(ids, seconds, **SETTINGS)
    assert max(len(batch) * max(seconds[i] for i in batch) for batch in plan.batches()) <= 60


def test_batches_hold_similar_durations_and_epochs_differ(corpus):
    ids, seconds, _ = corpus
    one, two = (EpochPlan(ids, seconds, epoch=epoch, **SETTINGS) for epoch in (0, 1))
    assert one.padding < 0.1
    assert EpochPlan(ids, seconds, buckets=1, **{**SETTINGS, "seconds_per_batch": 300}).padding > 0.3
    assert one.digest != two.digest
    assert one.digest != EpochPlan(ids, seconds, **{**SETTINGS, "seed": 8}).digest
    assert one.digest == EpochPlan(ids, seconds, **SETTINGS).digest
    several = [{frozenset(b) for b in plan.batches() if len(b) > 2} for plan in (one, two)]
    assert len(several[0] & several[1]) < len(several[0]) / 10


def test_padding_is_that_of_the_batches(corpus):
    ids, seconds, _ = corpus
    plan = EpochPlan(ids, seconds, **SETTINGS)
    padded = sum(len(batch) * max(seconds[i] for i in batch) for batch in plan.batches())
    assert plan.padding == pytest.approx(1 - seconds.sum() / padded)


def test_a_plan_is_the_same_in_another_process_and_version(corpus):
    """The digest is written down: random numbers, sorting and rounding must not change it."""
    expected = EpochPlan(["a", "b", "c", "d", "e"], [1, 2, 3, 4, 5], seed=3, seconds_per_batch=10).digest
    code = (
        "from logitstore import EpochPlan;"
        "print(EpochPlan(list('abcde'), [1, 2, 3, 4, 5], seed=3, seconds_per_batch=10).digest)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == expected == DIGEST


DIGEST = "8716afa2d123395857699e60f7be4bd039356f1897d0fc6f1e373405b351035d"


def test_plans_need_no_torch():
    code = "import sys, logitstore; logitstore.EpochPlan; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shards_are_read_block_by_block(corpus):
    ids, seconds, shards = corpus
    durations = Durations(ids, seconds, shards=shards)
    settings = {"seed": 0, "seconds_per_batch": 60, "micro": 2, "shards_per_block": 3}
    plan = EpochPlan(durations, **settings)
    assert sorted(i for batch in plan.batches() for i in batch) == list(range(len(ids)))
    batches = [frozenset(shards[i] for i in batch) for batch in plan.batches()]
    assert max(map(len, batches)) <= 3
    order = list(dict.fromkeys(shard for batch in batches for shard in sorted(batch)))
    assert order != sorted(order)  # blocks are shuffled
    later = EpochPlan(durations, epoch=1, **settings)
    assert {frozenset(shards[i] for i in batch) for batch in later.batches()} != set(batches)
    for shard in range(30):  # of a block, one after the other: 10 blocks
        at = [n for n, batch in enumerate(batches) if shard in batch]
        assert at[-1] - at[0] < len(batches) / 5


def test_a_store_gives_its_own_durations(store):
    ids = list(store)
    seconds = [meta["seconds"] for meta in store.metadata()]
    plan = EpochPlan(store, seed=0, seconds_per_batch=20, micro=2)
    assert plan.digest == EpochPlan(ids, seconds, seed=0, seconds_per_batch=20, micro=2).digest
    assert plan.durations.digest != Durations(ids, seconds).digest
    assert list(np.bincount(plan.durations.shards)) == [6, 6, 6, 2]
    assert EpochPlan(store, seed=0, seconds_per_batch=20, shards_per_block=1).steps >= 4


@pytest.mark.parametrize("world", [0, 5, 7, 48])
def test_a_world_that_does_not_divide_micro_is_refused(corpus, world):
    ids, seconds, _ = corpus
    with pytest.raises(UsageError, match=rf"{world} processes .* micro=24"):
        EpochPlan(ids, seconds, **SETTINGS).batches(0, world)


def test_an_utterance_longer_than_a_batch_is_refused():
    with pytest.raises(UsageError, match=r"1 utterances are longer .*'b' with 11 s"):
        EpochPlan(["a", "b"], [3, 11], seed=0, seconds_per_batch=10)
    assert len(EpochPlan(["a", "b"], [3, 11], seed=0, seconds_per_batch=11)) == 2


def test_an_empty_bucket_is_refused():
    with pytest.raises(UsageError, match=r"bucket 1 of 3 .* is empty"):
        EpochPlan(["a", "b"], [1, 9], seed=0, seconds_per_batch=10, buckets=[2, 5, 10])
    with pytest.raises(UsageError, match=r"is empty"):
        EpochPlan(["a", "b"], [5, 5], seed=0, seconds_per_batch=10, buckets=2)
    with pytest.raises(UsageError, match=r"last bucket ends at 5 s"):
        EpochPlan(["a", "b"], [1, 9], seed=0, seconds_per_batch=10, buckets=[2, 5])


@pytest.mark.parametrize("wrong", [None, 0, -1, float("nan"), float("inf")])
def test_an_utterance_without_a_duration_is_refused(wrong):
    with pytest.raises(UsageError, match=r"1 of 3 utterances have no duration, the first 'b'"):
        EpochPlan(["a", "b", "c"], [1, wrong, 2], seed=0, seconds_per_batch=10)


def test_other_wrong_requests_are_refused(store, corpus):
    settings = {"seed": 0, "seconds_per_batch": 10}
    with pytest.raises(UsageError, match="ids without seconds"):
        EpochPlan(["a"], **settings)
    with pytest.raises(UsageError, match=r"for 2 ids"):
        EpochPlan(["a", "b"], [1], **settings)
    with pytest.raises(UsageError, match="no utterances"):
        EpochPlan([], [], **settings)
    with pytest.raises(UsageError, match="beside a store"):
        EpochPlan(store, [1.0], **settings)
    with pytest.raises(UsageError, match="do not fill one step"):
        EpochPlan(["a", "b"], [1, 1], micro=3, **settings)
    with pytest.raises(UsageError, match="shards of the ids are not known"):
        EpochPlan(["a"], [1], shards_per_block=1, **settings)
    with pytest.raises(UsageError, match="ascending"):
        EpochPlan(["a"], [1], buckets=[5, 2], **settings)
    for wrong in ({"micro": 0}, {"seed": -1}, {"epoch": -1}, {"seconds_per_batch": 0}, {"buckets": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            EpochPlan(["a"], [1], **{**settings, **wrong})


def test_as_many_utterances_as_a_step_has_batches_make_one_step():
    plan = EpochPlan([str(i) for i in range(24)], [1.0] * 24, **SETTINGS)
    assert (plan.steps, [len(b) for b in plan.batches()]) == (1, [1] * 24)
