"""``logitstore diff``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from ._options import json_option, option, sectioned_command
from ._terminal import json_text, printable, table

if TYPE_CHECKING:
    from ..store.diff import StoreDiff

LISTED = 20  # ids of a kind that are listed
VALUE_WIDTH = 40  # characters of a field's value that are shown


@sectioned_command("diff")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@option(
    "--sample",
    default=0,
    metavar="N",
    type=click.IntRange(0),
    help="Compare the targets of at most N utterances, spread evenly. Default: all that both stores hold.",
)
@option(
    "--tolerance",
    default=0.0,
    show_default=True,
    metavar="NATS",
    type=click.FloatRange(0),
    help="Largest difference of a log-probability, or of a number of a hidden stream, that does not count.",
)
@json_option("all differences")
def command(a: str, b: str, sample: int, tolerance: float, as_json: bool) -> None:
    """Compare the stores A and B: descriptions, ids and targets. The exit status is 1 if they differ.

    Another storage backend and other versions of libraries are listed but do not count as a difference.
    """
    from ..store.diff import diff_stores

    found = diff_stores(a, b, sample=sample, tolerance=tolerance)
    if as_json:
        click.echo(json_text(found.to_json()))
    else:
        for line in _lines(found):
            click.echo(line)
    if not found.same:
        raise click.exceptions.Exit(1)


def _lines(found: StoreDiff) -> Iterator[str]:
    """Yield the lines that are printed."""
    if found.fields:
        rows = [[printable(name), *(_short(v) for v in values)] for name, *values in found.fields]
        yield from table(["field", "A", "B"], rows)
    yield from _listed("only in A", found.only_a)
    yield from _listed("only in B", found.only_b)
    yield from _listed("differs", found.differing)
    encodings = [name for name, _, _ in found.fields if name.endswith(".encoding")]
    if encodings and found.differing:
        yield "The encodings differ: the differences below include what each encoding leaves out."
    for name, far in found.largest.items():
        if name in found.kl:
            yield (
                f"{name}: largest difference of a log-probability {far:.3g} nats, mean KL(A ‖ B) of a row "
                f"{found.kl[name]:.3g} nats"
            )
        else:
            yield f"{name}: largest difference of a number {far:.3g}"
    verdict = "the same" if found.same else "they differ"
    yield f"{found.compared} utterances compared: {verdict}"


def _listed(label: str, ids: Sequence[str]) -> Iterator[str]:
    """Yield a line for each of the first ids, and one that counts the others."""
    for utt_id in ids[:LISTED]:
        yield f"{label}  {printable(utt_id)}"
    if len(ids) > LISTED:
        yield f"{label}  ... and {len(ids) - LISTED} more"


def _short(value: object) -> str:
    """Return a field's value as JSON, cut to a column's width."""
    return json_text(value, indent=None)[:VALUE_WIDTH]
