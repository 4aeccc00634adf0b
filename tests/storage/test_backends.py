"""Every registered storage passes the suite that is shipped for authors."""

import zipfile
import zlib

import pytest

from logitstore import registry
from logitstore.storage import parse_storage
from logitstore.storage.backends import _zip
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


@pytest.mark.parametrize("name", ["zarr", "zarr:blosc"])
def test_columns_that_leave_memory_give_the_same_file(name, tmp_path, monkeypatch):
    given = suite.records(30)
    _, held = suite.write(parse_storage(name), tmp_path / "held", given)
    monkeypatch.setattr("logitstore.storage.backends._zarr_write.SPILL_BYTES", 100)
    monkeypatch.setattr("logitstore.storage.backends._zarr_write.COPY_BYTES", 7)
    _, spilled = suite.write(parse_storage(name), tmp_path / "spilled", given)
    assert held == spilled
    assert [p.name for p in (tmp_path / "spilled").rglob("*") if p.is_file()] == ["s-0.zarr.zip"]
    suite.check_large_records(parse_storage(name), tmp_path / "large")


def test_packs_of_few_and_of_many_records(tmp_path, monkeypatch):
    for bytes_of_a_pack, count in ((1, 100), (1 << 30, 7), (1 << 30, 1 << 30)):
        monkeypatch.setattr("logitstore.storage.backends.webdataset.PACK_BYTES", bytes_of_a_pack)
        monkeypatch.setattr("logitstore.storage.backends.webdataset.PACK_RECORDS", count)
        for check in (suite.check_many_records, suite.check_gathered_records, suite.check_no_records):
            check(parse_storage("webdataset"), tmp_path / f"{bytes_of_a_pack}-{count}-{check.__name__}")


@pytest.mark.parametrize("limit", [10, 300, 1 << 32])
def test_an_archive_with_and_without_large_numbers(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(_zip, "_LIMIT", limit)
    members = {f"a/{i}": bytes([i]) * (i * 37) for i in range(9)}
    with open(tmp_path / "a.zip", "wb") as f:
        archive, begins = _zip.StoredZip(f.write), {}
        for name, data in members.items():
            begins[name] = archive.begin(name, len(data), zlib.crc32(data), align=bool(len(data) % 2))
            archive.write(data)
        archive.finish()
    raw = (tmp_path / "a.zip").read_bytes()
    assert all(raw[begins[n] :].startswith(data) for n, data in members.items())
    assert all(begins[n] % 64 == 0 for n, data in members.items() if len(data) % 2)
    with zipfile.ZipFile(tmp_path / "a.zip") as opened:
        assert {n: opened.read(n) for n in opened.namelist()} == members
