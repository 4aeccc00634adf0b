"""The icefall-shaped recipe, run as its user runs it; and what its model says, by hand."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from logitstore import open_store
from recipes.demo.decode import collate, read_manifest
from recipes.demo.pieces import Pieces
from tests.support import demo

FOLDER = demo.ROOT / "tests" / "recipes" / "icefall_shaped"
DATA = ["--exp-dir", demo.ROOT / "recipes" / "demo", "--tokens", demo.TOKENS, "--manifest", demo.MANIFEST]
PROBE = [sys.executable, "-m", "logitstore", "probe"]
DECODE = ["bash", FOLDER / "decode.sh", *DATA]


def call(*args, env=None, cwd=demo.ROOT, timeout=900):
    """A command's finished process: status, output as bytes."""
    env = {**os.environ, "PYTHON": sys.executable, "LANG": "C.UTF-8", **(env or {})}
    return subprocess.run(list(map(str, args)), capture_output=True, env=env, cwd=cwd, timeout=timeout)


def logitstore(*args, **kwargs):
    return call(sys.executable, "-m", "logitstore", *args, **kwargs)


def capture(out, *options, command=DECODE, **kwargs):
    return logitstore("capture", "--out", out, *options, "--", *command, **kwargs)


def own(size=5):
    """The model's own CTC logits in batches of ``size``: id -> (T, V), text."""
    model, said = demo.teacher().model, {}
    utterances = read_manifest(Path(demo.MANIFEST), Pieces.read(demo.TOKENS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for i in range(0, len(utterances), size):
                enc, lens = model.forward_encoder(*collate(utterances[i : i + size]))
                logits = model.ctc_output[1](enc)
                for b, utterance in enumerate(utterances[i : i + size]):
                    said[utterance.id] = logits[b, : lens[b]]
    finally:
        torch.set_num_threads(threads)
    return said


def printed(stderr):
    """Return the command that a probe printed, to be run as it stands."""
    words = shlex.split(stderr.decode("utf-8").splitlines()[-1])
    assert words[:2] == ["logitstore", "capture"]
    return [sys.executable, "-m", *words]


def rows(store):
    """Return everything that a store holds by id, comparable."""
    opened = open_store(store)
    return {
        i: (opened.record(i).meta, {n: a.tobytes() for n, a in opened.record(i).arrays.items()})
        for i in opened
    }
