"""Finished work survives errors and signals; a changed manifest resumes."""

import pytest

from logitstore import open_store
from logitstore.corpus.manifest import read_manifest
from logitstore.errors import TeacherError
from logitstore.store.verify import verify_store
from tests.support import demo
from tests.support.dumping import run, same_records

# ---- point 9: work lost


class Preempted(BaseException):
    """The end of a process by its scheduler."""


def test_a_dump_stopped_in_every_shard_makes_progress(tmp_path):
    before = 0

    def report(progress):
        if progress.done > 1 or progress.present == 20:
            raise Preempted

    for _ in range(20):
        with pytest.raises(Preempted) as caught:
            dump(tmp_path / "s", report)
        now = len(open_store(tmp_path / "s"))
        assert now > before
        before = now
        if now == 20:
            break
        assert "utterances of the open shard were sealed" in caught.value.__notes__[0]
    run(tmp_path / "whole", batch_seconds=0.0)
    assert same_records(tmp_path / "s", tmp_path / "whole")
    assert not verify_store(tmp_path / "s").findings


def dump(out, report):
    from logitstore import DumpOptions, dump_logits

    options = DumpOptions(streams=dict(demo.STREAMS), shard_size="20", batch_seconds=0.0)
    return dump_logits(demo.teacher(), demo.manifest(), out, options, report=report)


def test_an_error_keeps_the_records_before_it_and_says_how_many(tmp_path):
    calls = []

    def forward(teacher, *args):
        calls.append(1)
        if len(calls) == 15:
            raise RuntimeError("no memory")
        return teacher.forward(*args)

    with pytest.raises(RuntimeError, match="no memory") as caught:
        run(
            tmp_path / "s",
            teacher=demo.Spoiled(forward=forward),
            shard_size="20",
            batch_seconds=0.0,
            streams={"ctc": "dense"},
        )
    kept = len(open_store(tmp_path / "s"))
    assert kept >= 1
    assert f"{kept} utterances of the open shard were sealed" in caught.value.__notes__[0]
    assert not verify_store(tmp_path / "s").findings


def test_records_of_a_refused_teacher_are_not_kept(tmp_path):
    lines = [{**line, "text": "no such words at all"} for line in demo.lines()]
    manifest = read_manifest(demo.write_manifest(tmp_path / "m.jsonl", lines))
    with pytest.raises(TeacherError, match="word"):
        run(tmp_path / "s", manifest=manifest, shard_size="20", batch_seconds=0.0)
    assert len(open_store(tmp_path / "s")) == 0


# ---- point 10: a manifest that lost or gained lines


def test_a_manifest_that_gained_and_lost_lines_resumes_and_is_noted(tmp_path):
    lines = demo.lines()
    first = read_manifest(demo.write_manifest(tmp_path / "first.jsonl", lines[:8]))
    second = read_manifest(demo.write_manifest(tmp_path / "second.jsonl", lines[2:]))
    run(tmp_path / "s", manifest=first)
    done = run(tmp_path / "s", manifest=second)
    assert (done.done, done.present) == (12, 6)
    (finding,) = [f for f in done.findings if "manifest has changed" in f]
    assert first.sha256 in finding
    assert second.sha256 in finding
    assert "18 utterances, the store 8 records" in finding
    store = open_store(tmp_path / "s")
    assert len(store) == 20
    note = {"field": "manifest.sha256", "was": first.sha256, "now": second.sha256}
    assert note in store.spec.allowed
    assert not run(tmp_path / "s", manifest=second).done
    assert list(open_store(tmp_path / "s").spec.allowed).count(note) == 1
