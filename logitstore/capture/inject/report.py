"""Reports of the injected processes: one JSON file per process in the session folder, read by the parent."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

FOLDER = "reports"


class ProcessReport:
    """Report of the process that runs this code. Each change replaces the whole file.

    Args:
        session: session folder.
        fields: first entries, usually ``state``.
    """

    def __init__(self, session: Path, **fields: Any) -> None:
        self._session = session
        self.fields: dict[str, Any] = {
            "pid": os.getpid(),
            "began": time.time(),
            "argv": [str(a) for a in sys.orig_argv],
            "notes": {},
            **fields,
        }
        self.write()

    def write(self, **fields: Any) -> None:
        """Add or change entries."""
        self.fields.update(fields)
        path = self._session / FOLDER / f"{self.fields['pid']}-{self.fields['began']:.6f}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.fields, ensure_ascii=False), "utf-8")
        partial.rename(path)

    def note(self, name: str, text: str) -> None:
        """Add a finding that the parent process shows to the user as ``name: text``."""
        self.fields["notes"][name] = text
        self.write()


def read_reports(session: Path) -> list[dict[str, Any]]:
    """Return the last report of each process, in the order in which the processes began."""
    found = []
    for path in (session / FOLDER).glob("*.json"):
        with suppress(ValueError, OSError):
            found.append(json.loads(path.read_text("utf-8")))
    return sorted(found, key=lambda report: float(report.get("began", 0)))
