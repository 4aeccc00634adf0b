"""The shards of a store: which belong to it, which are missing, and what an index that lags behind costs."""

import shutil

import numpy as np
import pytest

from logitstore import StoreWriter, TokenTable, open_store, repair_store, verify_store
from logitstore.errors import IdentityError, MissingUtterance
from logitstore.schema.spec import TeacherSpec
from logitstore.storage import catalog
from logitstore.storage.commit import finish_store
from logitstore.storage.places import open_place
from logitstore.storage.places.local import LocalPlace
from logitstore.storage.shard_size import ShardSize
from tests.support.sealed import forge, read_sealed, remove_index

TABLE = TokenTable(("<blk>", "a", "b"), 0)


def fill(path, *ids, teacher="one", **options):
    about = TeacherSpec(teacher, 16000, 640)
    streams = {"ctc": "dense"}
    with StoreWriter.open(path, tokens=TABLE, streams=streams, teacher=about, **options) as writer:
        for utt_id in ids:
            writer.add(utt_id, ctc=np.ones((2, 3), np.float32), seconds=0.08)
    return path


def copy_shard(source, target, name):
    """Copy a shard and its entry into another store, as somebody might by hand."""
    shutil.copy(source / "sealed" / f"{name}.entry", target / "sealed")
    (path,) = (source / "shards").glob(f"{name}.*")
    shutil.copy(path, target / "shards")


@pytest.fixture
def store(tmp_path):
    return fill(tmp_path / "s", "a", "b", "c", "d", shard_size="2")


def test_every_entry_names_the_store_that_it_belongs_to(store):
    identity = open_store(store).spec.identity
    assert identity.startswith("sha256:")
    for path in (store / "sealed").iterdir():
        assert read_sealed(path)[0]["identity"] == identity


def test_a_shard_of_another_teacher_is_refused_and_named(store, tmp_path):
    other = fill(tmp_path / "other", "x", teacher="two", writer="foreign")
    copy_shard(other, store, "foreign-000000")
    with pytest.warns(UserWarning, match=r"(?s)foreign-000000.*belongs to another store"):
        opened = open_store(store)
    assert len(opened) == 4
    with pytest.raises(MissingUtterance, match="foreign-000000"):
        opened["x"]
    (finding,) = verify_store(store).findings
    assert finding.shard == "foreign-000000"
    assert "belongs to another store" in finding.what
    assert repair_store(store).shards == ["foreign-000000"]
    assert sorted(open_store(store)) == list("abcd")
    assert not verify_store(store).findings


def test_a_shard_of_the_same_identity_may_be_copied_in(store, tmp_path):
    more = fill(tmp_path / "more", "e", writer="more")
    copy_shard(more, store, "more-000000")
    assert sorted(open_store(store)) == list("abcde")
    assert not verify_store(store).findings


def test_another_description_does_not_fit_the_shards(store, tmp_path):
    other = fill(tmp_path / "other", "x", teacher="two")
    shutil.copy(other / "logitstore.json", store)
    with pytest.raises(IdentityError, match="every shard belongs to another store"):
        open_store(store)
    found = verify_store(store).findings
    assert {f.shard for f in found if "another store" in f.what} >= {"loop-000000", "loop-000001"}
    with pytest.raises(IdentityError, match="every shard belongs to another store"):
        repair_store(store)
    assert len(list((store / "sealed").iterdir())) == 2


def test_a_deleted_entry_is_named_until_its_records_are_back(store):
    (store / "sealed" / "loop-000000.entry").unlink()
    said = r"(?s)2 records; it had 4 .*sealed/loop-000000\.entry \(2 records\)"
    with pytest.warns(UserWarning, match=said):
        assert sorted(open_store(store)) == ["c", "d"]
    assert any(
        "loop-000000" in f.what and f.where.startswith("notes.json") for f in verify_store(store).findings
    )
    finish_store(open_place(store))  # the index is made again, and still knows the name
    with pytest.warns(UserWarning, match=said):
        open_store(store)
    fill(store, "a", "b")
    assert sorted(open_store(store)) == list("abcd")
    assert "loop-000000" not in open_store(store).shards  # a name in a run is not used again
    repair_store(store)
    assert not verify_store(store).findings


def test_a_deleted_entry_is_counted_without_an_index(store):
    (store / "sealed" / "loop-000000.entry").unlink()
    remove_index(store)
    with pytest.warns(UserWarning, match="2 records; it had 4"):
        open_store(store)
    assert repair_store(store).findings
    assert len(open_store(store)) == 2  # the loss is accepted: no warning
    assert not verify_store(store).findings


