"""Probe: where are the logits in a program, or in a teacher? Answered by watching its first batches."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import LogitStoreError, TapNeverFired
from ...tokens.formats import read_table
from ...tokens.table import TokenTable
from ..inject.launch import injection_session, run_injected
from ..job import ProbeJob

SURE = 0.3  # of the rows: a class that is the largest so often, at an end of the table, is a blank
LOOP = "{} runs {} times a batch, a decoding loop: this program never makes the lattice of the references; {}"
FEW = 16  # calls a batch; more are a decoding loop
DURATIONS = 16  # of a TDT joint, at most


@dataclass(frozen=True)
class FoundBlank:
    """The blank of a head, and what says so."""

    index: int | None
    why: tuple[str, ...]


@dataclass(frozen=True)
class ProbeFinding:
    """What a probe found.

    Attributes:
        candidates: modules that may give the logits, the likeliest first (``candidates.Candidate`` as JSON,
            with ``lengths`` and ``variables`` found while it ran).
        ctc, rnnt: the likeliest of each kind, or None.
        driven: the transducer whose joiner capture drives, where the program runs it in a loop; or None.
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
    driven: dict[str, Any] | None
    ids: tuple[dict[str, Any], ...]
    texts: str
    tokens: str
    tables: tuple[tuple[str, int], ...]
    blank: FoundBlank
    batches: int
    command: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def probe(command: Sequence[str], *, tokens: str = "", batches: int = 2, out: str = "store") -> ProbeFinding:
    """Run a command until its first batches have passed, then end it, and say what was seen.

    Args:
        command: program and arguments.
        tokens: the token table, if known; otherwise those that the program opens or is given are tried.
        batches: to watch.
        out: the store that the printed command writes.

    Raises ``TapNeverFired`` where no process runs a model.
    """
    given = read_table(tokens) if tokens else None
    job = ProbeJob(batches=batches, classes=len(given) if given else None)
    with injection_session(job) as started:

        def enough() -> bool:
            return any(r["state"] == "enough" for r in started.reports())

        status = run_injected(command, started, enough)
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
) -> ProbeFinding:
    """What a process's report means."""
    ranked = sorted(report["candidates"], key=lambda c: -_fit(c, tables))
    ctc = next((c for c in ranked if _like_ctc(c)), None)
    rnnt = next((c for c in ranked if c["joiner"] or c["layout"] == "BTUV"), None)
    head = ctc or rnnt
    path, table = next(
        ((p, t) for p, t in tables.items() if head and _durations(t, head, ctc) == 0), ("", None)
    )
    if table is None:
        fits = ((p, t) for p, t in tables.items() if head and _durations(t, head, ctc) is not None)
        path, table = next(fits, ("", None))
    joiners = report.get("joiners", ())
    whole = rnnt is not None and rnnt["layout"] == "BTUV" and bool(rnnt["labels"]) and rnnt["calls"] == 1
    driven = None if whole else next((j for j in joiners if j["ran"]), None)
    variables = next((h["variables"] for h in (driven, ctc, rnnt) if h and h["variables"]), ())
    about = {**report, "variables": variables}
    # a head that layers are conditioned on, whose answer nobody takes
    unclear = ctc is not None and ctc["calls"] > 1 and ctc["call"] is None and not ctc["accumulate"]
    told = None if unclear and (driven or whole) else ctc
    notes = list(_notes(ranked, ctc, driven, joiners)) if command else []
    if command and report["ids"] and "dataset." in report["ids"][0]["expression"]:
        notes.append("ids are the dataset's own list, by the number of the item: is item i the i-th of them?")
    blank = _blank(head, table, report.get("blanks", {}))
    return ProbeFinding(
        candidates=tuple(ranked),
        ctc=ctc,
        rnnt=rnnt,
        driven=driven,
        ids=tuple(report["ids"]),
        texts=report["texts"],
        tokens=path,
        tables=tuple((p, len(t)) for p, t in tables.items()),
        blank=blank,
        batches=report["batches"],
        command=_command((told, rnnt if whole else None, driven), about, (path, table), blank, command, out),
        notes=tuple(notes),
    )


