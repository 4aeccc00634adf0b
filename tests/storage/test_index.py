"""The index finds every id, no other, and never lies, whatever byte of it is damaged."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.errors import CorruptError, FormatError, StoreError
from logitstore.schema.checksums import crc32c, id_hash
from logitstore.storage import index as module
from logitstore.storage.index import build, entries_digest, open_index


def opened(shards):
    data = build(list(shards), shards.values(), entries_digest(shards))
    return open_index(np.frombuffer(data, np.uint8))


def test_no_rows():
    for shards in ({}, {"a": []}, {"a": [], "b": []}):
        index = opened(shards)
        assert index.records == 0
        assert index.find("x") == []
        assert index.repeated() == []
        assert index.intact()


def test_one_row():
    index = opened({"s": ["utt"]})
    assert index.find("utt") == [("s", 0)]
    assert index.find("utt ") == []


def test_the_hash_is_as_specified():
    assert id_hash("") == 0xE4A6A0577479B2B4  # BLAKE2b-64 of nothing
    assert id_hash("a.1") == 0xDD2905F9659C8507  # SPEC.md's example


@settings(max_examples=30)
@given(st.lists(st.lists(st.text(min_size=1, max_size=8), max_size=60), max_size=6), st.text())
def test_finds_all_and_nothing_else(shards, absent):
    named = {f"s-{i}": ids for i, ids in enumerate(shards)}
    index = opened(named)
    for shard, ids in named.items():
        for row, utt in enumerate(ids):
            assert (shard, row) in index.find(utt)
            assert all(named[s][r] == utt for s, r in index.find(utt))
    assert index.records == sum(map(len, shards))
    if not any(absent in ids for ids in shards):
        assert index.find(absent) == []


def test_a_hundred_thousand_rows():
    shards = {f"s{n}": [f"utt-{n}-{i}" for i in range(25_000)] for n in range(4)}
    index = opened(shards)
    assert index.records == 100_000
    assert index.intact()
    assert len(index._fan) > 1000
    for n, i in ((0, 0), (3, 24_999), (2, 7), (1, 12_345)):
        assert index.find(f"utt-{n}-{i}") == [(f"s{n}", i)]
    assert not any(index.find(f"absent-{i}") for i in range(2000))


def test_colliding_ids_are_all_given(monkeypatch):
    monkeypatch.setattr(module, "id_hash", lambda s: 7 if s.startswith("same") else hash(s) % 2**64)
    index = opened({"a": ["same1", "x"], "b": ["same2"]})
    assert index.find("same1") == index.find("same2") == [("a", 0), ("b", 0)]
    assert index.repeated() == [("b", 0)]


def test_the_highest_and_lowest_hash_are_found(monkeypatch):
    hashes = {f"u{i}": i * (2**64 - 1) // 999 for i in range(1000)}
    monkeypatch.setattr(module, "id_hash", lambda s: hashes.get(s, 5))
    index = opened({"s": list(hashes)})
    assert [index.find(u) for u in ("u0", "u999")] == [[("s", 0)], [("s", 999)]]


@pytest.mark.parametrize("count", [3, 200])
def test_every_flipped_byte_is_an_error_or_changes_nothing(count):
    shards = {"one": [f"u{i}" for i in range(count)], "two": ["v"]}
    data = build(list(shards), shards.values(), entries_digest(shards))
    wanted = {u: open_index(np.frombuffer(data, np.uint8)).find(u) for u in ("u0", "u1", "u2", "v", "absent")}
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        try:
            index = open_index(np.frombuffer(bytes(damaged), np.uint8))
            assert not index.intact()
        except (CorruptError, FormatError):
            continue
        for utt, found in wanted.items():
            with contextlib.suppress(StoreError):
                assert index.find(utt) == found


def test_every_cut_is_an_error():
    data = build(["s"], [["a", "b", "c"]], 0)
    for size in range(len(data)):
        with pytest.raises(StoreError):
            open_index(np.frombuffer(data[:size], np.uint8))
    with pytest.raises(StoreError):
        open_index(np.frombuffer(data + b"\0", np.uint8))


def forged(names=b'["s"]   ', fan=(0, 2), rows=((1, 0, 0), (2, 0, 1)), bits=0):
    """An index with right checksums and whatever is asked for inside."""
    table = np.array(list(rows), module.RECORD)
    crc = np.array([crc32c(table)] * (1 << bits), "<u4").tobytes()
    tables = names + np.array(fan, "<u8").tobytes() + crc + bytes(-len(crc) % 8)
    head = module._HEADER.pack(module.MAGIC, len(table), bits, len(names), 0, crc32c(tables), 0)[:-4]
    data = head + crc32c(head).to_bytes(4, "little") + tables + table.tobytes()
    return np.frombuffer(data, np.uint8)


def test_forged_ones_are_refused(monkeypatch):
    assert open_index(forged()).records == 2
    for bad in (
        {"names": b'{"a":1} '},
        {"names": b"[1,2]   "},
        {"names": b'["../x"]'},
        {"names": b"\xff" * 8},
        {"fan": (1, 2)},
        {"fan": (0, 2**63)},
        {"fan": (0, 5, 2), "bits": 1},
    ):
        with pytest.raises(StoreError):
            open_index(forged(**bad))
    monkeypatch.setattr(module, "id_hash", lambda s: 1)
    with pytest.raises(FormatError):
        open_index(forged(rows=((1, 9, 0), (2, 0, 1)))).find("x")
