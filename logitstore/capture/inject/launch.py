"""Runs a user's command with logitstore injected into its Python processes, and leaves it alone otherwise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...errors import UsageError

STARTUP = Path(__file__).parent / "startup"
JOB = "LOGITSTORE_JOB"
POLL = 0.1  # seconds


class Session:
    """A folder for one run: the job, and what each process reports of itself."""

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self.folder = folder
        self._job = folder / "job.json"
        (folder / "reports").mkdir()
        self._job.write_text(json.dumps(dict(job), ensure_ascii=False), "utf-8")

    def environment(self) -> dict[str, str]:
        """The caller's environment with the start-up hook in it."""
        before = os.environ.get("PYTHONPATH")
        path = f"{STARTUP}{os.pathsep}{before}" if before else str(STARTUP)
        return {**os.environ, "PYTHONPATH": path, JOB: str(self._job)}

    def reports(self) -> list[dict[str, Any]]:
        """What each process said last, in the order they began."""
        found = []
        for path in (self.folder / "reports").glob("*.json"):
            with suppress(ValueError, OSError):
                found.append(json.loads(path.read_text("utf-8")))
        return sorted(found, key=lambda r: float(r.get("began", 0)))


@contextmanager
def session(job: Mapping[str, Any]) -> Iterator[Session]:
    """A session folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="logitstore-") as folder:
        yield Session(Path(folder), job)


def run(command: Sequence[str], started: Session, enough: Callable[[], bool] | None = None) -> int:
    """Run a command to its end; gives its exit status, 128 + N where signal N ended it.

    Args:
        command: program and arguments; no shell is involved.
        started: the session.
        enough: asked now and then; once true, the command and all it started are ended, and 0 is given.

    Raises ``UsageError`` where there is no such program.
    """
    with _passing_on() as told:
        try:
            process = subprocess.Popen(
                list(command), env=started.environment(), start_new_session=enough is not None
            )
        except OSError as e:
            raise UsageError(f"{command[0]!r} cannot be run: {e.strerror}", where="the command") from None
        told(process)
        while True:
            try:
                status = process.wait(POLL if enough else None)
                return 128 - status if status < 0 else status
            except subprocess.TimeoutExpired:
                if enough is not None and enough():
                    _end(process)
                    return 0


@contextmanager
def _passing_on() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """What asks us to stop asks the command that is told here; we stay until it ended."""
    processes: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        early.extend([number] if not processes else [])
        for process in processes:
            with suppress(ProcessLookupError):
                if number == signal.SIGINT and os.isatty(0) and os.getpgid(process.pid) == os.getpgid(0):
                    return  # the terminal told it already
                process.send_signal(number)

    def tell(process: subprocess.Popen[bytes]) -> None:
        processes.append(process)
        for number in early:
            pass_on(number, None)

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        with suppress(ValueError):  # not in the main thread: leave signals alone
            before[number] = signal.signal(number, pass_on)
    try:
        yield tell
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the session that ``run`` started for the command, politely first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return
