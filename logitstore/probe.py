"""Probe: where are the logits in a program, or in a teacher? Answered by watching its first batches."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import LogitStoreError, TapNeverFired
from .inject.launch import run, session
from .vocab import TokenTable
from .vocabs import read_table

SURE = 0.3  # of the rows: a class that is the largest so often, at an end of the table, is a blank
LOOP = (
    "{} runs {} times a batch, a decoding loop: this program never makes the lattice of the references; "
    "a teacher does, slice by slice (logitstore dump)"
)


@dataclass(frozen=True)
class Blank:
    """The blank of a head, and what says so."""

    index: int | None
    why: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        candidates: modules that may give the logits, the likeliest first (``candidates.Candidate`` as JSON,
            with ``lengths`` and ``variables`` found while it ran).
        ctc, rnnt: the likeliest of each kind, or None.
        ids: places of the batch that hold utterance ids; ``texts``: where its references are.
        tokens: the token table that fits, or nothing; ``tables``: every one that was seen, with its size.
        blank: of the ctc head, or of the joiner where there is none.
        batches: that were watched.
        command: what to run next; empty where nothing was found.
        notes: what does not agree with what a teacher says of itself.
    """

    candidates: tuple[dict[str, Any], ...]
    ctc: dict[str, Any] | None
    rnnt: dict[str, Any] | None
    ids: tuple[dict[str, Any], ...]
    texts: str
    tokens: str
    tables: tuple[tuple[str, int], ...]
    blank: Blank
    batches: int
    command: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def probe(command: Sequence[str], *, tokens: str = "", batches: int = 2, out: str = "store") -> Finding:
    """Run a command until its first batches have passed, then end it, and say what was seen.

    Args:
        command: program and arguments.
        tokens: the token table, if known; otherwise those that the program opens or is given are tried.
        batches: to watch.
        out: the store that the printed command writes.

    Raises ``TapNeverFired`` where no process runs a model.
    """
    given = read_table(tokens) if tokens else None
    job = {"story": "probe", "batches": batches, "classes": len(given) if given else None}
    with session(job) as started:

        def enough() -> bool:
            return any(r["state"] == "enough" for r in started.reports())

        status = run(command, started, enough)
        reports = [r for r in started.reports() if r.get("candidates")]
        if not reports:
            raise TapNeverFired(
                "no process of the command ran a model that gives anything like logits",
                where=shlex.join(command),
                why=f"It ended with status {status}; {len(started.reports())} processes imported torch.",
                do="Where nothing imported torch, something resets PYTHONPATH, puts another sitecustomize.py "
                "in front, or runs python -I, -E or -S.",
            )
    report = max(reports, key=lambda r: r["candidates"][0]["score"])
    tables = _tables([tokens] if tokens else [*report.get("opened", ()), *map(str, command)])
    return found_in(report, tables, command, out)


def found_in(
    report: dict[str, Any], tables: dict[str, TokenTable], command: Sequence[str], out: str
) -> Finding:
    """What a process's report means."""
    ranked = sorted(report["candidates"], key=lambda c: -_fit(c, tables))
    ctc = next((c for c in ranked if not c["joiner"] and c["layout"] in ("BTV", "BVT", "TBV")), None)
    rnnt = next((c for c in ranked if c["joiner"] or c["layout"] == "BTUV"), None)
    head = ctc or rnnt
    path, table = next(((p, t) for p, t in tables.items() if head and len(t) == head["classes"]), ("", None))
    loop = next((c for c in ranked if c["joiner"] and c["calls"] > 1), None)
    notes = [LOOP.format(loop["path"], loop["calls"])] if loop and command else []
    notes += _several(ctc) if ctc and command and not loop else []
    if command and report["ids"] and "dataset." in report["ids"][0]["expression"]:
        notes.append("ids are the dataset's own list, by the number of the item: is item i the i-th of them?")
    blank = _blank(head, table, report.get("blanks", {}))
    return Finding(
        candidates=tuple(ranked),
        ctc=ctc,
        rnnt=rnnt,
        ids=tuple(report["ids"]),
        texts=report["texts"],
        tokens=path,
        tables=tuple((p, len(t)) for p, t in tables.items()),
        blank=blank,
        batches=report["batches"],
        command=_command((ctc, rnnt), report, path, blank, command, out),
        notes=tuple(notes),
    )


