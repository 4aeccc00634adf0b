"""Fault injection: named steps at which tests kill a process, to check the state after a crash.

``LOGITSTORE_FAULT=STEP`` or ``STEP@N`` kills the process (SIGKILL) when it reaches a step for the Nth time.
Without that variable a step only reads a module variable.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

ENV = "LOGITSTORE_FAULT"

STEPS = {
    "write:SPEC.md": "the format's text is written under its temporary name; there is no logitstore.json",
    "write:README.md": "the page on the store is written under its temporary name",
    "write:tokens.txt": "tokens.txt is written under its temporary name; there is no logitstore.json",
    "write:logitstore.json": "logitstore.json is written under its temporary name",
    "row": "a record was added to the files of its shard",
    "finished": "the files of a shard are complete below partial/ (C3, 1)",
    "published": "the files are in shards/, without an entry (C3, 2)",
    "write:sealed": "an entry is written under its temporary name (C3, 3)",
    "sealed": "the entry exists (C3, 3)",
    "write:index": "an index run is written under its temporary name (C3, 4)",
    "indexed": "the index run exists beside those that it takes the place of (C3, 4)",
    "write:notes.json": "the number of records is written under its temporary name",
    "write:skipped.jsonl": "skipped.jsonl is written under its temporary name",
    "replaced:entry": "the entry of one replaced shard is removed (C6)",
    "replaced:files": "the files of one replaced shard are removed (C6)",
}

_hook: Callable[[str], None] | None = None


def reach(step: str) -> None:
    """Reach a step: call the installed hook, if any."""
    if _hook is not None:
        _hook(step)


def install(hook: Callable[[str], None] | None) -> None:
    """Call ``hook`` with the name of every step from now on; None to call nothing."""
    global _hook
    _hook = hook


def killer(wanted: str) -> Callable[[str], None]:
    """Return a hook that kills this process at ``STEP`` or ``STEP@N``; N counts from 1."""
    name, _, number = wanted.partition("@")
    remaining = int(number or 1)

    def hook(step: str) -> None:
        nonlocal remaining
        remaining -= step == name
        if not remaining:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


if ENV in os.environ:
    install(killer(os.environ[ENV]))
