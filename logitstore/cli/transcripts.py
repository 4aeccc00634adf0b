"""``logitstore transcripts``."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command("transcripts")
@click.argument("store", type=click.Path())
@click.option("--where", default="", metavar="EXPR", help="which rows, e.g. 'wer <= 0.1 and seconds < 20'")
@click.option("--stream", default="", help="whose transcript [default: the store's first stream]")
@click.option("--manifest", type=click.Path(), help="where the recordings are: writes a whole manifest")
@click.option("--audio-root", type=click.Path(), help="what the manifest's audio paths are relative to")
@click.option("--out", type=click.Path(), help="file to write [default: standard output]")
def command(
    store: str, where: str, stream: str, manifest: str | None, audio_root: str | None, out: str | None
) -> None:
    """Write the teacher's own transcripts of STORE as JSON lines, to train on as hard targets.

    EXPR knows id, T, U, seconds, text, labels_from; wer, ter, score and hyp of the first stream, and of any
    as in rnnt.wer; hours of the rows chosen so far.
    """
    from ..corpus.manifest import read_manifest
    from ..corpus.survey import write_bytes
    from ..store.reader import open_store
    from ..store.transcripts import transcripts

    known = None if manifest is None else read_manifest(manifest, audio_root=audio_root)
    beside = Path(out).parent if out is not None else Path()
    lines = transcripts(open_store(store), where, stream=stream, manifest=known, beside=beside)
    if out is None:
        for line in lines:
            click.echo(line, nl=False)
    else:
        count = write_bytes(lines, Path(out))
        click.echo(f"{os.fspath(out)}: {count} transcripts")
