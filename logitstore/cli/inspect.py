"""``logitstore inspect``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from ..pictures.amounts import size
from ._options import AUDIO_ROOT, json_option, option, sectioned_command
from ._terminal import json_text, printable, table

if TYPE_CHECKING:
    from ..store.inspect import StoreSummary, StreamSummary

STATISTICS = "Statistics of a store"
ONE = "One utterance"


@sectioned_command("inspect")
@click.argument("store", type=click.Path())
@click.argument("utterance", required=False)
@option(
    "--sample",
    section=STATISTICS,
    default=200,
    show_default=True,
    metavar="N",
    type=click.IntRange(1),
    help="Measure statistics on at most N utterances, spread evenly over the store.",
)
@option(
    "--manifest",
    section=STATISTICS,
    type=click.Path(),
    help="List the utterances of this manifest that the store lacks, and those that only the store has.",
)
@option("--audio-root", section=STATISTICS, type=click.Path(), help=AUDIO_ROOT)
@option(
    "--rate",
    section=STATISTICS,
    metavar="P:Q",
    help="Print the token errors of the targets as served to a student with P frames for Q of the teacher.",
)
@option(
    "--top",
    section=ONE,
    default=5,
    show_default=True,
    metavar="N",
    type=click.IntRange(1),
    help="Show the N most probable classes of every row.",
)
@option(
    "--frames",
    section=ONE,
    metavar="FIRST:END",
    help="Show only these frames, END not included: 40:80, 40:, :80.",
)
@option("--all", "unfolded", section=ONE, is_flag=True, help="Give every frame a line; default: fold blanks.")
@option("--csv", "as_csv", section=ONE, is_flag=True, help="Print the rows as comma-separated values.")
@option(
    "--watch",
    is_flag=False,
    flag_value=2.0,
    type=click.FloatRange(0.1),
    metavar="[SECONDS]",
    help="Look at a store that is being filled every SECONDS (2); ends with the manifest, if one is given.",
)
@json_option("everything")
def command(
    store: str,
    utterance: str | None,
    sample: int,
    manifest: str | None,
    audio_root: str | None,
    rate: str | None,
    top: int,
    frames: str | None,
    unfolded: bool,
    as_csv: bool,
    watch: float | None,
    as_json: bool,
) -> None:
    """Show STORE as a whole, or one UTTERANCE of it row by row."""
    from ..corpus.manifest import read_manifest
    from ..store.inspect import inspect_store, inspect_utterance
    from ..store.reader import open_store
    from . import _utterance, _watch

    lines: Iterable[str]
    if utterance is None and (frames or unfolded or as_csv):
        raise click.UsageError("--frames, --all and --csv show one utterance: give its id after the store.")
    asked = None if manifest is None else read_manifest(manifest, audio_root=audio_root)
    if watch is not None:
        count = None if asked is None else len(list(asked))
        lines = _watch.watch(store, count, lambda: time.sleep(watch))
    elif utterance is not None:
        opened, shown = open_store(store), _frames(frames)
        one = inspect_utterance(opened, utterance, top=top)
        if as_json:
            lines = [json_text(one.to_json())]
        elif as_csv:
            lines = _utterance.csv_lines(one, shown)
        else:
            colour = _utterance.in_colour()
            lines = _utterance.lines_of(one, opened, frames=shown, unfolded=unfolded, colour=colour)
    else:
        whole = inspect_store(
            store, sample=sample, manifest=asked, rate=None if rate is None else ratio(rate)
        )
        lines = [json_text(whole.to_json())] if as_json else list(_store_lines(whole))
        if rate is not None and not as_json:
            lines += ["", *_served_lines(whole, rate)]
    for line in lines:
        click.echo(line)


def _frames(text: str | None) -> tuple[int, int | None]:
    """Return frames written as FIRST:END, either of them empty; raises ``click.BadParameter``."""
    first, separator, end = (text or ":").partition(":")
    if not (separator and all(not part or part.isdecimal() for part in (first, end))):
        raise click.BadParameter(
            f"{text!r} are no frames: write the first and the one after the last, 40:80."
        )
    return int(first or 0), int(end) if end else None


def ratio(text: str) -> tuple[int, int]:
    """Return a rate written as P:Q; raises ``click.BadParameter``."""
    p, separator, q = text.partition(":")
    if not (separator and p.isdecimal() and q.isdecimal() and int(p) and int(q)):
        raise click.BadParameter(f"{text!r} is not a rate: write student frames and teacher frames, 1:2.")
    return int(p), int(q)


def _served_lines(s: StoreSummary, rate: str) -> Iterator[str]:
    """Yield the table of the targets' token errors at another rate."""
    yield f"targets as served at {rate}, by each stream's default method, against the stored rows"
    rows = [
        [
            one.stream,
            one.method,
            f"{100 * one.rate:.2f} %",
            f"{100 * one.unfit / max(one.utterances, 1):.1f} %",
            f"{one.drift:.2f}",
        ]
        for one in s.served or ()
    ]
    yield from table(["stream", "method", "token errors", "do not fit", "drift"], rows)
    yield "do not fit: share of utterances with more tokens than student frames; drift: in student frames"


