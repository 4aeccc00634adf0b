"""Reports in a real browser, from a file, with the network off."""

import re

import pytest

from logitstore.report.base import ReportOptions
from logitstore.report.run import report_store
from tests.report.conftest import BIDI
from tests.support.browser import opened

NAMELESS = """() => [...document.querySelectorAll("img, svg, audio, [role=img], [role=group], [role=region]")]
  .filter((e) => !e.closest("[aria-hidden=true]") && !e.closest("[role=img] svg"))
  .filter((e) => !(e.getAttribute("alt") || e.getAttribute("aria-label")))
  .map((e) => e.outerHTML.slice(0, 80))"""
OVERFLOW = "() => document.documentElement.scrollWidth - window.innerWidth"


def test_a_page_is_quiet_asks_no_host_and_names_every_picture(browser, page):
    assert page.stat().st_size < 1_000_000
    with opened(browser, page) as visit:
        assert visit.page.locator("article.utterance").count() == 20
        assert visit.page.evaluate(NAMELESS) == []
        loaded = "() => [...document.images].every((i) => i.complete && i.naturalWidth > 0)"
        assert visit.page.evaluate(loaded)
        assert visit.quiet, visit


def test_the_script_is_small_and_the_only_one(page):
    scripts = re.findall(r"<script>(.*?)</script>", page.read_text("utf-8"), re.DOTALL)
    assert len(scripts) == 1
    assert len(scripts[0].encode()) <= 10_000


def test_a_table_is_sorted_and_filtered(browser, page):
    with opened(browser, page) as visit:
        table = visit.page.locator("#utterances table.sortable")
        button = table.locator("thead button", has_text="frames")

        def column():
            return [int(cell) for cell in table.locator("tbody tr:visible td:nth-child(3)").all_inner_texts()]

        before = column()
        button.click()
        assert column() == sorted(before, reverse=True) != before
        button.press("Enter")  # by the keyboard, the other way round
        assert column() == sorted(before)
        assert table.locator("[aria-sort=ascending]").inner_text().strip().startswith("frames")
        visit.page.locator("#utterances input[type=search]").fill("demo-1")
        assert len(column()) == 10
        assert visit.quiet


def test_the_pointer_and_the_arrow_keys_show_a_frames_values(browser, page):
    with opened(browser, page) as visit:
        article = visit.page.locator("article.utterance").first
        plot = article.locator(".posteriors .plot").first
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        frames = int(article.locator(".scroll").get_attribute("data-frames"))
        visit.page.mouse.move(box["x"] + box["width"] * 10.5 / frames, box["y"] + 5)
        readout = article.locator("output")
        shown = readout.inner_text()
        assert re.match(r"frame (10|\d+–1\d)(?!\d)", shown)
        assert "entropy" in shown
        article.locator(".scroll").focus()
        visit.page.keyboard.press("End")
        last = readout.inner_text()
        assert str(frames - 1) in last
        visit.page.keyboard.press("Home")
        assert re.match(r"frame 0(?!\d)", readout.inner_text())
        assert visit.quiet


def test_links_of_the_worst_lead_to_the_pictures(browser, page):
    with opened(browser, page) as visit:
        link = visit.page.locator("#worst li a").first
        link.click()
        anchor = link.get_attribute("href").removeprefix("#")
        heading = visit.page.locator(f"#{anchor} h3")
        assert heading.inner_text().endswith(link.inner_text())
        visit.page.wait_for_function(
            "(e) => { const y = e.getBoundingClientRect().y; return y > -2 && y < innerHeight / 2 }",
            arg=heading.element_handle(),
        )


def test_a_page_reads_without_scripts(browser, page):
    with opened(browser, page, scripts=False) as visit:
        assert visit.page.locator("article.utterance img.heat").count() >= 60
        assert visit.page.locator("input, button").count() == 0  # nothing that would do nothing
        assert visit.page.locator("#utterance-1 details table tr").count() > 5


@pytest.mark.parametrize("width", [400, 1600])
def test_no_width_makes_the_page_scroll_sideways(browser, page, width):
    with opened(browser, page, width=width) as visit:
        assert visit.page.evaluate(OVERFLOW) <= 0
        tracks = visit.page.locator("#utterance-1 .track .plot")
        lefts = {round(tracks.nth(i).bounding_box()["x"], 1) for i in range(tracks.count())}
        widths = {round(tracks.nth(i).bounding_box()["width"], 1) for i in range(tracks.count())}
        assert len(lefts) == len(widths) == 1  # one time axis


def test_dark_mode_is_dark_and_legible(browser, page):
    contrast = """() => {
      const value = (colour) => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3)
          .map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
      };
      const paper = value(getComputedStyle(document.body).backgroundColor);
      const of = (e) => {
        const ink = value(getComputedStyle(e).color);
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
      };
      const texts = ["h1", "p.lead", "nav a", "dt", "td", "#worst a", ".gutter > span", ".wrong", ".right"];
      return [paper, Math.min(...texts.map((s) => document.querySelector(s)).filter(Boolean).map(of))];
    }"""
    for dark in (False, True):
        with opened(browser, page, dark=dark) as visit:
            paper, least = visit.page.evaluate(contrast)
            assert paper < 0.02 if dark else paper > 0.9
            assert least >= 4.5, dark
            inverted = visit.page.evaluate("() => getComputedStyle(document.querySelector('.heat')).filter")
            assert (inverted != "none") == dark


def test_a_page_prints_to_pdf_without_what_is_for_the_screen(browser, page):
    with opened(browser, page, dark=True) as visit:
        pdf = visit.page.pdf(format="A4", print_background=True)
        assert pdf.startswith(b"%PDF")
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 10
        visit.page.emulate_media(media="print", color_scheme="dark")
        assert not visit.page.locator("nav").is_visible()
        assert not visit.page.locator("audio").first.is_visible()
        assert visit.page.evaluate("() => getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert visit.page.evaluate("() => getComputedStyle(document.querySelector('.heat')).filter") == "none"


def test_a_hostile_store_executes_nothing(browser, hostile, tmp_path):
    store, manifest = hostile
    path = tmp_path / "hostile.html"
    options = ReportOptions(
        rate=(1, 2), manifest=manifest, command=("logitstore", "<script>alert(1)</script>")
    )
    path.write_text(report_store(store, options), "utf-8")
    assert not any(c in path.read_text("utf-8") for c in BIDI)
    with opened(browser, path) as visit:
        assert visit.page.locator("article.utterance").count() == 3
        assert visit.page.locator("script").count() == 1
        assert visit.page.locator("[onerror], [onload], img[src=x]").count() == 0
        assert "<script>" in visit.page.locator("article h3").first.inner_text()  # shown, not run
        visit.page.locator("#utterance-1 .scroll").focus()
        visit.page.keyboard.press("Home")  # the script reads tokens from the page
        visit.page.locator("thead button").first.click()
        assert visit.page.title() != "taken"
        assert visit.page.evaluate(OVERFLOW) <= 0
        assert visit.quiet, visit
