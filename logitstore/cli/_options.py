"""What every command asks that runs a teacher over a manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..corpus.manifest import Manifest

OPTIONS = (
    click.option("--teacher", required=True, metavar="FILE.py:NAME", help="factory that returns the teacher"),
    click.option("--manifest", required=True, type=click.Path(), help="JSON lines, NeMo, Kaldi, ..."),
    click.option("--manifest-format", metavar="FORMAT", help="jsonl, nemo, kaldi, lhotse, huggingface"),
    click.option("--allow-pipes", is_flag=True, help="run shell commands that stand for recordings"),
    click.option("--audio-root", type=click.Path(), help="what relative audio paths are relative to"),
    click.option("--limit", default=0, type=click.IntRange(0), help="only the first N utterances"),
    click.option(
        "--batch-seconds", default=120.0, show_default=True, type=click.FloatRange(0), help="per batch"
    ),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ..."),
    click.option(
        "--cpu-threads", default=1, show_default=True, type=click.IntRange(1), help="of a CPU teacher"
    ),
    click.option("--shard-size", default="500", show_default=True, help="utterances, or audio: 90s, 30m, 2h"),
)


def asks_for_a_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a teacher and its manifest, in front of a command's own."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def manifest_of(given: Mapping[str, Any]) -> Manifest:
    """The manifest that these options name; raises ``ManifestError``."""
    from ..corpus.manifest import read_manifest

    return read_manifest(
        given["manifest"],
        audio_root=given["audio_root"],
        limit=given["limit"],
        format=given["manifest_format"],
        allow_pipes=given["allow_pipes"],
    )
