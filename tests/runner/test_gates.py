"""Checks before the first shard: a broken branch is refused with the reason, a good teacher never is."""

import pytest
import torch

from logitstore import open_store
from logitstore.errors import IdentityError, NonFinite, NotLogits, TeacherError
from logitstore.runner.checks import renumbered
from logitstore.storage.places import open_place
from logitstore.tokens.table import TokenTable
from tests.support import broken_teachers, demo
from tests.support.dumping import run

CTC = {"ctc": "topk:4"}


def refused(tmp_path, teacher, match, error=TeacherError, **options):
    with pytest.raises(error, match=match):
        run(tmp_path / "s", teacher=teacher, **options)
    assert not (tmp_path / "s" / "sealed").exists()


@pytest.mark.parametrize(
    ("name", "message", "error"),
    [
        ("constant", "the ctc branch is constant: all .* frames", TeacherError),
        ("one_word", "the ctc branch is constant: it writes '.*' for all", TeacherError),
        ("all_blank", "the ctc branch is all blank", TeacherError),
        ("uniform", "the ctc branch is uniform", NotLogits),
        ("nan", "the ctc branch gives NaN", NonFinite),
        ("deaf", "the rnnt branch is constant", TeacherError),
    ],
)
def test_a_broken_branch_is_refused_with_its_word(name, message, error, tmp_path):
    refused(tmp_path, getattr(broken_teachers, name)(), message, error)


@pytest.mark.parametrize("name", ["constant", "uniform", "all_blank", "deaf"])
def test_every_gate_can_be_skipped_for_a_reason_that_is_stored(name, tmp_path):
    done = run(tmp_path / "s", teacher=getattr(broken_teachers, name)(), limit=6, skip_checks="a test ’")
    gates = open_store(tmp_path / "s").spec.gates
    assert {g["reason"] for g in gates} == {"a test ’"}
    assert {"deaf": "constant", "all_blank": "all blank"}.get(name, name) in {g["gate"] for g in gates}
    assert any("skipped (a test ’)" in f for f in done.findings)


def test_a_skipped_gate_is_noted_once_whatever_the_number_of_runs(tmp_path):
    for limit in (6, 12):
        run(tmp_path / "s", teacher=broken_teachers.renumbered(), limit=limit, skip_checks="known")
    assert open_store(tmp_path / "s").spec.gates == ({"gate": "max-wer", "reason": "known"},)


def test_a_reason_alone_skips_nothing_of_a_good_teacher(tmp_path):
    run(tmp_path / "s", limit=6, skip_checks="just in case")
    assert open_store(tmp_path / "s").spec.gates == ()


def test_the_bar(tmp_path):
    refused(tmp_path, demo.teacher(), "more than 0.5 %", max_wer=0.5, batch_seconds=1000.0, shard_size="20")
    run(tmp_path / "t", teacher=broken_teachers.renumbered(), limit=6, max_wer=400.0)
    assert open_store(tmp_path / "t").spec.gates == ()


def test_upper_case_and_full_stops_alone_stop_nobody(tmp_path):
    done = run(tmp_path / "s", teacher=broken_teachers.shouts(), limit=6, streams=CTC)
    assert any("DON’T TURN OFF" in f for f in done.findings)
    assert done.done == 6


def test_references_in_upper_case_stop_nobody_either(tmp_path):
    lines = [{**x, "text": f"{x['text'].upper().replace('’', '')}!"} for x in demo.lines(6)]
    manifest = demo.read_manifest(demo.write_manifest(tmp_path / "m.jsonl", lines))
    assert run(tmp_path / "s", manifest=manifest, streams=CTC, max_wer=5.0).done == 6


def test_a_gate_waits_until_it_has_seen_enough(tmp_path):
    refused(tmp_path, broken_teachers.renumbered(), "word error rate", batch_seconds=0.0)


def test_without_references_only_what_needs_none_is_judged(tmp_path):
    lines = [{k: v for k, v in x.items() if k != "text"} for x in demo.lines(6)]
    manifest = demo.read_manifest(demo.write_manifest(tmp_path / "m.jsonl", lines))
    run(tmp_path / "good", teacher=broken_teachers.renumbered(), manifest=manifest, streams=CTC)
    refused(tmp_path, broken_teachers.all_blank(), "all blank", manifest=manifest, streams=CTC)
    refused(tmp_path, broken_teachers.one_word(), "constant", manifest=manifest, streams=CTC)


