"""The writer: sealed records survive, others were never there, and other settings are refused."""

import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch

from logitstore import StoreWriter, TokenTable, open_store
from logitstore.errors import (
    CorruptError,
    DiskError,
    FormatError,
    IdentityError,
    LengthError,
    ManifestError,
    NonFinite,
    StoreBusy,
    StoreError,
    UsageError,
    VocabError,
)
from logitstore.schema.spec import TeacherSpec
from logitstore.storage.base import ShardContents, ShardFile
from logitstore.storage.commit import finish_store
from logitstore.storage.entries import Entry, read_entry, shard_names
from logitstore.storage.places import open_place
from logitstore.store.layout import make_spec
from tests.support.sealed import forge, remove_index

V = 5
TABLE = TokenTable(("<blk>", "a", "b", "c", "d"), 0)
TEACHER = TeacherSpec("t", 16000, 640, features={"dither": 0})
CTC = {"ctc": "dense"}
BOTH = {"ctc": "dense", "rnnt": "topk:2"}


def logits(*shape, seed=0):
    return torch.randn(*shape, V, generator=torch.Generator().manual_seed(seed))


def opened(path, streams=CTC, **options):
    return StoreWriter.open(path, tokens=TABLE, streams=streams, **options)


def files(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


def fill(path, *ids, **options):
    with opened(path, **options) as w:
        for i in ids:
            w.add(i, ctc=logits(3))


def test_one_frame_no_labels_and_slices(path):
    whole = logits(4, 3)
    with opened(path, BOTH) as w:
        w.add("tiny", ctc=logits(1), rnnt=logits(1, 1), labels=[])
        w.add("whole", ctc=logits(4), rnnt=whole, labels=[1, 2], text="x", seconds=0.16)
        w.add(
            "sliced",
            ctc=[logits(4)[:1], logits(4)[1:]],
            rnnt=iter(whole.split(3)),
            labels=torch.tensor([1, 2]),
        )
        w.add("numpy", ctc=logits(4).numpy().astype(np.float64), rnnt=whole.half().numpy(), labels=(1, 2))
    s = open_store(path)
    assert list(s) == ["tiny", "whole", "sliced", "numpy"]
    assert (s["tiny"].T, s["tiny"].U, s["tiny"].shapes["rnnt"]) == (1, 0, (1, 1, V))
    assert s["whole"].labels.tolist() == [1, 2]
    assert (s["whole"].text, s["whole"].meta["seconds"], s["tiny"].text) == ("x", 0.16, None)
    for stream in BOTH:
        assert (s["whole"].log_probs(stream) == s["sliced"].log_probs(stream)).all()
    np.testing.assert_allclose(
        s["whole"].log_probs("ctc"), torch.log_softmax(logits(4), -1).numpy(), atol=4e-3
    )


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"ctc": logits(3).fill_(float("nan"))}, NonFinite),
        ({"ctc": logits(3).index_fill(0, torch.tensor([1]), float("inf"))}, NonFinite),
        ({"ctc": logits(3).index_fill(1, torch.tensor([4]), -float("inf"))}, NonFinite),
        ({"ctc": torch.zeros(3, V + 1)}, VocabError),
        ({"ctc": torch.zeros(0, V)}, LengthError),
        ({"ctc": []}, LengthError),
        ({"ctc": torch.zeros(V)}, LengthError),
        ({"ctc": torch.zeros(1, 3, V)}, LengthError),
        ({"ctc": None}, LengthError),
        ({"ctc": logits(4)}, LengthError),  # 3 frames of rnnt
        ({"rnnt": None}, LengthError),
        ({"rnnt": logits(3, 2)}, LengthError),
        ({"rnnt": logits(2, 3)}, LengthError),
        ({"labels": [1]}, LengthError),
        ({"labels": [1, V]}, VocabError),
        ({"labels": [1, -1]}, VocabError),
        ({"utt_id": ""}, ManifestError),
        ({"utt_id": "a\nb"}, ManifestError),
        ({"utt_id": "x" * 5000}, ManifestError),
        ({"utt_id": "first"}, ManifestError),
        ({"text": "\ud800"}, FormatError),
        ({"seconds": float("nan")}, FormatError),
    ],
    ids=lambda v: re.sub(r"\W+", "-", str(v))[:40],
)
def test_outputs_that_cannot_be_stored_are_refused_and_nothing_is_lost(path, given, error):
    good = {"ctc": logits(3), "rnnt": logits(3, 3), "labels": [1, 2]}
    with opened(path, BOTH) as w:
        w.add("first", **good)
        arguments = {"utt_id": "bad", **good, **given}
        with pytest.raises(error):
            w.add(arguments.pop("utt_id"), **arguments)
        assert "bad" not in w
        w.add("last", **good)
    s = open_store(path)
    assert list(s) == ["first", "last"]
    assert (s["first"].log_probs("rnnt") == s["last"].log_probs("rnnt")).all()


