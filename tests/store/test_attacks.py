"""Hostile stores whose checksums are all right; attacks.md lists them.

Each is refused with an error of the tree, within bounded time and memory; or reads back right.
"""

import contextlib
import gzip
import io
import json
import os
import re
import resource
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from logitstore.cli import main
from logitstore.errors import CorruptError, FormatError, LogitStoreError, StoreError
from logitstore.schema.checksums import compact_json, crc32c
from logitstore.storage.places import open_place
from logitstore.store.reader import Store
from logitstore.store.verify import verify_store
from logitstore.store.writer import StoreWriter
from tests.support.sealed import forge, forge_description, read_sealed, remove_index
from tests.torture.store import IDS, TABLE, row, same, work
from tests.torture.store import spec as spec_of

README = Path(__file__).parent / "attacks.md"
SHARD = "000000"
SECONDS, MEMORY = 20.0, 1 << 30  # of the CPU, so that a busy machine makes no difference


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    for storage in ("zarr", "webdataset", "zarr:blosc"):
        work(root / storage, storage, blocks={SHARD: IDS[:3]})
    return root


@pytest.fixture
def store(made, tmp_path):
    import shutil

    def copy(storage="zarr"):
        shutil.copytree(made / storage, tmp_path / "s")
        return tmp_path / "s"

    return copy


def forge_file(store, name, data):
    """Change a shard's file and its place in the entry."""
    (store / name).write_bytes(data)

    def change(entry):
        for f in entry["files"]:
            if f["path"] == name:
                f.update(bytes=len(data), crc32c=crc32c(data))

    forge(store / "sealed" / f"{SHARD}.entry", change)


