"""The command line: a module for each command, imported when it is called."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import Any, TextIO

import click

from .. import __version__
from ..errors import LogitStoreError

COMMANDS = {
    "probe": "find the logits in a program or a teacher, and print the command to run next",
    "plan": "measure what every encoding costs and keeps, and choose one",
    "dump": "run a teacher over a manifest and store its logits",
    "capture": "run a program, unmodified, and store its model's logits",
    "doctor": "check this machine and a planned dump for what would fail later",
    "manifest": "check a manifest of any format, and write it as JSON lines",
    "inspect": "show a store, or one utterance of it",
    "progress": "show how far the jobs that fill a store are",
    "report": "write a page about a store, with pictures of its utterances",
    "verify": "read every byte of a store and check it; --repair drops what is damaged",
    "transcripts": "write the teacher's own transcripts as JSON lines",
    "convert": "copy a store into another storage backend, bit for bit",
    "diff": "compare two stores",
    "compact": "merge small shards into large ones",
    "index": "bring the index and skipped.jsonl up to date with the sealed shards",
}


class LazyCommands(click.Group):
    """A group that imports the module of a command when it is called, so that ``--help`` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of a user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return a command; None if there is none of that name."""
        if name not in COMMANDS:
            return None
        command = import_module(f"{__package__}.{name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called; an unknown name is an error that lists the known ones."""
        if args and args[0] not in COMMANDS:
            from ..registry import suggest

            ctx.fail(f"no command {args[0]!r}. {suggest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="logitstore")
def cli() -> None:
    """Offline teacher logits for speech recognition.

    Run a trained teacher once, store its logits, and distil any number of students from them.

    Exit status: 0 success; 1 wrong data; 2 wrong usage; 3 success, but some utterances were skipped and are
    listed in skipped.jsonl; 130 or 143 stopped by Ctrl-C or SIGTERM.
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit; all input and output is UTF-8 in any locale.

    Args:
        args: arguments of the command line; None for those of this process.
    """
    if args is None and sys.getfilesystemencoding() != "utf-8":
        # Under LANG=C file names and arguments would be ASCII; Python's UTF-8 mode needs a new process.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    _open_closed_streams()
    warnings.showwarning = _show_warning
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

        text = "\n  ".join([f"logitstore: {type(e).__name__}: {e}", *getattr(e, "__notes__", ())])
        click.echo(printable(text, keep="\n"), err=True)
        status = e.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(
            "logitstore: interrupted; sealed shards are kept, and the same command goes on from there",
            err=True,
        )
        status = 130
    except BrokenPipeError:
        sys.stderr.close()  # the process that reads the output, such as head, has ended
        status = 0
    sys.exit(status if isinstance(status, int) else 0)


def _open_closed_streams() -> None:
    """Open the null device in place of standard streams that the caller has closed, as with ``2>&-``.

    The next file that is opened would get the number of the closed stream, and messages would be written into
    it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_RDWR)
        try:
            os.fstat(number)
        except OSError:
            os.dup2(null, number, inheritable=True)
            os.close(null)
            null = number
        setattr(sys, name, open(null, mode, encoding="utf-8", closefd=False))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning that is meant for the user as one message; any other as Python does."""
    if issubclass(category, UserWarning):
        from ._terminal import printable

        click.echo(f"logitstore: warning: {printable(str(message), keep=chr(10))}", err=True)
    else:
        click.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True, nl=False)
