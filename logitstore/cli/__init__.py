"""The command line: one file a command, loaded when it is called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from .. import __version__
from ..errors import LogitStoreError

COMMANDS = {
    "probe": "find the logits in a recipe or a teacher, and say what to run next",
    "plan": "say what every encoding would cost and keep, and which one to take",
    "dump": "run a teacher over a manifest and store what it says",
    "capture": "run a recipe, unmodified, and store what its model says",
    "doctor": "say what would bite later, before a long job",
    "manifest": "check a manifest of any format, and write it as JSON lines",
    "inspect": "show a store, or one utterance of it",
    "verify": "read every byte of a store and check it; --repair drops what is damaged",
    "transcripts": "write the teacher's own transcripts as JSON lines",
    "convert": "copy a store into another storage, bit for bit",
    "diff": "say in what two stores differ",
    "compact": "merge small shards into large ones",
    "index": "bring the index and skipped.jsonl up to date with the sealed shards",
}


class _Commands(click.Group):
    """Loads a command's module when it is called, so that --help stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = import_module(f"{__package__}.{name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            from ..registry import suggest

            ctx.fail(f"no command {args[0]!r}. {suggest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="logitstore")
def cli() -> None:
    """Offline teacher logits for speech recognition.

    Run a trained teacher once, keep what it said, train any number of students from it.

    Exit status: 0 good, 1 something given is wrong, 2 wrong usage, 3 done, but some utterances were
    skipped (see skipped.jsonl), 130 or 143 stopped by Ctrl-C or SIGTERM.
    """


def main(args: list[str] | None = None) -> None:
    """The console script; everything it reads and writes is UTF-8, whatever the locale."""
    if args is None and sys.getfilesystemencoding() != "utf-8":
        # Under LANG=C file names and arguments would be ASCII: begin again in Python's UTF-8 mode.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        status = cli.main(args, standalone_mode=False)
    except click.exceptions.Exit as e:
        status = e.exit_code
    except click.ClickException as e:
        e.show()
        status = e.exit_code
    except LogitStoreError as e:
        from ._terminal import printable

        click.echo(printable(f"logitstore: {type(e).__name__}: {e}", keep="\n"), err=True)
        status = e.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("logitstore: interrupted; what was sealed stays, run it again to go on", err=True)
        status = 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left, e.g. head
        status = 0
    sys.exit(status if isinstance(status, int) else 0)