def refused(store, kind=StoreError, match=""):
    """Check that opening, reading and verify raise errors of the tree alone, in bounded time and memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, errors = time.process_time(), []
    try:
        opened = Store(store)
        ids = list(opened)
    except LogitStoreError as e:
        errors.append(e)
        ids = []
    for i in ids:
        try:
            found = opened.record(i)
            opened.decode(found)
            assert i in IDS
            assert same(found, row(i)), f"{i} reads back wrong"
        except LogitStoreError as e:
            errors.append(e)
    try:
        found = [f.what for f in verify_store(store).findings]
    except LogitStoreError as e:
        found = [str(e)]
    assert time.process_time() - begin < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    assert errors, "it was read as if nothing were wrong"
    assert found, "verify found nothing"
    assert isinstance(errors[0], kind), repr(errors[0])
    assert re.search(match, str(errors[0])), errors[0]
    return errors


def entry(store):
    return store / "sealed" / f"{SHARD}.entry"


def test_pickle_in_a_member_is_never_loaded(store, tmp_path):
    s, evidence = store("webdataset"), tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(evidence),)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    path = s / "shards" / f"{SHARD}.tar"
    with tarfile.open(path) as tar:
        member = next(m for m in tar if m.name.endswith("ctc.logp.npy"))
    data, bomb = bytearray(path.read_bytes()), buffer.getvalue()
    assert len(bomb) < 512 + member.size + 4096
    data[member.offset_data : member.offset_data + len(bomb)] = bomb
    forge_file(s, f"shards/{SHARD}.tar", bytes(data))
    refused(s, StoreError)
    assert not evidence.exists()


@pytest.mark.parametrize(
    "path", ["../secret", "shards/../../secret", "/etc/passwd", "shards//x", "shards/./x", "shards/a\0b", ""]
)
def test_names_that_leave_the_store(store, path):
    s = store()
    forge(entry(s), lambda e: e["files"][0].update(path=path))
    refused(s, FormatError, "SPEC C2|SPEC S2")


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "é"])
def test_names_of_replaced_shards(store, name, tmp_path):
    s = store()
    (tmp_path / "evil.json").write_text("keep me")
    forge(entry(s), lambda e: e.update(replaces=[name]))
    remove_index(s)
    refused(s, FormatError, "SPEC C6")
    with pytest.raises(FormatError, match="SPEC C6"):
        StoreWriter(open_place(s), spec_of()).begin(TABLE)
    assert (tmp_path / "evil.json").read_text() == "keep me"


def test_links_out_of_the_store(store, tmp_path):
    s, secret = store("webdataset"), tmp_path / "secret"
    path = s / "shards" / f"{SHARD}.tar"
    path.rename(secret)
    path.symlink_to(secret)
    refused(s, FormatError, "SPEC F7")


@pytest.mark.parametrize("name", ["partial", "shards", "sealed"])
def test_links_that_would_write_outside(store, tmp_path, name):
    s, home = store(), tmp_path / "home"
    (home / "job").mkdir(parents=True)
    (home / "job" / "thesis.txt").write_text("ten years of work")
    if (s / name).exists():
        (s / name).rename(tmp_path / "moved")
    (s / name).symlink_to(home)
    with pytest.raises(LogitStoreError, match="SPEC F7"):
        work(s, "zarr")
    assert (home / "job" / "thesis.txt").read_text() == "ten years of work"
    assert [p.name for p in home.iterdir()] == ["job"]


def test_a_lock_that_is_a_link_truncates_nothing(store, tmp_path):
    s, victim = store(), tmp_path / "victim"
    victim.write_text("mine")
    (s / "partial").mkdir()
    (s / "partial" / "job-0-of-1.lock").symlink_to(victim)
    with pytest.raises(LogitStoreError):
        work(s, "zarr")
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("name", ["logitstore.json", f"sealed/{SHARD}.entry", f"shards/{SHARD}.tar", "index"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_pipes_devices_and_folders_in_place_of_files(store, name, kind):
    s = store("webdataset")
    if name == "index":
        name = f"index/{next((s / name).iterdir()).name}"
    (s / name).unlink()
    if kind == "fifo":
        os.mkfifo(s / name)
    elif kind == "folder":
        (s / name).mkdir()
    else:
        try:
            os.mknod(s / name, 0o644 | 0o020000, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("only root makes devices")
    if name.startswith("index/"):
        begin = time.process_time()
        assert len(Store(s)) == 3  # derived: made anew
        assert time.process_time() - begin < SECONDS
    else:
        refused(s, StoreError)


def forge_table(store, change):
    """Change the head and the arrays of a shard's table, and put it behind the file, as if it had been so sealed."""
    listed = read_sealed(entry(store))[0]
    name, table = listed["files"][0]["path"], listed["layout"]["table"]
    data = (store / name).read_bytes()
    line, _, body = data[table["offset"] :][: table["bytes"]].partition(b"\n")
    head, body = json.loads(line), bytearray(body)
    change(head, body)
    line = json.dumps(head).encode()
    raw = line + b" " * (-(len(line) + 1) % 64) + b"\n" + bytes(body)
    listed = {"offset": len(data), "bytes": len(raw), "crc32c": crc32c(raw)}
    forge(entry(store), lambda e: e["layout"].update(table=listed))
    forge_file(store, name, data + raw)


def put(head, body, name, index, value):
    """Write a number into an array of a table, whose items become as wide as it needs."""
    listed = head["arrays"][name]
    size = int(np.prod(listed["shape"], dtype=int))
    array = np.frombuffer(bytes(body), listed["dtype"], size, listed["begin"]).astype(np.uint64)
    array.reshape(listed["shape"])[index] = value % (1 << 64)
    listed.update(dtype="uint64", begin=len(body))
    body += array.tobytes()


def test_compression_bombs(store):
    s = store("zarr:blosc")
    table = Store(s)._open(SHARD)[1].table
    number = [c.name for c in table.columns].index("ctc.logz")
    name = f"shards/{SHARD}.zarr.zip"
    data = bytearray((s / name).read_bytes())
    at = int(table.offset[0, number]) + 4  # the length that the first inner chunk declares
    data[at : at + 4] = (1 << 28).to_bytes(4, "little")
    forge_file(s, name, bytes(data))
    refused(s, CorruptError, "an inner chunk has 268435456 bytes")


@pytest.mark.parametrize("storage", ["zarr", "zarr:blosc", "webdataset"])
@pytest.mark.parametrize("value", [-1, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63])
@pytest.mark.parametrize("name", ["count.0", "offset", "block", "pack"])
def test_giant_and_negative_numbers_in_a_table(store, storage, name, value):
    s = store(storage)
    forge_table(s, lambda head, body: put(head, body, name, (0,) * len(head["arrays"][name]["shape"]), value))
    refused(s, FormatError, "SPEC S4")


