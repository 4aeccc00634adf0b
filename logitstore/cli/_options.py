"""Options in groups, and the options that every command has that runs a teacher over a manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..corpus.manifest import Manifest

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

INPUT = "Teacher and manifest"
RUNNING = "Running the teacher"
OUTPUT = "The store"

TEACHER = """\
The teacher, as SOURCE or SOURCE,NAME=VALUE,...  A framework's trained model: icefall:EXP, nemo:FILE.nemo,
espnet:DIR, wenet:DIR, speechbrain:DIR or huggingface:DIR. A factory function in a Python file of your own:
FILE.py:NAME. Finished transcripts of any recogniser: text:FILE."""
AUDIO_ROOT = """\
Folder that relative audio paths start from. Default: the folder of a JSON lines or NeMo manifest, else the
current folder."""
MANIFEST_FORMAT = """\
Format of the manifest: jsonl, nemo, kaldi, lhotse, wenet or huggingface. Recognised from the files if not given."""
ALLOW_PIPES = "Run the shell commands that a Kaldi or lhotse manifest gives in place of recordings."
STORAGES = "zarr, zarr:blosc or webdataset"
SHARD_SIZE = "utterances (500), audio (90s, 30m, 2h), bytes (256MB), or several with commas between them"


class SectionedOption(click.Option):
    """An option that is listed under a heading of its own on the help page."""

    def __init__(self, *args: Any, section: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose help page lists its options by section, in the order in which sections first appear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list for each section; options without a section come last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(param, "section", ""), []).append(record)
        others = sections.pop("", [])
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
        if others:
            with formatter.section("Other options" if sections else "Options"):
                formatter.write_dl(others)


def option(*names: str, section: str = "", **attributes: Any) -> Callable[[Decorated], Decorated]:
    """Return ``click.option(*names, **attributes)`` for an option of a section of the help page."""
    return click.option(*names, cls=SectionedOption, section=section, **attributes)


def sectioned_command(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], SectionedCommand]:
    """Return ``click.command(name, **attributes)`` for a command that lists its options by section."""
    return click.command(name, cls=SectionedCommand, **attributes)


RUN_OPTIONS = (
    option("--teacher", section=INPUT, required=True, metavar="SOURCE", help=TEACHER),
    option(
        "--manifest",
        section=INPUT,
        required=True,
        type=click.Path(),
        help="The utterances: JSON lines, a NeMo manifest, a Kaldi data folder, lhotse cuts or a folder of "
        "Hugging Face datasets.",
    ),
    option(
        "--manifest-format",
        section=INPUT,
        metavar="FORMAT",
        help=MANIFEST_FORMAT,
    ),
    option(
        "--audio-root",
        section=INPUT,
        type=click.Path(),
        help=AUDIO_ROOT,
    ),
    option(
        "--allow-pipes",
        section=INPUT,
        is_flag=True,
        help=ALLOW_PIPES,
    ),
    option(
        "--limit",
        section=INPUT,
        default=0,
        metavar="N",
        type=click.IntRange(0),
        help="Use only the first N utterances of the manifest.",
    ),
    option(
        "--batch-seconds",
        section=RUNNING,
        default=120.0,
        show_default=True,
        metavar="SECONDS",
        type=click.FloatRange(0),
        help="Seconds of audio in a batch of the teacher, padding included; 0 for one utterance a batch.",
    ),
    option(
        "--device",
        section=RUNNING,
        default="cpu",
        show_default=True,
        help="Device that the teacher runs on: cpu, cuda, cuda:1, ...",
    ),
    option(
        "--cpu-threads",
        section=RUNNING,
        default=1,
        show_default=True,
        metavar="N",
        type=click.IntRange(1),
        help="CPU threads that a teacher on the CPU computes with.",
    ),
    option(
        "--shard-size",
        section=OUTPUT,
        default="auto",
        show_default=True,
        metavar="SIZE",
        help=f"Size of a shard: {SHARD_SIZE}.",
    ),
)


def run_options(function: Decorated) -> Decorated:
    """Add the options of a teacher and its manifest, in front of a command's own."""
    for decorate in reversed(RUN_OPTIONS):
        function = decorate(function)
    return function


def json_option(what: str) -> Callable[[Decorated], Decorated]:
    """Return the option ``--json`` (the argument ``as_json``) of a command that prints ``what``."""
    return option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON.")


def manifest_from(given: Mapping[str, Any]) -> Manifest:
    """Read the manifest that the options of :func:`run_options` name; raises ``ManifestError``."""
    from ..corpus.manifest import read_manifest

    return read_manifest(
        given["manifest"],
        audio_root=given["audio_root"],
        limit=given["limit"],
        format=given["manifest_format"],
        allow_pipes=given["allow_pipes"],
    )
