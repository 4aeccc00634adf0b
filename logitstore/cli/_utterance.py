"""One utterance in a terminal: texts, a posteriorgram in colour, and its rows, runs of certain blanks folded."""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ._terminal import printable, table

if TYPE_CHECKING:
    from ..schema.spec import StreamSpec
    from ..store.inspect import RowSummary, UtteranceStream, UtteranceSummary
    from ..store.reader import Store
    from ..targets.target import Target

LABEL = 11  # columns in front of texts
FOLDED = 0.99  # blank probability from which rows after each other are one line
NEGLIGIBLE = 5e-4  # probability below which a class is not named
CLASSES = 16  # classes of a posteriorgram
TOKEN = 10  # columns of a token beside a posteriorgram

Frames = tuple[int, int | None]


def in_colour() -> bool:
    """Return whether the output is a terminal that shows colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def lines_of(
    u: UtteranceSummary, store: Store, *, frames: Frames, unfolded: bool, colour: bool
) -> Iterator[str]:
    """Yield the lines that are printed of one utterance; none is wider than the terminal.

    Args:
        u: the utterance.
        store: its store.
        frames: first row that is shown of each stream, and the row after the last; None for the end.
        unfolded: True to give each certain blank a line of its own.
        colour: True for pictures in 256 colours.
    """
    width = shutil.get_terminal_size((100, 24)).columns
    yield from wrapped("utterance", u.id, width)
    seconds = "unknown length" if u.seconds is None else f"{u.seconds} s"
    yield from wrapped("length", f"T = {u.T} frames, U = {u.U} labels, {seconds}", width)
    yield from wrapped("reference", u.text if u.text is not None else "-", width)
    yield from wrapped("labels", " ".join(u.labels) or "-", width)
    target = store[u.id] if colour else None
    for spec in store.spec.streams:
        s = u.streams[spec.name]
        yield ""
        yield from wrapped(spec.name, f"{'×'.join(map(str, s.shape))} {s.encoding}", width)
        yield from _texts(u, s, width)
        if s.frames is None:
            continue
        if target is not None:
            yield from picture(target, store, spec, frames, width)
        yield ""
        yield from row_table(chosen(s.frames, frames), u.blank, width, unfolded=unfolded)


def wrapped(label: str, text: str, width: int) -> Iterator[str]:
    """Yield a text after its label, broken into lines that fit the terminal."""
    from rich.cells import chop_cells
    from rich.console import Console
    from rich.text import Text

    room = max(width - LABEL, 20)
    console = Console(width=room, file=io.StringIO())
    lines = [
        part
        for line in Text(printable(text)).wrap(console, room)
        for part in (chop_cells(line.plain.rstrip(), room) or [""])
    ]
    for number, line in enumerate(lines or [""]):
        yield f"{'' if number else label:<{LABEL}}{line}".rstrip()


def chosen(rows: Sequence[RowSummary], frames: Frames) -> list[RowSummary]:
    """Return the rows of some frames; of an attention decoder, of some label positions."""
    first, end = frames
    found = []
    for row in rows:
        place = row.t if row.t is not None else row.u
        if place is not None and place >= first and (end is None or place < end):
            found.append(row)
    return found


def _texts(u: UtteranceSummary, s: UtteranceStream, width: int) -> Iterator[str]:
    """Yield labels, decode, errors and transcript of one stream."""
    if s.labels is not None and s.labels != u.labels:
        yield from wrapped("labels", " ".join(s.labels), width)
    if s.text is not None:
        yield from wrapped("decoded", s.text, width)
    if s.decoded is not None:
        yield from wrapped("", " ".join(s.decoded), width)
    if s.errors is not None:
        yield f"           {s.errors} errors in {s.reference}"
    if s.transcript is not None and s.decoded is not None:
        yield from wrapped("transcript", str(s.transcript["text"]), width)
    if s.rms is not None:
        yield from wrapped("rms", " ".join(f"{x:.3g}" for x in s.rms), width)


def row_table(rows: Sequence[RowSummary], blank: str, width: int, *, unfolded: bool) -> list[str]:
    """Return the table of the best classes of every row; as many columns as fit into the terminal.

    Args:
        rows: the rows.
        blank: token of the blank.
        width: columns of the terminal.
        unfolded: True to give each certain blank a line of its own; else those after each other are one line.
    """
    lines: list[list[Any]] = []
    columns = max((sum(p >= NEGLIGIBLE for _, p in row.best) for row in rows), default=0)
    number = 0
    while number < len(rows):
        end = number + 1
        while not unfolded and end < len(rows) and all(_certain(r, blank) for r in rows[end - 1 : end + 1]):
            end += 1
        row = rows[number]
        place, best = _place(row), [_class(token, p) for token, p in row.best[:columns]]
        tail = row.tail
        if end > number + 1:
            run = rows[number:end]
            place = f"{place} – {_place(run[-1])}"
            best = [f"{printable(blank)} × {len(run)}"]
            tail = max(r.tail for r in run)
        lines.append([place, *best, *[""] * (columns - len(best)), f"{tail:.1e}"])
        number = end
    axes = [axis for axis in ("t", "u") if rows and getattr(rows[0], axis) is not None]
    return table([",".join(axes), *(f"best {i + 1}" for i in range(columns)), "rest"], lines, width)


def _certain(row: RowSummary, blank: str) -> bool:
    return bool(row.best) and row.best[0][0] == blank and row.best[0][1] >= FOLDED


def _place(row: RowSummary) -> str:
    return ",".join(str(axis) for axis in (row.t, row.u) if axis is not None)


def _class(token: str, probability: float) -> str:
    return f"{printable(token)} {probability:.3f}" if probability >= NEGLIGIBLE else "·"


def csv_lines(u: UtteranceSummary, frames: Frames) -> Iterator[str]:
    """Yield the rows of all streams as comma-separated values, one line each."""
    count = max((len(row.best) for s in u.streams.values() for row in s.frames or ()), default=0)
    head = ["stream", "t", "u", *(f"{name}{i + 1}" for i in range(count) for name in ("token", "p")), "rest"]
    yield _csv(head)
    for name, s in u.streams.items():
        for row in chosen(s.frames or [], frames):
            best = [cell for token, p in row.best for cell in (printable(token), f"{p:.6g}")]
            best += [""] * (2 * count - len(best))
            yield _csv([name, _or_empty(row.t), _or_empty(row.u), *best, f"{row.tail:.6g}"])


def _or_empty(value: int | None) -> str:
    return "" if value is None else str(value)


def _csv(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def picture(target: Target, store: Store, spec: StreamSpec, frames: Frames, width: int) -> Iterator[str]:
    """Yield the posteriorgram of a stream of frames: a line for each class in play, blank and time below."""
    import numpy as np

    from ..pictures.posteriors import classes_in_play
    from ..pictures.terminal import halves, pooled
    from ..report.measure import is_frames

    if not is_frames(spec):
        return
    probability = np.exp(target[spec.name].at(1.0).dense())[frames[0] : frames[1]]
    shown = classes_in_play(probability, spec.blank, CLASSES) if len(probability) else []
    if not shown:
        return
    room = max(width - TOKEN - 1, 10)
    values = np.sqrt(probability[:, [*shown, spec.blank]].T)
    if len(probability) <= room:  # a frame fills a character where all fit
        values = values.repeat(2, axis=1)
    values = pooled(values, 2 * room)
    yield ""
    tokens = [store.tokens.tokens[c] for c in [*shown, spec.blank]]
    for token, line in zip(tokens, halves(values, "probability"), strict=True):
        yield f"{_fitted(printable(token))} {line}"
    yield _scale(target, frames, len(probability), (values.shape[1] + 1) // 2)


def _fitted(text: str) -> str:
    """Return text at the right of the columns in front of a posteriorgram."""
    from rich.cells import cell_len, set_cell_size

    return set_cell_size(text, TOKEN) if cell_len(text) > TOKEN else " " * (TOKEN - cell_len(text)) + text


def _scale(target: Target, frames: Frames, count: int, columns: int) -> str:
    """Return the line with the times, or the frames where times are not known, below a posteriorgram."""
    shift = None if target.clock is None else float(target.clock.shift)
    marks = max(1, min(6, columns // 12))
    line = " " * (TOKEN + 1)
    for number in range(marks):
        frame = frames[0] + number * count // marks
        label = f"{frame}" if shift is None else f"{frame * shift:.2f} s"
        line = line.ljust(TOKEN + 1 + number * columns // marks) + label
    return line[: TOKEN + 1 + columns]
