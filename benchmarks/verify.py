"""Cost of checking the checksums of every record that is read.

    python benchmarks/verify.py [--short] [STORE ...]

Without a store, some are made: 80 utterances of 5 to 15 s, V = 500, with peaky CTC logits (one class far above noise),
encoded as ``dense`` and as ``topk:16``, in both storage backends. Whole targets are read in random order from the page
cache and decoded to log-probabilities. Every figure is a sum over utterances, of each the best of alternating rounds.
Exits with 1 where checks cost more than a tenth; not with ``--short``, whose few rounds are too noisy to judge.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from logitstore import StoreWriter, TokenTable, open_store

V, FRAMES, UTTERANCES, ROUNDS = 500, (125, 375), 80, 21
ALLOWED = 0.10


def make(folder, storage, encoding, utterances):
    """Write a store of peaky CTC logits; return its folder."""
    table = TokenTable(("<blk>", *(f"t{i}" for i in range(1, V))), 0)
    random = np.random.default_rng(0)
    with StoreWriter.open(folder, tokens=table, streams={"ctc": encoding}, storage=storage) as writer:
        for i in range(utterances):
            frames = int(random.integers(*FRAMES))
            logits = random.normal(0, 2, (frames, V)).astype(np.float32)
            logits[np.arange(frames), random.integers(0, V, frames)] += 15
            writer.add(f"utt-{i:05d}", ctc=logits, seconds=frames / 25)
    return folder


def seconds(store, utt_id):
    """Return the seconds that reading and decoding one target takes."""
    begin = time.perf_counter()
    target = store[utt_id]
    for name in target.streams:
        target[name].at(1.0)
    return time.perf_counter() - begin


def measure(location, rounds):
    """Return the seconds of an epoch with checks and without, and the number of utterances."""
    stores = open_store(location), open_store(location, verify=False)
    ids = list(stores[0])
    random = np.random.default_rng(1)
    best = np.full((2, len(ids)), np.inf)
    for number in range(rounds):
        for i in random.permutation(len(ids)):
            for which in (0, 1) if number % 2 else (1, 0):
                best[which, i] = min(best[which, i], seconds(stores[which], ids[i]))
    return *best.sum(axis=1), len(ids)


def main():
    """Read the command line, print a line for every store, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stores", nargs="*", metavar="STORE")
    parser.add_argument("--short", action="store_true", help="few utterances and rounds; no judgement")
    args = parser.parse_args()
    utterances, rounds = (10, 3) if args.short else (UTTERANCES, ROUNDS)
    worst, locations = 0.0, args.stores
    with tempfile.TemporaryDirectory() as root:
        if not locations:
            kinds = [(s, e) for s in ("zarr", "webdataset") for e in ("dense", "topk:16")]
            locations = [make(Path(root, f"{s}-{e}"), s, e, utterances) for s, e in kinds]
        for location in locations:
            checked, unchecked, count = measure(location, rounds)
            cost = checked / unchecked - 1
            worst = max(worst, cost)
            print(
                f"{Path(location).name:<20} {1e6 * unchecked / count:8.0f} µs an utterance unchecked, "
                f"{1e6 * checked / count:8.0f} checked: {100 * cost:+.1f} %"
            )
    print(f"checks cost at most {100 * worst:.1f} %, {100 * ALLOWED:.0f} % allowed")
    return 0 if args.short or worst <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
