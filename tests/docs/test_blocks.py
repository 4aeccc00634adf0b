"""Code blocks of README.md and docs/: each page's run in order, in a folder that holds the demo and its store."""

import re
import shutil
import subprocess
import sys

import pytest

from logitstore import registry
from logitstore.cli import cli, main
from tests.support import demo
from tests.support.blocks import blocks

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

PAGES = sorted(
    p.relative_to(demo.ROOT).as_posix() for p in [demo.ROOT / "README.md", *demo.ROOT.glob("docs/**/*.md")]
)
TARGETS = set(re.findall(r"^([a-z-]+):", (demo.ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
DUMP = ["dump", "--teacher", demo.FACTORY, "--manifest", demo.MANIFEST, "--tokens", demo.TOKENS]
LANGUAGES = {"python", "sh", "text", "json", "yaml", "toml", "markdown"}


def run(args):
    """Run ``logitstore ARGS`` in this process and return its exit status."""
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in args])
    return e.value.code


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The store that ``make demo`` makes."""
    out = tmp_path_factory.mktemp("demo") / "demo-store"
    streams = ["--stream", "ctc=dense", "--stream", "rnnt=topk:16", "--transcripts", "all"]
    assert not run([*DUMP, *streams, "--out", out])
    return out


@pytest.fixture
def folder(store, tmp_path, monkeypatch):
    """The working folder of a page."""
    shutil.copytree(store, tmp_path / "demo-store")
    for name in ("recipes", "manifests", "bin", "tests"):
        (tmp_path / name).symlink_to(demo.ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setattr(
        registry, "_registered", dict(registry._registered)
    )  # what a page registers ends with it
    return tmp_path


def parse(words):
    """Parse the options of ``logitstore VERB ...`` without running the command."""
    name, *args = words[1:]
    command = cli.get_command(None, name)
    assert command is not None, f"no command {name!r}"
    command.make_context(name, list(args))


def check_shell(block, where):
    """Check that every ``logitstore`` and ``make`` command of a shell block could run."""
    for words in block.commands():
        if words[0] == "logitstore" and len(words) > 1:
            parse(words)
        elif words[0] == "make":
            unknown = [w for w in words[1:] if "=" not in w and w not in TARGETS]
            assert not unknown, f"{where}: the Makefile has no target {unknown}"


def run_shell(block, where):
    for words in block.commands():
        if words[0] == "logitstore":
            assert not run(words[1:]), f"{where}: {' '.join(words)}"
        elif words[0] != "make":  # a target of the Makefile would install packages
            env_python = [sys.executable if w == "python" else w for w in words]
            done = subprocess.run(env_python, capture_output=True, encoding="utf-8", check=False)
            assert done.returncode == 0, f"{where}: {' '.join(words)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_blocks(page, folder):
    names = {"__name__": "page"}
    for block in blocks(demo.ROOT / page):
        where = f"{page}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: a block of no language"
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.code, str(demo.ROOT / page), "exec")
            if not block.reason:
                exec(code, names)
        elif block.language == "sh":
            check_shell(block, where)
            if not block.reason:
                run_shell(block, where)