def _like_ctc(candidate: dict[str, Any]) -> bool:
    """Frames of classes, a few times a batch at most: prediction networks run once a step."""
    whole = candidate["layout"] in ("BTV", "BVT", "TBV") and candidate["calls"] <= FEW
    return whole and bool(candidate["path"]) and not candidate["joiner"]


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


def _blank(head: dict[str, Any] | None, table: TokenTable | None, told: Mapping[str, int]) -> FoundBlank:
    """The blank: by the table first, by what the model calls so second, by what it says most often third."""
    if head is None:
        return FoundBlank(None, ())
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
        return FoundBlank(table.blank, tuple(why))
    if one is not None:
        return FoundBlank(one, (*model, said))
    if share >= SURE and best in (0, head["classes"] - 1):
        return FoundBlank(best, (said,))
    return FoundBlank(None, (said, "no token table was found; --tokens FILE settles it"))


def _notes(
    ranked: Sequence[dict[str, Any]],
    ctc: dict[str, Any] | None,
    driven: dict[str, Any] | None,
    joiners: Sequence[dict[str, Any]],
) -> Iterator[str]:
    """What the printed command does not say."""
    loop = next((c for c in ranked if c["joiner"] and c["calls"] > 1), None)
    if driven is not None:
        does = f"capture drives the joiner itself, as {driven['convention']}'s"
        yield LOOP.format(driven["joiner"], driven["ran"], does)
    elif loop is not None:
        yield LOOP.format(
            loop["path"],
            loop["calls"],
            "--joiner with --drive FILE.py:NAME does (logitstore.teachers.joiners)",
        )
    elif joiners:
        path = joiners[0]["joiner"]
        yield f"{path} does not run here: --joiner {path} keeps the lattices of the references too"
    if ctc is not None:
        yield from _several(ctc)


def _durations(table: TokenTable, head: dict[str, Any], ctc: dict[str, Any] | None) -> int | None:
    """Columns behind the tokens of a table: 0, or a TDT joint's durations; None where they do not fit."""
    more = head["classes"] - len(table)
    return more if more == 0 or (ctc is None and 0 < more <= DURATIONS) else None


def _command(
    heads: tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, Any] | None],
    report: dict[str, Any],
    tokens: tuple[str, TokenTable | None],
    blank: FoundBlank,
    command: Sequence[str],
    out: str,
) -> str:
    """The capture that this probe calls for; nothing where there is nothing to capture."""
    ctc, rnnt, driven = heads
    head = driven or ctc or rnnt
    if head is None:
        return ""
    words = ["logitstore", "capture"]
    if ctc is not None:
        words += ["--ctc", ctc["path"]]
        words += ["--layout", ctc["layout"]] if ctc["layout"] != "BTV" else []
        if ctc["accumulate"]:
            words += ["--accumulate", ctc["accumulate"]]
        elif ctc["call"] is not None:
            words += ["--call", str(ctc["call"])]
    if rnnt is not None:
        words += ["--joiner", rnnt["path"], "--labels", rnnt["labels"][0]]
    if driven is not None:
        words += ["--joiner", driven["joiner"], "--encoder", driven["encoder"]]
    path, table = tokens
    if table is not None and (joiner := driven or rnnt) is not None:
        more = joiner["classes"] - len(table)
        words += ["--durations", str(more)] if 0 < more <= DURATIONS else []
    variables = report["variables"]
    if report["ids"]:
        words += ["--ids", report["ids"][0]["expression"]]
    elif variables:
        words += ["--ids", variables[0]["expression"]]
    if head["chosen"]:
        words += ["--lengths", head["chosen"]]
    if path:
        words += ["--tokens", path]
    elif blank.index:
        words += ["--blank", str(blank.index)]
    return shlex.join([*words, "--out", out, "--", *command])
