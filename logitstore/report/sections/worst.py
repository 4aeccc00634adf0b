"""The section of the worst utterances, by five measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...pictures.html import Html, tag
from ..base import WORST, Report, Section, bar, nats, percent
from ..measure import Measured, worst

ORDER = 20


@dataclass(frozen=True)
class Measure:
    """A measure that utterances are ranked by.

    Attributes:
        title: heading of the list.
        about: meaning, in a clause.
        value: function that returns an utterance's value; None where it does not apply.
        shown: function that formats a value.
    """

    title: str
    about: str
    value: Callable[[Measured], float | None]
    shown: Callable[[float], str]


MEASURES = (
    Measure("Word error", "edits per reference word", lambda m: m.wer, percent),
    Measure("Loss of the encoding", "mean nats a row", lambda m: m.lost, nats),
    Measure("Mass left out", "mean tail of a row at τ = 1", lambda m: m.tail, nats),
    Measure("Entropy", "mean nats a row", lambda m: m.entropy, nats),
    Measure(
        "Length against audio",
        "frames by which T differs",
        lambda m: None if m.off is None else abs(m.off),
        lambda v: f"{v:.1f}",
    ),
    Measure("CTC against RNN-T", "edits per word", lambda m: m.disagreement, percent),
)


def measures(report: Report) -> list[Measure]:
    """Return the measures that apply; mass left out stands in where the dump measured no loss."""
    utterances = report.measured.utterances
    known = any(one.lost is not None for one in utterances)
    left_out = "Mass left out" if known else "Loss of the encoding"
    return [m for m in MEASURES if m.title != left_out]


def draw(report: Report) -> Section | None:
    """Return one list for each measure."""
    if not report.alone or not report.measured.utterances:
        return None
    lists = [_list(report, measure) for measure in measures(report)]
    most = min(WORST, report.summary.utterances)
    lead = f"The {most} largest values of each measure among {report.extent}. An id leads to its pictures."
    return Section("Worst utterances", tag("div", lists, class_="cards"), "worst", lead)


def _list(report: Report, measure: Measure) -> Html:
    """Return the list of one measure."""
    found = worst(report.measured.utterances, measure.value, WORST)
    heading = [tag("h3", measure.title), tag("p", measure.about, class_="quiet")]
    if not found:
        applies = any(measure.value(one) is not None for one in report.measured.utterances)
        text = "0 in every utterance." if applies else "Not known in this store."
        return tag("div", heading, tag("p", text), class_="card")
    return tag("div", heading, tag("ol", _lines(report, measure, found)), class_="card")


def _lines(report: Report, measure: Measure, found: list[tuple[Measured, float]]) -> Iterator[Html]:
    """Yield the lines of a list, each value over a bar."""
    largest = found[0][1]
    for one, value in found:
        yield tag("li", report.link(one.id), bar(measure.shown(value), value / largest))
