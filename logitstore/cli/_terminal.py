"""Terminal output: safe text and JSON, tables, amounts, the progress of a dump; signals that stop a dump."""

from __future__ import annotations

import json
import signal
import sys
import time
import unicodedata
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from ..pictures.amounts import size

if TYPE_CHECKING:
    from ..dump.options import DumpProgress

# --- Text -----------------------------------------------------------------------------------------------

UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories that a terminal may act upon


def printable(text: str, keep: str = "") -> str:
    """Return text with control, format and surrogate characters as escapes, so that no terminal acts on them.

    Args:
        text: any text, such as an id or a token.
        keep: characters that stay as they are, e.g. a line feed.
    """
    return "".join(c if c in keep or unicodedata.category(c) not in UNSAFE else ascii(c)[1:-1] for c in text)


def json_text(value: Any, *, indent: int | None = 1) -> str:
    """Return JSON in which control, format and surrogate characters are escaped, and others are not.

    Args:
        value: anything that ``json.dumps`` takes.
        indent: spaces of a level; None for one line.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in UNSAFE else json.dumps(c)[1:-1] for c in text
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int = 0) -> list[str]:
    """Return the lines of a table with aligned columns, two spaces apart.

    Args:
        head: titles of the columns.
        rows: cells of each line; a line may be shorter than the head.
        width: terminal columns that the table must fit into; columns before the last are left out until it
            does. 0 for no limit.
    """
    from rich.cells import cell_len, set_cell_size

    grid = [list(head), *map(list, rows)]
    widths = [max(cell_len(row[i]) if i < len(row) else 0 for row in grid) for i in range(len(head))]
    while width and len(widths) > 2 and sum(widths) + 2 * len(widths) > width:
        left_out = len(widths) - 2
        del widths[left_out]
        for row in grid:
            del row[left_out]
    return [
        "  ".join(set_cell_size(cell, w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in grid
    ]


# --- Amounts --------------------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    """Return seconds as ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


# --- Progress -------------------------------------------------------------------------------------------

EVERY = 10.0  # seconds between progress lines where there is no terminal


def progress_line(progress: DumpProgress, share: int) -> str:
    """Return one line about a dump: utterances, audio, speed, bytes and time left.

    Args:
        progress: counts of the dump.
        share: number of utterances that this job has to dump, with those that are there already.
    """
    speed = progress.seconds / progress.elapsed if progress.elapsed > 0 else 0.0
    finished = progress.done + progress.skipped
    left = max(share - progress.present - finished, 0)
    time_left = clock(progress.elapsed / finished * left) if finished else "-:--:--"
    skipped = f" ({progress.skipped} skipped)" if progress.skipped else ""
    return (
        f"{progress.present + progress.done}/{share} utterances{skipped}, {progress.seconds / 3600:.3f} h, "
        f"{speed:.0f} × real time, {size(progress.bytes)}, ETA {time_left}"
    )


class ProgressMeter:
    """Progress of a dump on stderr: a live line on a terminal, elsewhere a line now and then.

    Use it as a context manager, and call it with every ``DumpProgress``. Findings and choices of the dump are
    printed once each.

    Args:
        share: number of utterances that this job has to dump.
    """

    def __init__(self, share: int) -> None:
        self._share = share
        self._findings = self._planned = 0  # how many of each were printed
        self._last = time.monotonic()
        self._live: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: DumpProgress) -> None:
        for choice in progress.planned[self._planned :]:
            self._print(f"auto: {printable(choice)}")
        self._planned = max(self._planned, len(progress.planned))
        for finding in progress.findings[self._findings :]:
            self._print(f"self-check: {printable(finding)}")
        self._findings = max(self._findings, len(progress.findings))
        line = progress_line(progress, self._share)
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._print(line)

    def _print(self, text: str) -> None:
        """Print a line that stays, above the live line where there is one."""
        if self._live is not None:
            from rich.text import Text

            self._live.console.print(Text(text))
        else:
            click.echo(text, err=True)


# --- Signals --------------------------------------------------------------------------------------------

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedBySignal(BaseException):
    """The end of a command that a signal asked for; nothing that was given is wrong.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class StopSignals:
    """SIGINT and SIGTERM, noted while this context manager is open.

    The first signal is noted, and ``check`` raises :class:`StoppedBySignal` where it is safe to stop. A
    second signal raises at once, unless it is the same one within a second: cluster schedulers send a signal to
    a job's shell and to its processes, so that it arrives twice.
    """

    def __init__(self) -> None:
        self._noted = 0
        self._when = 0.0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise ``StoppedBySignal`` if a signal came."""
        if self._noted:
            raise StoppedBySignal(self._noted)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self._noted and time.monotonic() - self._when < 1:
            return
        if self._noted:
            raise StoppedBySignal(number)
        self._noted, self._when = number, time.monotonic()
        name = signal.Signals(number).name
        click.echo(f"logitstore: {name}: stopping at the next batch; send it again to stop at once", err=True)
