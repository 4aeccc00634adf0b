"""The section of distributions: entropy, blank, most probable class, tails, speaking rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...pictures.curve import short
from ...pictures.html import Content, Html, foreign, tag
from ..base import Report, Section, nats, percent
from ..measure import TAIL_LOW, Histogram, StreamDistributions
from ..rows import TEMPERATURES

ORDER = 30
WIDTH, HEIGHT, FOOT = 300.0, 96.0, 18.0  # units of a chart's viewBox


def draw(report: Report) -> Section | None:
    """Return the charts of every stream of classes, and the speaking rate."""
    if not report.alone or not report.measured.utterances:
        return None
    groups = [
        [tag("h3", foreign(name)), tag("div", _stream(one), class_="cards charts")]
        for name, one in report.measured.streams.items()
        if one.entropy.counts.any()
    ]
    groups.append([tag("h3", "speaking rate"), tag("div", _rates(report), class_="cards charts")])
    lead = f"Rows of {report.extent}; at most 1\u2009500 rows of each."
    return Section("Distributions", groups, "distributions", lead)


def _stream(one: StreamDistributions) -> Iterator[Html]:
    """Yield the charts of one stream."""
    top = one.entropy.high
    yield _histogram("Entropy", one.entropy, f"mean {nats(one.entropy.mean)} nats", ["0", f"{top:.1f} nats"])
    yield _histogram("Blank", one.blank, f"mean {percent(one.blank.mean)}", ["0", "1"])
    yield _histogram("Most probable class", one.top1, f"mean {percent(one.top1.mean)}", ["0", "1"])
    if any(h.counts[1:].any() for h in one.tails):
        yield _tails(one.tails)


def _histogram(title: str, h: Histogram, note: str, ends: Sequence[str]) -> Html:
    """Return the chart of one histogram; heights are square roots of counts, so that rare values are seen."""
    heights = np.sqrt(h.counts / max(int(h.counts.max()), 1))
    name = f"{title}: {note}; histogram from {ends[0]} to {ends[1]}"
    return _chart(title, note, name, [tag("path", d=_bars(heights), class_="area")], ends)


def _bars(heights: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    """Return the path of bars of heights from 0 to 1."""
    step = WIDTH / len(heights)
    return "".join(
        f"M{short(i * step)} {short(HEIGHT)}v{short(-HEIGHT * float(h))}h{short(step - 1)}V{short(HEIGHT)}z"
        for i, h in enumerate(heights)
        if h
    )


def _tails(tails: Sequence[Histogram]) -> Html:
    """Return the chart of the mass left out: for each temperature the share of rows above each mass."""
    lines: list[Content] = []
    for number, h in enumerate(tails):
        above = np.append(np.cumsum(h.counts[::-1])[::-1], 0) / max(int(h.counts.sum()), 1)
        step = WIDTH / len(h.counts)
        points = [f"{short(i * step)} {short(HEIGHT * (1 - float(y)))}" for i, y in enumerate(above)]
        lines.append(tag("path", d="M" + "L".join(points), class_=f"series s{number}"))
    key = [tag("span", f"τ = {t:g}", class_=f"s{i}") for i, t in enumerate(TEMPERATURES)]
    means = ", ".join(f"{t:g}: {_mass(h)}" for t, h in zip(TEMPERATURES, tails, strict=True))
    name = f"Share of rows with more mass left out than a value, by temperature; median mass {means}"
    ends = [f"1e{TAIL_LOW:g}", "1"]
    return _chart("Mass left out", tag("span", key, class_="key"), name, lines, ends)


def _mass(h: Histogram) -> str:
    """Return the median of a histogram of decadic logarithms."""
    middle = int(np.searchsorted(np.cumsum(h.counts), h.counts.sum() / 2))
    return f"{10 ** (h.low + (middle + 0.5) * (h.high - h.low) / len(h.counts)):.1e}"


def _rates(report: Report) -> Iterator[Html]:
    """Yield the chart of tokens a second against frames a second."""
    known = [(m.T / m.seconds, m.tokens / m.seconds) for m in report.measured.utterances if m.seconds]
    if not known:
        yield tag("p", "The lengths of the recordings are not known.")
        return
    frames, tokens = np.array(known).T
    low, high = float(frames.min()), float(frames.max())
    middle = (low + high) / 2
    low, high = min(low, middle * 0.95), max(high, middle * 1.05)
    top = float(tokens.max()) * 1.08 or 1.0
    points = [
        f"M{short(6 + (WIDTH - 12) * (x - low) / (high - low))} {short(HEIGHT * (1 - y / top))}h0"
        for x, y in zip(frames, tokens, strict=True)
    ]
    note = f"median {np.median(tokens):.1f} tokens and {np.median(frames):.1f} frames"
    name = f"Tokens a second against frames a second of {len(known)} utterances; {note}"
    dots = tag("path", d="".join(points), class_="dots")
    ends = [f"{low:.1f} frames/s", f"{high:.1f}"]
    yield _chart("Tokens a second", note, name, [dots], ends, top=f"{top:.0f}")


def _chart(
    title: str, note: Content, name: str, shapes: Sequence[Content], ends: Sequence[str], top: str = ""
) -> Html:
    """Return a chart with a caption and the ends of its axes."""
    box = f"0 -2 {WIDTH:g} {HEIGHT + 4:g}"
    axis = tag("path", d=f"M0 {HEIGHT:g}H{WIDTH:g}", class_="axis")
    picture = tag("svg", axis, shapes, viewBox=box, role="img", aria_label=name)
    scale = tag("div", [tag("span", end) for end in ends], class_="ends", aria_hidden="true")
    upper = tag("span", top, class_="upper", aria_hidden="true") if top else None
    caption = tag("figcaption", tag("b", title), " ", tag("span", note))
    return tag("figure", caption, tag("div", picture, upper, class_="chart"), scale)
