"""Readers in other languages, written from SPEC.md: every golden store reads as logitstore reads it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from logitstore import open_store

GOLDEN = Path(__file__).parents[1] / "golden"
STORES = sorted(p.parent for p in GOLDEN.glob("*/logitstore.json"))
READABLE = [s for s in STORES if open_store(s).spec.storage["name"] in ("zarr", "webdataset")]

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")


def node(store):
    """Run the reader on a store."""
    return subprocess.run(
        ["node", str(Path(__file__).with_name("read.mjs")), str(store)], capture_output=True, text=True
    )


@pytest.mark.parametrize("path", READABLE, ids=lambda p: p.name)
def test_node_reads_the_stored_arrays(path):
    done = node(path)
    assert done.returncode == 0, done.stderr
    store = open_store(path)
    records = [r for name in store.shards for r in store.records(name)]
    assert records
    assert json.loads(done.stdout) == [
        {"metadata": r.meta, "arrays": {n: a.tobytes().hex() for n, a in r.arrays.items()}} for r in records
    ]


def test_node_refuses_a_flipped_bit(tmp_path):
    shutil.copytree(GOLDEN / "v1.0-zarr", tmp_path / "s")
    (path,) = (tmp_path / "s" / "shards").iterdir()
    data = bytearray(path.read_bytes())
    data[data.find(open_store(tmp_path / "s").record("a.1").arrays["ctc.logp"].tobytes())] ^= 1
    path.write_bytes(data)
    assert "checksum" in node(tmp_path / "s").stderr
