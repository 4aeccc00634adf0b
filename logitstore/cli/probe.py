"""``logitstore probe``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ._options import option, sectioned_command
from ._terminal import table

if TYPE_CHECKING:
    from ..capture.probe.finding import ProbedHead, ProbeFinding

PROGRAM = "Probing a program or a teacher"
TEACHER = "Probing a teacher"
SHOWN = 3  # expressions of each kind
HEADINGS = (
    *("", "module", "class", "output", "V", "table", "logits", "|logsumexp|", "calls", "then", "from"),
)


@sectioned_command("probe")
@option(
    "--tokens",
    section=PROGRAM,
    default="",
    metavar="FILE",
    type=click.Path(),
    help="Token table of the model. Default: the tables among the files that the program opens.",
)
@option(
    "--batches",
    section=PROGRAM,
    default=2,
    show_default=True,
    metavar="N",
    type=click.IntRange(1),
    help="Watch the first N batches, then end the program.",
)
@option(
    "--out",
    section=PROGRAM,
    default="store",
    show_default=True,
    metavar="STORE",
    help="Name this store in the command that is printed; the probe itself writes nothing.",
)
@option(
    "--rows",
    section=PROGRAM,
    default=8,
    show_default=True,
    metavar="N",
    type=click.IntRange(1),
    help="Show the N likeliest modules.",
)
@option(
    "--teacher",
    section=TEACHER,
    metavar="FILE.py:NAME",
    help="Probe this teacher instead of a program, and compare it with what it says of itself.",
)
@option(
    "--manifest",
    section=TEACHER,
    metavar="FILE",
    type=click.Path(),
    help="Manifest whose first utterances the teacher is run on.",
)
@option(
    "--audio-root",
    section=TEACHER,
    metavar="DIR",
    type=click.Path(),
    help="Folder that relative audio paths of the manifest start from.",
)
@option("--json", "as_json", is_flag=True, help="Print the findings as JSON, as the last line of the output.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def command(
    command: tuple[str, ...],
    tokens: str,
    batches: int,
    out: str,
    rows: int,
    teacher: str | None,
    manifest: str | None,
    audio_root: str | None,
    as_json: bool,
) -> None:
    """Find the logits in COMMAND: logitstore probe -- bash decode.sh …; it is ended after its first batches.

    The command's own output is left alone. The findings, and the capture command to run next, are printed on
    standard error. Nothing is written.
    """
    if bool(command) == bool(teacher):
        raise UsageError(
            "give either a command or a teacher to probe", do="Write -- COMMAND, or --teacher FILE.py:NAME."
        )
    if teacher:
        if not manifest:
            raise UsageError("a teacher is run on utterances of a manifest", do="Give --manifest FILE.jsonl.")
        from ..capture.probe.teacher import probe_teacher

        finding = probe_teacher(
            teacher, manifest, audio_root=audio_root, tokens=tokens, batches=batches, out=out
        )
    else:
        from .. import probe_program

        finding = probe_program(command, tokens=tokens, batches=batches, out=out)
    if as_json:
        click.echo(json.dumps(finding.to_json()))
    else:
        for line in _report(finding, rows):
            click.echo(line, err=True)


def _report(finding: ProbeFinding, rows: int) -> Iterator[str]:
    """Yield the lines of the report, with a table of the likeliest modules."""
    yield f"---- logitstore probe: {finding.batches} batches watched ----"
    yield from table(HEADINGS, [_table_row(finding, head) for head in finding.candidates[:rows]])
    best = finding.ctc or finding.rnnt
    for path, size in finding.tables:
        fits = ", as many as classes" if best is not None and size == best.classes else ""
        yield f"tokens   {path}: {size}{fits}"
    if finding.blank.reasons:
        index = "unknown" if finding.blank.index is None else finding.blank.index
        yield f"blank    {index}: {'; '.join(finding.blank.reasons)}"
    if finding.rates.reasons:
        yield f"audio    {'; '.join(finding.rates.reasons)}"
    if finding.rnnt is not None:
        for name in finding.rnnt.labels[:SHOWN]:
            yield f"labels   {name}"
    for found in best.lengths[:SHOWN] if best is not None else ():
        yield f"lengths  {found.expression} = {list(found.values)}"
    ids = [*finding.ids, *(best.id_variables if best is not None else ())]
    for found in ids[:SHOWN]:
        yield f"ids      {found.expression}: {', '.join(map(str, found.values[:3]))}, …"
    if not ids:
        yield "ids      not found: let the dataset return them, or say where they are with --ids EXPR"
    if finding.texts:
        yield f"texts    {finding.texts}"
    if (joiner := finding.transducer) is not None:
        yield (
            f"lattices {joiner.joiner}: capture runs this joiner, by {joiner.convention}'s convention, on "
            f"{joiner.encoder}; the program runs it {joiner.calls} times a batch"
        )
    for head in (finding.ctc, finding.rnnt):
        if head is not None and head.joiner:
            yield f"factors  {head.path}: additive joiner, {head.joiner} -> {head.classes}"
        elif head is not None and 0 < head.inputs < head.classes:
            yield f"factors  {head.path}: {head.inputs} inputs for {head.classes} classes"
    for note in finding.notes:
        yield f"note     {note}"
    if not finding.command:
        yield "nothing here gives (B, T, V) logits once a batch, so there is no command to run next"
        return
    yield "next, once these are known:" if finding.missing else "next"
    for reason in finding.missing:
        yield f"  - {reason}"
    yield f"  {finding.command}"


def _table_row(finding: ProbeFinding, head: ProbedHead) -> tuple[str, ...]:
    """Return the cells of one module, in the order of ``HEADINGS``."""
    sizes = {size for _, size in finding.tables}
    fits = "?"
    if sizes:
        fits = "yes" if head.classes in sizes else "no"
    factors = f"D={head.inputs}" if 0 < head.inputs < head.classes else "-"
    cells: dict[str, Any] = {
        "": "ctc" if head == finding.ctc else "rnnt" if head == finding.rnnt else "",
        "module": head.path or "(itself)",
        "class": head.kind,
        "output": f"{head.layout} {list(head.shape)}",
        "V": head.classes,
        "table": fits,
        "logits": "log-probs" if head.normalised else "logits",
        "|logsumexp|": f"{head.logz:.2g}",
        "calls": head.calls,
        "then": ", ".join(head.after) or "-",
        "from": head.joiner or factors,
    }
    return tuple(str(cells[name]) for name in HEADINGS)
