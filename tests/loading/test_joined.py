"""Targets joined to datasets of PyTorch, ``datasets``, webdataset and lhotse, by id."""

import io
import multiprocessing
import tarfile

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from logitstore import Clip, EpochPlan, PlanBatchSampler, TargetDataset, with_targets
from logitstore.errors import MissingUtterance, UsageError
from tests.support import demo


class Examples(torch.utils.data.Dataset):
    """A dataset of somebody else's: the demo's utterances, each with its number of samples."""

    def __init__(self):
        self.rows = [{"id": x["id"], "samples": round(x["duration"] * 16000)} for x in demo.lines()]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return dict(self.rows[index])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Examples().rows)


def same(found, expected):
    """Return whether two batches of targets are equal."""
    return (
        found.utt_ids == expected.utt_ids
        and torch.equal(found.mask, expected.mask)
        and torch.equal(found["ctc"].dense(), expected["ctc"].dense())
    )


def half(example):
    """Half of the teacher's frames: the demo's teacher has one in 640 samples."""
    return example["samples"] // 1280


@pytest.mark.parametrize("dataset", [Examples(), Stream()], ids=["map", "iterable"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_has_the_examples_and_their_targets(store, dataset, workers):
    joined = with_targets(dataset, store, frames=half, temperature=2.0)
    loader = DataLoader(joined, batch_size=6, collate_fn=joined.collate_fn, num_workers=workers)
    count = 0
    for inputs, targets in loader:
        frames = (inputs["samples"] // 1280).tolist()
        assert targets.lengths.tolist() == frames
        assert same(targets, store.batch(inputs["id"], frames=frames, temperature=2.0))
        count += len(targets)
    assert count == 20


def test_an_example_has_its_target_beside_it(store):
    dataset = Examples()
    joined = with_targets(dataset, store)
    assert len(joined) == len(dataset)
    assert joined[3].example == dataset[3]
    assert (joined[3].target.id, joined[3].frames) == (dataset[3]["id"], None)
    assert dataset[3].keys() == {"id", "samples"}


def test_spawned_workers_open_the_store_themselves(place):
    joined = with_targets(Examples(), place)
    context = multiprocessing.get_context("spawn")
    loader = DataLoader(
        joined, batch_size=10, collate_fn=joined.collate_fn, num_workers=1, multiprocessing_context=context
    )
    assert [len(targets) for _, targets in loader] == [10, 10]


def test_the_join_follows_a_batch_sampler(store):
    dataset = Examples()
    ids, seconds = [x["id"] for x in dataset.rows], [x["samples"] / 16000 for x in dataset.rows]
    settings = {"seed": 0, "seconds_per_batch": 15, "micro": 2}
    joined = with_targets(dataset, store)
    sampler = PlanBatchSampler(ids, seconds, **settings)
    loader = DataLoader(joined, batch_sampler=sampler, collate_fn=joined.collate_fn)
    found = [targets.utt_ids for _, targets in loader]
    assert found == [tuple(ids[i] for i in b) for b in EpochPlan(ids, seconds, **settings).batches()]


def test_ids_come_from_keys_positions_and_functions(store):
    first, second, *_ = store
    keyed = with_targets([{"name": first}], store, id="name")
    placed = with_targets([(second, 1)], store, id=0)
    cropped = with_targets([{"id": first}], store, id=lambda x: Clip(x["id"]).crop(0, 1))
    assert [x[0].target.id for x in (keyed, placed)] == [first, second]
    _, targets = cropped.collate_fn([cropped[0]])
    assert targets.lengths.tolist() == [25]
    assert same(targets, store.batch([Clip(first).crop(0, 1)]))


def test_examples_without_a_target(store):
    first, second, *_ = store
    examples = [{"id": first, "n": 0}, {"id": "absent", "n": 1}, {"id": second, "n": 2}]

    def collated(missing, chosen=examples, frames=None):
        joined = with_targets(chosen, store, missing=missing, frames=frames)
        return joined.collate_fn([joined[i] for i in range(len(chosen))])

    with pytest.raises(MissingUtterance, match="'absent'"):
        collated("error")
    inputs, targets = collated("mask")
    assert inputs["n"].tolist() == [0, 1, 2]
    assert targets.mask.any(1).tolist() == [True, False, True]
    inputs, targets = collated("skip")
    assert (inputs["n"].tolist(), targets.utt_ids) == ([0, 2], (first, second))
    with pytest.raises(MissingUtterance, match=r"none of the 1 utterances .*'absent'"):
        collated("skip", examples[1:2])


def test_wrong_requests_are_refused(store):
    with pytest.raises(UsageError, match="no argument 'temprature'"):
        with_targets([], store, temprature=2.0)
    with pytest.raises(UsageError, match="missing='no'"):
        with_targets([], store, missing="no")
    with pytest.raises(UsageError, match="a int is no dataset"):
        with_targets(3, store)
    with pytest.raises(UsageError, match="none of the keys id"):
        with_targets([{"x": 1}], store)[0]
    with pytest.raises(UsageError, match=r"id='name' is not in an example"):
        with_targets([{"x": 1}], store, id="name")[0]
    with pytest.raises(UsageError, match="which is no utterance id"):
        with_targets([{"id": 7}], store)[0]


def test_a_batch_of_a_target_dataset_is_read_at_once(store):
    dataset = TargetDataset(store)
    ids = list(store)
    assert [t.id for t in dataset.__getitems__([5, 0, 5])] == [ids[5], ids[0], ids[5]]


def test_a_dataset_of_huggingface(store):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(Examples().rows)
    for source in (dataset, dataset.to_iterable_dataset()):
        joined = with_targets(source, store, frames=half)
        loader = DataLoader(joined, batch_size=5, collate_fn=joined.collate_fn)
        found = [(inputs["id"], targets) for inputs, targets in loader]
        assert [i for ids, _ in found for i in ids] == dataset["id"]
        assert all(list(targets.utt_ids) == ids for ids, targets in found)


def test_a_pipeline_of_webdataset(store, tmp_path):
    wds = pytest.importorskip("webdataset")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for row in Examples().rows:
            data = str(row["samples"]).encode()
            member = tarfile.TarInfo(f"{row['id']}.cls")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    pipeline = wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode()
    joined = with_targets(pipeline, store, frames=lambda x: x["cls"] // 1280, collate_fn=list)
    found = [(i, t) for i, t in DataLoader(joined, batch_size=4, collate_fn=joined.collate_fn)]
    assert [x["__key__"] for examples, _ in found for x in examples] == [x["id"] for x in Examples().rows]
    assert all(t.utt_ids == tuple(x["__key__"] for x in examples) for examples, t in found)


class SamplesOfCuts(torch.utils.data.Dataset):
    """A dataset as lhotse has them: a sampler gives it a ``CutSet`` and it returns a batch."""

    def __getitem__(self, cuts):
        return {"ids": [cut.id for cut in cuts], "frames": [int(cut.duration * 12.5) for cut in cuts]}


def test_a_sampler_of_lhotse(store):
    lhotse = pytest.importorskip("lhotse")
    cuts = lhotse.CutSet.from_cuts(
        lhotse.Recording.from_file(x["audio"], recording_id=x["id"]).to_cut() for x in demo.lines()
    )
    faster = lhotse.CutSet.from_cuts([*cuts, *cuts.perturb_speed(1.1)])
    sampler = lhotse.dataset.DynamicBucketingSampler(
        faster, max_duration=20, num_buckets=3, shuffle=True, rank=0, world_size=1
    )
    joined = with_targets(SamplesOfCuts(), store, frames="frames")
    count = 0
    for batch, targets in DataLoader(joined, sampler=sampler, batch_size=None):
        assert targets.utt_ids == tuple(i.removesuffix("_sp1.1") for i in batch["ids"])
        assert targets.lengths.tolist() == batch["frames"]
        count += len(targets)
    assert count == 40
