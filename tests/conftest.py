"""Settings of every test run: fixed examples, one thread a process, signals at their defaults, marks.

Marks come from three places: ``framework`` from the folder, ``slow`` and ``subprocess`` from ``tests/marks.txt``, which
``make marks`` measures, and any of them from a module's own ``pytestmark``.
"""

import os
import signal

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before numpy and torch are loaded
    os.environ.setdefault(_name, "1")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests import marks  # noqa: E402

settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


def pytest_addoption(parser):
    parser.addoption("--measure", metavar="FILE", help="write the marks of each test to FILE (make marks)")


def pytest_configure(config):
    if file := config.getoption("--measure"):
        config.pluginmanager.register(marks.Measure(file))


def pytest_collection_modifyitems(items):
    marks.apply(items)


@pytest.fixture(scope="session", autouse=True)
def _signals_at_their_defaults():
    """Let SIGINT interrupt, even where the run was started with it ignored (``nohup make test &``)."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def utterances():
    """Of a program that is captured (``captured``)."""
    from tests.support import captured

    return captured.some_utterances()


@pytest.fixture
def model():
    """Its trained model, of its own."""
    from tests.support import captured

    return captured.a_model()


@pytest.fixture
def session(tmp_path, monkeypatch):
    """Begins a capture in this process, with options."""
    from tests.support import captured

    with captured.sessions(tmp_path, monkeypatch) as begin:
        yield begin