@pytest.mark.parametrize("storage", ["zarr", "webdataset"])
def test_columns_that_overlap(store, storage):
    s = store(storage)
    table = Store(s)._open(SHARD)[1].table
    forge_table(s, lambda head, body: put(head, body, "offset", (0, 1), int(table.offset[0, 0])))
    refused(s, FormatError, "overlap")


HEADS = {
    "no arrays": lambda head: head.update(arrays={}),
    "arrays that are a list": lambda head: head.update(arrays=[]),
    "a giant number of records": lambda head: head.update(records=1 << 60),
    "a giant shape": lambda head: head["arrays"]["offset"].update(shape=[1 << 40, 1 << 40]),
    "a negative begin": lambda head: head["arrays"]["offset"].update(begin=-8),
    "a begin behind the end": lambda head: head["arrays"]["offset"].update(begin=1 << 40),
    "an object dtype": lambda head: head["arrays"]["offset"].update(dtype="object"),
    "a signed dtype": lambda head: head["arrays"]["offset"].update(dtype="int64"),
    "a count that is not there": lambda head: head["columns"][0].update(count=1 << 30),
    "T that is no number": lambda head: head.update(T="0"),
    "no columns": lambda head: head.update(columns=[]),
    "another dtype of a column": lambda head: head["columns"][0].update(dtype="uint8"),
    "other checksums": lambda head: head.update(checksums=["ctc"]),
    "compressed columns": lambda head: [c.update(chunk=1, bytes=1) for c in head["columns"]],
    "one compressed column": lambda head: head["columns"][0].update(chunk=1, bytes=1),
}


@pytest.mark.parametrize("what", list(HEADS))
@pytest.mark.parametrize("storage", ["zarr", "webdataset"])
def test_wrong_heads_of_a_table(store, storage, what):
    s = store(storage)
    forge_table(s, lambda head, body: HEADS[what](head))
    refused(s, FormatError, "SPEC")


def forge_block(s, change):
    """Put another metadata block, made of the lines of the first one, behind the file and into the table."""
    name = f"shards/{SHARD}.zarr.zip"
    data = (s / name).read_bytes()
    _, begin, size, _ = Store(s)._open(SHARD)[1].table.block[0].tolist()
    block = gzip.compress(change(gzip.decompress(data[begin : begin + size])), 9)
    forge_file(s, name, data + block)

    def place(head, body):
        for index, value in enumerate((len(data), len(block), crc32c(block)), 1):
            put(head, body, "block", (0, index), value)

    forge_table(s, place)


BLOCKS = {
    "a bomb": lambda text: bytes(1 << 28),
    "fewer records": lambda text: b"\n".join(text.splitlines()[1:]),
    "more records": lambda text: b",{}\n" + text,
    "no list": lambda text: text.replace(b"\n,", b"\n"),
    "another id": lambda text: text.replace(b'"id":"', b'"id":"x'),
    "no id": lambda text: text.replace(b'"id"', b'"di"'),
    "deep JSON": lambda text: text.replace(b'"T":', b'"a":' + b"[" * 100_000 + b"]" * 100_000 + b',"T":'),
}


@pytest.mark.parametrize("what", list(BLOCKS))
def test_wrong_metadata_blocks(store, what):
    s = store()
    forge_block(s, BLOCKS[what])
    refused(s, StoreError, "SPEC|not valid JSON")


@pytest.mark.parametrize("classes", [1 << 40, 1 << 30, 6, 0, -5, True, "5"])
def test_giant_and_wrong_numbers_of_classes(store, classes):
    s = store()
    forge_description(s, lambda v: v["tokens"].update(size=classes))
    refused(s, FormatError)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"table": 5},
        {"table": {}},
        {"table": {"offset": 1e300, "bytes": 1, "crc32c": 0}},
        {"table": {"offset": -8, "bytes": 8, "crc32c": 0}},
        {"table": {"offset": 0, "bytes": 1 << 80, "crc32c": 0}},
        {"table": {"offset": 0, "bytes": 0, "crc32c": 0}},
    ],
    ids=str,
)
def test_wrong_layouts(store, layout):
    s = store("webdataset")
    forge(entry(s), lambda e: e.update(layout=layout))
    refused(s, StoreError)


