"""Places, recordings and stores that could hang, crash or fill a process: an error that names the cause instead."""

import contextlib
import os
import time

import numpy as np
import pytest
import torch

from logitstore import StoreWriter, TokenTable, open_store
from logitstore.corpus.audio import load_audio, seconds_of
from logitstore.corpus.manifest import Utterance
from logitstore.dump.doctor import facts
from logitstore.errors import AudioError, CorruptError, DiskError, FormatError
from logitstore.schema.checksums import crc32c
from logitstore.schema.spec import StreamSpec
from logitstore.storage import constants
from logitstore.storage.index import _HEADER, BLOCK, MAGIC
from logitstore.storage.places import open_place
from tests.support.sealed import remove_index

TABLE = TokenTable(("<blk>", "a", "b", "c", "d"), 0)


def logits(frames, seed=0):
    return torch.randn(frames, 5, generator=torch.Generator().manual_seed(seed))


def fill(path, *ids, frames=3, **options):
    with StoreWriter.open(path, tokens=TABLE, streams={"ctc": "dense"}, **options) as w:
        for number, utt in enumerate(ids):
            w.add(utt, ctc=logits(frames, number))
    return path


# ---- point 11


@pytest.mark.parametrize("location", ["dangling", "/proc/x", "/proc/1/x/y"])
def test_a_place_where_no_folder_can_be_made_is_an_error(tmp_path, location):
    if location == "dangling":
        os.symlink(tmp_path / "nowhere" / "at all", tmp_path / "dangling")
        location = tmp_path / "dangling"
    begin = time.monotonic()
    with pytest.raises(DiskError, match=r"no folder can be made|File exists|No such file|Permission"):
        fill(location, "a")
    assert time.monotonic() - begin < 20


def test_a_named_pipe_as_audio_is_an_error_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    utt = Utterance("a", tmp_path / "a.wav")
    for read in (seconds_of, lambda u: load_audio(u, 16000)):
        with pytest.raises(AudioError, match=r"a\.wav is a pipe"):
            read(utt)


@pytest.mark.parametrize("storage", ["zarr", "webdataset"])
def test_a_file_that_is_cut_while_it_is_mapped_is_named(tmp_path, storage):
    path = fill(tmp_path / "s", "a", "b", frames=30000, storage=storage)
    store = open_store(path)
    assert store["a"].T == 30000
    _ = store["a"].log_probs("ctc")
    largest = max((p for p in (path / "shards").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, 4096)
    with pytest.raises(CorruptError, match="cut to 4096") as caught:
        store["b"].log_probs("ctc")
    assert str(largest) in str(caught.value)


# ---- point 13


def test_inner_chunks_that_overlap_are_refused(tmp_path):
    path = fill(tmp_path / "s", "a", frames=240_000, storage="zarr:blosc")
    store = open_store(path)
    table = store._open(store.shards[0])[1].table
    largest = int(np.argmax([size for _, size in table.chunks]))
    file = path / "shards" / f"{store.shards[0]}.zarr.zip"
    data = bytearray(file.read_bytes())
    end = int(table.offset[0, largest]) + table.chunks[largest][1]
    count = 3  # inner chunks of one mebibyte
    pairs = np.frombuffer(bytes(data[end - 16 * count - 4 : end - 4]), "<u8").reshape(count, 2).copy()
    assert pairs[0, 0] == 0
    assert pairs[1, 0] == pairs[0, 1]
    pairs[1:] = pairs[0]
    data[end - 16 * count - 4 : end] = pairs.tobytes() + crc32c(pairs.tobytes()).to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(FormatError, match="overlap"):
        open_store(path)["a"].log_probs("ctc")


def test_few_compressed_bytes_never_stand_for_many(tmp_path, monkeypatch):
    from logitstore.storage.backends import _zarr_read

    path = fill(tmp_path / "s", "a", frames=240_000, storage="zarr:blosc")
    monkeypatch.setattr(_zarr_read, "MAX_UNPACKED_BYTES", 1 << 20)
    monkeypatch.setattr(_zarr_read, "MAX_RATIO", 1)
    with pytest.raises(FormatError, match="too many to decode"):
        open_store(path)["a"].log_probs("ctc")


def sparse_run(path, store, shard, records):
    """Write an index run of many records, all zero, that takes hardly any space; its checksums are right."""
    lines = f"{shard} {records} 7\n".encode()
    lines += b" " * (-len(lines) % 8)
    blocks = -(-records // BLOCK)
    check = np.full(blocks, crc32c(bytes(12 * BLOCK)), "<u4").tobytes()
    tables = lines + bytes(8 * blocks) + check + bytes(-len(check) % 8)
    identity = bytes.fromhex(store.removeprefix("sha256:"))
    head = _HEADER.pack(MAGIC, records, len(lines), 0, identity, crc32c(tables), 0, 0, 0)[:-4]
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as f:
        f.write(head + crc32c(head).to_bytes(4, "little") + tables)
        f.truncate(f.tell() + 8 * records + -(-4 * records // 8) * 8 + 8 * (records + 1))


def test_a_sparse_index_of_many_records_takes_no_time(tmp_path):
    path = fill(tmp_path / "s", "a", "b")
    store = open_store(path)
    remove_index(path)
    sparse_run(path / "index" / f"{0:032x}.idx", store.spec.identity, store.shards[0], 10**9)
    begin = time.process_time()
    forged = open_store(path)
    assert "a" not in forged
    with pytest.raises(CorruptError, match="does not hold"):
        list(forged)
    fill(path, "c")
    assert sorted(open_store(path)) == ["a", "b", "c"]
    assert time.process_time() - begin < 10


def test_every_flipped_bit_of_a_constant_is_named(tmp_path):
    place = open_place(tmp_path)
    arrays = {"W": np.arange(12, dtype=np.float32).reshape(4, 3)}
    stream = constants.declared(StreamSpec("ctc", "ctc", 5, 0, "dense"), arrays)
    constants.write(place, {"ctc": arrays})
    (listed,) = stream.constants
    assert (constants._read(place, "ctc", listed) == arrays["W"]).all()
    file = tmp_path / "constants" / "ctc.W.npy"
    good = file.read_bytes()
    for at in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[at] ^= 1 << bit
            file.write_bytes(bad)
            found = None
            with contextlib.suppress(CorruptError):
                found = constants._read(place, "ctc", listed)
            assert (
                found is None or (found == arrays["W"]).all()
            )  # a space of the header may become another one


# ---- point 15


@pytest.mark.parametrize("storage", ["zarr", "webdataset"])
def test_open_shards_hold_no_file_handles(tmp_path, storage):
    ids = [f"u{n}" for n in range(12)]
    path = fill(tmp_path / "s", *ids, storage=storage, shard_size="1")
    before = len(os.listdir("/proc/self/fd"))
    store = open_store(path)
    targets = [store[i].log_probs("ctc") for i in ids]
    assert len(os.listdir("/proc/self/fd")) <= before
    assert len(targets) == 12


# ---- point 5


def test_the_doctor_tests_locks_between_two_processes(tmp_path, monkeypatch):
    assert facts._locks(tmp_path) == ""
    real = facts.fcntl.flock

    def local(file, operation):
        """Lock within this process only, by record locks of another kind."""
        if local.held and local.held is not file:
            raise BlockingIOError
        local.held = file

    local.held = None
    monkeypatch.setattr(facts.fcntl, "flock", local)
    assert "second process" in facts._locks(tmp_path)
    monkeypatch.setattr(facts.fcntl, "flock", real)
