"""Targets joined to SpeechBrain's DynamicItemDataset, collated by its PaddedBatch."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from logitstore import PlanBatchSampler, open_store, with_targets
from tests.frameworks.teacher_checks import framework
from tests.support import demo, dumping

framework("speechbrain")
from speechbrain.dataio.batch import PaddedBatch  # noqa: E402
from speechbrain.dataio.dataset import DynamicItemDataset  # noqa: E402
from speechbrain.utils import data_pipeline  # noqa: E402


def test_a_dynamic_item_dataset(tmp_path):
    dumping.run(tmp_path / "s", streams={"ctc": "topk:8"})
    store = open_store(tmp_path / "s")
    dataset = DynamicItemDataset({x["id"]: {"duration": x["duration"]} for x in demo.lines()})

    @data_pipeline.takes("duration")
    @data_pipeline.provides("wave")
    def wave(duration):
        return torch.zeros(round(duration * 16000))

    dataset.add_dynamic_item(wave)
    dataset.set_output_keys(["id", "wave"])
    seconds = [x["duration"] for x in demo.lines()]
    sampler = PlanBatchSampler(dataset.data_ids, seconds, seed=0, seconds_per_batch=15, micro=2)
    joined = with_targets(dataset, store, frames=lambda x: len(x["wave"]) // 1280, collate_fn=PaddedBatch)
    found = []
    for inputs, targets in DataLoader(joined, batch_sampler=sampler, collate_fn=joined.collate_fn):
        assert list(targets.utt_ids) == inputs.id
        waves, shares = inputs.wave
        assert targets.lengths.tolist() == [round(float(s) * waves.shape[1]) // 1280 for s in shares]
        found += inputs.id
    assert sorted(found) == sorted(store)
    assert dataset[0].keys() == {"id", "wave"}
