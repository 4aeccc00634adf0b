"""``logitstore probe``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from ..errors import UsageError
from ._terminal import table


@click.command("probe")
@click.option("--teacher", metavar="FILE.py:NAME", help="probe a teacher instead of a command")
@click.option("--manifest", type=click.Path(), help="of the teacher: JSON lines")
@click.option("--audio-root", type=click.Path(), help="what relative audio paths are relative to")
@click.option("--tokens", default="", type=click.Path(), help="token table [default: those it opens]")
@click.option("--batches", default=2, show_default=True, type=click.IntRange(1), help="to watch")
@click.option("--out", default="store", show_default=True, help="store of the command to run next")
@click.option("--rows", default=8, show_default=True, type=click.IntRange(1), help="of the table")
@click.option("--json", "as_json", is_flag=True, help="print all that was found as the last line of stdout")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def command(command: tuple[str, ...], rows: int, as_json: bool, **given: Any) -> None:
    """Find the logits in COMMAND: logitstore probe -- bash decode.sh …; it is ended after its first batches.

    Its own output passes through; the answer comes on stderr, behind it. Nothing is written.
    """
    if bool(command) == bool(given["teacher"]):
        raise UsageError("what is to be probed?", do="Either --teacher FILE.py:NAME, or -- COMMAND.")
    if command:
        from ..capture.probe.run import probe

        found = probe(command, tokens=given["tokens"], batches=given["batches"], out=given["out"])
    else:
        if not given["manifest"]:
            raise UsageError("a teacher needs something to listen to", do="--manifest FILE.jsonl")
        from ..capture.probe.teacher import probe_teacher

        found = probe_teacher(given.pop("teacher"), given.pop("manifest"), **given)
    if as_json:
        return click.echo(json.dumps(found.to_json()))
    for line in _report(found, rows):
        click.echo(line, err=True)


def _report(found: Any, rows: int) -> Iterator[str]:
    yield f"---- logitstore probe: {found.batches} batches watched ----"
    head = ("", "module", "class", "output", "V", "table", "logits", "|logsumexp|", "calls", "then", "from")
    grid = []
    sizes = {size for _, size in found.tables}
    for c in found.candidates[:rows]:
        mark = "ctc" if c == found.ctc else "rnnt" if c == found.rnnt else ""
        fits = "yes" if c["classes"] in sizes else "no" if sizes else "?"
        kind = "log-probs" if c["normalised"] else "logits"
        low = f"D={c['inputs']}" if 0 < c["inputs"] < c["classes"] else ""
        shape = f"{c['layout']} {list(c['shape'])}"
        then = ", ".join(c["after"]) or "-"
        grid.append(
            (
                mark,
                c["path"] or "(itself)",
                c["kind"],
                shape,
                str(c["classes"]),
                fits,
                kind,
                f"{c['logz']:.2g}",
            )
        )
        grid[-1] += (str(c["calls"]), then, c["joiner"] or low or "-")  # type: ignore[assignment]
    yield from table(head, grid)
    best = found.ctc or found.rnnt
    for path, size in found.tables:
        yield f"tokens   {path}: {size}{', as many as classes' if best and size == best['classes'] else ''}"
    if found.blank.why:
        index = "unknown" if found.blank.index is None else found.blank.index
        yield f"blank    {index}: {'; '.join(found.blank.why)}"
    for name in found.rnnt["labels"][:3] if found.rnnt else ():
        yield f"labels   {name}"
    for f in best["lengths"][:3] if best else ():
        yield f"lengths  {f['expression']} = {list(f['values'])}"
    places = [*found.ids, *(best["variables"] if best else ())]
    for f in places[:3]:
        yield f"ids      {f['expression']}: {', '.join(f['values'][:3])}, …"
    if not places:
        yield "ids      nowhere: let the dataset return them, or say --ids EXPR"
    if found.texts:
        yield f"texts    {found.texts}"
    if found.driven:
        d = found.driven
        calls = f"{d['ran']} calls a batch"
        yield f"drives   {d['joiner']}: {d['convention']}'s joiner, from {d['encoder']}; {calls}"
    for c in (found.ctc, found.rnnt):
        if c and c["joiner"]:
            yield f"factors  {c['path']}: additive joiner, {c['joiner']} -> {c['classes']}"
        elif c and 0 < c["inputs"] < c["classes"]:
            yield f"factors  {c['path']}: {c['inputs']} inputs for {c['classes']} classes"
    yield from (f"note     {note}" for note in found.notes)
    yield "next"
    yield f"  {found.command}" if found.command else "  nothing here gives (B, T, V) logits once a batch"
