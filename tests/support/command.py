"""The command line in a process of its own."""

import os
import subprocess
import sys

from tests.support import demo


def logitstore(*args, **env):
    """Run a command and return the finished process, its output as text."""
    return subprocess.run(
        [sys.executable, "-m", "logitstore", *map(str, args)],
        capture_output=True,
        encoding="utf-8",
        cwd=demo.ROOT,
        env={**os.environ, **env},
        check=False,
    )
