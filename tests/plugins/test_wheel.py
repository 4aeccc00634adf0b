"""A wheel installed outside of the repository: it holds all that it needs, and passes the demo."""

import shutil

import pytest

from tests.support import demo, fresh

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return fresh.logitstore(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder with the demo's recipe and recordings, and no logitstore."""
    folder = tmp_path_factory.mktemp("outside")
    for name in ("recipes", "manifests"):
        shutil.copytree(demo.ROOT / name, folder / name)
    return folder


def test_the_wheel_passes_the_demo(python, outside):
    said = fresh.run("bash", outside / "recipes/demo/run.sh", "store", cwd=outside, PYTHON=str(python))
    assert "20 utterances" in said
    assert "a batch of 4" in said
    where = fresh.run(python, "-c", "import logitstore; print(logitstore.__file__)", cwd=outside)
    assert str(python.parent.parent) in where


def test_the_wheel_has_the_commands(python, outside):
    bin = python.parent
    assert "dump" in fresh.run(bin / "logitstore", "--help", cwd=outside)
    fresh.run(
        *(bin / "dump_logits.sh", "--teacher", outside / "recipes/demo/teacher.py:load", "--nj", 2),
        *("--manifest", outside / "manifests/demo.jsonl", "--out", "two-jobs", "--limit", 4),
        cwd=outside,
    )
    assert (outside / "two-jobs" / "index").exists()


def test_the_wheel_has_the_specification_and_its_metadata(python, outside):
    code = (
        "from importlib.metadata import metadata, files; from importlib.resources import files as within\n"
        "m = metadata('logitstore')\n"
        "print(m['License-Expression'], m['Author'], m['Requires-Python'], *m.get_all('License-File'))\n"
        "print(within('logitstore.schema').joinpath('SPEC.md').read_text('utf-8').splitlines()[0])\n"
        "print(within('logitstore').joinpath('py.typed').is_file())\n"
        "print(within('logitstore.capture.inject').joinpath('startup/sitecustomize.py').is_file())"
    )
    said = fresh.run(python, "-c", code, cwd=outside).splitlines()
    assert said[0] == "Apache-2.0 The logitstore authors >=3.11 LICENSE"
    assert said[1].startswith("# The logitstore format")
    assert said[2:] == ["True", "True"]
