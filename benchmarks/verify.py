"""What checking every row's checksum costs a reader: ``python benchmarks/verify.py [STORE]``.

Without a store it makes some: 80 utterances of 5 to 15 s, V = 500, as CTC logits a recogniser would give
(peaky: one class far above noise), encoded as ``dense`` and as ``topk:16``, in both storages. Reads whole
targets in random order, from the page cache, as a student's loader would: arrays decoded to
log-probabilities. Every figure is a sum over utterances, of each the best of alternating rounds: what a
busy machine disturbed least.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from logitstore import StoreWriter, TokenTable, open_store

V, FRAMES, UTTERANCES, ROUNDS = 500, (125, 375), 80, 21
ALLOWED = 0.10


def make(folder, storage, encoding):
    table = TokenTable(("<blk>", *(f"t{i}" for i in range(1, V))), 0)
    random = np.random.default_rng(0)
    with StoreWriter.open(folder, tokens=table, streams={"ctc": encoding}, storage=storage) as writer:
        for i in range(UTTERANCES):
            frames = int(random.integers(*FRAMES))
            logits = random.normal(0, 2, (frames, V)).astype(np.float32)
            logits[np.arange(frames), random.integers(0, V, frames)] += 15
            writer.add(f"utt-{i:05d}", ctc=logits, seconds=frames / 25)
    return folder


def seconds(store, utt_id):
    """To read and decode one target."""
    begin = time.perf_counter()
    target = store[utt_id]
    for name in target.streams:
        target[name].at(1.0)
    return time.perf_counter() - begin


def measure(location):
    """Seconds an epoch with checks on, and off: of every utterance the best of its rounds."""
    stores = open_store(location), open_store(location, verify=False)
    ids = list(stores[0])
    random = np.random.default_rng(1)
    best = np.full((2, len(ids)), np.inf)
    for number in range(ROUNDS):
        for i in random.permutation(len(ids)):
            for which in (0, 1) if number % 2 else (1, 0):
                best[which, i] = min(best[which, i], seconds(stores[which], ids[i]))
    return *best.sum(axis=1), len(ids)


def main(locations):
    worst = 0.0
    with tempfile.TemporaryDirectory() as root:
        if not locations:
            kinds = [(s, e) for s in ("zarr", "webdataset") for e in ("dense", "topk:16")]
            locations = [make(Path(root, f"{s}-{e}"), s, e) for s, e in kinds]
        for location in locations:
            on, off, count = measure(location)
            cost = on / off - 1
            worst = max(worst, cost)
            print(
                f"{Path(location).name:<20} {1e6 * off / count:8.0f} µs an utterance unchecked, "
                f"{1e6 * on / count:8.0f} checked: {100 * cost:+.1f} %"
            )
    print(f"checks cost at most {100 * worst:.1f} %, {100 * ALLOWED:.0f} % allowed")
    return 0 if worst <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
