"""Capture of the logits of a user's unmodified program into a store.

1. The parent process (this module) writes a :class:`~logitstore.capture.job.CaptureJob` into a session
   folder, takes a lock on the store, and starts the program with logitstore injected (``inject.launch``).
2. Each process of the program that runs the captured module writes shards of its own (``recorder``,
   ``writer``). Full shards are sealed at once. The last, short shard of each process waits in a staging
   folder.
3. When the program has exited, the parent seals the shards that wait, whatever the exit status: every utterance in
   them is whole. Where a process refused the capture, because the ids or the logits of a batch cannot be right, they
   are dropped, and the shards that this run sealed before are named.
"""

from __future__ import annotations

import os
import secrets
import shlex
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import LogitStoreError, StoreError, TapNeverFired, TeacherError
from ..storage import parse_storage
from ..storage.commit import finish_store, publish
from ..storage.entries import parse_entry, read_entry, shard_names
from ..storage.places import Place, open_place
from ..storage.spec_file import read_spec
from ..storage.staging import new_staging, remove_staging
from ..store.layout import columns_of
from .claims import captured_by
from .inject.launch import InjectionSession, injection_session, run_injected
from .job import CaptureJob, CaptureOptions


@dataclass(frozen=True)
class CaptureResult:
    """Outcome of a capture.

    Attributes:
        status: exit status of the program; 128 + N where signal N ended it.
        sealed: number of utterances that were added to the store.
        lost: number of utterances that were captured and not sealed.
        present: number of utterances that the program ran again although the store has them already.
        processes: number of processes that wrote.
        errors: reasons for which the capture failed, in the words of the error messages.
        notes: findings such as ``lengths: encoder_out_lens``, for the user.
    """

    status: int
    sealed: int = 0
    lost: int = 0
    present: int = 0
    processes: int = 0
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def capture_logits(command: Sequence[str], out: Any, options: CaptureOptions) -> CaptureResult:
    """Run a program, unmodified, and store the logits that its model computes.

    Every Python process below the command is observed. Utterances that the store has already are not written
    again, so an interrupted capture is resumed by calling this function again. The rows stored per utterance
    are (T, V) for ``ctc`` and the kept nodes of (T, U+1, V) for ``rnnt``, padding removed.

    Shards are sealed when they are full, and what each process has captured until its end is sealed as a short
    shard, also where the program fails or a signal ends it. Nothing more is sealed once capture has refused a
    batch. Look at ``status`` and ``errors`` of the result.

    Args:
        command: program and arguments; no shell is involved.
        out: location of the store, a path or a URL; made, or resumed. The processes of the program open it
            too, by ``str(out)``: a place of one's own must be installed as an entry point of the group
            ``logitstore.places``. A place known only by :func:`logitstore.registry.register` in this process
            is not known in theirs.
        options: settings of the capture.

    Raises:
        UnknownName: the URL's scheme, an encoding or a storage backend has an unknown name.
        UsageError: the command cannot be started.
        StoreBusy: another process holds the lock of this capture.
    """
    options.check_components()
    place = open_place(out)
    name = f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}"
    handover = new_staging(f"handover-{name}")
    job = CaptureJob(
        out=_location(place),
        session=name,
        handover=handover,
        options=replace(
            options,
            tokens=_absolute(options.tokens),
            bpe=_absolute(options.bpe),
            joiner_adapter=_absolute(options.joiner_adapter),
        ),
    )
    is_new = not place.exists()
    try:
        with place.lock(f"handover-{name}"), injection_session(job) as session:
            status = run_injected(command, session)
            result = _seal_waiting(place, job, session, status)
            remove_staging(place, handover)
        if place.exists("logitstore.json"):
            finish_store(place)
    finally:
        if is_new and (folder := place.local()) is not None:
            with suppress(OSError):
                Path(folder).rmdir()  # succeeds only where nothing was written
    return result


def _location(place: Place) -> str:
    """Return the location that the program's processes open: they may run in other working directories."""
    return str(place) if place.local() is None else os.path.abspath(str(place))


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path else ""


