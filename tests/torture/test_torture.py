"""The short form of ``make torture``."""

import tempfile
from pathlib import Path

import pytest

from logitstore.storage import faults
from tests.torture import families, store

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]  # all or none: the second test needs the first
RAN = {}


@pytest.mark.parametrize("name", list(families.SHORT))
def test_family(name):
    with tempfile.TemporaryDirectory(dir=store.memory()) as root:
        family = families.run(name, families.SHORT[name], Path(root))
    RAN[name] = family
    if family.skipped:
        pytest.skip(family.skipped)
    assert not family.failures, "\n".join(family.failures[:3])
    assert family.good, family


def test_every_step_was_died_at():
    seen = RAN["killed at every step"].seen + RAN["merging killed at every step"].seen
    assert set(seen) == set(faults.STEPS)


def test_every_family_has_a_short_form():
    assert families.SHORT.keys() == families.FULL.keys() == families.WORK.keys()
