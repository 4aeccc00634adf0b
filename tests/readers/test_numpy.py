"""The reader in numpy gives the log-probabilities that logitstore gave on the day a golden store was written."""

import numpy as np
import pytest

from logitstore import open_store
from tests.readers.read_numpy import arrays_of, ids_of, rows_of
from tests.readers.test_readers import GOLDEN, STORES


@pytest.mark.parametrize("path", STORES, ids=lambda p: p.name)
def test_ids_and_arrays_are_those_that_logitstore_reads(path):
    store = open_store(path)
    assert ids_of(path) == list(store)
    for utt_id in list(store)[:3]:
        wanted, found = store.record(utt_id).arrays, arrays_of(path, utt_id)
        assert set(found) == set(wanted)
        for column, items in wanted.items():
            np.testing.assert_array_equal(found[column], items)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.npz")), ids=lambda p: p.stem)
def test_rows_are_those_of_every_golden_store(path):
    compared = 0
    with np.load(path) as kept:
        for key in kept.files:
            utt_id, stream, *temperature = key.split(" ")
            if temperature == ["own"]:
                continue
            at = float(temperature[0]) if temperature else 1.0
            found = rows_of(GOLDEN / path.stem, utt_id, stream, int(at) if at.is_integer() else at)
            np.testing.assert_allclose(found, kept[key].reshape(found.shape), atol=1e-5, rtol=1e-5)
            compared += 1
    assert compared >= 4
