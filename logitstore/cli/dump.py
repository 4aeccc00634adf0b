"""``logitstore dump``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ..dump.blocks import Part
from ..errors import UsageError
from ..schema.kinds import kind_of
from ._options import manifest_from, run_options, sectioned_command

if TYPE_CHECKING:
    from ..schema.spec import Head


def parse_streams(values: tuple[str, ...]) -> dict[str, str]:
    """``NAME=ENCODING`` of every --stream, ``text`` alone; raises ``UsageError``."""
    streams: dict[str, str] = {}
    for value in values:
        name, found, encoding = value.partition("=")
        alone = name == "text" and not found
        if (not encoding and not alone) or name in streams:
            raise UsageError(
                f"--stream {value!r}", do="Give each stream once, as NAME=ENCODING: ctc=dense, rnnt=topk:16."
            )
        streams[name] = encoding
    return streams


def _asked_streams(given: Mapping[str, Any], heads: Sequence[Head] = ()) -> dict[str, str]:
    """Encoding by stream: those named, and of a teacher's others ``--encoding``; raises ``UsageError``."""
    every = given["encoding"]
    streams = {h.stream: every for h in heads if kind_of(h.stream).classes} if every else {}
    streams |= parse_streams(given["streams"])
    if (number := given["u_sample"]) is not None and (heads or not every):
        if "rnnt" not in streams or "/" in streams["rnnt"]:
            raise UsageError(
                f"--u-sample {number} of rnnt={streams.get('rnnt', '')}",
                do="It is a lattice's form: --stream rnnt=topk:16 --u-sample 4, or rnnt=topk:16/sample:4.",
            )
        streams["rnnt"] += f"/sample:{number}"
    return streams


def _kept(out: str) -> str:
    from ..store.reader import Store

    store = Store(out)
    return (
        f"{out}: stopped; {len(store)} utterances in {len(store.shards)} sealed shards are kept, the shard "
        "in the making is not. The same command goes on from here."
    )