def test_a_million_entries_are_one_listing(store):
    s = store()
    forge_description(s, lambda v: v.update(x=[[]] * 1_000_000))  # a million arrays in the metadata
    opened = Store(s)
    assert list(opened) == list(IDS[:3])
    assert "x" not in opened.spec.to_json()


def test_a_million_files_in_an_entry(store):
    s = store()
    more = [{"path": f"shards/{SHARD}/{i}", "bytes": 1, "crc32c": 0} for i in range(300_000)]
    forge(entry(s), lambda e: e.update(files=e["files"] + more[:100_000]))
    begin = time.process_time()
    assert len(Store(s)) == 3
    assert time.process_time() - begin < SECONDS


@pytest.mark.parametrize("field", ["encoding", "storage"])
@pytest.mark.parametrize(
    "name", ["pickle", "os.system", "../base", "base", "_zarr_read", "topk:999999999", "zarr:lz5", ""]
)
def test_unknown_codecs(store, field, name):
    s = store()
    forge_description(
        s,
        lambda v: (
            v["streams"][0].update(encoding=name) if field == "encoding" else v["storage"].update(name=name)
        ),
    )
    refused(s, LogitStoreError)


JSON = {
    "deep lists": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a key twice": b'{"format": "logitstore", "format": "x", "crc32c": 0}',
    "NaN": b'{"version": NaN, "crc32c": 0}',
    "infinity": b'{"version": 1e999, "crc32c": 0}',
    "a long number": b'{"version": ' + b"9" * 100_000 + b', "crc32c": 0}',
    "not UTF-8": b'{"name": "\xff\xfe", "crc32c": 0}',
    "UTF-16": '{"crc32c": 0}'.encode("utf-16"),
    "half a surrogate": b'{"name": "\\ud800", "crc32c": 0}',
    "a list": b"[1, 2]",
    "nothing": b"",
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("name", ["logitstore.json", f"sealed/{SHARD}.entry"])
@pytest.mark.parametrize("what", list(JSON))
def test_json_of_every_kind(store, name, what):
    s = store()
    (s / name).write_bytes(JSON[what])
    refused(s, StoreError)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": ["a", "a", "a"]},
        {"seconds": 10**400},
        {"frames": "x"},
        {"skipped": [3]},
        {"skipped": 7},
        {"records": 2},
        {"layout": [1]},
        {"files": [[]]},
        {"replaces": [SHARD]},
        {"replaces": 5},
        {"ids": ["a", "b", "c"]},
        {"identity": "sha256:" + "0" * 64},
    ],
    ids=lambda c: str(c)[:40],
)
def test_wrong_entries(store, change):
    s = store()
    forge(entry(s), lambda e: e.update(change))
    remove_index(s)
    if change == {"replaces": [SHARD]}:
        assert len(Store(s)) == 3  # a shard cannot replace itself
    elif change == {"skipped": [3]}:
        refused(s, FormatError)
    else:
        refused(s, StoreError)


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": 5},
        {"teacher": {"name": "x"}},
        {"tokens": {"sha256": "x", "size": 1 << 60, "blank": 0}},
        {"streams": {}},
        {"streams": []},
        {"streams": [5]},
        {"storage": 5},
        {"storage": {}},
        {"version": "2.0"},
        {"version": 1},
        {"format": "pickle"},
    ],
    ids=str,
)
def test_wrong_descriptions(store, change):
    s = store()
    forge_description(s, lambda v: v.update(change))
    if change in ({"version": 1}, {"streams": []}):
        with contextlib.suppress(StoreError):
            list(Store(s))
    else:
        refused(s, StoreError)


def test_streams_whose_names_are_paths(store):
    s = store()
    forge_description(s, lambda v: v["streams"][0].update(name="../../../etc"))
    refused(s, FormatError, "the name of a stream")


