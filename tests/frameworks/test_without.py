"""Teachers whose framework is missing: nothing is imported unasked, and the extra to install is named."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from logitstore import registry
from logitstore.errors import UnknownName, UsageError
from logitstore.teachers import load_teacher
from logitstore.teachers._options import read_where

FRAMEWORKS = ("transformers", "speechbrain", "nemo", "espnet2", "wenet", "lhotse", "k2", "yaml", "torchaudio")


def test_importing_every_teacher_imports_no_framework() -> None:
    names = registry.names("teachers")
    assert {"huggingface", "speechbrain", "icefall", "nemo", "espnet", "wenet", "script"} <= set(names)
    code = "; ".join(f"import logitstore.teachers.{n}" for n in names)
    code += f"; import sys; print([m for m in {FRAMEWORKS} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "package", "files", "do"),
    [
        ("huggingface", "transformers", (), "logitstore[huggingface]"),
        ("speechbrain", "speechbrain", ("hyperparams.yaml",), "logitstore[speechbrain]"),
        ("nemo", "nemo", (), "logitstore[nemo]"),
        ("espnet", "espnet2", ("config.yaml", "valid.acc.ave.pth"), "logitstore[espnet]"),
        ("wenet", "wenet", ("train.yaml", "final.pt"), "clone of WeNet"),
    ],
)
def test_a_missing_framework_names_the_extra(
    name: str, package: str, files: tuple[str, ...], do: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed here")
    for file in files:
        (tmp_path / file).write_text("")
    with pytest.raises(UsageError, match="is not installed") as e:
        load_teacher(f"{name}:{tmp_path}")
    assert do in str(e.value)


def test_a_wrong_framework_lists_the_known() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'huggingface'"):
        load_teacher("hugingface:x")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a/b", {"exp": "a/b"}),
        ("a=b/c,n=2", {"exp": "a=b/c", "n": "2"}),
        ("n=2,exp=a", {"exp": "a", "n": "2"}),
        ("a,p.x=1;2", {"exp": "a", "p.x": "1;2"}),
    ],
)
def test_options_behind_a_path(text: str, found: dict[str, str]) -> None:
    assert read_where(text, "exp", ("n",), free="p.") == found


@pytest.mark.parametrize("text", ["a,m=1", "a,n", "a,n=", "a,n=1,n=2", "n=1", "", "a,px=1"])
def test_options_that_are_wrong(text: str) -> None:
    with pytest.raises(UsageError):
        read_where(text, "exp", ("n",), free="p.")