def _fit(candidate: dict[str, Any], tables: dict[str, TokenTable]) -> float:
    """Its score, and more where a table of that many tokens was seen."""
    return float(candidate["score"]) + 5 * any(len(t) == candidate["classes"] for t in tables.values())


def _tables(paths: Sequence[str]) -> dict[str, TokenTable]:
    """Those of the files that are token tables."""
    found: dict[str, TokenTable] = {}
    named = (p for path in paths for p in (path, path.partition("=")[2]))  # hydra's key=value
    for path in dict.fromkeys(named):
        if os.path.isfile(path) and Path(path).suffix in (".txt", ".json", ".model", ".yaml", ".yml"):
            with suppress(LogitStoreError, ValueError, OSError):
                found[os.path.abspath(path)] = read_table(path)
    return found


def _several(head: dict[str, Any]) -> Iterator[str]:
    """What the calls of a head that runs several times a batch are."""
    if head["calls"] < 2:
        return
    path, calls = head["path"], head["calls"]
    if head["accumulate"]:
        what = {"t": "frames", "b": "utterances"}[head["accumulate"]]
        yield f"{path} runs {calls} times in the first batches, on some {what} each: joined"
    elif head["call"] is not None:
        yield f"{path} runs {calls} times a batch; what call {head['call']} gives alone goes to log_softmax"
    else:
        steps = "; ".join(f"{i} → {', '.join(s) or 'nothing seen'}" for i, s in enumerate(head["steps"][:6]))
        yield (
            f"{path} runs {calls} times a batch ({steps}): say which is the answer, --call N, or that they "
            "are pieces of one, --accumulate t (frames) or b (utterances)"
        )


def _blank(head: dict[str, Any] | None, table: TokenTable | None, told: Mapping[str, int]) -> Blank:
    """The blank: by the table first, by what the model calls so second, by what it says most often third."""
    if head is None:
        return Blank(None, ())
    best, share = head["best"]
    where = {0: "the first index", head["classes"] - 1: "the last index"}.get(
        best, "neither end of the table"
    )
    said = f"class {best}, {where}, is the most frequent argmax ({share:.0%} of the rows)"
    told = {n: v for n, v in told.items() if v < head["classes"]}
    one = next(iter(told.values())) if len(set(told.values())) == 1 else None
    model = [f"the model says so: {', '.join([*told][:3])} = {one}"] if one is not None else []
    if table is not None:
        why = [f"the token table has {table[table.blank]!r} at {table.blank}", *model, said]
        if one not in (None, table.blank) or (one is None and best != table.blank and share > SURE):
            why.append("these disagree: is this the table of this model?")
        return Blank(table.blank, tuple(why))
    if one is not None:
        return Blank(one, (*model, said))
    if share >= SURE and best in (0, head["classes"] - 1):
        return Blank(best, (said,))
    return Blank(None, (said, "no token table was found; --tokens FILE settles it"))


def _command(
    heads: tuple[dict[str, Any] | None, dict[str, Any] | None],
    report: dict[str, Any],
    tokens: str,
    blank: Blank,
    command: Sequence[str],
    out: str,
) -> str:
    """The capture that this probe calls for; nothing where there is nothing to capture."""
    ctc, rnnt = heads
    if rnnt is not None and (rnnt["layout"] != "BTUV" or not rnnt["labels"]):
        rnnt = None
    head = ctc or rnnt
    if head is None:
        return ""
    words = ["logitstore", "capture"]
    if ctc is not None:
        words += ["--ctc", ctc["path"]]
        words += ["--layout", ctc["layout"]] if ctc["layout"] != "BTV" else []
    if rnnt is not None:
        words += ["--joiner", rnnt["path"], "--labels", rnnt["labels"][0]]
    if report["ids"]:
        words += ["--ids", report["ids"][0]["expression"]]
    elif head["variables"]:
        words += ["--ids", head["variables"][0]["expression"]]
    if ctc is not None and ctc.get("accumulate"):
        words += ["--accumulate", ctc["accumulate"]]
    elif ctc is not None and ctc.get("call") is not None:
        words += ["--call", str(ctc["call"])]
    if head["chosen"]:
        words += ["--lengths", head["chosen"]]
    if tokens:
        words += ["--tokens", tokens]
    elif blank.index:
        words += ["--blank", str(blank.index)]
    return shlex.join([*words, "--out", out, "--", *command])
