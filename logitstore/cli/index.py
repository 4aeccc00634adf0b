"""``logitstore index``."""

from __future__ import annotations

import click


@click.command("index")
@click.argument("store", type=click.Path())
def command(store: str) -> None:
    """Bring STORE's index and skipped.jsonl up to date with its sealed shards.

    Every dump does it when it ends; after several jobs on one store, once more makes them final.
    """
    from ..storage.commit import finish_store
    from ..store.reader import Store

    opened = Store(store)
    finish_store(opened.place)
    click.echo(f"{store}: {len(opened)} utterances in {len(opened.shards)} shards")
