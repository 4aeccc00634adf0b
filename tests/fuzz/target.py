"""One input, one store: byte 0 chooses a golden store's file, the rest becomes its content."""

import json
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from logitstore.errors import LogitStoreError
from logitstore.schema.checksums import canonical, crc32c
from logitstore.store.reader import Store

GOLDEN = Path(__file__).parents[1] / "golden"
STORES = ("v1.0-zarr", "v1.0-webdataset")


class Memory:
    """A place that is a dictionary; nothing can be written."""

    def __init__(self, files):
        self.files = files

    def __str__(self):
        return "memory"

    def exists(self, name=""):
        return name in self.files or any(f.startswith(f"{name}/") for f in self.files)

    def names(self, folder):
        start = f"{folder}/" if folder else ""
        return sorted({f[len(start) :].partition("/")[0] for f in self.files if f.startswith(start)})

    def size(self, name):
        return len(self.read(name))

    def read(self, name):
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def map(self, name):
        return np.frombuffer(self.read(name), np.uint8)

    def local(self, name=""):
        return None


@cache
def golden():
    """(store, file) of every choice, and the files of every store."""
    files = {
        s: {
            str(p.relative_to(GOLDEN / s)): p.read_bytes()
            for p in sorted((GOLDEN / s).rglob("*"))
            if p.is_file()
        }
        for s in STORES
    }
    return [(s, f) for s in STORES for f in files[s]], files


def _sealed(value):
    if isinstance(value, dict):
        value.pop("crc32c", None)
        value["crc32c"] = crc32c(canonical(value))
    return value


def read(data):
    """Read a store with one file replaced; gives the error of the tree, or None. Others pass through."""
    if not data:
        return None
    choices, stores = golden()
    store, name = choices[data[0] % len(choices)]
    files, content = dict(stores[store]), bytes(data[1:])
    if name.startswith("sealed/") or name == "logitstore.json":
        with suppress(ValueError, RecursionError):  # what is not JSON stays as it is
            content = json.dumps(_sealed(json.loads(content))).encode("utf-8")
    elif name.startswith("shards/"):
        entry = next(f for f in files if f.startswith("sealed/"))
        value = json.loads(files[entry])
        for f in value["files"]:
            if f["path"] == name:
                f.update(bytes=len(content), crc32c=crc32c(content))
        table = value["layout"]["table"]  # its checksum is over whatever stands there now
        table["crc32c"] = crc32c(content[table["offset"] :][: table["bytes"]])
        files[entry] = json.dumps(_sealed(value)).encode("utf-8")
    files[name] = content
    try:
        opened = Store(Memory(files))
        for i in opened:
            try:
                target = opened[i]
                for stream in target.streams.values():
                    stream.at(2.0)
                target.log_probs(next(iter(target.streams)))
            except LogitStoreError:
                continue
    except LogitStoreError as e:
        return e
    return None


def seeds():
    """Every golden file as an input."""
    choices, stores = golden()
    return [bytes([n]) + stores[s][f] for n, (s, f) in enumerate(choices)]