@sectioned_command("dump")
@run_options
@click.option("--out", required=True, type=click.Path(), help="the store; made, or resumed")
@click.option(
    "--stream",
    "streams",
    multiple=True,
    metavar="NAME=ENCODING[/FORM]",
    help="ctc=dense, rnnt=topk:16/banded:5+occupancy, seq2seq=topk:16, hidden=vectors, text, rnnt=auto "
    "(as logitstore plan recommends) [default: ctc=dense]; forms: full, banded:S, path, sample:N, mean-u",
)
@click.option("--encoding", help="of the teacher's streams that --stream does not name: auto, topk:16, ...")
@click.option(
    "--u-sample", type=click.IntRange(1), help="label positions that a lattice keeps: rnnt=…/sample:N"
)
@click.option(
    "--hidden",
    "layers",
    multiple=True,
    metavar="[NAME=]PATH[:LAYOUT]",
    help="a layer's output as stream hidden or hidden_NAME: encoder.layers.3 [hidden=vectors]",
)
@click.option("--tokens", type=click.Path(), help="tokens.txt that the teacher's table must equal")
@click.option("--storage", default="zarr", show_default=True, help="zarr, zarr:zstd, zarr:blosc, webdataset")
@click.option("--chunk", metavar="SECONDS", help="run longer recordings in chunks, joined without seams")
@click.option("--overlap", metavar="SECONDS", help="of a chunk with the next; half is dropped  [default: 5]")
@click.option("--on-error", default="raise", show_default=True, type=click.Choice(["raise", "skip"]))
@click.option("--max-skipped", default="100%", show_default=True, help="stop at more: a number, or 1%")
@click.option("--job", default="0/1", show_default=True, metavar="i/N", help="dump part i of N")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="that load audio")
@click.option("--allow-different", multiple=True, metavar="FIELD", help="resume although FIELD differs")
@click.option(
    "--max-wer", default=50.0, show_default=True, type=click.FloatRange(0), help="%, of a first look"
)
@click.option("--skip-gate", default="", metavar="REASON", help="go on where a gate would stop; stored")
@click.option(
    "--transcripts",
    default="ctc",
    show_default=True,
    type=click.Choice(["none", "ctc", "all"]),
    help="streams whose greedy decode rows keep",
)
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
def command(**given: Any) -> None:
    """Run a teacher over a manifest and store what it says.

    Running the same command again does only what is missing.
    """
    # Features made with numpy run in loader threads: BLAS threads below them only fight the teacher's.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ..dump.job import DumpOptions, Progress, dump
    from ..storage.entries import ShardSize
    from ..teachers import load_teacher
    from ..teachers.layers import layered, parse_layer
    from ..tokens.table import TokenTable
    from ._terminal import Meter, Signals, Stopped, clock, size

    layers = [parse_layer(text, 0) for text in given["layers"]]
    streams = _asked_streams(given) or ({} if layers else {"ctc": "dense"})
    vectors = {h.stream: "vectors" for h in layers}
    if given["overlap"] is not None and given["chunk"] is None:
        raise UsageError("--overlap without --chunk", do="E.g. --chunk 30 --overlap 5.")
    part = Part.parse(given["job"])
    ShardSize.parse(given["shard_size"])
    options = DumpOptions(
        streams=vectors | streams,
        storage=given["storage"],
        batch_seconds=given["batch_seconds"],
        device=given["device"],
        shard_size=given["shard_size"],
        on_error=given["on_error"],
        max_skipped=given["max_skipped"],
        part=part,
        tokens=TokenTable.read(given["tokens"]) if given["tokens"] else None,
        allow_different=given["allow_different"],
        threads=given["threads"],
        cpu_threads=given["cpu_threads"],
        max_wer=given["max_wer"],
        skip_gate=given["skip_gate"],
        transcripts=given["transcripts"],
        chunk=given["chunk"],
        overlap=given["overlap"] or 5,
    )
    manifest = manifest_from(given)
    teacher = load_teacher(given["teacher"])
    if given["encoding"]:
        streams = _asked_streams(given, teacher.describe().heads)
        options = replace(options, streams=vectors | streams)
    blank = teacher.tokens().blank
    teacher = layered(teacher, [replace(h, blank=blank) for h in layers])
    share = -(-manifest.utterances // part.count)
    with Signals() as signals, Meter(share) as meter:

        def report(progress: Progress) -> None:
            meter(progress)
            signals.check()

        try:
            done = dump(teacher, manifest, given["out"], options, report=report)
        except Stopped as stopped:
            click.echo(_kept(given["out"]), err=True)
            raise click.exceptions.Exit(stopped.exit_code) from None
    speed = done.seconds / done.elapsed if done.elapsed else 0.0
    if given["as_json"]:
        click.echo(
            json.dumps(
                {
                    "store": given["out"],
                    "utterances": done.done,
                    "present": done.present,
                    "skipped": done.skipped,
                    "seconds": round(done.seconds, 3),
                    "frames": done.frames,
                    "shards": done.shards,
                    "bytes": done.bytes,
                    "elapsed": round(done.elapsed, 3),
                }
            )
        )
    else:
        if not (done.done or done.skipped):
            return click.echo(f"{given['out']}: nothing to do, all {done.present} utterances are there")
        there = f" ({done.present} were there already)" if done.present else ""
        click.echo(
            f"{given['out']}: {done.done} utterances{there}, {clock(done.seconds)} of audio in "
            f"{clock(done.elapsed)} ({speed:.1f} × real time)"
        )
        each = done.bytes / max(done.frames, 1)
        click.echo(f"  {done.shards} shards, {size(done.bytes)}, {each:.0f} bytes a frame")
        if done.skipped:
            click.echo(f"  {done.skipped} skipped: {given['out']}/skipped.jsonl says which and why")
    if done.skipped:
        raise click.exceptions.Exit(3)
