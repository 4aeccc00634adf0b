"""The first of logitstore that runs in a process of the user's command: torch was just imported there."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

STORIES = {"capture": "logitstore.capture.recorder", "probe": "logitstore.capture.probe.recorder"}


def begin(path: str) -> None:
    """Start the story that a job names."""
    job = json.loads(Path(path).read_text("utf-8"))
    import_module(STORIES[job["story"]]).begin(job, Path(path).parent)


class Report:
    """What this process says of itself, in a file of its own; written again with every change."""

    def __init__(self, session: Path, **said: Any) -> None:
        self._session = session
        self.said: dict[str, Any] = {
            "pid": os.getpid(),
            "began": time.time(),
            "argv": [str(a) for a in sys.orig_argv],
            **said,
        }
        self.write()

    def write(self, **said: Any) -> None:
        """Change some of it."""
        self.said.update(said)
        path = self._session / "reports" / f"{self.said['pid']}-{self.said['began']:.6f}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.said, ensure_ascii=False), "utf-8")
        partial.rename(path)
