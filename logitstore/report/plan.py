"""The page of a plan: bytes against divergence at each temperature, the frontier marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..pictures.curve import short, staircase
from ..pictures.html import Content, Html, escape, foreign, tag
from .base import Section, nats
from .page import page

FLOOR = 1e-7  # nats below which a divergence counts as this
WIDTH, HEIGHT, LEFT = 460.0, 250.0, 34.0  # units of a chart's viewBox
CHARACTER = 5.7  # units of a character of a label


@dataclass(frozen=True)
class PlanPoint:
    """One encoding that a plan measured.

    Attributes:
        name: the encoding as a user writes it.
        bytes: bytes of the whole store.
        bytes_per_frame: bytes that it takes for a frame; the others are stored once.
        lost: mean loss of a row by temperature: nats, or for a layer's row the share of its squared length.
        accepted: whether its loss is accepted at every temperature.
        chosen: whether the plan recommends it.
    """

    name: str
    bytes: float
    bytes_per_frame: float
    lost: Mapping[float, float]
    accepted: bool
    chosen: bool


@dataclass(frozen=True)
class PlanStream:
    """The measurements of one stream.

    Attributes:
        name: name of the stream.
        budget: mean loss that a row may have.
        unit: unit of the loss.
        points: every encoding measured.
        why: the reason for the choice, in a sentence.
    """

    name: str
    budget: float
    unit: str
    points: tuple[PlanPoint, ...]
    why: str = ""

    def temperatures(self) -> list[float]:
        """Return the temperatures that were measured."""
        return sorted({t for point in self.points for t in point.lost})


def amount(count: float) -> str:
    """Return a number of bytes with a decimal unit and up to three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def frontier(points: Sequence[PlanPoint], temperature: float) -> list[PlanPoint]:
    """Return the encodings that no other beats in both bytes and loss, the smallest first."""
    found: list[PlanPoint] = []
    lost = {p.name: max(p.lost[temperature], FLOOR) for p in points}
    for point in sorted(points, key=lambda p: (p.bytes, lost[p.name])):
        if not found or lost[point.name] < lost[found[-1].name]:
            found.append(point)
    return found


def plan_page(teacher: str, streams: Sequence[PlanStream], command: str) -> str:
    """Return a plan as one HTML page.

    Args:
        teacher: name of the teacher.
        streams: the measurements of every stream.
        command: the dump command that the plan recommends.
    """
    sections = [
        Section(s.name, list(_stream(s)), f"stream-{number}", foreign(s.why, 400) if s.why else None)
        for number, s in enumerate(streams)
    ]
    sections.append(Section("Next", tag("pre", tag("code", foreign(command))), "next"))
    lead = (
        "Every encoding measured on a sample: the bytes of the store against what a row loses. The line joins "
        "those that no other beats in both; the dashed line is the budget; the large dot is recommended."
    )
    title = f"Plan for {teacher}"
    return page(escape(f"{title} · logitstore"), ["Plan for ", foreign(teacher, 80)], lead, sections)


def _stream(s: PlanStream) -> Iterable[Html]:
    """Yield the charts of a stream and its table."""
    yield tag("div", [_chart(s, t) for t in s.temperatures()], class_="cards plans")
    yield _table(s)


class _Axes:
    """Logarithmic axes of one stream: bytes of the store to the right, loss upwards."""

    def __init__(self, s: PlanStream) -> None:
        sizes = [math.log10(max(p.bytes, 1.0)) for p in s.points] or [0.0]
        losses = [math.log10(max(x, FLOOR)) for p in s.points for x in p.lost.values()]
        losses.append(math.log10(s.budget))
        self.left, self.right = min(sizes) - 0.06, max(sizes) + 0.06
        self.low, self.high = math.floor(min(losses)), math.ceil(max(losses) + 0.05)

    def x(self, size: float) -> float:
        """Return the place of a number of bytes."""
        share = (math.log10(max(size, 1.0)) - self.left) / (self.right - self.left)
        return LEFT + (WIDTH - LEFT - 4) * share

    def y(self, loss: float) -> float:
        """Return the place of a loss."""
        share = (math.log10(max(loss, FLOOR)) - self.low) / (self.high - self.low)
        return HEIGHT * (1 - share)

    def lines(self) -> Iterable[Html]:
        """Yield grid lines with their labels."""
        for power in range(self.low, self.high + 1):
            y = short(self.y(10.0**power))
            yield tag("path", d=f"M{short(LEFT)} {y}H{short(WIDTH)}", class_="axis")
            yield tag("text", f"1e{power}" if power else "1", x=short(LEFT - 5), y=y, class_="scale-y")
        steps = (1, 2, 5) if self.right - self.left > 0.4 else (1, 1.5, 2, 3, 4, 5, 6, 8)
        for size in (m * 10**e for e in range(2, 17) for m in steps):
            if self.left <= math.log10(size) <= self.right:
                yield tag(
                    "text", f"{amount(size)}", x=short(self.x(size)), y=short(HEIGHT + 15), class_="scale-x"
                )


