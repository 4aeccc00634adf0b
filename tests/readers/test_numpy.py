"""A reader in numpy and the standard library, written from SPEC.md alone, agrees with logitstore on golden stores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from logitstore import open_store
from tests.readers import read_numpy

GOLDEN = Path(__file__).parents[1] / "golden"
STORES = sorted(p.parent for p in GOLDEN.glob("*/logitstore.json"))
ROUNDING = {"rtol": 2e-5, "atol": 2e-5}  # float32 of logitstore, float64 of the reader
NOTHING = -60.0  # nats: below, a class that is not there may have any log-probability


@pytest.mark.parametrize("path", STORES, ids=lambda p: p.name)
def test_numpy_reads_every_row_at_every_temperature(path):
    read, places = read_numpy.read_store(path)
    store, compared = open_store(path), 0
    assert len(places) == len(store)
    for utt_id in store:
        target = store[utt_id]
        assert json.loads(str(read[f"{utt_id}|meta"])) == target.meta | {"id": utt_id}
        for name, rows in target.streams.items():
            if rows.numbers:
                np.testing.assert_allclose(read[f"{utt_id}|{name}|numbers"], target.vectors(name), **ROUNDING)
                compared += 1
                continue
            if name in target.driven:
                assert read[f"{utt_id}|{name}|labels"].tolist() == target.driven[name].tolist()
            for temperature in read_numpy.TEMPERATURES:
                theirs = read[f"{utt_id}|{name}|{temperature}"]
                own = target.log_probs(name, temperature)
                own = own.reshape(theirs.shape)
                np.testing.assert_allclose(np.maximum(theirs, NOTHING), np.maximum(own, NOTHING), **ROUNDING)
                compared += 1
    assert compared or all(s.kind == "text" for s in store.spec.streams) or not len(store)


@pytest.mark.parametrize("path", STORES, ids=lambda p: p.name)
def test_numpy_finds_every_record_by_the_index(path):
    _, places = read_numpy.read_store(path)
    read_numpy.check_index(path, places)
    store = open_store(path)
    for utt_id in list(store)[:50]:
        assert read_numpy.find(path, utt_id) is not None
    assert read_numpy.find(path, "nobody") is None


def test_numpy_refuses_a_flipped_bit_and_an_unknown_encoding(tmp_path):
    shutil.copytree(GOLDEN / "v1.0-zarr", tmp_path / "s")
    (shard,) = (tmp_path / "s" / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    data[data.find(open_store(tmp_path / "s").record("a.1").arrays["ctc.logp"].tobytes())] ^= 1
    shard.write_bytes(data)
    with pytest.raises(read_numpy.Damaged, match=r"S5|S6"):
        read_numpy.read_store(tmp_path / "s")
