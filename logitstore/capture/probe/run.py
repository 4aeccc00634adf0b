"""Probe of a user's unmodified program: where its logits are, and which capture command stores them.

1. The parent process (this module) starts the program with logitstore injected, as a capture does.
2. Each process watches the first batches and writes a report (``recorder``, ``observer``, ``rank``).
3. When a process has seen enough, the parent ends the program. The report with the likeliest head is put
   together with the token tables that were found, and gives the finding and the command.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ...errors import LogitStoreError, TapNeverFired
from ...tokens.formats import read_table
from ...tokens.table import TokenTable
from ..inject.launch import injection_session, run_injected
from ..job import ProbeJob
from ..lattices import MAX_DURATIONS
from .audio import FoundRates, rates_of
from .finding import FoundBlank, ProbedHead, ProbedJoiner, ProbeFinding, ProbeReport
from .rank import B_AND_T_AXES, FEW_CALLS

SCRIPTED = ("RecursiveScriptModule", "ScriptModule", "TopLevelTracedModule", "TracedModule")
SURE_SHARE = 0.3  # of the rows: a class at an end of the table that is the largest so often is a blank
TABLE_SUFFIXES = (".txt", ".json", ".model", ".yaml", ".yml")
TABLE_SCORE = 5  # of a head that is as wide as a token table that was found


def probe_program(
    command: Sequence[str], *, tokens: str = "", batches: int = 2, out: str = "store"
) -> ProbeFinding:
    """Run a program until its first batches have passed, end it, and return where its logits are.

    The program is not changed, and nothing is written. The finding names modules with their layout (``BTV``,
    ``BVT``, ``TBV``, ...), expressions for ids and lengths, the token table, the blank, and the command that
    captures them.

    Args:
        command: program and arguments; no shell is involved.
        tokens: file of the token table. Empty: the tables among the files that the program opens, and among
            its arguments, are tried.
        batches: number of batches to watch.
        out: store that the printed command writes.

    Raises:
        TapNeverFired: no process of the program runs a model that gives logits.
        UsageError: the command cannot be started.
    """
    table = read_table(tokens) if tokens else None
    job = ProbeJob(batches=batches, classes=len(table) if table else None)
    with injection_session(job) as session:

        def is_enough() -> bool:
            return any(report["state"] == "enough" for report in session.reports())

        status = run_injected(command, session, is_enough)
        processes = session.reports()
    reports = [ProbeReport.from_json(process["probe"]) for process in processes if "probe" in process]
    if not reports:
        raise TapNeverFired(
            "no process of the command ran a model that gives anything like logits",
            where=shlex.join(command),
            why=f"It ended with status {status}; {len(processes)} processes imported torch.",
            do="Where no process imported torch, something resets PYTHONPATH, puts another sitecustomize.py "
            "in front, or runs python -I, -E or -S.",
        )
    report = max(reports, key=lambda r: r.heads[0].score)
    tables = _tables([tokens] if tokens else [*report.opened, *map(str, command)])
    return finding_of(report, tables, command, out)


def finding_of(
    report: ProbeReport, tables: Mapping[str, TokenTable], command: Sequence[str], out: str
) -> ProbeFinding:
    """Return the finding of a report.

    Args:
        report: report of the process that runs the model.
        tables: token tables by file.
        command: program and arguments; empty for a teacher.
        out: store that the printed command writes.
    """
    sizes = {len(table) for table in tables.values()}
    heads = sorted(report.heads, key=lambda c: -(c.score + TABLE_SCORE * (c.classes in sizes)))
    ctc = next((c for c in heads if _is_like_ctc(c)), None)
    rnnt = next((c for c in heads if c.joiner or (c.layout == "BTUV" and (c.inputs or c.labels))), None)
    head = ctc or rnnt
    tokens, table = _fitting_table(tables, head, ctc)
    gives_lattice = rnnt is not None and rnnt.layout == "BTUV" and bool(rnnt.labels) and rnnt.calls == 1
    transducer = None
    if not gives_lattice:
        transducer = next((joiner for joiner in report.joiners if joiner.calls), None)
    blank = _blank(head, table, report.blanks)
    rates = _rates(report, transducer or head)
    # A head that inner layers are conditioned on too, whose answering call is not certain.
    is_unclear = ctc is not None and ctc.calls > 1 and ctc.call is None and not ctc.accumulate
    captured_ctc = None if is_unclear and (transducer or gives_lattice) else ctc
    captured_rnnt = rnnt if gives_lattice else None
    capture = _capture_command(
        captured_ctc, captured_rnnt, transducer, report, tokens, table, blank, rates, command, out
    )
    unknown = _unknown(tokens, blank, rates) if capture else ()
    return ProbeFinding(
        candidates=tuple(heads),
        ctc=ctc,
        rnnt=rnnt,
        transducer=transducer,
        ids=report.ids,
        texts=report.texts,
        tokens=tokens,
        tables=tuple((path, len(t)) for path, t in tables.items()),
        blank=blank,
        rates=rates,
        batches=report.batches,
        command=capture,
        missing=tuple(_missing(report, captured_ctc, captured_rnnt, transducer)) if command else (),
        notes=(*_notes(report, heads, ctc, transducer), *unknown) if command else (),
    )


def _missing(
    report: ProbeReport, ctc: ProbedHead | None, rnnt: ProbedHead | None, transducer: ProbedJoiner | None
) -> Iterator[str]:
    """Yield reasons for which the printed command cannot succeed as it stands."""
    head = transducer or ctc or rnnt
    if head is None:
        return
    if not (report.ids or any(h.id_variables for h in (transducer, ctc, rnnt) if h)):
        yield "the utterance ids: let the dataset return them, or say where they are with --ids EXPR"
    if ctc is not None:
        if ctc.kind in SCRIPTED:
            yield "a model of Python classes: no hook runs in one that torch.jit scripted or traced"
        if ctc.normalised:
            yield f"logits: {ctc.path} gives log-probabilities; name the layer before its log_softmax"
        if ctc.calls > 1 and ctc.call is None and not ctc.accumulate:
            yield "the call that gives the answer (--call N), or how the calls are joined (--accumulate t or b)"
        if not ctc.lengths_expression and ctc.shape[B_AND_T_AXES[ctc.layout][0]] > 1:
            yield "the valid lengths: say where they are with --lengths EXPR, or decode with batches of one"


def _is_like_ctc(head: ProbedHead) -> bool:
    """Return whether a head gives frames, a few times per batch: prediction networks run once a step."""
    gives_frames = head.layout in ("BTV", "BVT", "TBV") and head.calls <= FEW_CALLS
    return gives_frames and bool(head.path) and not head.joiner


def _tables(paths: Sequence[str]) -> dict[str, TokenTable]:
    """Return the token tables among files; of an argument ``key=value`` (hydra) the value is tried too."""
    found: dict[str, TokenTable] = {}
    names = (name for path in paths for name in (path, path.partition("=")[2]))
    for path in dict.fromkeys(names):
        if os.path.isfile(path) and Path(path).suffix in TABLE_SUFFIXES:
            with suppress(LogitStoreError, ValueError, OSError):
                found[os.path.abspath(path)] = read_table(path)
    return found


def _fitting_table(
    tables: Mapping[str, TokenTable], head: ProbedHead | None, ctc: ProbedHead | None
) -> tuple[str, TokenTable | None]:
    """Return the table as wide as a head, else one to which a TDT joiner adds durations, else ("", None)."""
    if head is not None:
        for allowed in (range(1), range(MAX_DURATIONS + 1) if ctc is None else range(0)):
            for path, table in tables.items():
                if head.classes - len(table) in allowed:
                    return path, table
    return "", None


def _blank(head: ProbedHead | None, table: TokenTable | None, named: Mapping[str, int]) -> FoundBlank:
    """Return the blank: by the token table, else by the model's attributes, else by the most frequent class.

    Args:
        head: CTC head, or joiner.
        table: token table that fits.
        named: blank ids that models name, by attribute.
    """
    if head is None:
        return FoundBlank(None, ())
    best, share = head.best
    ends = {0: "the first index", head.classes - 1: "the last index"}
    where = ends.get(best, "neither end of the table")
    by_argmax = f"class {best}, {where}, is the most frequent argmax ({share:.0%} of the rows)"
    named = {name: value for name, value in named.items() if value < head.classes}
    by_model: int | None = None
    model_reasons: tuple[str, ...] = ()
    if len(set(named.values())) == 1:
        by_model = next(iter(named.values()))
        model_reasons = (f"the model names it: {', '.join([*named][:3])} = {by_model}",)
    if table is not None:
        reasons = (
            f"the token table has {table[table.blank]!r} at {table.blank}",
            *model_reasons,
            by_argmax,
        )
        contradicted = by_model is not None and by_model != table.blank
        if by_model is None and best != table.blank and share > SURE_SHARE:
            contradicted = True
        if contradicted:
            reasons += ("these disagree: is this the table of this model?",)
        return FoundBlank(table.blank, reasons)
    if by_model is not None:
        return FoundBlank(by_model, (*model_reasons, by_argmax))
    if share >= SURE_SHARE and best in ends:
        return FoundBlank(best, (by_argmax,))
    return FoundBlank(None, (by_argmax, "no token table was found; --tokens FILE settles it"))


def _rates(report: ProbeReport, head: ProbedHead | ProbedJoiner | None) -> FoundRates:
    """Return the rates that the audio files of the first batch show."""
    ids = report.ids[0].values if report.ids else ()
    frames = head.lengths[0].values if head is not None and head.lengths else ()
    return rates_of(report.audio, ids, [int(n) for n in frames])


def _unknown(tokens: str, blank: FoundBlank, rates: FoundRates) -> Iterator[str]:
    """Yield a note for each value that the printed command does not give and a capture would assume."""
    if blank.index is None and not tokens:
        yield "the blank is not known: add --blank ID or --tokens FILE; capture assumes 0, and the store says so"
    if rates.frame_shift is None:
        yield (
            "the frame shift is not known: add --frame-shift SAMPLES; capture assumes 640, and the store says so"
        )
    if rates.sample_rate is None:
        yield "the sample rate is not known: add --sample-rate HZ; capture assumes 16000, and the store says so"


def _notes(
    report: ProbeReport,
    heads: Sequence[ProbedHead],
    ctc: ProbedHead | None,
    transducer: ProbedJoiner | None,
) -> Iterator[str]:
    """Yield facts that the printed command does not show."""
    loop = (
        "{} runs {} times a batch, a decoding loop: this program never computes the lattice of the "
        "references; {}"
    )
    if heads and heads[0].kind in SCRIPTED and not heads[0].path:
        yield "the model was scripted or traced by torch.jit, and no hook runs in it: load it from its Python class"
    in_loop = next((c for c in heads if c.joiner and c.calls > 1), None)
    if transducer is not None:
        how = f"capture runs the joiner itself, by {transducer.convention}'s convention"
        yield loop.format(transducer.joiner, transducer.calls, how)
    elif in_loop is not None:
        how = "--joiner with --joiner-adapter FILE.py:NAME does (logitstore.teachers.joiners)"
        yield loop.format(in_loop.path, in_loop.calls, how)
    elif report.joiners:
        path = report.joiners[0].joiner
        yield f"{path} does not run here: --joiner {path} stores the lattices of the references too"
    if ctc is not None:
        yield from _several_calls(ctc)
    if report.ids and "dataset." in report.ids[0].expression:
        yield "ids are a list of the dataset, by item number: is item i the i-th of the list?"
    for repeated in report.repeated_ids:
        yield f"no utterance ids, because one names several utterances: {repeated}"


def _several_calls(head: ProbedHead) -> Iterator[str]:
    """Yield a note on a head that runs several times per batch."""
    if head.calls < 2:
        return
    if head.accumulate:
        what = {"t": "frames", "b": "utterances"}[head.accumulate]
        yield f"{head.path} runs {head.calls} times in the first batches, on some {what} each: joined"
    elif head.call is not None:
        yield (
            f"{head.path} runs {head.calls} times a batch; only the output of call {head.call} goes to "
            "log_softmax"
        )
    else:
        steps = "; ".join(f"{i} → {', '.join(s) or 'nothing seen'}" for i, s in enumerate(head.steps[:6]))
        yield (
            f"{head.path} runs {head.calls} times a batch ({steps}): say which is the answer, --call N, or "
            "that they are pieces of one, --accumulate t (frames) or b (utterances)"
        )


def _capture_command(
    ctc: ProbedHead | None,
    rnnt: ProbedHead | None,
    transducer: ProbedJoiner | None,
    report: ProbeReport,
    tokens: str,
    table: TokenTable | None,
    blank: FoundBlank,
    rates: FoundRates,
    command: Sequence[str],
    out: str,
) -> str:
    """Return the capture command that stores these heads; empty where there is none."""
    head = transducer or ctc or rnnt
    if head is None:
        return ""
    words = ["logitstore", "capture"]
    if ctc is not None:
        words += ["--ctc", ctc.path]
        if ctc.layout != "BTV":
            words += ["--layout", ctc.layout]
        if ctc.accumulate:
            words += ["--accumulate", ctc.accumulate]
        elif ctc.call is not None:
            words += ["--call", str(ctc.call)]
    if rnnt is not None:
        words += ["--joiner", rnnt.path, "--labels", rnnt.labels[0]]
    if transducer is not None:
        words += ["--joiner", transducer.joiner, "--encoder", transducer.encoder]
    if table is not None and (joiner := transducer or rnnt) is not None:
        durations = joiner.classes - len(table)
        if 0 < durations <= MAX_DURATIONS:
            words += ["--durations", str(durations)]
    id_variables = next((h.id_variables for h in (transducer, ctc, rnnt) if h and h.id_variables), ())
    if ids := report.ids or id_variables:
        words += ["--ids", ids[0].expression]
    if head.lengths_expression:
        words += ["--lengths", head.lengths_expression]
    if tokens:
        words += ["--tokens", tokens]
    elif blank.index is not None:
        words += ["--blank", str(blank.index)]
    if rates.frame_shift is not None:
        words += ["--frame-shift", str(rates.frame_shift)]
    if rates.sample_rate is not None:
        words += ["--sample-rate", str(rates.sample_rate)]
    return shlex.join([*words, "--out", out, "--", *command])
