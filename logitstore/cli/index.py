"""``logitstore index``."""

from __future__ import annotations

import click

from ._options import sectioned_command


@sectioned_command("index")
@click.argument("store", type=click.Path())
def command(store: str) -> None:
    """Bring the index and skipped.jsonl of STORE up to date with its sealed shards.

    Every dump does this when it ends. After several jobs wrote into one store at the same time, one more run
    makes both files final.
    """
    from ..store.rewrite import index_store

    done = index_store(store)
    click.echo(f"{store}: {done.utterances} utterances in {done.shards} shards")
