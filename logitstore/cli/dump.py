"""``logitstore dump``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ._options import (
    OUTPUT,
    RUNNING,
    STORAGES,
    json_option,
    manifest_from,
    option,
    run_options,
    sectioned_command,
)

if TYPE_CHECKING:
    from ..dump.options import DumpProgress

CONTENT = "What to store"
CHECKING = "Errors and checks"


def parse_streams(values: tuple[str, ...]) -> dict[str, str]:
    """Parse every ``--stream NAME=ENCODING``, or ``text`` alone; raises ``UsageError``."""
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


@sectioned_command("dump")
@run_options
@option("--out", section=OUTPUT, required=True, type=click.Path(), help="The store: made anew, or resumed.")
@option(
    "--stream",
    "streams",
    section=CONTENT,
    multiple=True,
    metavar="NAME=ENCODING[/FORM]",
    help="Stream and encoding to store, e.g. ctc=dense, rnnt=topk:16/banded:5+occupancy, seq2seq=topk:16, "
    "hidden=vectors, text; rnnt=auto takes what logitstore plan chooses. Lattice forms: full, banded:S, path, "
    "sample:N, mean-u. topk and nucleus:KL serve temperatures near 1, nucleus:KL@T up to T, dense and factored all. "
    "Default: ctc=dense.",
)
@option(
    "--encoding",
    section=CONTENT,
    default="",
    metavar="ENCODING",
    help="Encoding of all the teacher's streams that --stream does not name, e.g. auto or topk:16.",
)
@option(
    "--u-sample",
    section=CONTENT,
    metavar="N",
    type=click.IntRange(1),
    help="Keep N random label positions of each lattice frame: the same as rnnt=.../sample:N.",
)
@option(
    "--hidden",
    "layers",
    section=CONTENT,
    multiple=True,
    metavar="[NAME=]PATH[:LAYOUT]",
    help="Store the output of a layer, e.g. encoder.layers.3, as the stream hidden or hidden_NAME.",
)
@option(
    "--transcripts",
    section=CONTENT,
    default="ctc",
    show_default=True,
    type=click.Choice(["none", "ctc", "all"]),
    help="Streams whose greedy decode is stored as a transcript.",
)
@option("--storage", section=OUTPUT, default="zarr", show_default=True, help=f"Storage backend: {STORAGES}.")
@option(
    "--allow-different",
    section=OUTPUT,
    multiple=True,
    metavar="FIELD",
    help="Resume a store although FIELD of its identity differs.",
)
@option(
    "--job", section=RUNNING, default="0/1", show_default=True, metavar="i/N", help="Dump part i of N only."
)
@option(
    "--threads",
    section=RUNNING,
    default=2,
    show_default=True,
    metavar="N",
    type=click.IntRange(1),
    help="Threads that load audio.",
)
@option(
    "--chunk",
    section=RUNNING,
    metavar="SECONDS",
    help="Run recordings longer than this in overlapping chunks and join the frames.",
)
@option(
    "--overlap",
    section=RUNNING,
    metavar="SECONDS",
    help="Seconds that a chunk shares with the next; half of them are dropped on either side. Default: 5.",
)
@option(
    "--tokens",
    section=CHECKING,
    type=click.Path(),
    help="Token table that the teacher's table must equal.",
)
@option(
    "--on-error",
    section=CHECKING,
    default="raise",
    show_default=True,
    type=click.Choice(["raise", "skip"]),
    help="Stop at an utterance that cannot be dumped, or leave it out and list it in skipped.jsonl.",
)
@option(
    "--max-skipped",
    section=CHECKING,
    default="100%",
    show_default=True,
    metavar="COUNT",
    help="Stop when more utterances are skipped: a number, or a share such as 1%.",
)
@option(
    "--max-wer",
    section=CHECKING,
    default=50.0,
    show_default=True,
    metavar="PERCENT",
    type=click.FloatRange(0),
    help="Stop if the first utterances' word error rate exceeds this.",
)
@option(
    "--skip-checks",
    section=CHECKING,
    default="",
    metavar="REASON",
    help="Go on where a check would refuse the teacher; the store keeps the reason.",
)
@json_option("the summary")
def command(**given: Any) -> None:
    """Run a teacher over a manifest and store its logits.

    Running the same command again dumps only what is missing.
    """
    # Loader threads make features with numpy: BLAS threads below them would compete with the teacher's.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from .. import DumpOptions, dump_logits, load_teacher
    from ..dump.blocks import JobPart
    from ..runner.gpu import require_device
    from ..tokens.table import TokenTable
    from ._terminal import ProgressMeter, StoppedBySignal, StopSignals

    require_device(given["device"])  # before a long manifest is read
    part = JobPart.parse(given["job"])
    options = DumpOptions(
        streams=parse_streams(given["streams"]),
        layers=given["layers"],
        encoding=given["encoding"],
        u_sample=given["u_sample"],
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
        skip_checks=given["skip_checks"],
        transcripts=given["transcripts"],
        chunk=given["chunk"],
        overlap=given["overlap"],
    )
    manifest = manifest_from(given)
    teacher = load_teacher(given["teacher"])
    with StopSignals() as signals, ProgressMeter(-(-manifest.utterances // part.count)) as meter:

        def report(progress: DumpProgress) -> None:
            meter(progress)
            signals.check()

        try:
            done = dump_logits(teacher, manifest, given["out"], options, report=report)
        except StoppedBySignal as stopped:
            click.echo(_sealed(given["out"]), err=True)
            raise click.exceptions.Exit(stopped.exit_code) from None
    if given["as_json"]:
        click.echo(json.dumps(_summary(given["out"], done)))
    else:
        _print(given["out"], done)
    if done.skipped:
        raise click.exceptions.Exit(3)


def _sealed(out: str) -> str:
    from ..store.reader import Store

    store = Store(out)
    return (
        f"{out}: stopped; {len(store)} utterances in {len(store.shards)} sealed shards are kept, the last of them "
        "shorter than asked for. The same command goes on from here."
    )


def _summary(out: str, done: DumpProgress) -> dict[str, Any]:
    return {
        "store": out,
        "utterances": done.done,
        "present": done.present,
        "skipped": done.skipped,
        "seconds": round(done.seconds, 3),
        "frames": done.frames,
        "shards": done.shards,
        "bytes": done.bytes,
        "elapsed": round(done.elapsed, 3),
    }


def _print(out: str, done: DumpProgress) -> None:
    from ..pictures.amounts import size
    from ._terminal import clock

    if not (done.done or done.skipped):
        return click.echo(f"{out}: nothing to do, all {done.present} utterances are there")
    there = f" ({done.present} were there already)" if done.present else ""
    speed = done.seconds / done.elapsed if done.elapsed else 0.0
    click.echo(
        f"{out}: {done.done} utterances{there}, {clock(done.seconds)} of audio in "
        f"{clock(done.elapsed)} ({speed:.1f} × real time)"
    )
    each = done.bytes / max(done.frames, 1)
    click.echo(f"  {done.shards} shards, {size(done.bytes)}, {each:.0f} bytes a frame")
    if done.skipped:
        click.echo(f"  {done.skipped} skipped: {out}/skipped.jsonl lists them with the reason")
