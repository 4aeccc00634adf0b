"""The reader; and stores read without logitstore, as plain zarr or plain webdataset."""

import pickle
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from logitstore import StoreWriter, TokenTable, collate_targets, open_store
from logitstore.encodings.rows import NOTHING
from logitstore.errors import (
    CorruptError,
    FormatError,
    LengthError,
    MissingUtterance,
    NotAStore,
    UsageError,
    VocabError,
)
from logitstore.schema.checksums import compact_json
from logitstore.storage.base import EncodedRecord
from logitstore.storage.catalog import Catalog
from logitstore.store import reader
from logitstore.targets.resample import resample
from tests.support.sealed import forge, forge_description, remove_index

V = 12
TABLE = TokenTable(("<blk>", *"abcdefghijk"), 0)
IDS = ["a.1", "dir/b 2", "’ü", "last"]
STORAGES = ["zarr", "zarr:blosc", "webdataset"]
STREAMS = {"ctc": "topk:4", "rnnt": "dense"}


def logits(*shape, seed=0):
    return torch.randn(*shape, V, generator=torch.Generator().manual_seed(seed)) * 3


def fill(path, storage, streams=STREAMS):
    with StoreWriter.open(path, tokens=TABLE, streams=streams, storage=storage, shard_size="3") as w:
        for i, utt in enumerate(IDS):
            labels = list(range(1, i + 1))
            data = {"ctc": logits(i + 2, seed=i), "rnnt": logits(i + 2, i + 1, seed=9 + i)}
            w.add(utt, **{s: data[s] for s in streams}, labels=labels, text=f"text {i}")
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return {name: fill(root / name.replace(":", "-"), name) for name in STORAGES}


@pytest.fixture(params=STORAGES)
def path(request, stores):
    return stores[request.param]


def test_a_mapping_of_ids(path):
    s = open_store(path)
    assert list(s) == IDS
    assert len(s) == 4
    assert "a.1" in s
    assert "a" not in s
    assert 3 not in s
    assert s.get("none") is None
    assert [t.id for t in s.values()] == IDS
    assert len(s.shards) == 2
    assert [r.id for n in s.shards for r in s.records(n)] == IDS
    assert f"{path}: 4 utterances, ctc=topk:4" in repr(s)
    with pytest.raises(MissingUtterance, match="'none'") as caught:
        s["none"]
    assert isinstance(caught.value, KeyError)
    with pytest.raises(MissingUtterance, match="ctc, rnnt"):
        s["last"]["seq2seq"]
    assert set(s.record("last", only=["rnnt.labels"]).arrays) == {"rnnt.labels"}


def test_values(path):
    t = open_store(path)["last"]
    assert (t.T, t.U, t.labels.tolist(), t.text) == (5, 3, [1, 2, 3], "text 3")
    exact = torch.log_softmax(logits(5, 4, seed=12), -1).numpy()
    np.testing.assert_allclose(t.log_probs("rnnt"), exact, atol=5e-3)
    best = torch.log_softmax(logits(5, seed=3), -1).topk(4)[0].numpy()
    np.testing.assert_allclose(t["ctc"].at(1.0).logp, best, atol=5e-3)


def test_pickling_opens_it_again(path):
    s = open_store(path)
    before = s["a.1"].log_probs("ctc")
    data = pickle.dumps(s)
    assert len(data) < 1000
    assert (pickle.loads(data)["a.1"].log_probs("ctc") == before).all()


def test_batches_are_equal_whatever_the_storage(stores):
    options = {"frames": [3, 2, 9, 5], "temperature": 2.0, "stretch": True}
    batches = [open_store(p).batch(IDS, **options) for p in stores.values()]
    for other in batches[1:]:
        for stream in STREAMS:
            for field in ("logp", "ids", "tail", "mask"):
                a, b = getattr(batches[0][stream], field), getattr(other[stream], field)
                assert (a is None and b is None) or torch.equal(a, b)
        assert torch.equal(batches[0].labels, other.labels)