def test_recordings_of_silence_are_no_broken_teacher(tmp_path):
    lines = [{**x, "text": ""} for x in demo.lines(6)]
    manifest = demo.read_manifest(demo.write_manifest(tmp_path / "m.jsonl", lines))
    assert run(tmp_path / "s", teacher=broken_teachers.all_blank(), manifest=manifest, streams=CTC).done == 6


def test_one_utterance_of_nan_is_no_broken_teacher(tmp_path):
    with demo.poisoned("ctc_output.1", torch.nan):
        done = run(tmp_path / "s", limit=6, on_error="skip", batch_seconds=1000.0)
    assert (done.done, done.skipped) == (5, 1)


def test_tokens_that_spell_no_text_are_judged_by_their_ids(tmp_path):
    done = run(tmp_path / "s", teacher=broken_teachers.coded(), limit=6)
    assert done.done == 6
    assert open_store(tmp_path / "s").spec.gates == ()
    assert any("words wrong (100.0 %)" in f for f in done.findings)
    assert any(f.startswith("greedy ctc") and "tokens wrong" in f for f in done.findings)


def test_a_teacher_with_text_gives_the_transcripts_of_its_tokens(tmp_path):
    done = run(tmp_path / "s", teacher=broken_teachers.coded_with_text(), limit=6, max_wer=5.0)
    assert done.done == 6
    store = open_store(tmp_path / "s")
    found = store["demo-00"].meta["hyp"]["ctc"]
    assert found["text"].startswith("don’t turn")
    assert found["wer"] == 0.0
    with_labels = store["demo-00"].labels.tolist()
    assert store.tokens.text(with_labels).startswith("<c")


def test_an_error_of_text_names_the_utterance(tmp_path):
    teacher = broken_teachers.coded_with_text()
    teacher.text = lambda ids: b"bytes"
    refused(tmp_path, teacher, r"demo-\d\d: text\(\) gives bytes, not a text", limit=6)
    teacher.text = lambda ids: {}[0]
    refused(tmp_path, teacher, r"demo-\d\d: text\(\) failed with KeyError", limit=6)


def test_the_first_batch_is_shown_beside_its_references(tmp_path):
    found = run(tmp_path / "s", limit=6, batch_seconds=1000.0).findings
    at = found.index("demo-00")
    assert found[at + 1] == "  reference  don’t turn off the light before half past three"
    assert found[at + 2].startswith("  ctc        don’t turn")
    assert found[at + 3].startswith("  rnnt       don’t turn")
    assert any(f.startswith("greedy rnnt, 6 utterances:") and "tokens wrong" in f for f in found)


TABLE = TokenTable(("<blk>", *"abcdef"), 0)


def test_renumbering_is_only_said_where_one_numbering_explains_the_other():
    moved = {1: 4, 2: 5, 3: 6, 4: 1, 5: 2, 6: 3}
    texts = [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [1, 3, 5, 2, 4, 6]]
    assert "'a' (1) it gives 'd' (4)" in renumbered([(t, [moved[i] for i in t]) for t in texts], TABLE)
    assert not renumbered([(t, t) for t in texts], TABLE)
    assert not renumbered([(t, t[1:] + t[:1]) for t in texts], TABLE)
    assert not renumbered([(t, [1] * 6) for t in texts], TABLE)
    assert not renumbered([], TABLE)


def test_a_mended_teacher_goes_on_where_a_gate_stopped_it(tmp_path):
    """A refused dump sealed nothing, so its settings do not count; those of another live writer do."""
    refused(tmp_path, broken_teachers.constant(), "constant", limit=6)
    with open_place(tmp_path / "s").lock("job-1-of-2"), pytest.raises(IdentityError, match="weights"):
        run(tmp_path / "s", limit=6)
    assert run(tmp_path / "s", limit=6).done == 6
    with pytest.raises(IdentityError, match="weights"):
        run(tmp_path / "s", teacher=broken_teachers.constant())
