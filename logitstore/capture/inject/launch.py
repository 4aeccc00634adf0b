"""Start of somebody else's program with logitstore injected into its Python processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..job import CaptureJob, ProbeJob
from .report import FOLDER, read_reports

STARTUP = Path(__file__).parent / "startup"
JOB_VARIABLE = "LOGITSTORE_JOB"
POLL_SECONDS = 0.1


class InjectionSession:
    """Session folder of one run: the job file, and a report of each injected process."""

    def __init__(self, folder: Path, job: CaptureJob | ProbeJob) -> None:
        self.folder = folder
        self._job_file = folder / "job.json"
        (folder / FOLDER).mkdir()
        self._job_file.write_text(json.dumps(job.to_json(), ensure_ascii=False), "utf-8")

    def environment(self) -> dict[str, str]:
        """Return this process's environment with the start-up hook added."""
        before = os.environ.get("PYTHONPATH")
        path = f"{STARTUP}{os.pathsep}{before}" if before else str(STARTUP)
        return {**os.environ, "PYTHONPATH": path, JOB_VARIABLE: str(self._job_file)}

    def reports(self) -> list[dict[str, Any]]:
        """Return the last report of each process, in the order in which the processes began."""
        return read_reports(self.folder)


@contextmanager
def injection_session(job: CaptureJob | ProbeJob) -> Iterator[InjectionSession]:
    """Make a session folder for a job, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="logitstore-") as folder:
        yield InjectionSession(Path(folder), job)


def run_injected(
    command: Sequence[str], session: InjectionSession, enough: Callable[[], bool] | None = None
) -> int:
    """Run a command until it exits; return its exit status, or 128 + N where signal N ended it.

    Args:
        command: program and arguments; no shell is involved.
        session: folder of the job and the reports.
        enough: called every 0.1 s; once it returns true, the command and all processes that it started are
            ended, and the status is 0.

    Raises ``UsageError`` where there is no such program.
    """
    with _signals_forwarded() as forward_to:
        try:
            process = subprocess.Popen(
                list(command), env=session.environment(), start_new_session=enough is not None
            )
        except OSError as e:
            raise UsageError(f"{command[0]!r} cannot be run: {e.strerror}", where="the command") from None
        forward_to(process)
        while True:
            try:
                status = process.wait(POLL_SECONDS if enough else None)
                return 128 - status if status < 0 else status
            except subprocess.TimeoutExpired:
                if enough is not None and enough():
                    _end(process)
                    return 0


@contextmanager
def _signals_forwarded() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Forward SIGINT, SIGTERM and SIGHUP to a process instead of ending this one.

    Yields a function that takes the process. Signals that arrive before it is called are forwarded then.
    """
    processes: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def forward(number: int, frame: Any) -> None:
        if not processes:
            early.append(number)
        for process in processes:
            with suppress(ProcessLookupError):
                if number == signal.SIGINT and os.isatty(0) and os.getpgid(process.pid) == os.getpgid(0):
                    return  # the terminal sends Ctrl-C to the whole process group
                process.send_signal(number)

    def forward_to(process: subprocess.Popen[bytes]) -> None:
        processes.append(process)
        for number in early:
            forward(number, None)

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        with suppress(ValueError):  # outside the main thread no handler can be set
            before[number] = signal.signal(number, forward)
    try:
        yield forward_to
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process group of a command with SIGTERM, and with SIGKILL after five seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return
