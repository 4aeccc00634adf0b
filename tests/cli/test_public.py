"""The public interface: one list of names, loaded on first use, without heavy imports."""

import ast
import subprocess
import sys
from pathlib import Path

import click
import pytest

import logitstore
from logitstore.cli import COMMANDS, cli
from tests.support import demo

HEAVY = ("torch", "webdataset", "zarr", "click", "numpy", "rich", "numcodecs", "soundfile", "soxr")


def loaded(code):
    """Return which of the heavy packages a new process has loaded after some code."""
    code += f"\nimport sys; sys.stderr.write(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=demo.ROOT, check=True
    )
    return done.stderr.split()


def imported_for_type_checkers():
    """Return module by name as the TYPE_CHECKING block of the package imports them."""
    tree = ast.parse(Path(logitstore.__file__).read_text("utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    return {a.name: f"logitstore.{n.module}" for n in block.body if n.module for a in n.names}, {
        a.name for n in block.body if not n.module for a in n.names
    }


def test_the_lists_of_public_names_agree():
    names, modules = imported_for_type_checkers()
    assert names == logitstore._MODULE_OF
    assert modules == set(logitstore._PUBLIC_MODULES)
    assert sorted(logitstore.__all__) == sorted([*names, *modules, "__version__"])


def test_every_public_name_is_there_and_documented():
    for name in logitstore.__all__:
        value = getattr(logitstore, name)
        assert name == "__version__" or value.__doc__, name
    assert set(logitstore.__all__) <= set(dir(logitstore))
    with pytest.raises(AttributeError, match="no attribute 'open_stores'"):
        logitstore.open_stores  # noqa: B018


def test_no_public_name_is_a_room():
    rooms = {p.name for p in Path(logitstore.__file__).parent.iterdir() if p.is_dir()}
    assert rooms & set(logitstore.__all__) <= set(logitstore._PUBLIC_MODULES)


def test_importing_the_package_loads_nothing_heavy():
    code = "import logitstore; dir(logitstore); logitstore.LogitStoreError; logitstore.__version__"
    assert loaded(code) == []


def test_help_loads_no_torch_and_names_every_command():
    code = "from logitstore.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert loaded(code) == ["click"]
    done = subprocess.run(
        [sys.executable, "-m", "logitstore", "--help"],
        capture_output=True,
        encoding="utf-8",
        cwd=demo.ROOT,
        check=True,
    )
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_says_a_sentence_for_each_option(command):
    found = cli.get_command(click.Context(cli), command)
    assert found.help.split("\n\n")[0].endswith(".")
    page = found.get_help(click.Context(found, info_name=command))
    arguments = [p.human_readable_name for p in found.params if isinstance(p, click.Argument)]
    assert not [name for name in arguments if f"\n  {name}\n" in page or f"\n  [{name}]" in page]
    for param in found.params:
        if isinstance(param, click.Option):
            text = param.help
            assert text, param.name
            assert text[0].isupper(), text
            assert text.rstrip().endswith("."), text
