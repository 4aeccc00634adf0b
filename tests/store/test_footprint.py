"""What a store weighs is every file of it, and what it keeps once does not grow with its rows."""

from pathlib import Path

import pytest

from logitstore import open_store
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.store.inspect import inspect_store
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
    assert few.bytes_once == more.bytes_once > 4 * 150 * 128  # the head at least
    assert few.bytes < more.bytes
    assert more.bytes_per_frame == pytest.approx((more.bytes - more.bytes_once) / more.frames)
