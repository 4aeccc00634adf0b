"""The section of utterances: all sampled ones as a table, the worst of them as pictures on one time axis."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import StoreError
from ...pictures.html import Content, Html, foreign, tag
from ..base import Report, Section, nats, percent
from ..utterance import drawn

ORDER = 40
LISTED = 300  # utterances of the table


def draw(report: Report) -> Section | None:
    """Return the table and the pictures."""
    if not report.alone or not report.shown:
        return None
    return Section("Utterances", [_table(report), list(pictures(report))], "utterances", lead(report))


def lead(report: Report) -> str:
    """Return the sentence that says which utterances are drawn."""
    if len(report.shown) >= report.summary.utterances:
        return "Every utterance, with what the teacher said and what the store keeps of it."
    return f"{len(report.shown)} utterances: the worst by each measure in turn, among {report.extent}."


def pictures(report: Report) -> Iterator[Html]:
    """Yield the pictures of every utterance that is shown; of one that cannot be read, the error."""
    for utt_id in report.shown:
        try:
            yield drawn(report, utt_id)
        except StoreError as error:
            heading = tag("h3", foreign(utt_id, 200))
            text = tag("p", foreign(str(error), 500), class_="warning")
            yield tag("article", heading, text, id=report.anchor(utt_id))


def _table(report: Report) -> Html:
    """Return the table of the sampled utterances."""
    head = ["id", "seconds", "frames", "tokens", "word error", "entropy", "nats lost", "off", "CTC ↔ RNN-T"]
    titles = [tag("th", title, scope="col", class_="n" if i else None) for i, title in enumerate(head)]
    listed = sorted(report.measured.utterances, key=lambda m: (not report.anchor(m.id), -(m.wer or 0)))
    lines = []
    for m in listed[:LISTED]:
        cells: list[tuple[float | None, Content]] = [
            (m.seconds, _or_dash(m.seconds, "{:.2f}")),
            (m.T, m.T),
            (m.tokens, m.tokens),
            (m.wer, "–" if m.wer is None else percent(m.wer)),
            (m.entropy, "–" if m.entropy is None else nats(m.entropy)),
            (m.lost, "–" if m.lost is None else nats(m.lost)),
            (m.off, _or_dash(m.off, "{:+.1f}").replace("-0.0", "+0.0")),
            (m.disagreement, "–" if m.disagreement is None else percent(m.disagreement)),
        ]
        row = [tag("td", text, class_="n", data_v=None if v is None else f"{v:.6g}") for v, text in cells]
        lines.append(tag("tr", tag("th", report.link(m.id), scope="row"), row))
    table = tag("table", tag("thead", tag("tr", titles)), tag("tbody", lines), class_="sortable")
    return tag("div", table, class_="wide tall", tabindex="0", role="region", aria_label="Sampled utterances")


def _or_dash(value: float | None, how: str) -> str:
    return "–" if value is None else how.format(value)
