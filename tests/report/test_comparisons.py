"""Reports of two stores, and of a student beside its targets."""

import numpy as np
import pytest

from logitstore import open_store
from logitstore.errors import UsageError
from logitstore.report.base import ReportOptions
from logitstore.report.compare import compare_stores, compare_student
from logitstore.report.run import report_comparison, report_student
from logitstore.report.student import StudentOutput, file_name, frame_stream, target_of
from logitstore.store.diff import diff_stores
from tests.support import dumping
from tests.support.browser import opened


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """Six of the demo's utterances with every class."""
    place = tmp_path_factory.mktemp("dense") / "dense"
    dumping.run(place, streams={"ctc": "dense"}, limit=6)
    return place


@pytest.fixture(scope="module")
def posteriors(dense, tmp_path_factory):
    """A student at half the rate: the targets of the teacher, three of five of each frame's logits kept."""
    folder, store = tmp_path_factory.mktemp("posteriors"), open_store(dense)
    for utt_id in list(store)[:4]:
        logp = target_of(store[utt_id], "ctc", -(-store[utt_id].T // 2)) * 0.6
        logp -= np.logaddexp.reduce(logp, axis=1, keepdims=True)
        np.save(folder / f"{file_name(utt_id)}.npy", logp.astype(np.float16))
    return folder


def test_the_divergence_of_two_stores_is_that_of_diff(dense, store):
    compared = compare_stores(open_store(dense), open_store(store), list(open_store(dense)))
    rows = {u: open_store(dense)[u].T for u in open_store(dense)}
    mean = sum(one.kl["ctc"] * rows[one.id] for one in compared) / sum(rows.values())
    assert mean == pytest.approx(diff_stores(dense, store).kl["ctc"], rel=1e-3)
    assert 0 < mean < 1e-3  # the budget of the encoding
    assert [one.worst for one in compared] == sorted((one.worst for one in compared), reverse=True)


def test_a_page_compares_two_stores(browser, dense, store, tmp_path):
    path = tmp_path / "two.html"
    path.write_text(report_comparison(store, dense, ReportOptions(utterances=3)), "utf-8")
    with opened(browser, path, width=400) as visit:
        text = visit.page.locator("#comparison").inner_text()
        assert "14 utterances are only in A" in text
        assert "nucleus" in text  # in the field that differs
        assert visit.page.locator("article.utterance").count() == 3
        first = visit.page.locator("#utterance-1")
        assert first.locator(".posteriors").count() == 2
        assert first.locator(".loss").count() == 1
        first.locator(".scroll").focus()
        visit.page.keyboard.press("Home")
        assert "KL of ctc" in first.locator("output").inner_text()
        assert visit.quiet


def test_a_students_divergence_is_zero_on_its_own_targets_and_counts_otherwise(dense, posteriors, tmp_path):
    store = open_store(dense)
    first = next(iter(store))
    exact = target_of(store[first], "ctc", -(-store[first].T // 2))
    np.savez(tmp_path / "exact.npz", **{file_name(first): exact})
    [same] = compare_student(store, StudentOutput(tmp_path / "exact.npz"), [first])
    assert same.kl["ctc"] == pytest.approx(0, abs=1e-6)
    assert same.edits == 0
    others = compare_student(store, StudentOutput(posteriors), list(StudentOutput(posteriors).ids(store)))
    assert len(others) == 4
    assert min(one.kl["ctc"] for one in others) > 1e-3


def test_a_page_shows_a_student_beside_its_targets(browser, dense, posteriors, tmp_path):
    path = tmp_path / "student.html"
    path.write_text(report_student(dense, posteriors), "utf-8")
    with opened(browser, path) as visit:
        assert visit.page.locator("article.utterance").count() == 4
        assert visit.page.locator("#utterance-1 .posteriors").count() == 2
        assert "student frames for" in visit.page.locator("#utterance-1").inner_text()
        assert visit.quiet


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 3), np.float32), "not floating-point"),
        (np.zeros((4, 150), np.int32), "not floating-point"),
        (np.zeros((4, 150), np.float32), "no log-probabilities"),
        (np.full((4, 150), np.nan, np.float32), "no log-probabilities"),
        (np.array([None]), "cannot be read"),  # a pickle
    ],
)
def test_what_is_no_students_output_is_refused(dense, tmp_path, array, message):
    utt_id = next(iter(open_store(dense)))
    np.save(tmp_path / f"{file_name(utt_id)}.npy", array, allow_pickle=True)
    with pytest.raises(UsageError, match=message):
        report_student(dense, tmp_path)


def test_a_folder_without_any_of_the_ids_is_refused(dense, tmp_path):
    with pytest.raises(UsageError, match="no file is named by an id"):
        report_student(dense, tmp_path)
    with pytest.raises(UsageError, match="neither a folder"):
        report_student(dense, tmp_path / "nothing")


def test_an_id_with_slashes_is_one_file_name():
    assert file_name("a/b c~é.1") == "a%2Fb%20c~%C3%A9.1"


def test_a_store_without_a_ctc_stream_has_no_student(tmp_path):
    dumping.run(tmp_path / "rnnt", streams={"rnnt": "topk:4"}, limit=1)
    with pytest.raises(UsageError, match="no ctc stream"):
        frame_stream(open_store(tmp_path / "rnnt"))
