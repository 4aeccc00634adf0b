"""A store of the demo's teacher, and durations like those of read speech."""

import numpy as np
import pytest

from logitstore import open_store
from tests.support import dumping


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """The place of a store of twenty utterances in shards of six."""
    out = tmp_path_factory.mktemp("loading") / "s"
    dumping.run(out, streams={"ctc": "topk:8"})
    return out


@pytest.fixture(scope="session")
def store(place):
    return open_store(place)


@pytest.fixture(scope="session")
def corpus():
    """(ids, seconds, shard numbers) of 3000 utterances."""
    generator = np.random.default_rng(0)
    seconds = np.clip(generator.lognormal(2.2, 0.6, 3000), 0.5, 35).round(3)
    return [f"utt-{i}" for i in range(3000)], seconds, np.arange(3000) // 100
