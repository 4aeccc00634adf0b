"""Summaries of a store: sizes are those of its files, and losses are those of its rows."""

from pathlib import Path

import numpy as np
import pytest

from logitstore import open_store
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.errors import UsageError
from logitstore.store.inspect import _loss_summary, inspect_store, inspect_utterance
from tests.support.demo import manifest, teacher


@pytest.mark.parametrize("storage", ["zarr", "webdataset"])
def test_every_byte_of_a_store_is_counted(tmp_path, storage):
    options = DumpOptions(streams={"ctc": "factored:int8", "rnnt": "topk:4"}, storage=storage)
    for folder, utterances in (("few", 2), ("more", 5)):
        dump_logits(teacher(), manifest(utterances), tmp_path / folder, options)
    few, more = (inspect_store(open_store(tmp_path / name)) for name in ("few", "more"))
    for name, said in (("few", few), ("more", more)):
        files = [f for f in Path(tmp_path, name).rglob("*") if f.is_file()]
        assert said.bytes == sum(f.stat().st_size for f in files)
    assert few.bytes_once == pytest.approx(more.bytes_once, abs=2)  # checksums have nine digits or ten
    assert few.bytes_once > 4 * 150 * 128  # the head at least
    assert few.bytes < more.bytes
    assert more.bytes_per_frame == pytest.approx((more.bytes - more.bytes_once) / more.frames)


def test_the_99th_percentile_of_the_loss_is_that_of_all_rows():
    rng = np.random.default_rng(0)
    rows = [rng.gamma(0.3, 2e-3, size) for size in (40, 90, 300, 700, 1500)]
    rows.append(rng.gamma(0.3, 2e-2, 30))  # a short utterance that loses ten times as much
    losses = [(len(x), x.mean(), np.quantile(x, 0.99, method="higher"), x.max()) for x in rows]
    found, everything = _loss_summary(losses), np.concatenate(rows)
    assert found.mean == pytest.approx(everything.mean())
    assert found.max == everything.max()
    true = np.quantile(everything, 0.99)
    assert true <= found.p99 < 1.5 * true < max(p99 for _, _, p99, _ in losses)


def test_numbers_below_one_are_refused(tmp_path):
    dump_logits(teacher(), manifest(1), tmp_path / "s", DumpOptions(streams={"ctc": "topk:4"}))
    with pytest.raises(UsageError, match="sample=0"):
        inspect_store(tmp_path / "s", sample=0)
    with pytest.raises(UsageError, match="top=0"):
        inspect_utterance(tmp_path / "s", "demo-00", top=0)
    one = inspect_utterance(tmp_path / "s", "demo-00", top=2)
    assert one.to_json()["streams"]["ctc"]["frames"][0].keys() == {"t", "best", "tail"}
    assert "rms" not in one.to_json()["streams"]["ctc"]
