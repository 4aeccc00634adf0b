"""A plan as a page and as a plot in a terminal."""

import pytest

from logitstore.cli import _plan_picture
from logitstore.dump.plan.options import PlanOptions
from logitstore.dump.plan.run import plan_encodings
from logitstore.report.plan import frontier, plan_page
from tests.support import demo
from tests.support.browser import opened


@pytest.fixture(scope="module")
def streams():
    options = PlanOptions(sample=2, storages=("zarr",), temperatures=(1.0, 4.0))
    return _plan_picture.streams_of(plan_encodings(demo.teacher(), demo.manifest(2), options))


def test_no_encoding_beats_one_of_the_frontier_and_one_beats_every_other(streams):
    for stream in streams:
        for temperature in stream.temperatures():
            best = frontier(stream.points, temperature)

            def beats(a, b, t=temperature):
                return a.bytes <= b.bytes and a.lost[t] < b.lost[t] and a.lost[t] > 1e-7

            assert 1 < len(best) < len(stream.points)
            assert not any(beats(p, b) for b in best for p in stream.points)
            others = [p for p in stream.points if p not in best]
            least = best[-1].lost[temperature]
            assert all(
                any(beats(b, p) for b in best) or min(p.lost[temperature], least) <= 1e-7 for p in others
            )


def test_a_plot_fits_the_terminal_and_marks_the_choice(streams):
    for stream in streams:
        lines = list(_plan_picture.plot(stream, 80))
        assert max(map(len, lines)) <= 80
        picture = "\n".join(lines[1:15])
        assert "1" in picture
        assert "4" in picture
        assert any("-" * 10 in line for line in lines)  # the budget
        chosen = next(p for p in stream.points if p.chosen)
        if chosen in frontier(stream.points, 4.0):
            assert chosen.name in " ".join(lines[-6:])


def test_a_plans_page_has_a_chart_for_each_temperature(browser, streams, tmp_path):
    path = tmp_path / "plan.html"
    path.write_text(plan_page("<script>alert(1)</script>", streams, "logitstore dump --out 'a b'"), "utf-8")
    for width in (400, 1600):
        with opened(browser, path, width=width) as visit:
            assert visit.page.locator("figure svg[role=img][aria-label]").count() == 4
            assert visit.page.locator("figure circle.chosen").count() == 4
            assert visit.page.locator("tbody tr").count() == sum(len(s.points) for s in streams)
            assert visit.page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
            assert "logitstore dump --out 'a b'" in visit.page.locator("#next").inner_text()
            assert visit.quiet
