"""Records with right checksums whose columns do not agree: an error of the tree, or targets; never a crash."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from logitstore import open_store, repair_store, verify_store
from logitstore.errors import DataError
from logitstore.storage.places import open_place
from logitstore.store.writer import StoreWriter
from tests.support.columns import CHANGES, scrambled

GOLDEN = sorted(
    p.parent
    for p in (Path(__file__).parents[1] / "golden").glob("*/logitstore.json")
    if any(stream.encoding for stream in open_store(p.parent).spec.streams)
)
TEMPERATURES = (1.0, 2.5)


def spoiled(golden, folder, change, rng):
    """Copy a store with one record for each column, in which a change was made to that column."""
    source = open_store(golden)
    first = source.record(next(iter(source)))
    ids = []
    with StoreWriter(open_place(folder), source.spec, writer="x").begin(
        source.tokens, constants=source.constants
    ) as writer:
        shard = writer.shard("000000")
        for number, column in enumerate(first.arrays):
            arrays = {**first.arrays, column: change(first.arrays[column], rng)}
            ids.append(f"{number}-{column}")
            shard.add(replace(first, id=ids[-1], arrays=arrays))
        shard.add(replace(first, id="good"))
        shard.seal()
    return ids


def read(store, utt_id):
    """Read every stream of an utterance at every temperature."""
    target = store[utt_id]
    for name, rows in target.streams.items():
        for temperature in () if rows.numbers else TEMPERATURES:
            target.log_probs(name, temperature)


def refusals(store, ids):
    """Return the error of each utterance that cannot be read; any error outside the tree fails the test."""
    errors = {}
    for utt_id in ids:
        try:
            read(store, utt_id)
        except DataError as e:
            errors[utt_id] = e
    return errors


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda p: p.name)
def test_columns_that_disagree_are_named_and_dropped(golden, change, tmp_path):
    ids = spoiled(golden, tmp_path / "s", change, np.random.default_rng(0))
    store = open_store(tmp_path / "s")
    errors = refusals(store, ids)
    assert all(utt_id in str(e) for utt_id, e in errors.items())
    assert errors or change is scrambled
    read(store, "good")
    findings = verify_store(tmp_path / "s").findings
    named = {utt_id for finding in findings for utt_id in finding.utterances}
    assert errors.keys() <= named
    assert "good" not in named
    repair_store(tmp_path / "s")
    assert verify_store(tmp_path / "s").good
    assert "good" in open_store(tmp_path / "s")
