"""How exact the mass that a pruned row left out comes back at any temperature.

    python benchmarks/tail.py [--fsdd DIR --heads DIR]

For every row of the demo teacher (and, with --fsdd and --heads, of heads that `recipes/digits/train.py`
wrote) the mass of the classes that are not stored is taken from the model's own float32 logits at
temperatures from 1 to 8 and compared with what a reader is served: |served - exact| / exact, its mean, 99th
percentile and maximum over all rows, each at the temperature where it is largest; last the 99th percentile
of |served - exact| itself. `nucleus` stores four points where `topk` stores five: what it leaves out at its
own temperature is next to nothing.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

from logitstore.tailerror import TailError, tail_errors

from benchmarks.size import asked, cases, own_logits
from logitstore.corpus.manifest import read_manifest
from logitstore.encodings import parse_encoding

ENCODINGS = ("topk:8", "topk:16", "topk:32", "nucleus:1e-3")


def worst(found: list[TailError], figure: Callable[[TailError], float]) -> str:
    """Name a figure where it is largest, and that temperature."""
    most = max(found, key=figure)
    return f"{figure(most):9.1e} at {most.temperature:<4g}"


def show(name: str, logits: np.ndarray) -> None:
    """Print a line for every encoding."""
    print(f"\n{name}: {len(logits)} rows, V = {logits.shape[1]}")
    head = ("mean", "p99", "max", "p99, in mass")
    print(f"{'':14}" + "".join(f"{h:>18}" for h in head))
    for text in ENCODINGS:
        if text.startswith("topk") and int(text.partition(":")[2]) >= logits.shape[1]:
            continue
        found = tail_errors(parse_encoding(text), logits)
        figures = (
            worst(found, lambda e: float(e.relative.mean())),
            worst(found, lambda e: float(np.quantile(e.relative, 0.99))),
            worst(found, lambda e: float(e.relative.max())),
            worst(found, lambda e: float(np.quantile(e.absolute, 0.99))),
        )
        print(f"{text:14}" + "".join(f"{f:>18}" for f in figures), flush=True)


def main() -> None:
    """Read the command line and print a table for every teacher and stream."""
    args = asked(__doc__, utterances=40)
    with tempfile.TemporaryDirectory() as folder:
        for name, teacher, path in cases(args, Path(folder)):
            manifest = read_manifest(path)
            own = own_logits(teacher, manifest, teacher.describe().head("rnnt") is not None)
            for stream in next(iter(own.values())):
                rows = np.concatenate([said[stream] for said in own.values() if stream in said])
                show(f"{name}, {stream}", rows)


if __name__ == "__main__":
    main()
