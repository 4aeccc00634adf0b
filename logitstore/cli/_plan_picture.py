"""A plan as pictures: the measurements of each stream for a page, and a plot for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._terminal import printable

if TYPE_CHECKING:
    from ..dump.plan.options import Plan
    from ..report.plan import PlanStream

ROWS = 14  # lines of a plot
AXIS = 7  # columns in front of a plot


def streams_of(plan: Plan) -> list[PlanStream]:
    """Return the measurements of every stream of a plan, with the plain storage backend."""
    from ..report.plan import PlanPoint, PlanStream

    plain = min((m.storage for m in plan.measured), key=len)
    found = []
    for stream, chosen in plan.choice.streams.items():
        criterion = plan.criteria[stream]
        here = [m for m in plan.measured if (m.stream, m.storage) == (stream, plain)]
        points = tuple(
            PlanPoint(
                m.encoding,
                m.bytes,
                m.bytes_per_frame,
                {t: mean for t, (mean, _, _) in m.kl.items()},
                m.meets(criterion),
                m.encoding == chosen.encoding,
            )
            for m in here
        )
        unit = "error" if chosen.of_layer else "KL"
        found.append(PlanStream(stream, criterion.budget, unit, points, plan.choice.why.get(stream, "")))
    return found


def plot(s: PlanStream, width: int) -> Iterator[str]:
    """Yield the lines of a plot, bytes of the store to the right and loss upwards, both logarithmic.

    A digit is the temperature at which an encoding that no other beats in both lies there; ``·`` is another
    encoding, ``-`` the budget. The recommended encoding has a line of ``|`` below it.

    Args:
        s: the measurements of one stream.
        width: columns of the terminal.
    """
    from ..report.plan import FLOOR, amount, frontier

    columns = max(width - AXIS - 1, 20)
    sizes = [math.log10(max(p.bytes, 1.0)) for p in s.points]
    losses = [math.log10(max(x, FLOOR)) for p in s.points for x in p.lost.values()] + [math.log10(s.budget)]
    left, right = min(sizes), max(max(sizes), min(sizes) + 0.1)
    low, high = math.floor(min(losses)), max(math.ceil(max(losses)), math.floor(min(losses)) + 1)

    def column(size: float) -> int:
        return round((math.log10(max(size, 1.0)) - left) / (right - left) * (columns - 1))

    def line(loss: float) -> int:
        return round((high - math.log10(max(loss, FLOOR))) / (high - low) * (ROWS - 1))

    grid = [[" "] * columns for _ in range(ROWS)]
    grid[line(s.budget)] = ["-"] * columns
    for point in s.points:
        if point.chosen:
            for row in grid[line(min(point.lost.values())) :]:
                row[column(point.bytes)] = "|"
    best = {t: frontier(s.points, t) for t in s.temperatures()}
    for point in s.points:
        for loss in point.lost.values():
            grid[line(loss)][column(point.bytes)] = "·"
    for t, points in best.items():
        for point in points:
            grid[line(point.lost[t])][column(point.bytes)] = f"{t:g}"[0]
    powers = {line(10.0**power): power for power in range(low, high + 1)}
    yield f"{s.unit} against bytes of the store; digits: temperatures of the frontier"
    for number, row in enumerate(grid):
        label = f"1e{powers[number]}" if number in powers else ""
        yield f"{label:>{AXIS - 1}} {''.join(row)}".rstrip()
    yield f"{'':<{AXIS}}{amount(10**left):<{columns - 8}}{amount(10**right):>8}"
    names = dict.fromkeys(p.name for points in best.values() for p in points)
    sized = sorted((p.bytes, printable(p.name)) for p in s.points if p.name in names)
    text = "frontier: " + ", ".join(f"{name} {amount(size)}" for size, name in sized)
    while text:
        cut = len(text) if len(text) <= width else text.rfind(" ", 0, width)
        cut = cut if cut > 0 else width
        yield text[:cut]
        text = text[cut:].strip()
