"""Every registered storage passes the suite that is shipped for authors."""

import pytest

from logitstore import registry
from logitstore.storage import parse_storage
from logitstore.testing import storage as suite

SETTINGS = {"zarr": ("zarr", "zarr:blosc")}
STORAGES = [s for n in registry.names("storage") for s in SETTINGS.get(n, (n,))]


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", STORAGES)
def test_storage(name, check, tmp_path):
    check(parse_storage(name), tmp_path)


@pytest.mark.parametrize("name", STORAGES)
def test_its_name_opens_it_again(name):
    assert str(parse_storage(name)) == name
    assert parse_storage(str(parse_storage(name))) == parse_storage(name)
