"""``logitstore verify``."""

from __future__ import annotations

import click

from ..errors import UsageError
from ..pictures.amounts import size
from ..schema.kinds import KINDS, kind_of
from ._options import AUDIO_ROOT, json_option, option, sectioned_command
from ._terminal import json_text, printable

AGAINST = "Comparison with the teacher"
MEASURES = dict.fromkeys(KINDS, "KL of a row in nats") | {
    "hidden": "relative squared error",
    "text": "difference",
}


@sectioned_command("verify")
@click.argument("store", type=click.Path())
@option(
    "--repair",
    is_flag=True,
    help="Drop what is damaged, and list the utterances that the next dump makes again.",
)
@option(
    "--drop",
    multiple=True,
    metavar="SHARD",
    help="Remove this shard, whose records are known to be wrong; * stands for any letters. The next run makes its "
    "utterances again.",
)
@option(
    "--against-teacher",
    section=AGAINST,
    nargs=2,
    type=(str, click.IntRange(1)),
    metavar="SOURCE N",
    help="Run N utterances through a teacher again and compare; SOURCE is as in logitstore dump --teacher.",
)
@option(
    "--manifest",
    section=AGAINST,
    type=click.Path(),
    help="Manifest of the recordings; --against-teacher needs it.",
)
@option("--audio-root", section=AGAINST, type=click.Path(), help=AUDIO_ROOT)
@option(
    "--max-kl",
    section=AGAINST,
    default=1e-3,
    show_default=True,
    metavar="NATS",
    help="Largest mean KL of an utterance's rows, in nats, between what the teacher gives now, encoded in "
    "the same way, and what is stored.",
)
@json_option("everything that was found")
def command(
    store: str,
    repair: bool,
    drop: tuple[str, ...],
    against_teacher: tuple[str, int] | None,
    manifest: str | None,
    audio_root: str | None,
    max_kl: float,
    as_json: bool,
) -> None:
    """Read every byte of STORE and check it against its checksums and the rules of SPEC.md.

    The exit status is 1, and the place is named, if anything is wrong.
    """
    if against_teacher is not None:
        if manifest is None:
            raise UsageError("--against-teacher needs --manifest, to find the recordings")
        if repair or drop:
            raise UsageError("--against-teacher excludes --repair and --drop")
        _compare_with_teacher(store, *against_teacher, (manifest, audio_root), max_kl, as_json)
    elif manifest is not None or audio_root is not None:
        raise UsageError("--manifest and --audio-root belong to --against-teacher")
    elif drop:
        if repair:
            raise UsageError("--drop and --repair exclude each other")
        _drop(store, drop, as_json)
    elif repair:
        _repair(store, as_json)
    else:
        _verify(store, as_json)


def _verify(store: str, as_json: bool) -> None:
    from ..store.verify import verify_store

    report = verify_store(store)
    if as_json:
        click.echo(json_text(report.to_json()))
    else:
        for finding in report.findings:
            click.echo(printable(f"{finding.where}: {finding.what}", keep="\n"))
        read = f"{report.shards} shards, {report.records} utterances, {size(report.bytes)} read"
        click.echo(f"{store}: {read}: {'good' if report.good else _count(len(report.findings), 'finding')}")
    if not report.good:
        raise click.exceptions.Exit(1)


def _repair(store: str, as_json: bool) -> None:
    from ..store.rewrite import repair_store

    report = repair_store(store)
    if as_json:
        click.echo(json_text(report.to_json()))
        return
    for utt_id in report.dropped:
        click.echo(f"dropped {printable(utt_id)}")
    for shard in report.shards:
        click.echo(
            f"dropped shard {printable(shard)}: no entry of it can be read, so its utterances are unknown"
        )
    again = "; the same dump makes them again" if report.dropped or report.shards else ""
    findings = _count(len(report.findings), "finding")
    click.echo(f"{store}: {findings}, {_count(len(report.dropped), 'utterance')} dropped{again}")


def _drop(store: str, shards: tuple[str, ...], as_json: bool) -> None:
    from ..store.rewrite import drop_shards

    report = drop_shards(store, shards)
    if as_json:
        click.echo(json_text(report.to_json()))
        return
    for shard in report.shards:
        click.echo(f"removed shard {printable(shard)}")
    click.echo(
        f"{store}: {_count(len(report.utterances), 'utterance')} removed; the next run makes them again"
    )


def _compare_with_teacher(
    location: str,
    source: str,
    count: int,
    files: tuple[str, str | None],
    max_kl: float,
    as_json: bool,
) -> None:
    from ..corpus.manifest import read_manifest
    from ..dump.against import against_teacher
    from ..store.reader import open_store
    from ..teachers import load_teacher

    store, manifest = open_store(location), read_manifest(files[0], audio_root=files[1])
    found = against_teacher(store, load_teacher(source), manifest, count)
    bad = [c for c in found if c.note or not c.kl <= max_kl]
    if as_json:
        click.echo(json_text([vars(c) for c in found]))
    else:
        for c in bad:
            why = c.note or f"{MEASURES[kind_of(c.stream).name]} {c.kl:.3g}, more than {max_kl:g}"
            click.echo(f"{printable(c.id)} {c.stream}: {printable(why)}")
        for stream in dict.fromkeys(c.stream for c in found):
            of_stream = [c for c in found if c.stream == stream]
            click.echo(
                f"{stream}: {len(of_stream)} utterances again: {MEASURES[kind_of(stream).name]} at most "
                f"{max(c.kl for c in of_stream):.3g} from what is stored, "
                f"{max(c.lost for c in of_stream):.3g} with what the encoding leaves out"
            )
    if bad:
        raise click.exceptions.Exit(1)


def _count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
