"""A DataLoader with no worker and with two, forked and spawned, gives the same batches."""

import multiprocessing

import pytest
import torch
from torch.utils.data import DataLoader

from logitstore import StoreWriter, TargetDataset, TokenTable, collate_targets, open_store
from logitstore.errors import CorruptError, MissingUtterance

TABLE = TokenTable(("<blk>", "a", "b", "c"), 0)
IDS = [f"utt-{i}" for i in range(9)]


@pytest.fixture(scope="module", params=["zarr", "zarr:blosc", "webdataset"])
def path(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "s"
    with StoreWriter.open(
        path, tokens=TABLE, streams={"ctc": "topk:2"}, storage=request.param, shard_size="4"
    ) as w:
        for i, utt in enumerate(IDS):
            generator = torch.Generator().manual_seed(i)
            w.add(utt, ctc=torch.randn(2 + i % 3, 4, generator=generator))
    return path


def batches(dataset, workers, start=None):
    loader = DataLoader(
        dataset,
        batch_size=2,
        num_workers=workers,
        collate_fn=collate_targets,
        multiprocessing_context=multiprocessing.get_context(start) if start else None,
    )
    return [(b.utt_ids, b["ctc"].dense(), b.mask) for b in loader]


def same(one, two):
    assert [b[0] for b in one] == [b[0] for b in two]
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a[1], b[1])
        assert torch.equal(a[2], b[2])


def test_without_workers(path):
    found = batches(TargetDataset(path), 0)
    assert [u for b in found for u in b[0]] == IDS
    same(found, batches(TargetDataset(open_store(path)), 0))


def test_forked_workers(path):
    dataset = TargetDataset(path)
    same(batches(dataset, 0), batches(dataset, 2, "fork"))  # it was read from before the fork


def test_spawned_workers(path):
    if open_store(path).spec.storage["name"] != "zarr":
        pytest.skip("each spawned worker takes seconds to import torch; one storage says enough")
    dataset = TargetDataset(path)
    same(batches(dataset, 0), batches(dataset, 2, "spawn"))


def test_a_dataset_of_some_ids(path):
    assert len(TargetDataset(path, ["utt-3", "utt-1", "utt-3"])) == 3
    assert TargetDataset(path, ["utt-3", "utt-1"])[1].id == "utt-1"
    with pytest.raises(MissingUtterance, match=r"1 of 2 .*'none'"):
        TargetDataset(path, ["utt-3", "none"])
    assert TargetDataset(path, ["utt-3", "none"], missing="skip").ids == ["utt-3"]


def test_an_error_in_a_worker_keeps_its_type_and_message(path, tmp_path):
    import shutil

    broken = tmp_path / "s"
    shutil.copytree(path, broken)
    s = open_store(broken)
    whole = s.record("utt-2").arrays["ctc.logz"].tobytes()
    for file in (broken / "shards").rglob("*"):
        if file.is_file() and whole in (data := file.read_bytes()):
            file.write_bytes(data.replace(whole, bytes(len(whole))))
            break
    else:
        pytest.skip("stored compressed")
    with pytest.raises(CorruptError, match="utt-2"):
        batches(TargetDataset(broken), 2, "fork")
