"""Rot: bits flip, files are cut, zeroed, doubled, swapped and deleted; nothing wrong is ever read."""

import os
import random
import shutil
import time

from logitstore.errors import LogitStoreError, StoreError
from logitstore.store.reader import Store
from logitstore.store.rewrite import repair_store
from logitstore.store.verify import verify_store

from .store import BLOCKS, IDS, row, same, same_tree, work

STORAGES = ("zarr", "webdataset", "zarr:blosc")
DERIVED = ("index/", "skipped.jsonl", "notes.json")  # made anew from the entries: losing them loses nothing
FOR_OTHERS = {"SPEC.md", "README.md"}  # logitstore never reads them


def flip(dice, data, other):
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]


def truncate(dice, data, other):
    return data[: dice.randrange(len(data))]


def zero(dice, data, other):
    a = dice.randrange(len(data))
    b = min(len(data), a + dice.choice((1, 8, 64, 4096)))
    return data[:a] + bytes(b - a) + data[b:]


def double(dice, data, other):
    """Bytes that stand once stand twice, over what was there, or the whole file does."""
    if dice.random() < 0.3:
        return data + data
    a, b = dice.randrange(len(data)), dice.randrange(len(data))
    part = data[a : a + dice.choice((4, 64, 512))]
    return data[:b] + part + data[b + len(part) :]


def swap(dice, data, other):
    """Another file's content."""
    return other


def delete(dice, data, other):
    return None


HARM = (flip, flip, flip, truncate, zero, double, swap, delete)


def rot(family, root, cases, seconds=600, seed=0):
    """One harm a case: read everything, verify, and put the file back."""
    dice = random.Random(seed)
    stores = {s: root / s.replace(":", "-") for s in STORAGES}
    for storage, folder in stores.items():
        work(folder, storage)
    files = {s: sorted(p for p in f.rglob("*") if p.is_file()) for s, f in stores.items()}
    end = time.monotonic() + seconds
    while family.cases < cases and time.monotonic() < end:
        storage = dice.choice(STORAGES)
        path, other = dice.choice(files[storage]), dice.choice(files[storage])
        harm, data = dice.choice(HARM), path.read_bytes()
        if not data:
            continue
        changed = harm(dice, data, other.read_bytes())
        if changed == data:
            continue
        name = str(path.relative_to(stores[storage]))
        with family.case(f"{storage}: {harm.__name__} {name}, case {family.cases} of seed {seed}"):
            try:
                os.unlink(path)
                if changed is not None:
                    path.write_bytes(changed)
                _noticed(family, stores[storage], name, changed)
            finally:
                path.write_bytes(data)


def _noticed(family, folder, name, changed):
    errors = _read_all(family, folder)
    try:
        found = [f.where + f.what for f in verify_store(folder).findings]
    except StoreError as e:
        found = [str(e)]
    if name in FOR_OTHERS or (name.startswith(DERIVED) and changed is None):
        assert not found, found
    else:
        assert found, "verify found nothing"
    if name in ("logitstore.json", "tokens.txt"):
        assert errors, "a store that says something else of itself was opened"
    if name.startswith(("shards/0", "sealed/")):
        block = name.split("/")[1].partition(".")[0]
        assert any(block in f for f in found), f"{block} is not named: {found}"
        for said in errors.values() if changed is not None or name.startswith("shards/") else ():
            assert block in said, f"{block} is not named: {said}"
        if name.startswith("shards/"):
            for i, said in errors.items():
                assert i in said, f"the utterance is not named: {said}"
                assert "record" in said, f"the record is not named: {said}"
            assert all(i in BLOCKS[block] for i in errors), "a neighbour's utterance cannot be read"


def _read_all(family, folder):
    """What was said of each utterance that could not be read; raises where one reads back wrong."""
    errors = {}
    try:
        store = Store(folder)
    except LogitStoreError as e:
        return {i: str(e) for i in IDS}
    for i in IDS:
        try:
            found = store.record(i)
            store.decode(found)
        except LogitStoreError as e:
            errors[i] = str(e)
            continue
        if not same(found, row(i)):
            family.silent += 1
            raise AssertionError(f"{i} reads back wrong")
    return errors


def mending(family, root, cases, seconds=600, seed=1):
    """``verify --repair`` after one harm: all that remains is whole, and the same dump makes the rest."""
    dice = random.Random(seed)
    whole = {}
    for storage in ("zarr", "webdataset"):
        whole[storage] = root / storage
        work(whole[storage], storage)
    end = time.monotonic() + seconds
    while family.cases < cases and time.monotonic() < end:
        storage, folder = dice.choice(list(whole)), root / "rotten"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole[storage], folder)
        path = dice.choice([p for p in sorted(folder.rglob("*")) if p.is_file()])
        name, data = str(path.relative_to(folder)), path.read_bytes()
        harm = dice.choice(HARM)
        changed = harm(dice, data, data[::-1])
        if name in ("logitstore.json", "tokens.txt") or changed == data or not data:
            continue
        os.unlink(path)
        if changed is not None:
            path.write_bytes(changed)
        with family.case(f"{storage}: {harm.__name__} {name} mended, case {family.cases} of seed {seed}"):
            lost = _read_all(family, folder)
            done = repair_store(folder)
            assert not verify_store(folder).findings, verify_store(folder).findings
            left = set(Store(folder))
            gone = set(IDS) - left
            assert gone == set(done.dropped) or done.shards, f"{gone} gone, {done.dropped} said"
            assert name.startswith("sealed/") or gone <= set(lost), "a row that could be read was dropped"
            work(folder, storage)
            assert set(Store(folder)) == set(IDS)
            assert not _read_all(family, folder)
            assert not verify_store(folder).findings
            if not gone and not done.findings:
                assert same_tree(folder, whole[storage]) or name in FOR_OTHERS
