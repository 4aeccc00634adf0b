"""Repair, comparison with the teacher, diff and compact, on a dump of the demo."""

import json
import shutil

import pytest

from logitstore import open_store
from logitstore.cli import main
from logitstore.dump.against import against_teacher
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.errors import CorruptError, MissingUtterance, UsageError
from logitstore.storage.entries import read_entry
from logitstore.store.diff import diff_stores
from logitstore.store.rewrite import compact_store, repair_store
from logitstore.store.verify import verify_store
from tests.support import demo
from tests.support.sealed import remove_index


def run(out, limit=6, **options):
    given = {"streams": dict(demo.STREAMS), "shard_size": "2", "batch_seconds": 10.0, **options}
    return dump_logits(demo.teacher(), demo.manifest(limit), out, DumpOptions(**given))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "s"
    run(out)
    return out


@pytest.fixture
def store(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s")
    return tmp_path / "s"


def command(*args):
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in args])
    return e.value.code


def spoil(store, shard, row):
    """Flip a bit inside the bytes of one record."""
    path = store / "shards" / f"{shard}.zarr.zip"
    data = bytearray(path.read_bytes())
    opened = open_store(store)
    utt_id = opened.entry(shard).ids[row]
    at = bytes(data).find(opened.record(utt_id).arrays["ctc.logp"].tobytes())
    data[at + 5] ^= 16
    path.write_bytes(data)
    return utt_id


def test_repair_drops_the_record_and_a_dump_makes_just_that_again(store, capsys):
    utt_id = spoil(store, "000001", 1)
    with pytest.raises(CorruptError, match=rf"shard 000001 record 1 \('{utt_id}'\)"):
        open_store(store)[utt_id]
    assert command("verify", store) == 1
    assert utt_id in capsys.readouterr().out
    assert command("verify", store, "--repair") == 0
    out = capsys.readouterr().out
    assert f"dropped {utt_id}" in out
    assert "1 utterance dropped; the same dump makes them again" in out
    opened = open_store(store)
    assert utt_id not in opened
    assert len(opened) == 5
    assert command("verify", store) == 0
    again = run(store)
    assert (again.done, again.present) == (1, 5)
    assert not verify_store(store).findings


def test_repairing_a_good_store_changes_nothing(store):
    before = sorted((p, p.stat().st_mtime_ns) for p in (store / "shards").rglob("*") if p.is_file())
    done = repair_store(store)
    assert (done.findings, done.dropped, done.shards) == ([], [], [])
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (store / "shards").rglob("*") if p.is_file())


def test_a_shard_whose_entry_is_damaged_is_dropped(store):
    path = store / "sealed" / "000002.entry"
    path.write_bytes(path.read_bytes().replace(b"records", b"recordz"))
    remove_index(store)
    with pytest.warns(UserWarning, match=r"(?s)records of shard 000002 .*--repair"):
        opened = open_store(store)
    assert len(opened) == 4
    assert len([opened[line["id"]] for line in demo.lines(4)]) == 4
    with pytest.raises(MissingUtterance, match=r"entry cannot be read: sealed/000002\.entry"):
        opened[demo.lines(5)[4]["id"]]
    with pytest.raises(CorruptError, match="000002"):
        list(opened)
    assert repair_store(store).shards == ["000002"]
    assert len(open_store(store)) == 4
    assert run(store).done == 2
    assert not verify_store(store).findings


def test_against_teacher(store, capsys):
    args = ("verify", store, "--manifest", demo.MANIFEST, "--against-teacher", demo.FACTORY)
    assert command(*args, 2) == 0
    assert "ctc: 2 utterances again" in capsys.readouterr().out
    found = against_teacher(open_store(store), demo.teacher(), demo.manifest(), 3)
    assert [c.stream for c in found] == ["ctc", "rnnt"] * 3
    assert len({c.id for c in found}) == 3
    assert all(0 <= c.kl < 1e-5 for c in found)
    dense, pruned = ([c.lost for c in found if c.stream == s] for s in ("ctc", "rnnt"))
    assert max(dense) < 1e-5 < max(pruned)  # topk leaves something out, dense only rounds


def test_another_teacher_is_detected(store, capsys):
    with demo.poisoned("ctc_output.1", 40.0):
        found = against_teacher(open_store(store), demo.teacher(), demo.manifest(), 1)
    assert max(c.kl for c in found if c.stream == "ctc") > 0.01
    assert command("verify", store, "--against-teacher", demo.FACTORY, 1) == 2
    assert command("verify", store, "--manifest", demo.MANIFEST) == 2


def test_nothing_in_common_with_the_manifest(store, tmp_path):
    from logitstore.corpus.manifest import read_manifest

    other = demo.write_manifest(tmp_path / "m.jsonl", [{**demo.lines(1)[0], "id": "other"}])
    with pytest.raises(UsageError, match="no utterance"):
        against_teacher(open_store(store), demo.teacher(), read_manifest(other), 1)


def test_diff_of_equal_stores(store, whole, capsys):
    assert command("diff", store, whole) == 0
    assert "6 utterances compared: the same" in capsys.readouterr().out
    compact_store(store, "100")
    assert command("diff", store, whole) == 0


def test_diff_lists_all_differences(store, tmp_path, capsys):
    other = tmp_path / "other"
    run(other, limit=4, streams={"ctc": "topk:8", "rnnt": "topk:16"})
    assert command("diff", store, other, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert ["streams[0].encoding", "dense", "topk:8"] in found["fields"]
    assert (len(found["only_a"]), found["only_b"], found["compared"]) == (2, [], 4)
    assert len(found["differing"]) == 4
    assert found["largest"]["ctc"] > 0.01 > 1e-4 > found["largest"]["rnnt"]
    assert 0 < found["kl"]["ctc"] < 1
    assert command("diff", other, store) == 1
    out = capsys.readouterr().out
    assert "only in B" in out
    assert "they differ" in out
    assert not diff_stores(open_store(other), open_store(other)).fields


def test_compact_merges_neighbours_and_a_reader_may_stay_open(store, capsys):
    reader = open_store(store)
    ids = list(reader)
    rows = {i: reader.record(i) for i in ids}
    fresh = open_store(store)  # has opened no shard yet
    assert command("compact", store, "--shard-size", "4") == 0
    assert "2 shards merged, 6 utterances in 2 shards" in capsys.readouterr().out
    for s in (fresh, open_store(store)):
        assert list(s) == ids
        for i in ids:
            assert all((s.record(i).arrays[n] == a).all() for n, a in rows[i].arrays.items())
    assert all(i in reader for i in ids)
    assert compact_store(store, "4").merged == 0
    assert compact_store(store, "100").merged == 2
    assert list(open_store(store)) == ids
    assert not verify_store(store).findings
    assert run(store).done == 0
    assert not any(read_entry(open_store(store).place, n).replaces for n in open_store(store).shards)


def test_compact_keeps_what_was_skipped(tmp_path):
    lines = demo.lines(4)
    lines[1]["audio"] = "nowhere.wav"
    from logitstore.corpus.manifest import read_manifest

    manifest = read_manifest(demo.write_manifest(tmp_path / "m.jsonl", lines))
    options = DumpOptions({"ctc": "dense"}, shard_size="1", on_error="skip", batch_seconds=10.0)
    dump_logits(demo.teacher(), manifest, tmp_path / "s", options)
    before = (tmp_path / "s" / "skipped.jsonl").read_bytes()
    assert compact_store(tmp_path / "s", "100").merged == 4
    assert (tmp_path / "s" / "skipped.jsonl").read_bytes() == before
    assert len(open_store(tmp_path / "s")) == 3
