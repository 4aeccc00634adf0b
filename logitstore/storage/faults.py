"""Where a process can be made to die, so that tests can prove what a crash leaves behind.

``LOGITSTORE_FAULT=STEP`` or ``STEP@N`` kills the process (SIGKILL) when it comes to a step for the Nth time.
Without it a step costs one look at a module variable. Nothing else in logitstore knows of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

ENV = "LOGITSTORE_FAULT"

STEPS = {
    "write:tokens.txt": "tokens.txt stands under its temporary name; no logitstore.json yet",
    "write:logitstore.json": "logitstore.json stands under its temporary name",
    "row": "a row of a shard was handed to its files",
    "finished": "the files of a shard are complete below partial/ (C3, 1)",
    "unindexed": "index.bin is gone (C3, 2)",
    "published": "the files lie in shards/, without an entry (C3, 3)",
    "write:sealed": "an entry stands under its temporary name (C3, 4)",
    "sealed": "the entry exists (C3, 4)",
    "write:index.bin": "the index stands under its temporary name",
    "write:skipped.jsonl": "skipped.jsonl stands under its temporary name",
    "replaced:entry": "the entry of one replaced shard is gone (C6)",
    "replaced:files": "the files of one replaced shard are gone (C6)",
}

_hook: Callable[[str], None] | None = None


def reach(step: str) -> None:
    """Come to a step."""
    if _hook is not None:
        _hook(step)


def install(hook: Callable[[str], None] | None) -> None:
    """Call ``hook`` with every step from now on; None for nothing."""
    global _hook
    _hook = hook


def killer(wanted: str) -> Callable[[str], None]:
    """A hook that kills this process at ``STEP`` or ``STEP@N``; N counts from 1."""
    name, _, number = wanted.partition("@")
    left = int(number or 1)

    def hook(step: str) -> None:
        nonlocal left
        left -= step == name
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


if ENV in os.environ:
    install(killer(os.environ[ENV]))