@pytest.mark.parametrize("storage", ["zarr", "webdataset"])
def test_a_full_disk_never_seals_half_a_record(path, storage, monkeypatch):
    """A caller may ignore the error; the shard must take no other record and must not be sealed."""
    from logitstore.storage.backends._summed_file import SummedFile
    from logitstore.storage.backends._zarr_write import _ColumnData

    monkeypatch.setattr("logitstore.storage.backends._zarr_write.SPILL_BYTES", 1)
    monkeypatch.setattr("logitstore.storage.backends.webdataset.PACK_BYTES", 1)
    with opened(path, storage=storage) as w:
        w.add("sealed", ctc=logits(2))
    w = opened(path, storage=storage)
    w.add("a", ctc=logits(2))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_ColumnData, "spill", full)
        patch.setattr(SummedFile, "write", full)
        with pytest.raises(DiskError, match="No space"):
            w.add("b", ctc=logits(2))
    with pytest.raises(StoreError, match="'b' was not written completely"):
        w.add("c", ctc=logits(2))
    with pytest.raises(StoreError, match="'b' was not written completely"):
        w.close()
    assert list(open_store(path)) == ["sealed"]
    with opened(path, storage=storage) as w:
        for utt in "abc":
            w.add(utt, ctc=logits(2))
    assert list(open_store(path)) == ["sealed", "a", "b", "c"]


@pytest.mark.parametrize("step", ["finish", "publish", "entry"])
def test_sealing_that_fails_raises_and_can_be_tried_again(path, step, monkeypatch):
    from logitstore.storage.backends._zarr_write import ZarrShardWriter
    from logitstore.storage.places.local import LocalPlace

    def full(*_):
        raise OSError(28, "No space left on device")

    w = opened(path)
    w.add("a", ctc=logits(2))
    target = {
        "finish": (ZarrShardWriter, "finish"),
        "publish": (LocalPlace, "publish"),
        "entry": (Entry, "to_bytes"),
    }
    monkeypatch.setattr(*target[step], full)
    with pytest.raises((OSError, DiskError), match="No space"):
        w.close()
    monkeypatch.undo()
    assert list(open_store(path)) == []
    assert not (path / "partial").exists()
    fill(path, "a")
    assert list(open_store(path)) == ["a"]


def test_huge_but_finite_logits_are_stored(path):
    x = logits(2)
    x[0, 0], x[0, 1] = 3e38, -3e38
    with opened(path) as w:
        w.add("u", ctc=x)
    assert np.isfinite(open_store(path)["u"].log_probs("ctc")).all()


def test_k_above_v_is_refused_before_anything_is_made(path):
    with pytest.raises(UsageError, match="topk:6 of 5"):
        opened(path, {"ctc": "topk:6"})
    assert not path.exists()