def _chart(s: PlanStream, temperature: float) -> Html:
    """Return the chart of one temperature."""
    axes, best = _Axes(s), frontier(s.points, temperature)
    places = {p.name: (axes.x(p.bytes), axes.y(p.lost[temperature])) for p in s.points}
    budget = short(axes.y(s.budget))
    names = {p.name for p in best}
    dots = [
        tag(
            "circle",
            tag(
                "title",
                f"{p.name}: {amount(p.bytes)}, {nats(p.lost[temperature])} {s.unit}",
            ),
            cx=short(places[p.name][0]),
            cy=short(places[p.name][1]),
            r=5.5 if p.chosen else 3.2,
            class_="chosen" if p.chosen else "front" if p.name in names else "beaten",
        )
        for p in sorted(s.points, key=lambda p: (p.chosen, p.name in names))
    ]
    first = [p for p in s.points if p.chosen]
    labels = _labels([*first, *(p for p in best if not p.chosen)], places)
    listed = ", ".join(f"{p.name} {amount(p.bytes)} {nats(p.lost[temperature])}" for p in best)
    name = f"Bytes of the store against {s.unit} at temperature {temperature:g}; not beaten in both: {listed}"
    picture = tag(
        "svg",
        list(axes.lines()),
        tag("path", d=f"M{short(LEFT)} {budget}H{short(WIDTH)}", class_="budget"),
        tag("path", d=staircase([places[p.name] for p in best]), class_="line"),
        dots,
        labels,
        viewBox=f"0 -8 {WIDTH:g} {HEIGHT + 28:g}",
        role="img",
        aria_label=name,
    )
    note: Content = f"mean {s.unit} of a row against bytes of the store"
    title = f"τ = {temperature:g}" if len(s.temperatures()) > 1 else s.name
    return tag("figure", tag("figcaption", tag("b", title), note), picture)


def _labels(points: Sequence[PlanPoint], places: Mapping[str, tuple[float, float]]) -> list[Html]:
    """Return the names of points where they cover neither points nor each other; the first ones come first."""
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places.values()]
    found = []
    for point in points:
        x, y = places[point.name]
        width = CHARACTER * len(point.name)
        for dx, dy, end in ((8, -5, False), (8, 13, False), (-8, 13, True), (-8, -5, True), (6, -17, False)):
            left = x + dx - (width if end else 0)
            box = (left, y + dy - 9, left + width, y + dy + 2)
            inside = box[0] >= LEFT and box[2] <= WIDTH + 2 and box[1] >= -8 and box[3] <= HEIGHT
            free = all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in taken)
            if inside and free:
                taken.append(box)
                anchor = "end" if end else None
                label = tag("text", point.name, x=short(x + dx), y=short(y + dy), text_anchor=anchor)
                found.append(label)
                break
    return found


def _table(s: PlanStream) -> Html:
    """Return every encoding with its numbers."""
    temperatures = s.temperatures()
    head = ["encoding", "store", "bytes a frame", *(f"{s.unit} at τ = {t:g}" for t in temperatures), ""]
    last = len(head) - 1
    titles = [tag("th", t, scope="col", class_="n" if 0 < i < last else None) for i, t in enumerate(head)]
    lines = []
    for p in sorted(s.points, key=lambda p: p.bytes):
        cells = [
            (p.bytes, amount(p.bytes)),
            (p.bytes_per_frame, f"{p.bytes_per_frame:.1f}"),
            *((p.lost[t], nats(p.lost[t])) for t in temperatures),
        ]
        row = [tag("td", text, class_="n", data_v=f"{v:.6g}") for v, text in cells]
        verdict = "recommended" if p.chosen else "" if p.accepted else "loses too much"
        first = tag("th", tag("code", foreign(p.name)), scope="row")
        lines.append(tag("tr", first, row, tag("td", verdict, class_="quiet")))
    table = tag("table", tag("thead", tag("tr", titles)), tag("tbody", lines), class_="sortable")
    return tag(
        "div", table, class_="wide tall", tabindex="0", role="region", aria_label=f"Encodings of {s.name}"
    )