@pytest.mark.parametrize("method", ["linear", "nearest"])
@pytest.mark.parametrize("frames", [None, [4, 3, 2, 10]])
def test_a_batch_is_its_utterances_padded(stores, method, frames):
    s = open_store(stores["zarr"])
    batch = s.batch(IDS, frames=frames, method=method, temperature=3.0, stretch=True)
    lengths = frames or [2, 3, 4, 5]
    assert batch.utt_ids == tuple(IDS)
    assert batch.lengths.tolist() == lengths
    assert batch.mask.sum(1).tolist() == lengths
    assert batch.label_lengths.tolist() == [0, 1, 2, 3]
    assert batch.label_mask.sum(1).tolist() == [0, 1, 2, 3]
    assert batch.labels[3].tolist() == [1, 2, 3]
    assert batch["rnnt"].mask.sum((1, 2)).tolist() == [n * (u + 1) for u, n in enumerate(lengths)]
    dense = {stream: batch[stream].dense() for stream in STREAMS}
    for b, (utt, n) in enumerate(zip(IDS, lengths, strict=True)):
        target = s[utt]
        for stream, u in (("ctc", None), ("rnnt", b + 1)):
            at = resample(target[stream], target.shapes[stream], n, method=method, temperature=3.0)
            alone = at.dense().reshape(n, *([u] if u else []), V)
            inside = dense[stream][b, :n] if u is None else dense[stream][b, :n, :u]
            np.testing.assert_allclose(inside.numpy(), alone, atol=1e-5)
            np.testing.assert_allclose(np.exp(inside.numpy()).sum(-1), 1, atol=1e-5)
        assert (batch["ctc"].logp[b, n:] == NOTHING).all()
        assert (batch["ctc"].tail[b, n:] == NOTHING).all()
    moved = batch.map(lambda t: t.clone())
    assert torch.equal(moved["rnnt"].logp, batch["rnnt"].logp)


def test_batches_that_cannot_be_made_are_refused(stores):
    s = open_store(stores["zarr"])
    with pytest.raises(UsageError, match="no utterances"):
        s.batch([])
    with pytest.raises(LengthError, match="3 frame counts for 4"):
        s.batch(IDS, frames=[1, 2, 3])
    with pytest.raises(LengthError, match=r"last: .*0 student frames"):
        s.batch(["last"], frames=[0])
    with pytest.raises(LengthError, match=r"last: .*2:1.*10 student frames"):
        s.batch(["last"], frames=[14], ratio=(2, 1))
    with pytest.raises(UsageError, match="linear"):
        s.batch(["last"], frames=[3], method="cubic")
    with pytest.raises(UsageError, match="temperature"):
        s.batch(["last"], temperature=0.5)
    with pytest.raises(MissingUtterance):
        s.batch(["none"])
    assert set(s.batch(IDS, streams=["ctc"]).streams) == {"ctc"}
    assert s.batch(["last"], frames=[10], ratio=(2, 1), tolerance=0).lengths.tolist() == [10]
    assert len(collate_targets([s["last"]] * 3)) == 3


def test_ctc_alone_without_labels(tmp_path):
    s = open_store(fill(tmp_path / "s", "zarr", {"ctc": "dense"}))
    assert s["last"].labels.dtype == np.int32
    assert s.batch(IDS).labels.shape == (4, 0)


# ---- refusals


def test_a_folder_without_a_store_is_refused(tmp_path):
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotAStore):
            open_store(place)


def rewrite(path, **changes):
    forge_description(path, lambda spec: spec.update(changes))


@pytest.mark.parametrize("change", [{"version": "2.0"}, {"tokens": {}}], ids=str)
def test_a_store_of_another_kind_is_refused(tmp_path, change):
    fill(tmp_path / "s", "zarr")
    rewrite(tmp_path / "s", **change)
    with pytest.raises(FormatError):
        open_store(tmp_path / "s")


def test_an_unknown_optional_key_is_ignored(tmp_path):
    fill(tmp_path / "s", "zarr")
    rewrite(tmp_path / "s", colour="blue", version="1.7")
    assert len(open_store(tmp_path / "s")) == 4


def test_a_changed_token_table_is_refused(tmp_path):
    fill(tmp_path / "s", "zarr")
    tokens = tmp_path / "s" / "tokens.txt"
    tokens.write_bytes(tokens.read_bytes().replace(b"a 1\nb 2", b"b 1\na 2"))
    with pytest.raises(FormatError, match="F6"):
        open_store(tmp_path / "s")
    tokens.unlink()
    with pytest.raises(FormatError, match="F6"):
        open_store(tmp_path / "s")


def test_another_students_table_is_refused(stores):
    assert len(open_store(stores["zarr"], vocab=TABLE)) == 4
    with pytest.raises(VocabError, match="id 11"):
        open_store(stores["zarr"], vocab=TokenTable(("<blk>", *"abcdefghijz"), 0))