@pytest.mark.parametrize("name", ["store", "", "a/b", "../a", ".a", "a b", "x" * 101, "a\n"])
def test_names_a_writer_cannot_have(path, name):
    with pytest.raises(UsageError, match="name a writer"):
        opened(path, writer=name)


@pytest.mark.parametrize("storage", ["zarr", "webdataset"])
def test_an_exception_in_the_loop_seals_the_whole_records(path, storage):
    with (
        pytest.raises(RuntimeError, match="loop") as caught,
        opened(path, storage=storage, shard_size="2") as w,
    ):
        for i in range(5):
            w.add(f"u{i}", ctc=logits(2))
        raise RuntimeError("my own loop")
    assert "1 utterances of the open shard were sealed" in caught.value.__notes__[0]
    s = open_store(path)
    assert list(s) == ["u0", "u1", "u2", "u3", "u4"]
    assert not any("partial" in f for f in files(path))
    with opened(path, storage=storage) as w:
        assert [f"u{i}" in w for i in range(6)] == [True] * 5 + [False]
        w.add("u5", ctc=logits(2))
    assert len(open_store(path)) == 6


def test_flush_seals_a_short_shard(path):
    with opened(path) as w:
        w.add("a", ctc=logits(2))
        assert w.flush() == 1
        assert list(open_store(path)) == ["a"]
        assert w.flush() == 0
        w.add("b", ctc=logits(2))
    assert list(open_store(path)) == ["a", "b"]
    assert len(open_store(path).shards) == 2


def test_an_exception_before_anything_was_added_leaves_an_empty_store(path):
    with pytest.raises(RuntimeError, match="loop"), opened(path):
        raise RuntimeError("my own loop")
    assert len(open_store(path)) == 0
    assert list(open_store(path)) == []


@pytest.mark.parametrize("step", ["finish", "publish", "write", "after"])
def test_a_crash_at_any_step_of_sealing_loses_only_that_shard(path, step, monkeypatch):
    """SPEC C5: end the process at each step of C3, read the store, and resume with a writer."""
    fill(path, "old")
    script = textwrap.dedent("""
        import os, sys
        import numpy as np
        from logitstore import StoreWriter, TokenTable
        from logitstore.storage.places.local import LocalPlace
        from logitstore.storage.backends import _zarr_write
        path, step = sys.argv[1:]
        die = lambda *a, **k: os._exit(9)
        table = TokenTable(("<blk>", "a", "b", "c", "d"), 0)
        w = StoreWriter.open(path, tokens=table, streams={"ctc": "dense"})
        w.add("new", ctc=np.eye(3, 5, dtype=np.float32))
        if step == "finish":
            _zarr_write.ZarrShardWriter.finish = die
        elif step == "publish":
            LocalPlace.publish = die
        elif step == "write":
            LocalPlace.write = die
        else:
            import logitstore.store.writer
            logitstore.store.writer.finish_store = die
        w.close()
    """)
    assert subprocess.run([sys.executable, "-c", script, str(path), step]).returncode == 9
    expected = ["old", "new"] if step == "after" else ["old"]
    s = open_store(path)
    assert list(s) == expected
    assert [s[i].T for i in s] == [3] * len(expected)
    with opened(path) as w:
        assert ("new" in w) == (step == "after")
        if "new" not in w:
            w.add("new", ctc=logits(3))
    s = open_store(path)
    assert list(s) == ["old", "new"]
    assert s["new"].T == 3
    assert not (path / "partial").exists()
    found = {f for n in s.shards for f in (x.path for x in read_entry(s.place, n).contents.files)}
    assert found == {f for f in files(path) if f.startswith("shards/")}


def test_resuming_adds_what_is_missing(path):
    fill(path, "a", "b")
    fill(path, "c", "d")
    assert list(open_store(path)) == ["a", "b", "c", "d"]
    with opened(path) as w, pytest.raises(ManifestError, match="already"):
        w.add("c", ctc=logits(3))


