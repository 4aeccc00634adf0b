"""Every run tries the same examples, and leaves one core to each process it starts."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before numpy and torch are loaded
    os.environ.setdefault(_name, "1")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


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
