"""Search for Python processes that loaded torch without the start-up hook, while the program still runs.

A process has no hook where its environment lacks the folder of the hook, because a script set ``PYTHONPATH`` anew, or
where Python was told to leave the environment alone (``-I``, ``-E``, ``-S``). Works where ``/proc`` exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def unhooked_process(root: int, startup: str) -> str:
    """Return a description of a process below another one that runs torch without the hook; empty where none does.

    Args:
        root: id of the process whose descendants are looked at, and itself.
        startup: folder of the start-up hook.
    """
    for pid in descendants(root):
        with suppress(OSError):
            folder = PROC / str(pid)
            argv = [a.decode("utf-8", "replace") for a in (folder / "cmdline").read_bytes().split(b"\0")[:-1]]
            if not argv or "python" not in Path(argv[0]).name:
                continue
            environment = (folder / "environ").read_bytes().split(b"\0")
            path = next((v[11:] for v in environment if v.startswith(b"PYTHONPATH=")), b"")
            flags = _ignoring_flags(argv)
            if startup.encode() in path.split(b":") and not flags:
                continue
            if b"libtorch" in (folder / "maps").read_bytes():
                how = f"python {flags}" if flags else f"PYTHONPATH={path.decode('utf-8', 'replace')}"
                return f"process {pid}, {how}: {' '.join(argv)[:200]}"
    return ""


def _ignoring_flags(argv: list[str]) -> str:
    """Return the option by which Python ignores the environment or the site module; empty where there is none."""
    for word in argv[1:]:
        if not word.startswith("-") or word.startswith(("--", "-c", "-m")) or word == "-":
            return ""
        if set(word) & set("IES"):
            return word
    return ""


def descendants(root: int) -> Iterator[int]:
    """Yield a process and all below it."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError, ValueError):
            parent = int((folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])