def test_jobs_side_by_side_make_one_store(path):
    with opened(path, writer="job-0") as one, opened(path, writer="job-1") as two:
        one.add("a", ctc=logits(2))
        two.add("b", ctc=logits(2))
    assert sorted(open_store(path)) == ["a", "b"]


def test_two_writers_of_one_name_are_refused(path):
    with opened(path) as w:
        with pytest.raises(StoreBusy):
            opened(path)
        w.add("a", ctc=logits(2))
    assert list(open_store(path)) == ["a"]


def test_a_store_made_with_other_settings_is_refused(path):
    with opened(path, teacher=TEACHER) as w:
        w.add("a", ctc=logits(2))
    other = replace(TEACHER, name="somebody else", features={"dither": 1})
    with pytest.raises(IdentityError) as caught:
        opened(path, teacher=other)
    table = str(caught.value)
    assert "teacher.name" in table
    assert '"t"' in table
    assert '"somebody else"' in table
    assert "teacher.features.dither" in table
    columns = next(line for line in table.splitlines() if "store " in line and line.endswith("now"))
    row = next(line for line in table.splitlines() if "teacher.name" in line)
    assert columns.index("store") == row.index('"t"')
    for change in ({"streams": {"ctc": "topk:2"}}, {"streams": BOTH}, {"storage": "webdataset"}):
        with pytest.raises(IdentityError):
            opened(path, **{"teacher": TEACHER, **change})
    with pytest.raises(IdentityError, match=r"tokens\.sha256"):
        StoreWriter.open(
            path, tokens=TokenTable(("<blk>", "a", "b", "c", "e"), 0), streams=CTC, teacher=TEACHER
        )
    assert list(open_store(path)) == ["a"]
    with opened(path, teacher=TEACHER) as w:  # locks were dropped
        w.add("b", ctc=logits(2))


def begin(path, spec, *allowed):
    return StoreWriter(open_place(path), spec).begin(TABLE, allowed)


def test_an_allowed_difference_is_recorded_once(path):
    spec = make_spec(TEACHER, TABLE, CTC)
    with begin(path, spec) as w:
        w.add("a", ctc=logits(2))
    other = replace(spec, teacher=replace(TEACHER, weights="w2", name="n2"))
    with pytest.raises(IdentityError, match=r"teacher\.name"):
        begin(path, other, "teacher.weights")
    for _ in range(2):
        with begin(path, other, "teacher") as w:
            assert "a" in w
    allowed = open_store(path).spec.allowed
    assert sorted(a["field"] for a in allowed) == ["teacher.name", "teacher.weights"]
    assert {"field": "teacher.weights", "was": "", "now": "w2"} in allowed
    assert open_store(path).spec.teacher.name == "t"


@pytest.mark.parametrize(
    ("field", "streams", "storage"),
    [
        ("streams", "topk:2", "zarr"),
        ("streams[0].encoding", "topk:2", "zarr"),
        ("storage", "dense", "webdataset"),
        ("storage.name", "dense", "webdataset"),
    ],
)
def test_differences_that_change_the_meaning_of_bytes_are_never_allowed(path, field, streams, storage):
    fill(path, "a")
    spec = make_spec(TeacherSpec("unnamed", 16000, 640), TABLE, {"ctc": streams}, storage=storage)
    with pytest.raises(IdentityError):
        begin(path, spec, field)


def test_features_with_tuples_resume(path):
    teacher = replace(TEACHER, features={"window": (25, 10)})
    for i in "ab":
        with opened(path, teacher=teacher) as w:
            w.add(i, ctc=logits(2))
    assert len(open_store(path)) == 2


# ---- sealed entries and the index over them

ENTRY = Entry(
    "s", ("a", "b/’"), 1.25, 7, ShardContents([ShardFile("shards/s/x", 3, 9)], {"rows": 2}), ({"id": "c"},)
)


