"""``logitstore capture``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click
from click.core import ParameterSource

from .dump import parse_streams

TIME = ("sample_rate", "frame_shift")  # what a program cannot be asked; targets at other rates depend on it


@click.command("capture", context_settings={"ignore_unknown_options": False})
@click.option("--ctc", default="", metavar="PATH", help="module whose output is the CTC logits")
@click.option("--joiner", default="", metavar="PATH", help="a transducer's joiner [driven here, or --labels]")
@click.option(
    "--encoder", default="", metavar="PATH", help="gives what the joiner is driven with; input:PATH"
)
@click.option("--encoder-layout", default="", metavar="AXES", help="BTD, BDT or TBD [default: found]")
@click.option(
    "--joiner-adapter", default="", metavar="FILE.py:NAME", help="how a joiner unknown here is driven"
)
@click.option("--labels", default="", metavar="EXPR", help="label ids, padded or not [default: of the texts]")
@click.option("--bpe", default="", type=click.Path(), help="SentencePiece model that makes labels of texts")
@click.option("--greedy", is_flag=True, help="labels: the teacher's own decode, even where there are texts")
@click.option("--ranges", default="", metavar="EXPR", help="(B, T, s_range) of a k2-pruned joint")
@click.option("--durations", default=0, type=click.IntRange(0), help="last columns of a TDT joint: no tokens")
@click.option("--out", required=True, type=click.Path(), help="the store; made, or resumed")
@click.option("--layout", default="BTV", show_default=True, type=click.Choice(["BTV", "BVT", "TBV"]))
@click.option("--call", type=click.IntRange(0), help="which call to keep of several a batch, from 0")
@click.option("--accumulate", type=click.Choice(["t", "b"]), help="calls are pieces: frames, or utterances")
@click.option("--ids", default="", metavar="EXPR", help="the batch's ids [default: found in the batch]")
@click.option("--lengths", default="", metavar="EXPR", help="valid frames [default: found in the batch]")
@click.option("--tokens", default="", type=click.Path(), help="token table, any known format")
@click.option("--blank", type=click.IntRange(0), help="id of the blank [default: as the table says]")
@click.option("--stream", "streams", multiple=True, metavar="NAME=ENCODING", help="[ctc=dense, rnnt=topk:16]")
@click.option("--storage", default="zarr", show_default=True, help="zarr, zarr:zstd, zarr:blosc, webdataset")
@click.option("--name", default="", help="of the teacher [default: the class of the model]")
@click.option("--sample-rate", default=16000, show_default=True, type=click.IntRange(1), help="Hz")
@click.option("--frame-shift", default=640, show_default=True, type=click.IntRange(1), help="in samples")
@click.option("--shard-rows", default=500, show_default=True, type=click.IntRange(1), help="per shard")
@click.option("--allow-different", multiple=True, metavar="FIELD", help="resume although FIELD differs")
@click.option("--json", "as_json", is_flag=True, help="print the summary, on stderr, as JSON")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def command(ctx: click.Context, /, out: str, as_json: bool, command: tuple[str, ...], **given: Any) -> None:
    """Run COMMAND, unmodified, and store what its model says: logitstore capture … -- bash decode.sh ….

    Its output is its own, and so is its exit status. Running it again adds only what is missing. EXPR may
    look at `batch` (what the DataLoader yielded), at `index` (what its sampler asked `dataset` for), at any
    variable of the program, at `modules["PATH"]` and `inputs["PATH"]` (what a module returned and was given),
    at `output`, B and T: [c.id for c in batch["supervisions"]["cut"]], (wav_lens * T).round().
    """
    from ..capture.job import CaptureOptions
    from ..capture.run import capture_logits

    given["accumulate"] = given["accumulate"] or ""
    given["streams"] = parse_streams(given["streams"])
    done = capture_logits(command, out, CaptureOptions(**given))
    if as_json:
        click.echo(json.dumps({"store": out, **asdict(done)}), err=True)
    else:
        for note in done.notes:
            click.echo(f"logitstore: {note}", err=True)
        if done.rows and any(ctx.get_parameter_source(o) is ParameterSource.DEFAULT for o in TIME):
            shift = f"{given['frame_shift']} samples of {given['sample_rate']} Hz"
            click.echo(f"logitstore: a frame is taken to be {shift}: nobody said (--frame-shift)", err=True)
        for error in done.errors:
            click.echo(f"logitstore: {error}", err=True)
        there = f" ({done.present} were there already)" if done.present else ""
        if done.errors or done.status:
            said = f"the command ended with status {done.status}" if done.status else "the capture failed"
            click.echo(f"logitstore: {said}: only full shards were sealed", err=True)
        else:
            click.echo(f"logitstore: {out}: {done.rows} utterances{there}", err=True)
    raise click.exceptions.Exit(done.status or (1 if done.errors else 0))
