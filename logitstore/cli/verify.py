"""``logitstore verify``."""

from __future__ import annotations

import json

import click


@click.command("verify")
@click.argument("store", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="print what was found as JSON")
def command(store: str, as_json: bool) -> None:
    """Read every byte of STORE, check every checksum and rule; exit 1 and name what is wrong."""
    from ..verify import verify
    from .progress import size

    verdict = verify(store)
    if as_json:
        found = [f.to_json() for f in verdict.findings]
        click.echo(
            json.dumps(
                {
                    "shards": verdict.shards,
                    "rows": verdict.rows,
                    "bytes": verdict.bytes,
                    "findings": found,
                },
                ensure_ascii=False,
                indent=1,
            )
        )
    else:
        for finding in verdict.findings:
            click.echo(f"{finding.where}: {finding.what}")
        read = f"{verdict.shards} shards, {verdict.rows} utterances, {size(verdict.bytes)} read"
        judgement = f"{len(verdict.findings)} things are wrong" if verdict.findings else "good"
        click.echo(f"{store}: {read}: {judgement}")
    if verdict.findings:
        raise click.exceptions.Exit(1)
