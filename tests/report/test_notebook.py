"""Stores, targets and batches in a notebook, and figures of targets."""

import io
import re

import pytest

from logitstore import open_store
from logitstore.errors import UsageError
from tests.report.conftest import BIDI
from tests.support import dumping
from tests.support.browser import opened


def test_a_store_a_target_and_a_batch_have_html(store):
    opened_store = open_store(store)
    assert "20 utterances by <bdi>demo</bdi>" in opened_store._repr_html_()
    assert "topk:16" in opened_store._repr_html_()
    target = opened_store["demo-00"]._repr_html_()
    assert "76 × 150" in target
    assert target.count("<img") == 1  # the frames; a lattice has no posteriorgram
    batch = opened_store.batch(["demo-00", "demo-01"], streams=["ctc"])._repr_html_()
    assert "2 utterances at temperature 1: <bdi>demo-00</bdi>, <bdi>demo-01</bdi>" in batch
    assert "Valid frames of each utterance: 76, 37" in batch


def test_the_html_of_hostile_names_is_harmless(browser, hostile, tmp_path):
    store, _ = hostile
    first = next(iter(store))
    pieces = [store, store[first], store.batch([first], streams=["ctc"])]
    text = "".join(piece._repr_html_() for piece in pieces)
    assert not any(c in text for c in BIDI)
    path = tmp_path / "notebook.html"
    path.write_text(f"<meta charset=utf-8>{text}", "utf-8")
    with opened(browser, path) as visit:
        assert visit.page.locator("script").count() == 0
        assert visit.quiet, visit


def test_a_figure_has_a_panel_for_each_stream_and_the_tokens_in_play(store):
    pytest.importorskip("matplotlib")
    opened_store = open_store(store)
    figure = opened_store["demo-00"].plot(tokens=opened_store.tokens.tokens)
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == ["ctc, τ = 1", "rnnt, τ = 1"]
    labels = [label.get_text() for label in panels[0].get_yticklabels()]
    assert {"▁don’t", "▁turn", "▁three"} <= set(labels)
    assert panels[0].get_xlim()[1] == pytest.approx(76 * 0.04)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")


def test_a_figure_of_a_whole_lattice_shows_blanks(tmp_path):
    pytest.importorskip("matplotlib")
    dumping.run(tmp_path / "s", limit=1, streams={"rnnt": "topk:8"})
    target = open_store(tmp_path / "s")["demo-00"]
    image = target.plot(["rnnt"], temperature=2.0).axes[0].images[0].get_array()
    assert image.shape == (target.U + 1, target.T)
    assert re.match(r"\d+$", target.plot().axes[0].get_yticklabels()[1].get_text())
    with pytest.raises(UsageError, match="streams of classes"):
        target.plot(["ctc"])
