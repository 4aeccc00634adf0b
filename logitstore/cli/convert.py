"""``logitstore convert``."""

from __future__ import annotations

import click


@click.command("convert")
@click.argument("source", type=click.Path())
@click.argument("destination", type=click.Path())
@click.option("--storage", required=True, help="zarr, zarr:zstd, zarr:blosc, webdataset")
def command(source: str, destination: str, storage: str) -> None:
    """Copy the store SOURCE to DESTINATION in another storage, row for row and bit for bit."""
    from ..store.rewrite import convert

    rows = convert(source, destination, storage, report=lambda n: click.echo(f"{n} utterances", err=True))
    click.echo(f"{destination}: {rows} utterances as {storage}")
