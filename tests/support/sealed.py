"""Sealed files of a store, changed and sealed again: what a forger or another writer might write."""

import shutil

from logitstore.schema.checksums import crc32c, seal_json, sha256, split_sealed


def read_sealed(path):
    """Return the object of a sealed file, and the bytes behind it."""
    data = path.read_bytes()
    value, end = split_sealed(data, str(path), more=True)
    return value, data[end:]


def forge(path, change, ids=None):
    """Change a sealed file by a function of its object and seal it again; ``ids`` are a new entry's lines."""
    value, text = read_sealed(path)
    if ids is not None:
        text = "".join(f"{i}\n" for i in ids).encode()
        value["ids"] = {"bytes": len(text), "crc32c": crc32c(text)}
    path.write_bytes(seal_json(change(value) or value) + text)


def remove_index(store):
    """Remove the index of a store, which is derived."""
    shutil.rmtree(store / "index")


def forge_description(store, change):
    """Change logitstore.json, and make every entry belong to the store that it then describes."""
    forge(store / "logitstore.json", change)
    identity = sha256((store / "logitstore.json").read_bytes())
    for entry in (store / "sealed").glob("*.entry"):
        forge(entry, lambda value: value.update(identity=identity))
    remove_index(store)
