"""A first SIGTERM or Ctrl-C ends a dump at the next batch; a second one at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

import click

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