def test_a_damaged_note_hides_nothing_else(store):
    (store / "notes.json").write_bytes(b"{")
    assert len(open_store(store)) == 4
    assert [f.where for f in verify_store(store).findings] == ["notes.json"]
    repair_store(store)
    assert not verify_store(store).findings


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that are read or mapped."""
    names = []
    for method in ("read", "map"):
        real = getattr(LocalPlace, method)
        monkeypatch.setattr(
            LocalPlace, method, lambda self, name, real=real: names.append(name) or real(self, name)
        )
    return names


def test_opening_with_a_stale_index_reads_only_the_entries_that_it_lacks(store, reads):
    (run,) = (store / "index").iterdir()
    kept = run.read_bytes()
    fill(store, "e")
    remove_index(store)
    run.parent.mkdir()
    run.write_bytes(kept)
    del reads[:]
    assert sorted(open_store(store)) == list("abcde")
    assert [name for name in reads if name.startswith("sealed/")] == ["sealed/loop-000002.entry"]


def test_opening_and_finding_read_no_entry_while_a_store_grows(tmp_path, reads):
    path = tmp_path / "s"
    with StoreWriter.open(path, tokens=TABLE, streams={"ctc": "dense"}, shard_size="1") as writer:
        for i in range(40):
            writer.add(f"u{i}", ctc=np.ones((2, 3), np.float32))
            if i % 10 == 9:
                del reads[:]
                store = open_store(path)
                assert all(f"u{n}" in store for n in range(i + 1))
                assert len(list(store)) == i + 1
                assert not [name for name in reads if name.startswith("sealed/")]
                assert len(list((path / "index").iterdir())) <= 6  # log2 of 40
    assert len(list((path / "index").iterdir())) == 1


def test_full_runs_are_left_alone(store, monkeypatch):
    monkeypatch.setattr(catalog, "FULL_RUN", 4)
    (full,) = (store / "index").iterdir()
    before = full.stat().st_mtime_ns
    fill(store, "e")
    assert full.stat().st_mtime_ns == before
    assert len(list((store / "index").iterdir())) == 2
    assert sorted(open_store(store)) == list("abcde")


def test_a_run_of_another_store_is_not_used(store, tmp_path):
    other = fill(tmp_path / "other", "a", "b", teacher="two")
    (run,) = (other / "index").iterdir()
    shutil.copy(run, store / "index")
    assert sorted(open_store(store)) == list("abcd")
    assert any("another store" in f.what for f in verify_store(store).findings)
    repair_store(store)
    assert not verify_store(store).findings


def test_an_entry_whose_ids_are_damaged_is_named(store):
    path = store / "sealed" / "loop-000001.entry"
    path.write_bytes(path.read_bytes().replace(b"\nc\nd\n", b"\nc\nX\n"))
    assert any("ids do not match" in f.what for f in verify_store(store).findings)
    forge(path, lambda entry: None, ["c", "X"])
    assert verify_store(store).findings  # the index and the records say otherwise


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500", ShardSize(utterances=500)),
        ("2h", ShardSize(seconds=7200.0)),
        ("256MB", ShardSize(bytes=256_000_000)),
        ("1GB, 30m,9", ShardSize(9, 1800.0, 10**9)),
        ("auto", ShardSize(5000, 0.0, 256_000_000)),
    ],
)
def test_sizes_of_a_shard(text, size):
    assert ShardSize.parse(text) == size


def test_the_automatic_size_leaves_work_for_several_jobs():
    sizes = [ShardSize.of_manifest("auto", n).utterances for n in (100, 32_000, 64_000, 10_000_000)]
    assert sizes == [500, 500, 1000, 5000]
    assert ShardSize.of_manifest("7", 10**6) == ShardSize(7)


def test_a_loop_seals_a_shard_when_its_bytes_are_reached(tmp_path):
    frames = 500  # 4 bytes of logz and 6 of three classes each: 5 kB
    with StoreWriter.open(tmp_path, tokens=TABLE, streams={"ctc": "dense"}, shard_size="10kB") as writer:
        for i in range(5):
            writer.add(f"u{i}", ctc=np.ones((frames, 3), np.float32))
    store = open_store(tmp_path)
    assert [len(store.entry(name).ids) for name in store.shards] == [2, 2, 1]
