"""Progress of a dump on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..dump.job import Progress
from ._tables import printable

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


def line(p: Progress, of: int) -> str:
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
    """Call it with every :class:`Progress`; use it as a context manager."""

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

    def __call__(self, progress: Progress) -> None:
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
