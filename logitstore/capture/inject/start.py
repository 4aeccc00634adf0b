"""Entry point of an injected process; the start-up hook calls it when torch has been imported."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import LogitStoreError
from ..job import CaptureJob, job_from_json
from .report import ProcessReport


def begin(path: str) -> None:
    """Read the job file and start its recorder in this process.

    Raises ``UsageError`` where another version of logitstore wrote the job; the parent process learns of the
    error from the report too.
    """
    session = Path(path).parent
    try:
        job = job_from_json(json.loads(Path(path).read_text("utf-8")))
    except LogitStoreError as e:
        ProcessReport(session, state="failed", error=f"{type(e).__name__}: {e}")
        raise
    if isinstance(job, CaptureJob):
        from ..recorder import CaptureRecorder

        CaptureRecorder(job, session)
    else:
        from ..probe.recorder import ProbeRecorder

        ProbeRecorder(job, session)
