"""DumpProgress, signals and tables on a terminal."""

from __future__ import annotations

import signal
import sys
import time
import unicodedata
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..dump.options import DumpProgress

EVERY = 10.0  # seconds between plain lines


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def clock(seconds: float) -> str:
    """h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"


def line(p: DumpProgress, of: int) -> str:
    """One line that says where a dump stands; ``of`` utterances are this job's share."""
    speed = p.seconds / p.elapsed if p.elapsed > 0 else 0.0
    behind = p.done + p.skipped
    left = max(of - p.present - behind, 0)
    eta = clock(p.elapsed / behind * left) if behind else "-:--:--"
    skipped = f" ({p.skipped} skipped)" if p.skipped else ""
    return (
        f"{p.present + p.done}/{of} utterances{skipped}, {p.seconds / 3600:.3f} h, "
        f"{speed:.0f} × real time, {size(p.bytes)}, ETA {eta}"
    )


class Meter:
    """Call it with every :class:`DumpProgress`; use it as a context manager."""

    def __init__(self, share: int) -> None:
        self._share = share
        self._said = self._planned = 0
        self._last = time.monotonic()
        console = Console(stderr=True)
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True) if sys.stderr.isatty() else None
        )

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
        for taken in progress.planned[self._planned :]:
            self._print(f"auto: {printable(taken)}")
        self._planned = max(self._planned, len(progress.planned))
        for finding in progress.findings[self._said :]:
            self._print(f"self-check: {printable(finding)}")
        self._said = max(self._said, len(progress.findings))
        if self._live is not None:
            self._live.update(Text(line(progress, self._share), no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._print(line(progress, self._share))

    def _print(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(Text(text))
        else:
            click.echo(text, err=True)


NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal asked for the end; no error of anything given."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class Signals:
    """Notes signals while it is open; ``check`` raises ``Stopped`` where it is safe to stop."""

    def __init__(self) -> None:
        self._caught = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {n: signal.signal(n, self._note) for n in NUMBERS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise ``Stopped`` when a signal came."""
        if self._caught:
            raise Stopped(self._caught)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._caught:
            raise Stopped(number)
        self._caught = number
        name = signal.Signals(number).name
        click.echo(f"logitstore: {name}: stopping at the next batch; once more to stop at once", err=True)


def printable(text: str, keep: str = "") -> str:
    """Text with control, format and surrogate characters written as escapes: no terminal acts on them.

    ``keep`` holds characters that stay, e.g. a line feed.
    """
    return "".join(
        c if c in keep or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else ascii(c)[1:-1]
        for c in text
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int = 0) -> list[str]:
    """Aligned columns, two spaces apart; columns that do not fit into ``width`` cells are left out."""
    grid = [list(head), *map(list, rows)]
    widths = [max(cell_len(r[i]) if i < len(r) else 0 for r in grid) for i in range(len(head))]
    while width and len(widths) > 2 and sum(widths) + 2 * len(widths) > width:
        last = len(widths) - 2  # the final column stays
        del widths[last]
        for row in grid:
            del row[last]
    return ["  ".join(set_cell_size(c, w) for c, w in zip(r, widths, strict=True)).rstrip() for r in grid]
