"""``logitstore plan``."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ._options import OUTPUT, json_option, manifest_from, option, run_options, sectioned_command
from ._plan_picture import plot, streams_of
from ._terminal import printable, table

if TYPE_CHECKING:
    from ..dump.plan.choose import Measurement
    from ..dump.plan.options import AutoEncoding, Plan

PLANNING = "What to plan"
OPTIONAL_COLUMNS = ("p99", "once", "storages")  # dropped one after the other from a table too wide
NOTES = """\
once: bytes that the store has whatever its length: the head. speed: times real time, loading, teacher,
encoding and writing one after the other; a dump runs them side by side. KL: nats by which a row differs
from the teacher's own: mean, 99th percentile and maximum, by temperature. changed: rows whose best class
is not the teacher's. topk and nucleus serve temperatures up to the one that nucleus names, 1 without; factored
and dense serve all."""
LAYER_NOTES = """
error: share of its squared length by which a layer's row differs: mean, 99th percentile and maximum."""
LATTICE_NOTES = """
aligned: share of the teacher's alignments that pass through the nodes kept. collapsed is exact in blank,
next label and rest; its KL here is over all classes, the rest spread evenly."""
SMALL_ONCE = 100_000  # bytes kept once that deserve no column: the token table, logitstore.json, SPEC.md
PASSED_ON = ("manifest_format", "audio_root", "batch_seconds", "device", "limit", "shard_size", "cpu_threads")


@sectioned_command("plan")
@run_options
@option(
    "--out",
    section=OUTPUT,
    default="store",
    show_default=True,
    help="Store that the printed dump command names.",
)
@option(
    "--stream",
    "streams",
    section=PLANNING,
    multiple=True,
    metavar="NAME[=auto[:KL][/FORM]]",
    help="Stream to plan, with its own budget and lattice form: ctc, seq2seq=auto:1e-4, rnnt=auto/banded:5. "
    "Default: all that the teacher has.",
)
@option(
    "--hidden",
    "layers",
    section=PLANNING,
    multiple=True,
    metavar="[NAME=]PATH[:LAYOUT]",
    help="Plan the output of a layer too, named as in dump.",
)
@option(
    "--sample",
    section=PLANNING,
    default=50,
    show_default=True,
    metavar="N",
    type=click.IntRange(1),
    help="Utterances that the teacher runs on, evenly spread over the manifest.",
)
@option(
    "--temperatures",
    section=PLANNING,
    default="1,2,4",
    show_default=True,
    help="Temperatures at which rows are compared with the teacher's.",
)
@option(
    "--max-kl",
    section=PLANNING,
    default=1e-3,
    show_default=True,
    metavar="NATS",
    help="Mean Kullback-Leibler divergence that a row may lose at each temperature.",
)
@option(
    "--max-gb",
    section=PLANNING,
    default=0.0,
    metavar="GIGABYTES",
    type=click.FloatRange(0),
    help="Largest size of the whole store; 0 for any.",
)
@option(
    "--storage",
    "storages",
    section=PLANNING,
    multiple=True,
    help="Storage backend to try, as often as wanted. Default: zarr and zarr:blosc.",
)
@option(
    "--html", section=OUTPUT, type=click.Path(dir_okay=False), help="Write the plan as a page with charts."
)
@json_option("all measurements")
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Measure what every encoding costs and loses, and choose one for each stream.

    The teacher runs over a sample of the manifest; its output goes through each encoding and is compared with
    its own full-precision distribution. No store is made.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in dump
    from .. import PlanOptions, load_teacher, plan_encodings
    from ..dump.plan.run import nearest_folder

    options = PlanOptions(
        streams=_streams(given["streams"]),
        layers=given["layers"],
        storages=given["storages"] or PlanOptions.storages,
        sample=given["sample"],
        temperatures=_numbers(given["temperatures"]),
        max_kl=given["max_kl"],
        max_gb=given["max_gb"],
        batch_seconds=given["batch_seconds"],
        device=given["device"],
        shard_size=given["shard_size"],
        cpu_threads=given["cpu_threads"],
    )
    manifest, teacher = manifest_from(given), load_teacher(given["teacher"])
    with _progress() as report:
        found = plan_encodings(
            teacher, manifest, options, folder=nearest_folder(Path(given["out"])), report=report
        )
    for finding in found.findings:
        click.echo(f"self-check: {printable(finding)}", err=True)
    for failed in found.failed:
        click.echo(f"left out: {printable(failed)}", err=True)
    next_command = shlex.join(_dump(ctx, given, found))
    if given["html"]:
        from ..report.plan import plan_page
        from .report import write_page

        write_page(given["html"], plan_page(found.teacher, streams_of(found), next_command))
    if given["as_json"]:
        return click.echo(json.dumps({**found.to_json(), "command": next_command}, ensure_ascii=False))
    _print(found, next_command)


def _streams(texts: Sequence[str]) -> dict[str, AutoEncoding]:
    from ..dump.plan.options import AutoEncoding

    found = {}
    for text in texts:
        name, equals, how = text.partition("=")
        auto = AutoEncoding.parse(how if equals else "auto")
        if auto is None or name in found:
            raise UsageError(f"--stream {text!r}", do="Give each stream once: ctc, or rnnt=auto/banded:5.")
        found[name] = auto
    return found


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(float(t) for t in text.split(",")))
    except ValueError:
        raise UsageError(f"--temperatures {text!r}", do="Give numbers with commas between: 1,2,4.") from None


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show a live line on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console

    with Console(stderr=True).status("loading the teacher") as status:
        yield lambda done, total: status.update(f"{done} of {total} utterances")


