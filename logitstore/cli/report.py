"""``logitstore report``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from ..errors import UsageError
from ..pictures.amounts import size
from ._options import AUDIO_ROOT, option, sectioned_command
from .inspect import ratio

CONTENT = "Content"
OTHERS = "Comparison"


@sectioned_command("report")
@click.argument("stores", nargs=-1, required=True, type=click.Path(), metavar="STORE [B]")
@option("-o", "--out", required=True, type=click.Path(dir_okay=False), help="HTML file to write.")
@option(
    "--sample",
    section=CONTENT,
    default=500,
    show_default=True,
    metavar="N",
    type=click.IntRange(1),
    help="Measure at most N utterances, drawn at random.",
)
@option("--seed", section=CONTENT, default=0, show_default=True, help="Seed of the sample.")
@option(
    "--utterances",
    section=CONTENT,
    default=20,
    show_default=True,
    metavar="N",
    type=click.IntRange(0),
    help="Draw N utterances in detail: the worst of the sample.",
)
@option("--utterance", "ids", section=CONTENT, multiple=True, metavar="ID", help="Draw this utterance too.")
@option(
    "--rate",
    section=CONTENT,
    metavar="P:Q",
    help="Draw targets as served to a student with P frames for Q of the teacher.",
)
@option(
    "--manifest",
    section=CONTENT,
    type=click.Path(),
    help="Manifest of the recordings, for spectrograms and players.",
)
@option("--audio-root", section=CONTENT, type=click.Path(), help=AUDIO_ROOT)
@option(
    "--audio",
    section=CONTENT,
    default=0,
    metavar="N",
    type=click.IntRange(0),
    help="Put players with the recordings of the first N utterances into the page; needs --manifest.",
)
@option("--compare", section=OTHERS, is_flag=True, help="Compare two stores, utterance by utterance.")
@option(
    "--student",
    section=OTHERS,
    metavar="DIR",
    type=click.Path(exists=True),
    help="Compare a student's output with its targets: a folder of ID.npy, or a .npz file, each array (S, V) "
    "log-probabilities.",
)
def command(
    stores: tuple[str, ...],
    out: str,
    sample: int,
    seed: int,
    utterances: int,
    ids: tuple[str, ...],
    rate: str | None,
    manifest: str | None,
    audio_root: str | None,
    audio: int,
    compare: bool,
    student: str | None,
) -> None:
    """Write a page about STORE: one HTML file with pictures of its worst utterances.

    With --compare, STORE and B are compared; with --student, a student's output and its targets.
    """
    from ..corpus.manifest import read_manifest
    from ..report.base import ReportOptions
    from ..report.run import report_comparison, report_store, report_student

    options = ReportOptions(
        sample=sample,
        seed=seed,
        utterances=utterances,
        ids=ids,
        rate=None if rate is None else ratio(rate),
        audio=audio,
        manifest=None if manifest is None else read_manifest(manifest, audio_root=audio_root),
        command=("logitstore", *sys.argv[1:]),
    )
    if len(stores) != 1 + compare or (compare and student):
        raise click.UsageError("Give one store, or two with --compare; --student goes with one store.")
    if compare:
        text = report_comparison(stores[0], stores[1], options)
    elif student is not None:
        text = report_student(stores[0], student, options)
    else:
        text = report_store(stores[0], options)
    write_page(out, text)
    click.echo(f"{shlex.quote(out)}: {size(len(text.encode('utf-8', 'backslashreplace')))}")


def write_page(path: str, text: str) -> None:
    """Write a page; raises ``UsageError`` where the file cannot be written."""
    try:
        Path(path).write_text(text, "utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(
            f"the page cannot be written: {error.strerror}",
            where=path,
            do="Give a file in an existing folder.",
        ) from None
