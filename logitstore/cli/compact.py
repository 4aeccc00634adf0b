"""``logitstore compact``."""

from __future__ import annotations

import click


@click.command("compact")
@click.argument("store", type=click.Path())
@click.option("--shard-size", default="5000", show_default=True, help="utterances, or audio: 30m, 2h")
def command(store: str, shard_size: str) -> None:
    """Merge small shards of STORE into large ones; rows and ids stay as they are.

    Readers may go on meanwhile. Stopped half-way, the store is whole, and the same command goes on.
    """
    from ..store.reader import Store
    from ..store.rewrite import compact

    merged = compact(store, shard_size, report=lambda n: click.echo(f"{n} shards merged", err=True))
    opened = Store(store)
    click.echo(f"{store}: {merged} shards merged, {len(opened)} utterances in {len(opened.shards)} shards")
