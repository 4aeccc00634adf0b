"""``logitstore plan``."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ._options import manifest_from, run_options, sectioned_command
from ._terminal import printable, table

if TYPE_CHECKING:
    from ..dump.plan.choose import Measured
    from ..dump.plan.options import Plan, Wish

NARROWER = ("p99", "once", "storages")  # what a table leaves out that would not fit the terminal
NOTES = """\
once: of the store, whatever its length: the head. speed: times real time, loading, teacher, encoding
and writing one after the other; a dump does them side by side. KL: nats that a row differs from the
teacher's own, mean and 99th percentile, by temperature."""
LAYER_NOTES = """
error: share of its squared length by which a layer's row differs, mean and 99th percentile."""
LATTICE_NOTES = """
aligned: share of the teacher's alignments in the nodes kept. collapsed is exact in blank, next label
and rest; its KL here is of all classes, the rest spread evenly."""
FEW = 10_000  # bytes kept once that are not worth a column: the token table, logitstore.json
PASSED_ON = ("manifest_format", "audio_root", "batch_seconds", "device", "limit", "shard_size", "cpu_threads")


@sectioned_command("plan")
@run_options
@click.option("--out", default="store", show_default=True, help="store of the command to run next")
@click.option(
    "--stream",
    "streams",
    multiple=True,
    metavar="NAME[=auto[:KL][/FORM]]",
    help="ctc, rnnt, seq2seq, hidden, rnnt=auto/banded:5, ... [default: all that the teacher has]",
)
@click.option(
    "--hidden", "layers", multiple=True, metavar="[NAME=]PATH[:LAYOUT]", help="a layer to plan, as in dump"
)
@click.option("--sample", default=50, show_default=True, type=click.IntRange(1), help="utterances to run")
@click.option("--temperatures", default="1,2,4,8", show_default=True, help="at which rows are compared")
@click.option("--max-kl", default=1e-3, show_default=True, help="nats that a row may lose on average")
@click.option("--max-gb", default=0.0, type=click.FloatRange(0), help="that the store may weigh")
@click.option("--storage", "storages", multiple=True, help="to try [default: zarr, zarr:zstd]")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Say what every encoding would cost and keep, and which one to take.

    The teacher runs over a sample of the manifest; what it says goes through each encoding and is compared
    with its own full-precision distribution. Nothing is kept.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in dump
    from ..dump.plan.options import PLANNED, PlanOptions, Wish
    from ..dump.plan.run import plan
    from ..schema.kinds import kind_of
    from ..teachers import load_teacher
    from ..teachers.layers import layered, parse_layer

    given_wishes, temperatures = _wishes(given["streams"]), _numbers(given["temperatures"])
    manifest = manifest_from(given)
    teacher = load_teacher(given["teacher"])
    layers = [parse_layer(text, teacher.tokens().blank) for text in given["layers"]]
    teacher = layered(teacher, layers)
    if given_wishes:
        given_wishes = {**{h.stream: Wish() for h in layers}, **given_wishes}
    options = PlanOptions(
        streams=given_wishes
        or {h.stream: Wish() for h in teacher.describe().heads if kind_of(h.stream).name in PLANNED},
        storages=given["storages"] or PlanOptions.storages,
        sample=given["sample"],
        temperatures=temperatures,
        max_kl=given["max_kl"],
        max_gb=given["max_gb"],
        batch_seconds=given["batch_seconds"],
        device=given["device"],
        shard_size=given["shard_size"],
        cpu_threads=given["cpu_threads"],
    )
    with _meter() as report:
        found = plan(teacher, manifest, beside(Path(given["out"])), options, report=report)
    for finding in found.findings:
        click.echo(f"self-check: {printable(finding)}", err=True)
    for failed in found.failed:
        click.echo(f"left out: {printable(failed)}", err=True)
    next_command = shlex.join(_dump(ctx, given, found))
    if given["as_json"]:
        return click.echo(json.dumps({**found.to_json(), "command": next_command}, ensure_ascii=False))
    _print(found, next_command)


def beside(out: Path) -> Path:
    """The nearest folder that exists on the way to a store: its file system is where trials are written."""
    for folder in (out, *out.absolute().parents):
        if folder.is_dir() and os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.gettempdir())


