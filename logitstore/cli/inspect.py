"""``logitstore inspect``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ._options import AUDIO_ROOT, json_option, option, sectioned_command
from ._terminal import json_text, printable, size, table

if TYPE_CHECKING:
    from ..store.inspect import RowSummary, StoreSummary, StreamSummary, UtteranceStream, UtteranceSummary

STATISTICS = "Statistics of a store"


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
    section="One utterance",
    default=5,
    show_default=True,
    metavar="N",
    type=click.IntRange(1),
    help="Show the N most probable classes of every row.",
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
    as_json: bool,
) -> None:
    """Show STORE as a whole, or one UTTERANCE of it row by row."""
    from ..corpus.manifest import read_manifest
    from ..store.inspect import inspect_store, inspect_utterance

    if utterance is not None:
        one = inspect_utterance(store, utterance, top=top)
        lines = [json_text(one.to_json())] if as_json else list(_utterance_lines(one))
    else:
        asked = None if manifest is None else read_manifest(manifest, audio_root=audio_root)
        whole = inspect_store(
            store, sample=sample, manifest=asked, rate=None if rate is None else ratio(rate)
        )
        lines = [json_text(whole.to_json())] if as_json else list(_store_lines(whole))
        if rate is not None and not as_json:
            lines += ["", *_served_lines(whole, rate)]
    for line in lines:
        click.echo(line)


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
        if stream.rms is not None:
            yield f"{name}: root mean square of the numbers {stream.rms:.3g}"
    yield "entropy: nats; blank: share of rows whose best class is the blank; top-1, kept: mean probability;"
    yield "errors: of the greedy decode of the stored rows (lattices and decoders under teacher forcing);"
    yield f"all measured on {s.sampled} of {s.utterances} utterances."
    if s.transcript_error_rates:
        rates = ", ".join(f"{name} {100 * rate:.2f} %" for name, rate in s.transcript_error_rates.items())
        yield f"Token errors of the teacher's own transcripts, decoded without teacher forcing: {rates}"


def _utterance_lines(u: UtteranceSummary) -> Iterator[str]:
    """Yield the lines that are printed of one utterance."""
    width = shutil.get_terminal_size((100, 24)).columns
    yield f"utterance  {printable(u.id)}"
    yield f"length     T = {u.T} frames, U = {u.U} labels, {u.seconds} s"
    yield f"reference  {printable(u.text if u.text is not None else '-')}"
    yield f"labels     {printable(' '.join(u.labels)) or '-'}"
    for name, s in u.streams.items():
        yield ""
        yield f"{printable(name):<10} {'×'.join(map(str, s.shape))} {printable(s.encoding)}".rstrip()
        yield from _utterance_stream_lines(u, s)
        if s.frames is not None:
            yield ""
            yield from _row_table(s.frames, width)


def _utterance_stream_lines(u: UtteranceSummary, s: UtteranceStream) -> Iterator[str]:
    """Yield labels, decode, errors and transcript of one stream."""
    if s.labels is not None and s.labels != u.labels:
        yield f"labels     {printable(' '.join(s.labels))}"
    if s.text is not None:
        yield f"decoded    {printable(s.text)}"
    if s.decoded is not None:
        yield f"           {printable(' '.join(s.decoded))}"
    if s.errors is not None:
        yield f"           {s.errors} errors in {s.reference}"
    if s.transcript is not None and s.decoded is not None:
        yield f"transcript {printable(s.transcript['text'])}"
    if s.rms is not None:
        yield f"rms        {' '.join(f'{x:.3g}' for x in s.rms)}"


def _row_table(rows: list[RowSummary], width: int) -> list[str]:
    """Return the table of the best classes of every row; as many columns as fit into the terminal."""
    lines: list[list[Any]] = []
    for row in rows:
        place = ",".join(str(axis) for axis in (row.t, row.u) if axis is not None)
        best = [f"{printable(token)} {p:.3f}" if p >= 5e-4 else "·" for token, p in row.best]
        lines.append([place, *best, f"{row.tail:.1e}"])
    axes = [axis for axis in ("t", "u") if rows and getattr(rows[0], axis) is not None]
    count = max((len(row.best) for row in rows), default=0)
    head = [",".join(axes), *(f"best {i + 1}" for i in range(count)), "rest"]
    return table(head, lines, width)
