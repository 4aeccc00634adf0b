"""One input, one store: byte 0 chooses a golden store's file, the rest becomes its content."""

from functools import cache
from pathlib import Path

import numpy as np

from logitstore.errors import LogitStoreError
from logitstore.schema.checksums import crc32c, seal_json, sha256, split_sealed
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


def _sealed(content):
    """The content with a right checksum in its last line of JSON, if it has such a line."""
    covered, line, rest = content.partition(b'\n"crc32c": ')
    if not line:
        return content
    tail = rest.partition(b"\n")[2]
    return covered + line + b"%d}\n" % crc32c(covered + b"\n") + tail


def read(data):
    """Read a store with one file replaced; gives the error of the tree, or None. Others pass through."""
    if not data:
        return None
    choices, stores = golden()
    store, name = choices[data[0] % len(choices)]
    files, content = dict(stores[store]), bytes(data[1:])
    if name.startswith("sealed/") or name == "logitstore.json":
        content = _sealed(content)
        if name == "logitstore.json":  # the entries belong to the store that it describes now
            for entry in [f for f in files if f.startswith("sealed/")]:
                value, end = split_sealed(files[entry], entry, more=True)
                files[entry] = seal_json({**value, "identity": sha256(content)}) + files[entry][end:]
    elif name.startswith("shards/"):
        entry = next(f for f in files if f.startswith("sealed/"))
        value, end = split_sealed(files[entry], entry, more=True)
        for f in value["files"]:
            if f["path"] == name:
                f.update(bytes=len(content), crc32c=crc32c(content))
        table = value["layout"]["table"]  # its checksum is over whatever stands there now
        table["crc32c"] = crc32c(content[table["offset"] :][: table["bytes"]])
        files[entry] = seal_json(value) + files[entry][end:]
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
