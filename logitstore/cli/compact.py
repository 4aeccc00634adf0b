"""``logitstore compact``."""

from __future__ import annotations

import click

from ._options import SHARD_SIZE, option, sectioned_command


@sectioned_command("compact")
@click.argument("store", type=click.Path())
@option(
    "--shard-size",
    default="auto",
    show_default=True,
    metavar="SIZE",
    help=f"Largest size of a merged shard: {SHARD_SIZE}.",
)
def command(store: str, shard_size: str) -> None:
    """Merge small shards of STORE into large ones; its records and ids stay the same.

    Readers may stay open meanwhile. If the command is interrupted, the store is still complete, and the same
    command goes on from there.
    """
    from ..store.rewrite import compact_store

    done = compact_store(store, shard_size, report=lambda n: click.echo(f"{n} shards merged", err=True))
    click.echo(f"{store}: {done.merged} shards merged, {done.utterances} utterances in {done.shards} shards")
