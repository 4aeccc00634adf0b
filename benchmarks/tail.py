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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.size import asked, cases, own_logits
from logitstore.corpus.manifest import read_manifest
from logitstore.encodings import Encoding, encode_logits, parse_encoding
from logitstore.encodings.rows import logsumexp

GRID = (1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.75, 1.9, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0)


@dataclass(frozen=True)
class TailError:
    """Errors of one temperature, over all rows that leave a class out.

    Attributes:
        temperature: of them.
        exact: (N,) mass of the classes left out, from the teacher's logits.
        served: (N,) the same from the stored row.
    """

    temperature: float
    exact: NDArray[np.float64]
    served: NDArray[np.float64]

    @property
    def relative(self) -> NDArray[np.float64]:
        """(N,) |served - exact| / exact."""
        return np.asarray(np.abs(self.served / self.exact - 1))

    @property
    def absolute(self) -> NDArray[np.float64]:
        """(N,) |served - exact|."""
        return np.asarray(np.abs(self.served - self.exact))


def tail_errors(
    encoding: Encoding, logits: NDArray[Any], blank: int = 0, grid: tuple[float, ...] = GRID
) -> list[TailError]:
    """Compare the mass that an encoding serves as left out with the exact one, at each temperature of a grid.

    Args:
        encoding: ``topk`` or ``nucleus``.
        logits: (N, V) of the teacher.
        blank: kept always, where the encoding keeps some classes so.
        grid: temperatures.
    """
    rows = torch.from_numpy(np.ascontiguousarray(logits, np.float32))
    arrays = encode_logits(encoding, rows, lambda: torch.full((len(rows), 1), blank))
    columns = encoding.columns(logits.shape[1])
    stored = encoding.decode(
        {c.name: arrays[c.name].numpy().astype(c.dtype, copy=False) for c in columns}, logits.shape[1]
    )
    at = stored.at(1.0)
    assert at.ids is not None
    left = np.ones(logits.shape, bool)
    np.put_along_axis(left, at.ids.astype(np.int64), False, axis=1)
    some = left.any(1)
    found = []
    for temperature in grid:
        own = logits[some].astype(np.float64) / temperature
        exact = np.exp(logsumexp(np.where(left[some], own, -np.inf)) - logsumexp(own))
        served = np.exp(stored.at(temperature).tail[some].astype(np.float64))
        found.append(TailError(temperature, exact, served))
    return found


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