@pytest.mark.parametrize(
    "meta",
    [{"T": -1}, {"T": "x"}, {"T": 1 << 70}, {"U": -3}, {"U": None}, {"text": []}, {"T": 1.5}, {"T": 9}],
)
def test_wrong_records(store, meta):
    s = store()

    def change(text):
        first, *others = json.loads(text)
        lines = [json.dumps(record).encode() for record in ({**first, **meta}, *others)]
        return b"[" + b"\n,".join(lines) + b"\n]\n"

    forge_block(s, change)
    with pytest.raises(FormatError):
        Store(s)[IDS[0]]
    assert verify_store(s).findings


@pytest.mark.parametrize(
    ("column", "value"), [("rnnt.ids", 60000), ("rnnt.labels", 99), ("rnnt.labels", 255)]
)
def test_ids_outside_of_the_table(tmp_path, column, value):
    from dataclasses import replace

    utt = next(i for i in IDS if row(i).meta["U"])
    bad = {**row(utt).arrays, column: row(utt).arrays[column].copy()}
    bad[column].reshape(-1)[0] = value
    with StoreWriter(open_place(tmp_path), spec_of()).begin(TABLE) as w:
        shard = w.shard("x")
        shard.add(replace(row(utt), arrays=bad))
        shard.seal()
    with pytest.raises(FormatError):
        Store(tmp_path)[utt]


def test_names_that_are_not_utf8(store):
    s = store()
    for folder in ("sealed", "shards", "partial"):
        (s / folder).mkdir(exist_ok=True)
        with open(os.fsencode(s / folder) + b"/\xff\xfe.json", "wb") as f:
            f.write(b"{}")
    assert len(Store(s)) == 3
    assert any("shards/" in f.where for f in verify_store(s).findings)


def test_escape_sequences_never_reach_a_terminal(tmp_path, capsys):
    """Try names, tokens, texts, ids with bidirectional controls, skipped reasons and error messages."""
    from dataclasses import replace

    from logitstore import TokenTable

    evil = "\x1b]0;pwned\x07\x1b[2J\u202e\u2028"
    table = TokenTable(("<blk>", "a", f"b{evil.replace(chr(0x2028), '')}", "c", "d"), 0)
    spec = spec_of()
    spec = replace(
        spec,
        teacher=replace(spec.teacher, name=evil),
        tokens={"sha256": table.digest(), "size": 5, "blank": 0},
    )
    utt = "utt\u202e\u2066x"
    bad = row(IDS[0])
    with StoreWriter(open_place(tmp_path / "s"), spec).begin(table) as w:
        shard = w.shard("x")
        shard.add(replace(bad, id=utt, meta={**bad.meta, "text": evil}))
        shard.seal([{"id": "e", "reason": evil, "what": evil}])
    for args in (["inspect"], ["inspect", utt], ["verify"], ["verify", "--repair"], ["inspect", f"no{evil}"]):
        with pytest.raises(SystemExit):
            main([args[0], str(tmp_path / "s"), *args[1:]])
    path = tmp_path / "s" / "shards" / "x.zarr.zip"
    path.write_bytes(
        path.read_bytes().replace(bad.arrays["ctc.logp"].tobytes(), bytes(bad.arrays["ctc.logp"].nbytes))
    )
    with pytest.raises(SystemExit):
        main(["verify", str(tmp_path / "s")])
    said = capsys.readouterr()
    for c in "\x1b\x07\u202e\u2066\u2028":
        assert c not in said.out + said.err


def test_every_attack_listed_has_its_test_and_the_other_way_round():
    listed = re.findall(r"`(test_\w+)`", README.read_text("utf-8"))
    here = {n for n in globals() if n.startswith("test_")} - {
        "test_every_attack_listed_has_its_test_and_the_other_way_round"
    }
    assert set(listed) == here
    assert compact_json({}) == b"{}"


def test_keys_and_arrays_of_a_later_version_are_ignored(store):
    s = store()

    def change(head, body):
        head.update(
            later=[1], arrays={**head["arrays"], "seconds": {"dtype": "float64", "shape": [3], "begin": 1}}
        )
        head["columns"][0].update(unit="nats")

    forge_table(s, change)
    opened = Store(s)
    assert [same(opened.record(i), row(i)) for i in opened] == [True] * 3
