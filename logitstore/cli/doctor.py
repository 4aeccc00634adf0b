"""``logitstore doctor``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ._terminal import printable


@click.command("doctor")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--manifest", type=click.Path(), help="what is to be dumped")
@click.option("--manifest-format", metavar="FORMAT", help="jsonl, nemo, kaldi, lhotse, huggingface")
@click.option("--audio-root", type=click.Path(), help="what relative audio paths are relative to")
@click.option("--out", type=click.Path(), help="where to")
@click.option("--stream", "streams", multiple=True, metavar="NAME=ENCODING", help="as dump will have it")
@click.option("--tokens", type=click.Path(), help="the teacher's token table, for an estimate of the size")
@click.option("--frame-shift", default=40.0, show_default=True, help="milliseconds between teacher frames")
@click.option("--json", "as_json", is_flag=True, help="print findings and facts as JSON")
def command(**given: Any) -> None:
    """Say in ten lines what would bite later; exit 1 where something surely will.

    The same checks run on their own; those of the device also run before every dump.
    """
    from ..corpus.manifest import read_manifest
    from ..dump.doctor.facts import gather, plan
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
        work = plan(manifest, parse_streams(given["streams"]), table, given["frame_shift"] / 1000)
    facts = gather(given["device"], Path(given["out"]) if given["out"] is not None else None, work)
    findings = examine(facts)
    if given["as_json"]:
        data = {"findings": [f.to_json() for f in findings], "facts": facts.to_json()}
        click.echo(json.dumps(data, ensure_ascii=False, indent=1))
    else:
        mark = {NOTE: "note", BAD: "BAD"}
        for f in findings:
            said = f"{f.what}. {f.do}" if f.do else f.what
            click.echo(f"{mark.get(f.level, 'ok'):<5} {f.name:<11} {printable(said)}")
    if any(f.level == BAD for f in findings):
        raise click.exceptions.Exit(1)
