"""``logitstore doctor``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ._options import MANIFEST_FORMAT, json_option
from ._terminal import printable


@click.command("doctor")
@click.option("--device", default="cpu", show_default=True, help="Device to run on: cpu, cuda, cuda:1, ...")
@click.option("--manifest", type=click.Path(), help="Manifest of the planned dump.")
@click.option("--manifest-format", metavar="FORMAT", help=MANIFEST_FORMAT)
@click.option("--audio-root", type=click.Path(), help="Folder that relative audio paths start from.")
@click.option("--out", type=click.Path(), help="Store of the planned dump: its disk is tried.")
@click.option(
    "--stream", "streams", multiple=True, metavar="NAME=ENCODING", help="Stream and encoding, as in dump."
)
@click.option("--tokens", type=click.Path(), help="The teacher's token table, for an estimate of the size.")
@click.option(
    "--frame-shift",
    default=40.0,
    show_default=True,
    metavar="MILLISECONDS",
    help="Time between two teacher frames, for an estimate of the size.",
)
@json_option("findings and facts")
def command(**given: Any) -> None:
    """Check the machine and the manifest before a long job; exit 1 where a problem is certain.

    The checks of the device also run before every dump.
    """
    from ..corpus.manifest import read_manifest
    from ..dump.doctor.facts import gather, planned_work
    from ..dump.doctor.judge import BAD, NOTE, examine
    from ..tokens.formats import read_table
    from .dump import parse_streams

    work = None
    if given["manifest"] is not None:
        manifest = read_manifest(
            given["manifest"],
            audio_root=given["audio_root"],
            format=given["manifest_format"],
            allow_pipes=True,
        )
        table = read_table(given["tokens"]) if given["tokens"] is not None else None
        work = planned_work(manifest, parse_streams(given["streams"]), table, given["frame_shift"] / 1000)
    facts = gather(given["device"], Path(given["out"]) if given["out"] is not None else None, work)
    findings = examine(facts)
    if given["as_json"]:
        data = {"findings": [f.to_json() for f in findings], "facts": facts.to_json()}
        click.echo(json.dumps(data, ensure_ascii=False, indent=1))
    else:
        mark = {NOTE: "note", BAD: "BAD"}
        for f in findings:
            line = f"{f.what}. {f.do}" if f.do else f.what
            click.echo(f"{mark.get(f.level, 'ok'):<5} {f.name:<11} {printable(line)}")
    if any(f.level == BAD for f in findings):
        raise click.exceptions.Exit(1)
