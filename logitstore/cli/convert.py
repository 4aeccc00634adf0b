"""``logitstore convert``."""

from __future__ import annotations

import click

from ._options import STORAGES, option, sectioned_command


@sectioned_command("convert")
@click.argument("source", type=click.Path())
@click.argument("destination", type=click.Path())
@option("--storage", required=True, metavar="BACKEND", help=f"Storage backend of the copy: {STORAGES}.")
def command(source: str, destination: str, storage: str) -> None:
    """Copy the store SOURCE to DESTINATION in another storage backend, record for record and bit for bit.

    Running the same command again writes only the shards that are missing.
    """
    from ..store.rewrite import convert_store

    done = convert_store(
        source, destination, storage, report=lambda n: click.echo(f"{n} utterances", err=True)
    )
    click.echo(f"{destination}: {done.written} utterances written as {storage}, {done.utterances} in all")