def _seal_waiting(place: Place, job: CaptureJob, session: InjectionSession, status: int) -> CaptureResult:
    """Seal the shards that wait, unless a process refused the capture; return the outcome."""
    reports = session.reports()
    errors = [str(report["error"]) for report in reports if report.get("error")]
    writers = [report for report in reports if "rows" in report]
    killed = {int(r["pid"]): r for r in reports if r["state"] == "capturing"}
    is_refused = any(report["state"] == "refused" for report in reports)
    if not (errors or status or writers or killed):
        errors.append(str(_nothing_captured(job.options, reports)))
    for report in writers:
        if "entry" in report and not is_refused:
            try:
                _seal(place, job, report)
            except LogitStoreError as e:
                errors.append(f"{type(e).__name__}: {e}")
    shards = {pid: _shards_of(place, job.writer(pid)) for pid in (None, *killed)}
    captured = sum(report["rows"] for report in writers)
    for pid, report in killed.items():
        count = captured_by(session.folder, pid)
        errors.append(str(_process_killed(report, count - sum(shards[pid].values()))))
        captured += count
    if is_refused and shards[None]:
        errors.append(str(_in_doubt(place, job, shards[None])))
    sealed = sum(shards[None].values())
    notes = [f"{name}: {text}" for report in reports for name, text in report["notes"].items()]
    return CaptureResult(
        status,
        sealed,
        max(captured - sealed, 0),
        sum(report["present"] for report in writers),
        len(writers),
        tuple(dict.fromkeys(errors)),
        tuple(dict.fromkeys(notes)),
    )


def _seal(place: Place, job: CaptureJob, report: dict[str, Any]) -> None:
    """Seal the last shard of a process."""
    entry = parse_entry(report["entry"].encode("utf-8"), report["shard"], "handover")
    staged = place.stage(job.handover) / entry.shard
    publish(place, parse_storage(job.options.storage), staged, entry, columns_of(read_spec(place)))


def _shards_of(place: Place, writer: str) -> dict[str, int]:
    """Return the number of utterances in each sealed shard whose name begins with a writer's name."""
    names = [name for name in shard_names(place) if name.startswith(writer)]
    return {name: len(read_entry(place, name).ids) for name in names}


def _process_killed(report: dict[str, Any], lost: int) -> TeacherError:
    return TeacherError(
        "a process of the program ended without a report while it was capturing",
        where=f"process {report['pid']}: {' '.join(report['argv'])[:200]}",
        why=f"It was killed, or left by os._exit. {_utterances(lost)} that it had captured since its last full shard "
        "are lost.",
        do="Sealed shards stay. Run the same command again to capture the rest.",
    )


def _in_doubt(place: Place, job: CaptureJob, shards: dict[str, int]) -> StoreError:
    """Return an error that names the shards that a run sealed before it was refused."""
    return StoreError(
        f"this run sealed {_utterances(sum(shards.values()))} before that error: {_listed(shards)}",
        where=str(place),
        why="Their ids, lengths and calls were found in the same way, so what is wrong with the refused batch may be "
        "wrong with them. Later runs would take them for done.",
        do=f"Remove them: logitstore verify {shlex.quote(str(place))} --drop {shlex.quote(job.writer() + '*')}. "
        "The next capture makes them again.",
    )


def _utterances(count: int) -> str:
    return f"{count} utterance" if count == 1 else f"{count} utterances"


def _listed(names: Iterable[str]) -> str:
    """Return names for a message, eight at most."""
    listed = list(names)
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return "shard " + ", ".join(listed[:8]) + more


def _nothing_captured(options: CaptureOptions, reports: list[dict[str, Any]]) -> TapNeverFired:
    """Return the likeliest reason for which no process wrote anything."""
    where = " ".join(options.flag(stream) for stream in options.paths)
    if not reports:
        return TapNeverFired(
            "no Python process below the command imported torch with the start-up hook",
            where=where,
            why="Something resets PYTHONPATH, or puts another sitecustomize.py in front, or runs python with "
            "-I, -E or -S, or in a container.",
            do="Put $PYTHONPATH behind what the program sets: export PYTHONPATH=…:$PYTHONPATH.",
        )
    if any(report["state"] == "found" for report in reports):
        return TapNeverFired(
            "the module exists, but did not run",
            where=where,
            why="Hooks do not run in scripted modules, where a module's forward is bypassed, or for products "
            "with only a part of a weight.",
            do="Run logitstore probe to see which modules run.",
        )
    if any("warm-up" in report["notes"] for report in reports):
        return TapNeverFired(
            "the module ran, but no DataLoader of its process yielded a batch, so the utterances are not known",
            where=where,
            do="Say where the ids are: --ids EXPR, e.g. a variable of the program while the module runs.",
        )
    near = {name: text for report in reports for name, text in report.get("near", {}).items()}
    suggestions = " ".join(f"In {name}: {text}" for name, text in near.items())
    return TapNeverFired(
        "no model of the program has a module at that path",
        where=where,
        do=suggestions or "Run logitstore probe to find the path.",
    )
