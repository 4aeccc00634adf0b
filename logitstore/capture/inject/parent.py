"""Session folder of a run, and the check of the injected processes whether its owner lives.

The owner is the process of ``logitstore capture`` or ``probe``. It holds a lock on a file of the session folder as long
as it lives, and the folder's name carries its host and process id. A folder whose owner is dead was left by SIGKILL or
a crash; the next run on the same host removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...storage.staging import host_name

OWNER_FILE = "owner"
_NAME = re.compile(r"logitstore~([A-Za-z0-9._-]+)~(\d+)~.+", re.ASCII)


@contextmanager
def make_session_folder() -> Iterator[Path]:
    """Make a session folder of this process and hold its lock; remove the folder afterwards.

    Folders of dead owners on this host are removed first.
    """
    _remove_dead_folders(Path(tempfile.gettempdir()))
    prefix = f"logitstore~{host_name()}~{os.getpid()}~"
    with tempfile.TemporaryDirectory(prefix=prefix) as name, open(f"{name}/{OWNER_FILE}", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield Path(name)


def owner_lives(session: Path) -> bool:
    """Return whether the process that made a session folder lives.

    A dead owner has released its lock, and no process has its id. Both are asked: locks do not work on every file
    system, and a container may not see the ids of the processes outside.
    """
    found = _NAME.fullmatch(session.name)
    if found is not None and found[1] == host_name() and process_runs(int(found[2])):
        return True
    try:
        with open(session / OWNER_FILE, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:  # no locks here
        return True
    return False


def process_runs(pid: int) -> bool:
    """Return whether a process of this host has not ended; one that only waits to be reaped has."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except OSError:  # no such file system
        return True
    return state not in ("Z", "X")


def _remove_dead_folders(parent: Path) -> None:
    for folder in parent.glob("logitstore~*"):
        found = _NAME.fullmatch(folder.name)
        if found is not None and found[1] == host_name() and not owner_lives(folder):
            with suppress(OSError):
                shutil.rmtree(folder)
