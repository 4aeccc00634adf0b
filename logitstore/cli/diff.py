"""``logitstore diff``."""

from __future__ import annotations

import json

import click

from ._terminal import printable, table


@click.command("diff")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--sample", default=0, show_default=True, type=click.IntRange(0), help="utterances; 0: all")
@click.option("--tolerance", default=0.0, show_default=True, type=click.FloatRange(0), help="in nats")
@click.option("--json", "as_json", is_flag=True, help="print what differs as JSON")
def command(a: str, b: str, sample: int, tolerance: float, as_json: bool) -> None:
    """Compare the stores A and B: what they say of themselves, ids, targets; exit 1 when they differ.

    Another storage, or other versions of libraries, are shown but are no difference.
    """
    from ..store.diff import compare
    from ..store.reader import open_store

    found = compare(open_store(a), open_store(b), sample=sample, tolerance=tolerance)
    if as_json:
        click.echo(json.dumps({"same": found.same, **vars(found)}, ensure_ascii=False, indent=1))
    else:
        rows = [
            [f, *(printable(json.dumps(v, ensure_ascii=False))[:40] for v in v2)] for f, *v2 in found.fields
        ]
        for line in table(["field", "A", "B"], rows) if rows else ():
            click.echo(line)
        for label, ids in (
            ("only in A", found.only_a),
            ("only in B", found.only_b),
            ("differs", found.differing),
        ):
            for utt_id in ids[:20]:
                click.echo(f"{label}  {printable(utt_id)}")
            if len(ids) > 20:
                click.echo(f"{label}  ... and {len(ids) - 20} more")
        for name, far in found.largest.items():
            if name in found.kl:
                kl = found.kl[name]
                line = f"{name}: largest difference {far:.3g} nats, mean KL(A ‖ B) {kl:.3g} nats a row"
            else:
                line = f"{name}: largest difference of a number {far:.3g}"
            click.echo(line)
        verdict = "the same" if found.same else "they differ"
        click.echo(f"{found.compared} utterances compared: {verdict}")
    if not found.same:
        raise click.exceptions.Exit(1)