def flip(path, needle):
    data = bytearray(path.read_bytes())
    data[data.index(needle)] ^= 1
    path.write_bytes(data)


def test_damage_names_the_record_and_can_be_read_on_request(tmp_path):
    path = fill(tmp_path / "s", "webdataset")
    s = open_store(path)
    flip(path / "shards" / f"{s.shards[0]}.tar", s.record("dir/b 2").arrays["rnnt.logp"].tobytes())
    s = open_store(path)
    with pytest.raises(CorruptError, match=r"record 1 \('dir/b 2'\)"):
        s["dir/b 2"]
    assert s["a.1"].T == 2
    assert open_store(path, verify=False)["dir/b 2"].T == 3


def test_an_entry_that_disagrees_with_its_records_is_refused(tmp_path):
    path = fill(tmp_path / "s", "zarr")
    entry = sorted((path / "sealed").iterdir())[0]
    forge(entry, lambda value: None, ["a.1", "other", "’ü"])
    remove_index(path)
    with pytest.raises(FormatError, match="C2"):
        open_store(path)["other"]
    forge(entry, lambda value: value.update(records=1), ["a.1"])
    with pytest.raises(FormatError, match="C2"):
        open_store(path)["a.1"]


def test_labels_that_disagree_with_u_are_refused(stores):
    s = open_store(stores["zarr"])
    row = s.record("last")
    row.arrays["rnnt.labels"] = row.arrays["rnnt.labels"][:-1]
    with pytest.raises(FormatError, match="2 labels where U = 3"):
        s.decode(row)
    row = s.record("last")
    row.meta["T"] = 4
    with pytest.raises(FormatError, match="S7"):
        s.decode(row)
    for meta in ({"T": "5", "U": 3}, {"U": 3}, {"T": 5, "U": None}):
        with pytest.raises(FormatError, match="S3"):
            s.decode(EncodedRecord("last", meta, s.record("last").arrays))


def test_records_sealed_after_a_reader_was_opened_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "LOOK_SHARE", 1e9)  # every missed id is worth a look
    with StoreWriter.open(tmp_path / "s", tokens=TABLE, streams={"ctc": "dense"}) as writer:
        writer.add("one", ctc=logits(2))
    store = open_store(tmp_path / "s")
    assert "two" not in store
    with StoreWriter.open(tmp_path / "s", tokens=TABLE, streams={"ctc": "dense"}, writer="other") as writer:
        writer.add("two", ctc=logits(2))
    assert "two" in store
    assert store["two"].T == 2
    assert len(store) == len(list(store)) == 2


def test_many_missed_ids_look_for_new_shards_only_now_and_then(stores, monkeypatch):
    looks = []
    is_current = Catalog.is_current
    monkeypatch.setattr(Catalog, "is_current", lambda *given: looks.append(given) or is_current(*given))
    monkeypatch.setattr(reader, "LOOK_SHARE", 1e-9)
    store = open_store(stores["zarr"])
    assert not any(f"none {i}" in store for i in range(100))
    assert len(looks) == 1


def test_a_store_is_read_by_id(stores):
    store = open_store(stores["zarr"])
    with pytest.raises(UsageError, match=r"store\[0\]: records are found by utterance id"):
        store[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": "2"}, "temperature='2' is not a number"),
        ({"temperature": True}, "not a number"),
        ({"ratio": 0.5}, r"ratio=0\.5 is no ratio of whole numbers"),
        ({"ratio": (1.0, 2.0)}, "no ratio of whole numbers"),
        ({"streams": "ctc"}, r"(?s)streams='ctc' is one name.*\['ctc'\]"),
    ],
)
def test_settings_of_a_batch_of_another_type_are_refused(stores, settings, message):
    with pytest.raises(UsageError, match=message):
        open_store(stores["zarr"]).batch(IDS[:2], **settings)


def test_a_student_table_may_be_a_path(stores, tmp_path):
    tokens = open_store(stores["zarr"]).tokens
    (tmp_path / "tokens.txt").write_bytes(tokens.to_bytes())
    assert open_store(stores["zarr"], vocab=tmp_path / "tokens.txt").vocab_map is None
    assert len(open_store(stores["zarr"], vocab=str(tmp_path / "tokens.txt"))) == len(IDS)
    first, *others = tokens.tokens
    (tmp_path / "other.txt").write_bytes(TokenTable((first, *reversed(others)), tokens.blank).to_bytes())
    with pytest.raises(VocabError, match="another order"):
        open_store(stores["zarr"], vocab=str(tmp_path / "other.txt"))


