"""The section of utterances that could not be dumped."""

from __future__ import annotations

from collections import Counter

from ...pictures.html import foreign, tag
from ..base import Report, Section, number

ORDER = 80
LISTED = 200


def draw(report: Report) -> Section | None:
    """Return the reasons with their counts, and the first utterances of the list."""
    if not report.alone:
        return None
    if not report.skipped:
        body = tag("p", "No utterance was skipped.")
        return Section("Skipped", body, "skipped")
    reasons = Counter(str(one.get("reason", "")) for one in report.skipped)
    counts = tag(
        "ul", [tag("li", f"{number(n)}: ", foreign(reason, 100)) for reason, n in reasons.most_common(20)]
    )
    titles = tag("thead", tag("tr", [tag("th", t, scope="col") for t in ("id", "reason", "message")]))
    lines = [
        tag(
            "tr",
            tag("th", foreign(str(one.get("id", "")), 80), scope="row"),
            tag("td", foreign(str(one.get("reason", "")), 60)),
            tag("td", foreign(str(one.get("what", "")), 300)),
        )
        for one in report.skipped[:LISTED]
    ]
    listed = tag("table", titles, tag("tbody", lines), class_="sortable")
    region = tag(
        "div", listed, class_="wide tall", tabindex="0", role="region", aria_label="Skipped utterances"
    )
    left_out = len(report.skipped) - LISTED
    rest = tag("p", f"{number(left_out)} more are in skipped.jsonl.") if left_out > 0 else None
    lead = f"{number(len(report.skipped))} utterances of the manifest are not in the store."
    return Section("Skipped", [counts, region, rest], "skipped", lead)
