"""Several stores of one teacher as one: the same records, refused where they do not belong together."""

import pickle
import shutil

import pytest
import torch

from logitstore import EpochPlan, TargetDataset, TokenTable, open_store
from logitstore.corpus.manifest import read_manifest
from logitstore.errors import IdentityError, MissingUtterance, UsageError, VocabError
from tests.support import demo, dumping


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The place of one store of all twenty utterances."""
    out = tmp_path_factory.mktemp("whole") / "s"
    dumping.run(out, streams={"ctc": "topk:8"})
    return out


@pytest.fixture(scope="module")
def store(place):
    return open_store(place)


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Two stores of ten utterances each, in shards of six; the second in another storage backend."""
    out = tmp_path_factory.mktemp("halves")
    for name, lines, storage in (
        ("a", demo.lines()[:10], "zarr"),
        ("b", demo.lines()[10:], "webdataset"),
    ):
        manifest = read_manifest(demo.write_manifest(out / f"{name}.jsonl", lines))
        dumping.run(out / name, streams={"ctc": "topk:8"}, manifest=manifest, storage=storage)
    return [out / "a", out / "b"]


def test_it_holds_the_records_of_all(halves, store):
    union = open_store(halves)
    assert list(union) == [utt_id for part in halves for utt_id in open_store(part)]
    assert sorted(union) == sorted(store)
    assert len(union) == 20
    ids = [list(union)[i] for i in (0, 15, 3)]
    assert torch.equal(union.batch(ids)["ctc"].dense(), store.batch(ids)["ctc"].dense())
    assert union.record(ids[1]).meta == open_store(halves[1]).record(ids[1]).meta
    assert union.select("seconds > 2") == [m["id"] for m in union.metadata() if m["seconds"] > 2]
    assert [r.id for shard in union.shards for r in union.records(shard)] == list(union)
    assert union.decode(union.record(ids[1])).id == union.target(ids[1], ["ctc"]).id == ids[1]


def test_ids_that_none_of_them_holds(halves):
    union = open_store(halves)
    assert "absent" not in union
    with pytest.raises(MissingUtterance, match=r"'absent' in 2 stores"):
        union["absent"]
    assert len(union.batch([next(iter(union)), "absent"], missing="skip")) == 1
    with pytest.raises(UsageError, match="which is a string"):
        union[3]


def test_it_goes_to_workers_and_into_plans(halves, store):
    union = open_store(halves)
    assert list(pickle.loads(pickle.dumps(union))) == list(union)
    assert [t.id for t in TargetDataset(union)] == list(union)
    assert [t.id for t in TargetDataset(halves)] == list(union)
    plan = EpochPlan(union, seed=0, seconds_per_batch=20, shards_per_block=1)
    assert sorted(i for batch in plan.batches() for i in batch) == list(range(20))
    assert list(torch.bincount(torch.tensor(plan.durations.shards))) == [6, 4, 6, 4]
    assert plan.durations.digest != EpochPlan(store, seed=0, seconds_per_batch=20).durations.digest


def test_an_id_in_two_of_them_is_refused(halves, place):
    with pytest.raises(IdentityError, match=r"hold 'demo-\d\d', one of up to 10 such ids"):
        open_store([halves[0], place])
    with pytest.raises(IdentityError, match="such ids"):
        open_store([halves[0], halves[0]])


def test_stores_that_differ_are_refused_by_field(halves, tmp_path):
    manifest = read_manifest(demo.write_manifest(tmp_path / "m.jsonl", demo.lines()[10:12]))
    dumping.run(tmp_path / "dense", streams={"ctc": "dense"}, manifest=manifest)
    with pytest.raises(
        IdentityError, match=r"(?s)does not go with this store.*streams.*encoding.*topk.*dense"
    ):
        open_store([halves[0], tmp_path / "dense"])
    with pytest.raises(UsageError, match="no stores"):
        open_store([])


def test_the_students_table_is_compared_with_all(halves):
    table = open_store(halves[0]).tokens
    other = TokenTable((*table.tokens[:-1], "other"), blank=table.blank)
    assert len(open_store(halves, vocab=table)) == 20
    with pytest.raises(VocabError):
        open_store(halves, vocab=other)


def test_a_store_is_found_again_after_a_move(halves, tmp_path):
    shutil.copytree(halves[1], tmp_path / "moved")
    assert list(open_store([halves[0], tmp_path / "moved"])) == list(open_store(halves))