# ---- other readers

COLLECT = """
import json, os, sys
os.chdir(sys.argv[1])
found = {}


def print(record):  # the page shows how to print every record
    meta = ("T", "U", "id", "seconds", "text")
    found[record["id"]] = {k: v.tobytes().hex() for k, v in record.items() if k not in meta}


exec(sys.argv[2])
assert "logitstore" not in sys.modules
sys.stdout.write(json.dumps(found))
"""


@pytest.mark.parametrize("storage", STORAGES)
def test_the_page_of_a_store_shows_how_to_read_it_without_logitstore(stores, tmp_path, storage):
    import json

    page = (stores[storage] / "README.md").read_text("utf-8")
    program = textwrap.dedent(re.search(r"Without it.*?:\n\n(.*?)\n\n", page, re.S)[1])
    run = subprocess.run(
        [sys.executable, "-c", COLLECT, str(stores[storage]), program],
        capture_output=True,
        text=True,
        cwd=tmp_path,  # nothing here is called logitstore
        env={"PATH": "/usr/bin:/bin"},
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    s = open_store(stores[storage])
    assert list(found) == IDS
    for utt in IDS:
        assert found[utt] == {n: a.tobytes().hex() for n, a in s.record(utt).arrays.items()}


def test_a_zarr_shard_can_be_read_in_parts_and_says_what_it_is(stores):
    import zarr

    s = open_store(stores["zarr"])
    path = stores["zarr"] / "shards" / f"{s.shards[0]}.zarr.zip"
    shard = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    assert sorted(shard.group_keys()) == ["ctc", "rnnt"]
    assert shard["ctc"].attrs["encoding"] == "topk:4"
    about = shard.attrs["logitstore"]
    assert about["tokens"] == {"sha256": TABLE.digest(), "size": 12, "blank": 0}
    assert about["identity"] == s.spec.identity
    first, second = (s.record(utt).arrays["ctc.logp"] for utt in IDS[:2])
    assert shard["ctc/logp"][len(first) : len(first) + 2].tobytes() == second[:2].tobytes()
    assert "log-probability" in shard["ctc/logp"].attrs["about"]


def test_many_shards_need_few_open_files(tmp_path):
    program = """
        import resource, sys
        import torch
        from logitstore import StoreWriter, TokenTable, open_store, verify_store
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        table = TokenTable(("<blk>", "a"), 0)
        with StoreWriter.open(sys.argv[1], tokens=table, streams={"ctc": "dense"}, shard_size="1") as w:
            for i in range(100):
                w.add(f"u{i}", ctc=torch.eye(2) * i)
        store = open_store(sys.argv[1])
        assert [store[f"u{i}"].T for i in range(100)] == [2] * 100
        assert len(store.shards) == 100 and verify_store(sys.argv[1]).good
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "s")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    files = list((tmp_path / "s" / "shards").rglob("*"))
    assert len(files) == 100


# ---- what is loaded


def loaded(script, *args):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script) + "\nimport sys; print(*sys.modules)", *args],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return {m.partition(".")[0] for m in run.stdout.split()}


@pytest.mark.parametrize("storage", ["zarr", "webdataset"])
def test_reading_arrays_loads_neither_torch_nor_zarr(stores, storage):
    script = """
        import sys
        import logitstore
        store = logitstore.open_store(sys.argv[1])
        for utt in store:
            store[utt].log_probs("ctc", 3.0), store[utt].log_probs("rnnt")
    """
    roots = loaded(script, str(stores[storage]))
    assert not roots & {"torch", "zarr", "webdataset", "numcodecs"}


def test_record_metadata_is_lines_of_a_json_list(stores):
    import gzip
    import json

    s = open_store(stores["zarr"])
    data = (stores["zarr"] / "shards" / f"{s.shards[0]}.zarr.zip").read_bytes()
    first, begin, size, _ = s._open(s.shards[0])[1].table.block[0].tolist()
    text = gzip.decompress(data[begin : begin + size])
    assert first == 0
    assert json.loads(text) == [s.record(utt).meta for utt in IDS[:3]]
    assert text.splitlines()[1] == b"," + compact_json(s.record(IDS[1]).meta)
