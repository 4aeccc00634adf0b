"""``logitstore inspect``."""

from __future__ import annotations

import json
import shutil
from typing import Any

import click

from ._terminal import printable, table


@click.command("inspect")
@click.argument("store", type=click.Path())
@click.argument("utterance", required=False)
@click.option("--manifest", type=click.Path(), help="list what it asks for and the store lacks")
@click.option("--audio-root", type=click.Path(), help="what the manifest's audio paths are relative to")
@click.option(
    "--sample", default=200, show_default=True, type=click.IntRange(1), help="utterances for statistics"
)
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="classes shown a frame")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
def command(
    store: str,
    utterance: str | None,
    manifest: str | None,
    audio_root: str | None,
    sample: int,
    top: int,
    as_json: bool,
) -> None:
    """Show STORE as a whole, or one UTTERANCE of it frame by frame."""
    from ..corpus.manifest import read_manifest
    from ..store.inspect import against_manifest, summary
    from ..store.inspect import utterance as one
    from ..store.reader import open_store

    opened = open_store(store)
    if utterance is not None:
        data = one(opened, utterance, top=top)
        return click.echo(_json(data) if as_json else _utterance(data))
    data = summary(opened, sample=sample)
    if manifest is not None:
        data["manifest"] = against_manifest(opened, read_manifest(manifest, audio_root=audio_root))
    click.echo(_json(data) if as_json else _summary(data))


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1)


def _summary(d: dict[str, Any]) -> str:
    from ._terminal import size

    teacher, tokens = d["teacher"], d["tokens"]
    modules = ", ".join(f"{h['stream']} at {h['module']}" for h in teacher["heads"])
    shift = 1000 * teacher["frame_shift"] / teacher["sample_rate"]
    lines = [
        f"store      {printable(d['store'])} (format {d['format']}, {d['storage']})",
        f"teacher    {printable(teacher['name'])}, weights {teacher['weights'] or 'not recorded'}",
        f"tapped     {printable(modules) or 'one’s own loop'}",
        f"audio      {teacher['sample_rate']} Hz, one frame every {shift:g} ms",
        f"tokens     {tokens['size']}, blank {tokens['blank']}, {tokens['sha256']}",
        f"made with  {', '.join(f'{k} {v}' for k, v in d['made_with'].items())}",
        f"size       {d['utterances']} utterances, {d['hours']:.3f} h, {d['frames']} frames, "
        f"{d['shards']} shards",
        f"on disk    {size(d['bytes'])}: {d['bytes_per_frame']:.1f} bytes a frame, all included, and "
        f"{size(d['bytes_once'])} once",
    ]
    lines += [f"allowed    {a['field']}: {a['was']} → {a['now']}" for a in d["allowed"]]
    lines += [f"skipped    gate {g['gate']}: {printable(g['reason'])}" for g in d["gates"]]
    if d["skipped"]:
        lines.append(f"skipped    {d['skipped']}: see skipped.jsonl")
    head = [
        "stream",
        "shape",
        "encoding",
        "bytes/row",
        "of fp16",
        "entropy",
        "blank",
        "top-1",
        "kept",
        "errors",
    ]
    rows = [
        [
            name,
            s["shape"].replace("V", str(s["classes"])),
            (s["encoding"] or "-") if s["form"] in ("", "full") else f"{s['encoding']}/{s['form']}",
            _known(s["bytes_per_row"], "{:.1f}"),
            _known(s["of_dense_fp16"], "{:.1%}"),
            _known(s["entropy"], "{:.3f}"),
            _known(s["blank_share"], "{:.1%}"),
            _known(s["top1_share"], "{:.1%}"),
            _known(s["kept_mass"], "{:.3%}"),
            _known(s["error_rate"], "{:.2%}"),
        ]
        for name, s in d["streams"].items()
    ]
    lines += ["", *table(head, rows), ""]
    for name, s in d["streams"].items():
        if lost := s["lost"]:
            lines.append(
                f"{name} loses {lost['mean']:.2e} nats a row on average, {lost['p99']:.2e} in 99 of 100, "
                f"{lost['max']:.2e} at most (measured by the dump)"
            )
        if s["rms"] is not None:
            lines.append(f"{name}: root mean square of its numbers {s['rms']:.3g}")
    units = {name: s["error_unit"] for name, s in d["streams"].items() if s["error_reference"]}
    unit = next(iter(units.values()), "token")
    unit = unit if len({*units.values(), unit}) == 1 else ", ".join(f"{n} {u}" for n, u in units.items())
    lines += [
        "entropy: in nats; blank: rows whose best class is the blank; top-1, kept: mean probability;",
        f"errors: {unit} errors of the stored logits' greedy decode (rnnt, seq2seq under teacher forcing);",
        f"all over {d['sampled']} of {d['utterances']} utterances.",
    ]
    if d["heard"]:
        rates = ", ".join(f"{name} {100 * rate:.2f} %" for name, rate in d["heard"].items())
        lines.append(f"The teacher's own transcripts, decoded as it would by itself: {rates} token errors.")
    if "manifest" in d:
        m = d["manifest"]
        lines += [
            "",
            f"manifest   {m['asked']} utterances, {len(m['missing'])} missing, {len(m['extra'])} extra",
        ]
        lines += [f"  missing  {printable(i)}" for i in m["missing"]]
        lines += [f"  extra    {printable(i)}" for i in m["extra"]]
        lines += [f"  bad line {printable(p['what'])}" for p in m["bad_lines"]]
    return "\n".join(lines)


def _known(value: float | None, how: str) -> str:
    """A number as it is shown; a dash where there is none. Shares are parted from their sign."""
    return "-" if value is None else how.format(value).replace("%", " %")


def _utterance(d: dict[str, Any]) -> str:
    width = shutil.get_terminal_size((100, 24)).columns
    lines = [
        f"utterance  {printable(d['id'])}",
        f"length     T = {d['T']} frames, U = {d['U']} labels, {d['seconds']} s",
        f"reference  {printable(d['text'] if d['text'] is not None else '-')}",
        f"labels     {printable(' '.join(d['labels'])) or '-'}",
    ]
    for name, s in d["streams"].items():
        axes = "×".join(map(str, s["shape"]))
        lines += ["", f"{name:<10} {axes} {s['encoding']}".rstrip()]
        if "labels" in s and s["labels"] != d["labels"]:
            lines.append(f"labels     {printable(' '.join(s['labels']))}")
        if "text" in s:
            lines.append(f"decoded    {printable(s['text'])}")
        if "decoded" in s:
            lines.append(f"           {printable(' '.join(s['decoded']))}")
        if "errors" in s:
            lines.append(f"           {s['errors']} errors in {s['reference']}")
        if s["heard"] and "decoded" in s:
            lines.append(f"heard      {printable(s['heard']['text'])}")
        if "rms" in s:
            lines.append(f"size       {' '.join(f'{x:.3g}' for x in s['rms'])}")
        if "frames" not in s:
            continue
        lines.append("")
        rows = []
        for frame in s["frames"]:
            at = ",".join(str(frame[axis]) for axis in ("t", "u") if axis in frame)
            best = [f"{printable(token)} {p:.3f}" if p >= 5e-4 else "·" for token, p in frame["best"]]
            rows.append([at, *best, f"{frame['tail']:.1e}"])
        count = max((len(r) - 2 for r in rows), default=0)
        place = ",".join(axis for axis in ("t", "u") if s["frames"] and axis in s["frames"][0])
        head = [place, *[f"best {i + 1}" for i in range(count)], "rest"]
        lines += table(head, rows, width)
    return "\n".join(lines)
