"""``logitstore progress``."""

from __future__ import annotations

import time
from itertools import islice

import click

from ._options import AUDIO_ROOT, option, sectioned_command


@sectioned_command("progress")
@click.argument("store", type=click.Path())
@option(
    "--manifest",
    metavar="FILE",
    type=click.Path(),
    help="Manifest of the dump: its number of utterances and the time that is left are shown.",
)
@option("--audio-root", type=click.Path(), help=AUDIO_ROOT)
@option(
    "--every",
    metavar="SECONDS",
    type=click.FloatRange(0.1),
    help="Look again this often, and print a line whenever the store has grown, until the manifest is done.",
)
def command(store: str, manifest: str | None, audio_root: str | None, every: float | None) -> None:
    """Show how far the dumps and captures that fill STORE are: sealed utterances, audio, bytes, shards, skipped.

    Any number of jobs may write; this command only reads, from any machine that sees the store.
    """
    from ..corpus.manifest import read_manifest
    from ._terminal import printable
    from ._watch import watch

    asked = None if manifest is None else read_manifest(manifest, audio_root=audio_root).utterances
    lines = watch(store, asked, lambda: time.sleep(every or 0.0))
    for line in lines if every is not None else islice(lines, 1):
        click.echo(printable(line))