def _dump(ctx: click.Context, given: dict[str, Any], found: Plan) -> Iterator[str]:
    """Yield the words of the dump command to run next."""
    yield from ("logitstore", "dump", "--teacher", given["teacher"], "--manifest", given["manifest"])
    yield from ("--out", given["out"])
    for stream, chosen in found.choice.streams.items():
        yield from ("--stream", f"{stream}={chosen.encoding}")
    if found.choice.storage != "zarr":
        yield from ("--storage", found.choice.storage)
    for name in PASSED_ON:
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            yield from (f"--{name.replace('_', '-')}", str(given[name]))
    for layer in given["layers"]:
        yield from ("--hidden", layer)
    if given["allow_pipes"]:
        yield "--allow-pipes"


def _print(p: Plan, next_command: str) -> None:
    from ..pictures.amounts import size
    from ._terminal import clock

    d = p.to_json()
    sample, manifest = d["sample"], d["manifest"]
    some = sample["utterances"] < manifest["utterances"]
    part = f"{sample['utterances']} of {manifest['utterances']} utterances, {sample['chosen']}"
    ran = ", ".join(f"{name} {speed:.0f}" for name, speed in p.speeds.items())
    click.echo(
        f"{printable(p.teacher)} ran on {part if some else 'the whole manifest'}: "
        f"{clock(sample['seconds'])}, {sample['frames']} frames."
    )
    click.echo(
        f"The manifest lasts {manifest['hours']:.3g} h ({manifest['hours_from']}) and has "
        f"{manifest['frames']} frames."
    )
    click.echo(f"Times real time, each by itself: {ran}.")
    for stream in p.choice.streams:
        click.echo()
        _table(p, stream)
        _plot(p, stream)
        for reason, names in _by_reason(d["streams"][stream]["refused"]):
            click.echo(f"refused: {', '.join(names)}: {printable(reason)}")
    click.echo()
    layers = any(m.of_layer for m in p.choice.streams.values())
    click.echo(NOTES + LATTICE_NOTES * ("rnnt" in p.choice.streams) + LAYER_NOTES * layers)
    click.echo()
    for why in p.choice.why.values():
        click.echo(f"→ {why}")
    click.echo(f"The store will take {size(p.choice.bytes)}. Next:")
    click.echo(f"  {next_command}")


def _plot(p: Plan, stream: str) -> None:
    """Print the plot of a stream, on a terminal alone."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size((120, 24)).columns
        for line in plot(next(s for s in streams_of(p) if s.name == stream), width):
            click.echo(line)


def _by_reason(refused: Iterable[dict[str, str]]) -> Iterable[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for r in refused:
        found.setdefault(r["reason"], []).append(r["encoding"])
    return found.items()


def _table(p: Plan, stream: str) -> None:
    """Print a line for every encoding, smallest first, with all storage backends."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((120, 24)).columns if terminal else 0
    good = [m.meets(p.criteria[stream]) for m in _lines(p, stream)]
    for without in range(len(OPTIONAL_COLUMNS) + 1):
        lines = table(*_cells(p, stream, OPTIONAL_COLUMNS[:without]))
        if not width or max(map(len, lines)) <= width:
            break
    if not terminal:
        click.echo("\n".join(lines))
        return
    from rich.console import Console
    from rich.text import Text

    styles = [
        "bold green" if x[0] == "→" else "" if fine else "dim"
        for x, fine in zip(lines[1:], good, strict=True)
    ]
    for line, style in zip(lines, ["bold", *styles], strict=True):
        Console().print(Text(line, style=style), no_wrap=True, overflow="ellipsis", crop=True)


def _lines(p: Plan, stream: str) -> list[Measurement]:
    """Return every encoding of a stream with the plain storage backend, that the others are compared with."""
    plain = min((m.storage for m in p.measured), key=len)
    return [m for m in p.measured if (m.stream, m.storage) == (stream, plain)]


def _cells(p: Plan, stream: str, without: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    from ..pictures.amounts import size

    lines, chosen = _lines(p, stream), p.choice.streams[stream].encoding
    others = list(dict.fromkeys(m.storage for m in p.measured if m.storage != lines[0].storage))
    others = [] if "storages" in without else others
    lattice, once = (
        any(m.held < 1 for m in lines),
        any(m.once > SMALL_ONCE for m in lines) and "once" not in without,
    )
    head = ["", stream, "B/frame", lines[0].storage, *others, *(["once"] if once else [])]
    lost = ["error"] if lines[0].of_layer else [f"KL at {t:g}" for t in lines[0].kl]
    changed = [] if lines[0].changed is None else ["changed"]
    head += [*(["aligned"] if lattice else []), *lost, *changed, "speed"]
    rows = []
    for m in lines:
        weights = {o.storage: o.bytes for o in p.measured if (o.stream, o.encoding) == (stream, m.encoding)}
        row = ["→" if m.encoding == chosen else "", m.encoding, f"{m.bytes_per_frame:.1f}"]
        row += [size(weights[s]) for s in (m.storage, *others)]
        row += [size(m.once) if m.once > SMALL_ONCE else ""] if once else []
        row += [f"{m.held:.1%}"] if lattice else []
        p99 = "" if "p99" in without else " {}"
        upper = [p99.format(f"{_small(high, 0)} {_small(most, 0)}") for _, high, most in m.kl.values()]
        row += [_small(mean) + more for (mean, _, _), more in zip(m.kl.values(), upper, strict=True)]
        row += [] if m.changed is None else [f"{m.changed:.1%}"]
        rows.append([*row, f"{m.speed:.0f}"])
    return head, rows


def _small(x: float, digits: int = 1) -> str:
    """Return a number of nats in few characters: 8.4e-4."""
    if x < 1e-6:
        return "<1e-6"
    number, _, power = f"{x:.{digits}e}".partition("e")
    return f"{number}e{int(power)}"
