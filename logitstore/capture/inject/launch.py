"""Start of somebody else's program with logitstore injected into its Python processes.

The program must not outlive this process, which seals its shards. The kernel sends SIGTERM to the program when this
process dies (Linux), and each injected process looks at every batch whether this process lives (``parent``).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import TapNeverFired, UsageError
from ..job import CaptureJob, ProbeJob
from .parent import make_session_folder, process_runs
from .report import FOLDER, read_reports
from .unhooked import descendants, unhooked_process

STARTUP = Path(__file__).parent / "startup"
JOB_VARIABLE = "LOGITSTORE_JOB"
POLL_SECONDS = 0.1
FIRST_LOOK, MOST_PAUSE = 2.0, 60.0  # seconds until torch is looked for in processes without the hook
END_SECONDS = 20.0  # for injected processes that outlive the command, to write their last shard
PR_SET_PDEATHSIG = 1


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

    def capturing(self) -> list[int]:
        """Return the ids of the processes that hold captured utterances and have not ended."""
        pids = [int(r["pid"]) for r in self.reports() if r["state"] == "capturing"]
        return [pid for pid in pids if process_runs(pid)]


@contextmanager
def injection_session(job: CaptureJob | ProbeJob) -> Iterator[InjectionSession]:
    """Make a session folder for a job, and remove it afterwards."""
    with make_session_folder() as folder:
        yield InjectionSession(folder, job)


def run_injected(
    command: Sequence[str], session: InjectionSession, enough: Callable[[], bool] | None = None
) -> int:
    """Run a command until it exits; return its exit status, or 128 + N where signal N ended it.

    Args:
        command: program and arguments; no shell is involved.
        session: folder of the job and the reports.
        enough: called every 0.1 s; once it returns true, the command and all processes that it started are
            ended, and the status is 0.

    Raises:
        UsageError: there is no such program.
        TapNeverFired: a process below the command runs torch without the start-up hook, and none runs it with the hook;
            the command is ended.
    """
    with _signals_forwarded(session) as forward_to:
        try:
            process = subprocess.Popen(
                list(command),
                env=session.environment(),
                start_new_session=enough is not None,
                preexec_fn=_end_with_this_process(),
            )
        except OSError as e:
            raise UsageError(f"{command[0]!r} cannot be run: {e.strerror}", where="the command") from None
        forward_to(process)
        next_look, pause = time.monotonic() + FIRST_LOOK, FIRST_LOOK
        is_hooked = False
        while True:
            try:
                status = process.wait(POLL_SECONDS if enough else None if is_hooked else pause)
                _wait_for_capturing(session)
                return 128 - status if status < 0 else status
            except subprocess.TimeoutExpired:
                if enough is not None and enough():
                    _end(process)
                    return 0
            if not is_hooked and time.monotonic() >= next_look:
                pause = min(2 * pause, MOST_PAUSE)
                next_look = time.monotonic() + pause
                is_hooked = bool(session.reports())
                if not is_hooked and (found := unhooked_process(process.pid, str(STARTUP))):
                    _end(process, group=enough is not None)
                    raise _not_hooked(found)


def _end_with_this_process() -> Callable[[], None] | None:
    """Return a function for the new process that makes the kernel end it with this one; None outside Linux."""
    if not sys.platform.startswith("linux"):
        return None
    return partial(_end_with_parent, ctypes.CDLL(None).prctl, os.getpid())


def _end_with_parent(prctl: Any, parent: int) -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_capturing(session: InjectionSession) -> None:
    """Wait a while for capturing processes that outlive the command, as those of a shell that a signal ended do."""
    end = time.monotonic() + END_SECONDS
    while session.capturing() and time.monotonic() < end:
        time.sleep(POLL_SECONDS)


@contextmanager
def _signals_forwarded(session: InjectionSession) -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Forward SIGINT, SIGTERM and SIGHUP to the program instead of ending this process.

    They go to the command and to the injected processes that are capturing: a shell that is ended by a signal does
    not pass it on. Yields a function that takes the process. Signals that arrive before it is called are forwarded
    then.
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
                for pid in session.capturing():
                    if pid != process.pid:
                        os.kill(pid, number)
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


def _not_hooked(found: str) -> TapNeverFired:
    return TapNeverFired(
        "a Python process of the command runs torch without the start-up hook, so its model is not seen",
        where=found,
        why="The command was ended, since nothing would have come of it.",
        do="Put $PYTHONPATH behind what the program sets: export PYTHONPATH=…:$PYTHONPATH; and leave out python -I, -E "
        "and -S.",
    )


def _end(process: subprocess.Popen[bytes], *, group: bool = True) -> None:
    """End a command with SIGTERM, and with SIGKILL after five seconds.

    Args:
        process: process of the command.
        group: end its process group, which it has to itself; else the processes below it.
    """
    below = [] if group else list(descendants(process.pid))
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            if group:
                os.killpg(process.pid, number)
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return
