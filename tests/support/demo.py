"""The demo teacher and its manifest, for tests; and ways to spoil a teacher."""

import json
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from logitstore.corpus.manifest import read_manifest
from logitstore.teachers import load_teacher

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "manifests" / "demo.jsonl"
TOKENS = ROOT / "manifests" / "demo.tokens.txt"
FACTORY = f"{ROOT}/recipes/demo/teacher.py:load"
STREAMS = {"ctc": "dense", "rnnt": "topk:16"}


@cache
def teacher():
    """The trained demo teacher."""
    return load_teacher(FACTORY)


def manifest(limit=0):
    return read_manifest(MANIFEST, limit=limit)


class Spoiled:
    """The demo teacher with some of its methods replaced; each is given the demo teacher first."""

    def __init__(self, **methods):
        self._methods = methods
        self.model = teacher().model

    def __getattr__(self, name):
        if name in self._methods:
            return lambda *args: self._methods[name](teacher(), *args)
        return getattr(teacher(), name)


@contextmanager
def poisoned(path, value):
    """One logit of the first row that the module at ``path`` gives becomes ``value``."""

    def hook(module, args, output):
        output = output.clone()
        output.view(-1, output.shape[-1])[0, 3] = value
        return output

    handle = teacher().model.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def write_manifest(path, lines):
    """A manifest whose audio paths are relative to the demo's."""
    path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), "utf-8")
    return path


def lines(count=20):
    """The demo manifest's lines, audio paths absolute."""
    found = [json.loads(x) for x in MANIFEST.read_text("utf-8").splitlines()][:count]
    return [{**x, "audio": str(MANIFEST.parent / x["audio"])} for x in found]
