"""``logitstore manifest``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._options import ALLOW_PIPES, AUDIO_ROOT, MANIFEST_FORMAT, json_option, option, sectioned_command
from ._terminal import clock, json_text, printable

if TYPE_CHECKING:
    from ..corpus.survey import Survey

SHOWN = 20  # problems that are listed


@sectioned_command("manifest")
@click.argument("source", type=click.Path())
@click.argument("to", type=click.Path(), required=False)
@option("--manifest-format", metavar="FORMAT", help=MANIFEST_FORMAT)
@option("--audio-root", type=click.Path(), help=AUDIO_ROOT)
@option(
    "--audio-dir",
    type=click.Path(),
    help="Folder that recordings are written to that lie inside the manifest, as in Hugging Face datasets.",
)
@option("--allow-pipes", is_flag=True, help=ALLOW_PIPES)
@json_option("counts and all problems")
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
    datasets. Utterances that cannot be used are left out of TO and listed; the exit status is then 1.
    """
    from ..corpus.manifest import check, open_source
    from ..corpus.survey import Survey, survey, write_lines

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
        click.echo(json_text({"to": to, **found.to_json()}))
    else:
        for line in _lines(source, to, found):
            click.echo(line)
    if found.problems:
        raise click.exceptions.Exit(1)


def _lines(source: str, to: str | None, found: Survey) -> Iterator[str]:
    """Yield the lines that are printed."""
    rates = ", ".join(f"{count} at {rate} Hz" for rate, count in sorted(found.rates.items()))
    yield f"{printable(source)}: {found.format}, {found.utterances} utterances, {clock(found.seconds)}"
    yield f"  recordings   {rates or 'none'}"
    yield f"  references   {found.texts} with text, {found.tokens} with token ids"
    if to is not None:
        yield f"  written to   {printable(to)}"
    for problem in found.problems[:SHOWN]:
        yield f"  {printable(problem.id)}: {printable(problem.what.splitlines()[0])}"
    if found.problems:
        shown = f", {SHOWN} of them above" if len(found.problems) > SHOWN else ""
        yield f"{len(found.problems)} cannot be used{shown} (--json lists all)"
