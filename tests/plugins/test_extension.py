"""An encoding and a place of another package, installed into a new environment and found by entry points."""

import json
import shutil

import pytest

from tests.support import demo, fresh, recipe

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

PLUGIN = demo.ROOT / "tests" / "plugins" / "logitstore_extra"
DUMP = ("dump", "--teacher", demo.FACTORY, "--manifest", demo.MANIFEST, "--limit", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plugin")


@pytest.fixture(scope="module")
def python(folder):
    """The Python of a new environment that has logitstore and the plugin, both from wheels."""
    python = fresh.logitstore(folder)
    copy = folder / "plugin"
    shutil.copytree(PLUGIN, copy, ignore=shutil.ignore_patterns("__pycache__"))
    built = folder / "plugin-wheel"
    built.mkdir()
    fresh.install(python, fresh.wheel(copy, built))
    return python


@pytest.fixture(scope="module")
def run(python, folder):
    """Run the environment's ``logitstore`` outside of the repository."""

    def run(*args):
        return fresh.run(python, "-m", "logitstore", *args, cwd=folder, FLAT_ROOT=str(folder / "flat"))

    return run


@pytest.fixture(scope="module")
def script(python, folder):
    """Run a piece of Python in the environment."""

    def run(code):
        return fresh.run(python, "-c", code, cwd=folder, FLAT_ROOT=str(folder / "flat"))

    return run


def test_the_encoding_passes_the_conformance_suite(script):
    code = (
        "from logitstore.encodings import parse_encoding\n"
        "from logitstore.testing import encoding\n"
        "for check in encoding.CHECKS:\n"
        "    check(parse_encoding('halves'), 40, encoding.Bounds(logp=8 / 256, tail=1e-6))\n"
        "print('all', len(encoding.CHECKS))"
    )
    assert "all" in script(code)


def test_the_encoding_is_dumped_read_and_verified(run, script):
    run(*DUMP, "--stream", "ctc=halves", "--stream", "rnnt=halves/path", "--out", "halves")
    assert "halves" in run("inspect", "halves")
    run("verify", "halves")
    run(*DUMP, "--stream", "ctc=dense", "--out", "reference")
    code = (
        "import numpy as np\n"
        "from logitstore import open_store\n"
        "one, two = open_store('halves'), open_store('reference')\n"
        "far = [abs(np.exp(one[i].log_probs('ctc')) - np.exp(two[i].log_probs('ctc'))).max() for i in two]\n"
        "assert len(far) == 4 and max(far) < 0.01, far\n"
        "print(one.batch(list(two), temperature=2.0)['rnnt'].logp.shape)"
    )
    assert script(code).startswith("torch.Size([4,")


def test_the_encoding_is_planned(run):
    plan = ("plan", "--teacher", demo.FACTORY, "--manifest", demo.MANIFEST, "--sample", 4)
    planned = json.loads(run(*plan, "--stream", "ctc", "--json"))
    assert "halves" in [c["encoding"] for c in planned["streams"]["ctc"]["candidates"]]


def test_an_unknown_name_lists_the_installed_one(python, folder):
    code = (
        "from logitstore.encodings import parse_encoding\n"
        "from logitstore.errors import UnknownName\n"
        "try: parse_encoding('halvs')\n"
        "except UnknownName as e: print(e)"
    )
    assert "Did you mean 'halves'" in fresh.run(python, "-c", code, cwd=folder)


def test_the_place_passes_the_conformance_suite(script):
    code = (
        "import secrets\n"
        "from logitstore.testing import places\n"
        "from logitstore_extra import flat\n"
        "for check in places.CHECKS:\n"
        "    location = f'flat://{secrets.token_hex(4)}'\n"
        "    check(lambda: flat.at(location))\n"
        "print('all', len(places.CHECKS))"
    )
    assert "all" in script(code)


def test_the_place_is_written_to_by_dump(run, script, folder):
    run(*DUMP, "--stream", "ctc=dense", "--shard-size", 2, "--out", "flat://dumped")
    assert "nothing to do" in run(*DUMP, "--stream", "ctc=dense", "--shard-size", 2, "--out", "flat://dumped")
    run("verify", "flat://dumped")
    assert not (folder / "flat:").exists()
    assert (folder / "flat" / "dumped" / "sealed%2F000000.entry").exists()
    run("convert", "flat://dumped", "flat://packed", "--storage", "webdataset")
    run("verify", "flat://packed")
    assert "4" in script("from logitstore import open_store; print(len(open_store('flat://packed')))")


def test_the_place_is_written_to_by_capture(run, script, python, folder):
    decode = ("bash", recipe.FOLDER / "decode.sh", *recipe.DATA)
    capture = ("capture", "--ctc", "ctc_output.1", "--tokens", demo.TOKENS, "--out", "flat://captured", "--")
    fresh.run(
        *(python, "-m", "logitstore", *capture, *decode),
        cwd=folder,
        FLAT_ROOT=str(folder / "flat"),
        PYTHON=str(python),
    )
    run("verify", "flat://captured")
    assert not (folder / "flat:").exists()
    assert "20" in script("from logitstore import open_store; print(len(open_store('flat://captured')))")
