"""``logitstore transcripts``."""

from __future__ import annotations

import click

from ._options import AUDIO_ROOT, option, sectioned_command


@sectioned_command("transcripts")
@click.argument("store", type=click.Path())
@option(
    "--where",
    default="",
    metavar="CONDITION",
    help="Write only records that meet a condition, e.g. 'wer <= 0.1 and seconds < 20'.",
)
@option(
    "--stream",
    default="",
    metavar="NAME",
    help="Stream that the transcripts are taken from. Default: the first stream of the store that has any.",
)
@option(
    "--manifest",
    type=click.Path(),
    help="Manifest of the recordings; the output then has its order and audio paths, and is a manifest.",
)
@option("--audio-root", type=click.Path(), help=AUDIO_ROOT)
@option("--out", type=click.Path(), help="File to write. Default: standard output.")
def command(
    store: str, where: str, stream: str, manifest: str | None, audio_root: str | None, out: str | None
) -> None:
    """Write the teacher's own transcripts in STORE as JSON lines: pseudo-labels to train on.

    A CONDITION compares id, T, U, seconds, text, labels_from, hours (of audio chosen so far), and wer, ter,
    score and hyp of the first stream with transcripts; those of another stream are rnnt.wer and so on.
    """
    from ..corpus.manifest import read_manifest
    from ..store.transcripts import transcript_lines, write_transcripts

    known = None if manifest is None else read_manifest(manifest, audio_root=audio_root)
    if out is not None:
        count = write_transcripts(store, out, where, stream=stream, manifest=known)
        click.echo(f"{out}: {count} transcripts")
    else:
        for line in transcript_lines(store, where, stream=stream, manifest=known):
            click.echo(line, nl=False)