def test_entries_come_back(path):
    place = open_place(path)
    place.write("sealed/s.entry", ENTRY.to_bytes())
    place.write("sealed/.s.entry.77", b"half")  # what a crash leaves
    assert shard_names(place) == ["s"]
    assert read_entry(place, "s") == ENTRY
    assert ENTRY.bytes == 3


def test_every_changed_byte_of_an_entry_is_noticed(path):
    place = open_place(path)
    data = ENTRY.to_bytes()
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 7)
        (path / "sealed").mkdir(parents=True, exist_ok=True)
        (path / "sealed" / "s.entry").write_bytes(changed)
        with pytest.raises((FormatError, CorruptError)):
            assert read_entry(place, "s").ids


@pytest.mark.parametrize(
    "change",
    [
        {"shard": "other"},
        {"records": 3},
        {"records": 2.0},
        {"ids": {"bytes": 6, "crc32c": 0}},
        {"ids": None},
        {"identity": None},
        {"files": [{"path": "../x", "bytes": 1, "crc32c": 1}]},
        {"files": [{"path": "shards/../../x", "bytes": 1, "crc32c": 1}]},
        {"files": [{"path": "/etc/passwd", "bytes": 1, "crc32c": 1}]},
        {"files": [{"path": "shards/x", "bytes": -1, "crc32c": 1}]},
        {"files": [{"path": "shards/x"}]},
        {"layout": 3},
    ],
    ids=str,
)
def test_forged_entries_are_refused(path, change):
    place = open_place(path)
    place.write("sealed/s.entry", ENTRY.to_bytes())
    forge(path / "sealed" / "s.entry", lambda entry: entry.update(change))
    with pytest.raises((FormatError, CorruptError)):
        read_entry(place, "s", ENTRY.identity).ids[:1]


@pytest.mark.parametrize(
    "ids", [["a"], ["a", "b", "c"], ["a", "b\tc"], ["a", ""], ["a", "x" * 4097], ["a", "b\x85"]]
)
def test_forged_ids_are_refused(path, ids):
    place = open_place(path)
    place.write("sealed/s.entry", ENTRY.to_bytes())
    forge(path / "sealed" / "s.entry", lambda entry: None, ids)
    with pytest.raises(FormatError):
        list(read_entry(place, "s").ids)


def test_a_shard_dumped_again_under_its_old_name_is_found(path):
    fill(path, "a", "b")
    (name,) = open_store(path).shards
    (path / "sealed" / f"{name}.entry").unlink()
    remove_index(path)
    fill(path, "c", "b", "a")
    s = open_store(path)
    assert s.shards == (name,)
    assert sorted(s) == ["a", "b", "c"]
    assert [s[i].id for i in "abc"] == list("abc")


@pytest.mark.parametrize("at", [0, 20, 60, 70, 100, -3])
def test_a_damaged_index_is_made_anew(path, at):
    fill(path, "a", "b")
    (run,) = (path / "index").iterdir()
    good = run.read_bytes()
    bad = bytearray(good)
    bad[at] ^= 4
    run.write_bytes(bad)
    finish_store(open_place(path))
    assert [p.read_bytes() for p in (path / "index").iterdir()] == [good]
    assert open_store(path)["b"].T == 3


def test_a_stale_index_is_not_used(path):
    fill(path, "a")
    (run,) = (path / "index").iterdir()
    old = run.read_bytes()
    fill(path, "b")
    remove_index(path)
    (path / "index").mkdir()
    run.write_bytes(old)
    assert sorted(open_store(path)) == ["a", "b"]
    remove_index(path)
    assert sorted(open_store(path)) == ["a", "b"]
    assert not (path / "index").exists()  # a reader writes nothing


def test_equal_records_give_equal_stores(tmp_path):
    for name in ("one", "two"):
        for storage in ("zarr", "webdataset"):
            fill(tmp_path / name / storage, "a", "b", storage=storage)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for f in files(tmp_path / "one"):
        assert (tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes(), f
