"""``logitstore manifest``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ._terminal import printable

SHOWN = 20


@click.command("manifest")
@click.argument("source", type=click.Path())
@click.argument("to", type=click.Path(), required=False)
@click.option("--manifest-format", metavar="FORMAT", help="jsonl, nemo, kaldi, lhotse, huggingface")
@click.option("--audio-root", type=click.Path(), help="what relative audio paths are relative to")
@click.option("--audio-dir", type=click.Path(), help="write recordings inside the manifest to files there")
@click.option("--allow-pipes", is_flag=True, help="run shell commands that stand for recordings")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
def command(
    source: str,
    to: str | None,
    manifest_format: str | None,
    audio_root: str | None,
    audio_dir: str | None,
    allow_pipes: bool,
    as_json: bool,
) -> None:
    """Check the manifest SOURCE with its recordings, and write it as JSON lines to TO.

    SOURCE is JSON lines, a NeMo manifest, a Kaldi data folder, lhotse cuts or a folder of Hugging Face
    datasets. What cannot be used is left out of TO and listed; the exit status is then 1.
    """
    from ..corpus.manifest import check, open_source
    from ..corpus.survey import Survey, survey, write_lines
    from ._terminal import clock

    opened = open_source(
        source, audio_root=audio_root, format=manifest_format, allow_pipes=allow_pipes, unpack=audio_dir
    )
    found = Survey(opened.format)
    good = survey(check(opened), found)
    if to is not None:
        write_lines(good, Path(to))
    else:
        for _ in good:
            pass
    if as_json:
        click.echo(json.dumps({"to": to, **found.to_json()}, ensure_ascii=False, indent=1))
    else:
        rates = ", ".join(f"{n} at {r} Hz" for r, n in sorted(found.rates.items()))
        click.echo(
            f"{printable(source)}: {found.format}, {found.utterances} utterances, {clock(found.seconds)}"
        )
        click.echo(f"  recordings   {rates or 'none'}")
        click.echo(f"  references   {found.texts} with text, {found.tokens} with token ids")
        if to is not None:
            click.echo(f"  written to   {printable(to)}")
        for problem in found.problems[:SHOWN]:
            click.echo(f"  {printable(problem.id)}: {printable(problem.what.splitlines()[0])}")
        if found.problems:
            more = f", {SHOWN} of them above" if len(found.problems) > SHOWN else ""
            click.echo(f"{len(found.problems)} cannot be used{more} (--json lists all)")
    if found.problems:
        raise click.exceptions.Exit(1)
