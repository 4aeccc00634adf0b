"""``logitstore capture``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ._options import SHARD_SIZE, STORAGES, option, sectioned_command
from .dump import parse_streams

if TYPE_CHECKING:
    from ..capture.run import CaptureResult

LOGITS = "Modules that give the logits"
LATTICES = "Lattices of a transducer"
BATCHES = "Ids and lengths of a batch"
TOKENS = "Tokens"
STORE = "The store"


@sectioned_command("capture", context_settings={"ignore_unknown_options": False})
@option(
    "--ctc",
    section=LOGITS,
    default="",
    metavar="PATH",
    help="Capture the CTC logits: the output of the module at PATH, below the outermost module of the model. "
    "fn:PATH.weight captures products with that weight, for a head that does not run as a module.",
)
@option(
    "--layout",
    section=LOGITS,
    default="BTV",
    show_default=True,
    type=click.Choice(["BTV", "BVT", "TBV"]),
    help="Axes of the CTC output: batch, time (frames), vocabulary.",
)
@option(
    "--skip-rows",
    section=LOGITS,
    default=0,
    metavar="N",
    type=click.IntRange(0),
    help="Leave out the first N rows of each utterance, which are no frames: queries or prompts before them.",
)
@option(
    "--call",
    section=LOGITS,
    metavar="N",
    type=click.IntRange(0),
    help="Store only call N, counted from 0, of a module that runs several times in a batch.",
)
@option(
    "--accumulate",
    section=LOGITS,
    type=click.Choice(["t", "b"]),
    help="Join all calls of a batch: t where each call gives the next frames, b where each gives the next "
    "utterances.",
)
@option(
    "--joiner",
    section=LATTICES,
    default="",
    metavar="PATH",
    help="Capture the lattices of the transducer whose joiner is the module at PATH. With --labels and "
    "without --encoder, the joiner's own output is stored. Otherwise capture runs the joiner itself.",
)
@option(
    "--encoder",
    section=LATTICES,
    default="",
    metavar="PATH",
    help="Run the joiner on the output of the module at PATH, or on its input: input:PATH. Default: the "
    "encoder known for the model's framework.",
)
@option(
    "--encoder-layout",
    section=LATTICES,
    default="",
    metavar="AXES",
    help="Axes of the encoder output: BTD, BDT or TBD. Default: found by the joiner's input width.",
)
@option(
    "--joiner-adapter",
    section=LATTICES,
    default="",
    metavar="FILE.py:NAME",
    help="Run the joiner with the object that NAME(model) in FILE.py returns, for a joiner of a framework "
    "that logitstore does not know.",
)
@option(
    "--labels",
    section=LATTICES,
    default="",
    metavar="EXPR",
    help="Take the label ids of the lattices from EXPR, one row per utterance. Default: the texts of the "
    "batch, tokenised; without texts, the teacher's own decode.",
)
@option(
    "--bpe",
    section=LATTICES,
    default="",
    metavar="FILE",
    type=click.Path(),
    help="Tokenise the texts of the batch with this SentencePiece model.",
)
@option(
    "--greedy",
    section=LATTICES,
    is_flag=True,
    help="Take the teacher's own greedy decode as labels, even where the batch has texts.",
)
@option(
    "--ranges",
    section=LATTICES,
    default="",
    metavar="EXPR",
    help="Take the ranges (B, T, s_range) of a pruned joiner output from EXPR. Default: found beside it.",
)
@option(
    "--durations",
    section=LATTICES,
    default=0,
    metavar="N",
    type=click.IntRange(0),
    help="Leave out the last N columns of a TDT joiner's output: its durations, which are no tokens.",
)
@option(
    "--ids",
    section=BATCHES,
    default="",
    metavar="EXPR",
    help="Take the utterance ids from EXPR. Default: found in the batch.",
)
@option(
    "--lengths",
    section=BATCHES,
    default="",
    metavar="EXPR",
    help="Take the valid lengths, in teacher frames, from EXPR. Default: found in the first batch.",
)
@option(
    "--order",
    section=BATCHES,
    default="proven",
    show_default=True,
    type=click.Choice(["proven", "assumed"]),
    help="With assumed, store batches of the loader too whose order nothing proves: where the program computes "
    "features itself and is known to keep the loader's order.",
)
@option(
    "--tokens",
    section=TOKENS,
    default="",
    metavar="FILE",
    type=click.Path(),
    help="Token table of the teacher, in any known format. Default: classes are named by their number.",
)
@option(
    "--blank",
    section=TOKENS,
    metavar="ID",
    type=click.IntRange(0),
    help="Id of the blank. Default: as the token table or the model says; else 0, marked as assumed.",
)
@option(
    "--out",
    section=STORE,
    required=True,
    type=click.Path(),
    help="Folder or URL of the store. A store that exists is resumed: only missing utterances are added.",
)
@option(
    "--stream",
    "streams",
    section=STORE,
    multiple=True,
    metavar="NAME=ENCODING",
    help="Encoding of a stream; may be given once per stream. Default: ctc=dense, rnnt=topk:16.",
)
@option("--storage", section=STORE, default="zarr", show_default=True, help=f"Storage backend: {STORAGES}.")
@option(
    "--shard-size",
    section=STORE,
    default="auto",
    show_default=True,
    metavar="SIZE",
    help=f"Size of a shard: {SHARD_SIZE}.",
)
@option(
    "--name",
    section=STORE,
    default="",
    metavar="NAME",
    help="Name of the teacher in the store. Default: the class of the model.",
)
@option(
    "--sample-rate",
    section=STORE,
    metavar="HZ",
    type=click.IntRange(1),
    help="Samples per second of the teacher's audio. Default: 16000, marked in the store as assumed.",
)
@option(
    "--frame-shift",
    section=STORE,
    metavar="SAMPLES",
    type=click.IntRange(1),
    help="Audio samples between two frames of the teacher. Default: 640, marked in the store as assumed.",
)
@option(
    "--allow-different",
    section=STORE,
    multiple=True,
    metavar="FIELD",
    help="Resume the store although it was made with another value of FIELD; may be given several times.",
)
@option("--json", "as_json", is_flag=True, help="Print the summary as JSON, on standard error.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def command(out: str, as_json: bool, command: tuple[str, ...], **given: Any) -> None:
    """Run COMMAND, unmodified, and store the logits of its model: logitstore capture … -- bash decode.sh ….

    The command's output is left alone, and its exit status is passed on. Running it again adds only what is
    missing; logitstore probe finds the module paths and expressions.

    EXPR is looked up at the moment the module runs. It may use `batch` (what the DataLoader yielded), `index`
    (what its sampler asked `dataset` for), the variables of the program, `modules["PATH"]` and
    `inputs["PATH"]` (the last output and inputs of a module), `output`, B and T. Examples: [c.id for c in
    batch["supervisions"]["cut"]], (wav_lens * T).round().
    """
    from .. import CaptureOptions, capture_logits

    given["accumulate"] = given["accumulate"] or ""
    given["streams"] = parse_streams(given["streams"])
    options = CaptureOptions(**given)
    result = capture_logits(command, out, options)
    if as_json:
        click.echo(json.dumps({"store": out, **asdict(result)}), err=True)
    else:
        for line in _summary(out, result):
            click.echo(f"logitstore: {line}", err=True)
    raise click.exceptions.Exit(result.status or (1 if result.errors else 0))


def _summary(out: str, result: CaptureResult) -> Iterator[str]:
    """Yield the lines that tell the user how a capture ended."""
    yield from result.notes
    yield from result.errors
    present = f" ({result.present} were there already)" if result.present else ""
    yield f"{out}: {result.sealed} utterances sealed{present}"
    if result.lost:
        yield f"{result.lost} utterances that were captured are not sealed"
    if result.status:
        yield f"the command ended with status {result.status}: run it again to capture the rest"
    elif result.errors:
        yield "the capture failed"
