"""``logitstore verify``."""

from __future__ import annotations

import json

import click

from ..errors import UsageError
from ..schema.kinds import KINDS, kind_of
from ._terminal import printable

MEASURES = dict.fromkeys(KINDS, "KL in nats a row") | {
    "hidden": "relative squared error",
    "text": "difference",
}


@click.command("verify")
@click.argument("store", type=click.Path())
@click.option("--repair", is_flag=True, help="drop what is damaged, and say what the next dump makes again")
@click.option(
    "--against-teacher",
    nargs=2,
    type=(str, click.IntRange(1)),
    metavar="FILE.py:NAME N",
    help="run N utterances through the teacher again",
)
@click.option("--manifest", type=click.Path(), help="where --against-teacher finds their audio")
@click.option("--audio-root", type=click.Path(), help="what relative audio paths are relative to")
@click.option("--max-kl", default=1e-3, show_default=True, help="nats a row that --against-teacher allows")
@click.option("--json", "as_json", is_flag=True, help="print what was found as JSON")
def command(
    store: str,
    repair: bool,
    against_teacher: tuple[str, int] | None,
    manifest: str | None,
    audio_root: str | None,
    max_kl: float,
    as_json: bool,
) -> None:
    """Read every byte of STORE, check every checksum and rule; exit 1 and name what is wrong."""
    if against_teacher is not None:
        if manifest is None or repair:
            raise UsageError("--against-teacher needs --manifest, and goes without --repair")
        return _against(store, against_teacher, (manifest, audio_root), max_kl, as_json)
    if manifest is not None or audio_root is not None:
        raise UsageError("--manifest and --audio-root belong to --against-teacher")
    if repair:
        return _repair(store, as_json)
    from ..store.verify import verify
    from ._terminal import size

    verdict = verify(store)
    if as_json:
        found = [f.to_json() for f in verdict.findings]
        data = {
            "shards": verdict.shards,
            "rows": verdict.rows,
            "bytes": verdict.bytes,
            "findings": found,
        }
        click.echo(json.dumps(data, ensure_ascii=False, indent=1))
    else:
        for finding in verdict.findings:
            click.echo(printable(f"{finding.where}: {finding.what}", keep="\n"))
        read = f"{verdict.shards} shards, {verdict.rows} utterances, {size(verdict.bytes)} read"
        judgement = f"{len(verdict.findings)} things are wrong" if verdict.findings else "good"
        click.echo(f"{store}: {read}: {judgement}")
    if verdict.findings:
        raise click.exceptions.Exit(1)


def _repair(store: str, as_json: bool) -> None:
    from ..store.rewrite import repair

    done = repair(store)
    if as_json:
        data = {
            "findings": [f.to_json() for f in done.findings],
            "dropped": done.dropped,
            "shards": done.shards,
        }
        return click.echo(json.dumps(data, ensure_ascii=False, indent=1))
    for utt_id in done.dropped:
        click.echo(f"dropped {printable(utt_id)}")
    for shard in done.shards:
        click.echo(
            f"dropped shard {printable(shard)}: no entry of it can be read, its utterances are unknown"
        )
    again = "; the same dump makes them again" if done.dropped or done.shards else ""
    click.echo(
        f"{store}: {len(done.findings)} things were wrong, {len(done.dropped)} utterances dropped{again}"
    )


def _against(
    location: str, asked: tuple[str, int], files: tuple[str, str | None], max_kl: float, as_json: bool
) -> None:
    from ..corpus.manifest import read_manifest
    from ..dump.against import against_teacher
    from ..store.reader import open_store
    from ..teachers import load_teacher

    store, manifest = open_store(location), read_manifest(files[0], audio_root=files[1])
    found = against_teacher(store, load_teacher(asked[0]), manifest, asked[1])
    bad = [c for c in found if c.note or not c.kl <= max_kl]
    if as_json:
        click.echo(json.dumps([vars(c) for c in found], ensure_ascii=False, indent=1))
    else:
        for c in bad:
            why = c.note or f"{MEASURES[kind_of(c.stream).name]} {c.kl:.3g}, more than {max_kl:g}"
            click.echo(f"{printable(c.id)} {c.stream}: {why}")
        for name in dict.fromkeys(c.stream for c in found):
            mine = [c for c in found if c.stream == name]
            click.echo(
                f"{name}: {len(mine)} utterances again: {MEASURES[kind_of(name).name]} to what is stored "
                f"{max(c.kl for c in mine):.3g} at most; with what the encoding leaves out "
                f"{max(c.lost for c in mine):.3g}"
            )
    if bad:
        raise click.exceptions.Exit(1)