def _store_lines(s: StoreSummary) -> Iterator[str]:
    """Yield the lines that are printed of a store."""
    teacher, tokens = s.teacher, s.tokens
    modules = ", ".join(f"{h['stream']} at {h['module']}" for h in teacher["heads"])
    milliseconds = 1000 * teacher["frame_shift"] / teacher["sample_rate"]
    versions = ", ".join(f"{name} {version}" for name, version in s.made_with.items())
    weights = printable(str(teacher["weights"] or "not recorded"))
    yield f"store      {printable(s.store)} (format {s.format}, {printable(s.storage)})"
    yield f"teacher    {printable(teacher['name'])}, weights {weights}"
    yield f"tapped     {printable(modules) or 'nothing: written by a loop of its own'}"
    yield f"audio      {teacher['sample_rate']} Hz, one frame every {milliseconds:g} ms"
    if assumed := teacher.get("assumed"):
        yield f"assumed    {printable(', '.join(assumed))}: given by nobody, and not used for frame times"
    yield f"tokens     {tokens['size']}, blank {tokens['blank']}, {printable(tokens['sha256'])}"
    yield f"made with  {printable(versions)}"
    yield f"size       {s.utterances} utterances, {s.hours:.3f} h, {s.frames} frames, {s.shards} shards"
    yield (
        f"on disk    {size(s.bytes)}: {s.bytes_per_frame:.1f} bytes a frame, all included, and "
        f"{size(s.bytes_once)} once"
    )
    for change in s.allowed:
        yield printable(f"allowed    {change['field']}: {change['was']} → {change['now']}")
    for check in s.gates:
        yield f"skipped    check {printable(check['gate'])}: {printable(check['reason'])}"
    if s.skipped:
        yield f"skipped    {s.skipped} utterances: see skipped.jsonl"
    yield ""
    yield from _stream_table(s.streams)
    yield ""
    yield from _notes(s)
    if s.manifest is not None:
        m = s.manifest
        yield ""
        yield f"manifest   {m.asked} utterances, {len(m.missing)} missing, {len(m.extra)} extra"
        yield from (f"  missing  {printable(utt_id)}" for utt_id in m.missing)
        yield from (f"  extra    {printable(utt_id)}" for utt_id in m.extra)
        yield from (f"  bad line {printable(problem['what'])}" for problem in m.bad_lines)
        if m.other_names:
            wanted, stored = next(iter(m.other_names.items()))
            yield printable(
                f"  {len(m.other_names)} of the missing ones are stored under another id, by the file's name: "
                f"{wanted} as {stored}. A student finds a record by the stored id: use the same ids in the "
                "manifest, or capture again with --ids and stem(), or give the store's ids to the student"
            )


def _stream_table(streams: dict[str, StreamSummary]) -> list[str]:
    """Return the table of all streams."""
    head = ["stream", "shape", "encoding", "bytes/row", "of fp16", "entropy", "blank", "top-1", "kept"]
    rows = [
        [
            name,
            s.shape.replace("V", str(s.classes)),
            _encoding(s),
            _number(s.bytes_per_row, "{:.1f}"),
            _number(s.of_dense_fp16, "{:.1%}"),
            _number(s.entropy, "{:.3f}"),
            _number(s.blank_share, "{:.1%}"),
            _number(s.top1_share, "{:.1%}"),
            _number(s.kept_mass, "{:.3%}"),
            "-" if s.error_rate is None else f"{100 * s.error_rate:.2f} % of {s.error_unit}s",
        ]
        for name, s in streams.items()
    ]
    return table([*head, "errors"], rows)


def _encoding(s: StreamSummary) -> str:
    """Return an encoding, with the lattice form unless all nodes are kept."""
    if s.form in ("", "full"):
        return printable(s.encoding) or "-"
    return printable(f"{s.encoding}/{s.form}")


def _number(value: float | None, how: str) -> str:
    """Return a formatted number, a percent sign set off by a space; a dash where there is none."""
    return "-" if value is None else how.format(value).replace("%", " %")


def _notes(s: StoreSummary) -> Iterator[str]:
    """Yield losses, and what the columns of the table mean."""
    for name, stream in s.streams.items():
        if lost := stream.lost:
            yield (
                f"{name} loses {lost.mean:.2e} nats a row on average, up to {lost.p99:.2e} in "
                f"99 of 100 rows and {lost.max:.2e} at most (measured by the dump)"
            )
            for temperature, (mean, p99, most) in lost.at.items():
                yield f"{name} at temperature {temperature}: {mean:.1e} on average, {p99:.1e}, {most:.1e}"
        if lost and lost.changed is not None:
            yield f"{name}: the best class of {lost.changed:.2%} of the rows changes"
        if stream.whole_share is not None:
            yield f"{name}: {stream.whole_share:.1%} of the rows are stored whole"
        if stream.rms is not None:
            yield f"{name}: root mean square of the numbers {stream.rms:.3g}"
    yield "entropy: nats; blank: share of rows whose best class is the blank; top-1, kept: mean probability;"
    yield "errors: of the greedy decode of the stored rows (lattices and decoders under teacher forcing);"
    yield f"all measured on {s.sampled} of {s.utterances} utterances."
    if s.transcript_error_rates:
        rates = ", ".join(f"{name} {100 * rate:.2f} %" for name, rate in s.transcript_error_rates.items())
        yield f"Token errors of the teacher's own transcripts, decoded without teacher forcing: {rates}"
