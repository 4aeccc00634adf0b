"""The index finds every id, no other, and never lies, whatever byte of it is damaged."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.errors import CorruptError, FormatError, StoreError
from logitstore.schema.checksums import crc32c, id_hash
from logitstore.storage import index as module
from logitstore.storage.entries import RecordIds
from logitstore.storage.index import CoveredShard, build_run, hashes, open_run

STORE = "sha256:" + "5" * 64


def run_of(shards):
    return build_run(
        STORE, [CoveredShard(name, 7, RecordIds.of(ids), hashes(ids)) for name, ids in shards.items()]
    )


def opened(shards):
    return open_run(np.frombuffer(run_of(shards), np.uint8))


def find(run, utt_id):
    return [(run.shards[shard], number) for shard, number in run.find(utt_id, module.id_hash(utt_id))]


def test_no_rows():
    for shards in ({}, {"a": []}, {"a": [], "b": []}):
        run = opened(shards)
        assert (run.records, run.shards, run.store) == (0, tuple(shards), STORE)
        assert find(run, "x") == []
        assert run.intact()


def test_one_row():
    run = opened({"s": ["utt"]})
    assert find(run, "utt") == [("s", 0)]
    assert find(run, "utt ") == []
    assert list(run.ids(0)) == ["utt"]


def test_the_hash_is_as_specified():
    assert id_hash("") == 0xE4A6A0577479B2B4  # BLAKE2b-64 of nothing
    assert id_hash("a.1") == 0xDD2905F9659C8507  # SPEC.md's example


IDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@settings(max_examples=30)
@given(st.lists(st.lists(IDS, max_size=60), max_size=6), IDS)
def test_finds_all_and_nothing_else(shards, absent):
    named = {f"s-{i}": ids for i, ids in enumerate(shards)}
    run = opened(named)
    for n, (shard, ids) in enumerate(named.items()):
        assert list(run.ids(n)) == ids
        for row, utt in enumerate(ids):
            assert (shard, row) in find(run, utt)
            assert all(named[s][r] == utt for s, r in find(run, utt))
    assert run.records == sum(map(len, shards))
    if not any(absent in ids for ids in shards):
        assert find(run, absent) == []
    again = {s.name: s for s in run.covered()}
    assert build_run(STORE, again.values()) == run_of(named)


def test_a_hundred_thousand_rows():
    run = opened({f"s{n}": [f"utt-{n}-{i}" for i in range(25_000)] for n in range(4)})
    assert run.records == 100_000
    assert run.intact()
    for n, i in ((0, 0), (3, 24_999), (2, 7), (1, 12_345)):
        assert find(run, f"utt-{n}-{i}") == [(f"s{n}", i)]
    assert not any(find(run, f"absent-{i}") for i in range(2000))


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1500])
def test_ids_of_one_hash_are_told_apart(monkeypatch, count):
    monkeypatch.setattr(module, "id_hash", lambda s: 7 if s.startswith("same") else id_hash(s))
    run = opened({"a": ["same1", *(f"x{i}" for i in range(count))], "b": ["same2"]})
    assert find(run, "same1") == [("a", 0)]
    assert find(run, "same2") == [("b", 0)]
    assert find(run, "same3") == []
    assert find(run, f"x{count - 1}") == [("a", count)]


def test_the_highest_and_lowest_hash_are_found(monkeypatch):
    table = {f"u{i}": i * (2**64 - 1) // 999 for i in range(1000)}
    monkeypatch.setattr(module, "id_hash", lambda s: table.get(s, 5))
    run = opened({"s": list(table)})
    assert [find(run, u) for u in ("u0", "u999")] == [[("s", 0)], [("s", 999)]]


@pytest.mark.parametrize("count", [3, 600])
def test_every_flipped_byte_is_an_error_or_changes_nothing(count):
    data = run_of({"one": [f"u{i}" for i in range(count)], "two": ["v"]})
    asked = ("u0", "u1", "u2", "v", "absent")
    wanted = {u: find(open_run(np.frombuffer(data, np.uint8)), u) for u in asked}
    for at in range(0, len(data), 1 if count < 10 else 7):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        try:
            run = open_run(np.frombuffer(bytes(damaged), np.uint8))
            assert not run.intact()
            run._checked[:] = bytes(len(run._checked))
        except (CorruptError, FormatError):
            continue
        for utt, found in wanted.items():
            with contextlib.suppress(StoreError):
                assert find(run, utt) == found


def test_every_cut_is_an_error():
    data = run_of({"s": ["a", "b", "c"]})
    for size in range(len(data)):
        with pytest.raises(StoreError):
            open_run(np.frombuffer(data[:size], np.uint8))
    with pytest.raises(StoreError):
        open_run(np.frombuffer(data + b"\0", np.uint8))


def forged(lines=b"s 2 7\n  ", rows=((1, 0), (2, 1)), begin=(0, 2, 4), ids=b"a\nb\n"):
    """A run with right checksums and whatever is asked for inside."""
    keys = np.array([key for key, _ in rows], "<u8")
    number = np.array([number for _, number in rows], "<u4").tobytes()
    padded, begins = number + bytes(-len(number) % 8), np.array(begin, "<u8").tobytes()
    check = crc32c(number, crc32c(keys)).to_bytes(4, "little")
    tables = lines + keys[:1].tobytes() + check + bytes(4)
    head = module._HEADER.pack(
        module.MAGIC,
        len(rows),
        len(lines),
        len(ids),
        bytes(32),
        crc32c(tables),
        crc32c(ids, crc32c(begins)),
        0,
        0,
    )[:-4]
    data = head + crc32c(head).to_bytes(4, "little") + tables + keys.tobytes() + padded + begins + ids
    return open_run(np.frombuffer(data, np.uint8))


def test_forged_ones_are_refused(monkeypatch):
    assert forged().records == 2
    for lines in (b"s 3 7\n  ", b"../x 2 7\n       ", b"\xff" * 8, b"s 2\n    ", b"s 1 7\ns 1 7\n    "):
        with pytest.raises(StoreError):
            forged(lines=lines)
    monkeypatch.setattr(module, "id_hash", lambda s: 1)
    for bad in (
        {"rows": ((1, 9), (2, 1))},
        {"begin": (0, 2**63, 4)},
        {"begin": (4, 2, 0)},
        {"ids": b"\xff\nb\n"},
    ):
        run = forged(**bad)
        monkeypatch.setattr(module, "id_hash", lambda s: 1 if s == "a" else 5)
        with pytest.raises(StoreError):
            find(run, "a")


def test_a_run_of_many_equal_hashes_is_refused(monkeypatch):
    monkeypatch.setattr(module, "id_hash", lambda s: 1)
    with pytest.raises(FormatError):
        find(opened({"s": [f"u{i}" for i in range(2000)]}), "u0")