def _wishes(streams: Sequence[str]) -> dict[str, Wish]:
    from ..dump.plan.options import Wish

    found = {}
    for text in streams:
        name, equals, how = text.partition("=")
        wish = Wish.parse(how if equals else "auto")
        if wish is None or name in found:
            raise UsageError(f"--stream {text!r}", do="Each stream once: ctc, or rnnt=auto/banded:5.")
        found[name] = wish
    return found


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(float(t) for t in text.split(",")))
    except ValueError:
        raise UsageError(f"--temperatures {text!r}", do="Numbers with commas between: 1,2,4.") from None


@contextmanager
def _meter() -> Iterator[Callable[[int, int], None]]:
    """Progress: a live line on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    from rich.console import Console

    with Console(stderr=True).status("the teacher begins") as status:
        yield lambda done, of: status.update(f"{done} of {of} utterances heard")


def _dump(ctx: click.Context, given: dict[str, Any], found: Plan) -> Iterator[str]:
    """The words of the command to run next."""
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
    from ._terminal import clock, size

    d = p.to_json()
    sample, manifest = d["sample"], d["manifest"]
    some = sample["utterances"] < manifest["utterances"]
    heard = f"{sample['utterances']} of {manifest['utterances']} utterances, {sample['chosen']}"
    ran = ", ".join(f"{name} {speed:.0f}" for name, speed in p.speeds.items())
    click.echo(
        f"{printable(p.teacher)} heard {heard if some else 'the whole manifest'}: "
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
        for reason, names in _by_reason(d["streams"][stream]["refused"]):
            click.echo(f"refused: {', '.join(names)}: {printable(reason)}")
    click.echo()
    layers = any(m.of_layer for m in p.choice.streams.values())
    click.echo(NOTES + LATTICE_NOTES * ("rnnt" in p.choice.streams) + LAYER_NOTES * layers)
    click.echo()
    for why in p.choice.why.values():
        click.echo(f"→ {why}")
    click.echo(f"The store will weigh {size(p.choice.bytes)}. Next:")
    click.echo(f"  {next_command}")


def _by_reason(refused: Iterable[dict[str, str]]) -> Iterable[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for r in refused:
        found.setdefault(r["reason"], []).append(r["encoding"])
    return found.items()


def _table(p: Plan, stream: str) -> None:
    """A line for every encoding, smallest first, with all storages."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((120, 24)).columns if terminal else 0
    good = [m.keeps(p.asked[stream]) for m in _lines(p, stream)]
    for without in range(len(NARROWER) + 1):
        lines = table(*_cells(p, stream, NARROWER[:without]))
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


def _lines(p: Plan, stream: str) -> list[Measured]:
    """Every encoding of a stream, with the storage that all others are compared with."""
    plain = min((m.storage for m in p.measured), key=len)
    return [m for m in p.measured if (m.stream, m.storage) == (stream, plain)]


def _cells(p: Plan, stream: str, without: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    from ._terminal import size

    lines, chosen = _lines(p, stream), p.choice.streams[stream].encoding
    others = list(dict.fromkeys(m.storage for m in p.measured if m.storage != lines[0].storage))
    others = [] if "storages" in without else others
    lattice, once = any(m.held < 1 for m in lines), any(m.once > FEW for m in lines) and "once" not in without
    head = ["", stream, "B/frame", lines[0].storage, *others, *(["once"] if once else [])]
    lost = ["error"] if lines[0].of_layer else [f"KL at {t:g}" for t in lines[0].kl]
    head += [*(["aligned"] if lattice else []), *lost, "speed"]
    rows = []
    for m in lines:
        weights = {o.storage: o.bytes for o in p.measured if (o.stream, o.encoding) == (stream, m.encoding)}
        row = ["→" if m.encoding == chosen else "", m.encoding, f"{m.bytes_per_frame:.1f}"]
        row += [size(weights[s]) for s in (m.storage, *others)]
        row += [size(m.once) if m.once > FEW else ""] if once else []
        row += [f"{m.held:.1%}"] if lattice else []
        p99 = "" if "p99" in without else " {}"
        row += [_small(mean) + p99.format(_small(most, 0)) for mean, most in m.kl.values()]
        rows.append([*row, f"{m.speed:.0f}"])
    return head, rows


def _small(x: float, digits: int = 1) -> str:
    """A number of nats in few characters: 8.4e-4."""
    if x < 1e-6:
        return "<1e-6"
    number, _, power = f"{x:.{digits}e}".partition("e")
    return f"{number}e{int(power)}"
