"""Token errors of CTC targets, and log-probabilities of lattices, as a student at another frame rate is served them.

    python benchmarks/resample.py [--short]

The greedy decode of the demo teacher's stored CTC logits is compared with the greedy decode of the targets that
``Store.batch`` serves at each rate and with each resampling method. Prints errors in percent of the tokens, and for
``keep-tokens`` the mean distance of a chosen frame from its student frame's own time, in student frames. Then the nats
per token, summed over all alignments, that the served lattices give the references: the fewer, the more is left of the
teacher's transition probabilities.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

from logitstore import DumpOptions, Store, dump_logits, load_teacher, open_store, read_manifest
from logitstore.targets.decode import greedy_ctc
from logitstore.targets.frames import Ramp, keep_tokens
from logitstore.tokens.transcript import edit_distance
from recipes.demo.rnnt_loss import rnnt_loss

ROOT = Path(__file__).resolve().parents[1]
RATES = ((3, 4), (2, 3), (1, 2), (1, 3), (1, 4))
METHODS = ("keep-tokens", "max-nonblank", "nearest", "linear")
OF_LATTICES = ("compose", "nearest", "linear")


def errors(store: Store, rate: tuple[int, int], method: str) -> float:
    """Return the token errors of the served targets in percent."""
    blank, wrong, tokens = store.tokens.blank, 0, 0
    for utt_id in store:
        target = store[utt_id]
        own = greedy_ctc(target.log_probs("ctc").argmax(1), blank)
        frames = -(-target.T * rate[0] // rate[1])
        batch = store.batch([utt_id], frames=[frames], method=method, streams=["ctc"])
        served = greedy_ctc(batch["ctc"].dense()[0].argmax(1).numpy(), blank)
        wrong, tokens = wrong + edit_distance(own, served), tokens + len(own)
    return 100 * wrong / tokens


def drift(store: Store, rate: tuple[int, int]) -> float:
    """Return the mean distance of chosen frames from their student frames' own times, in student frames."""
    found = []
    for utt_id in store:
        best = store[utt_id].log_probs("ctc").argmax(1)
        ramp = Ramp.whole(len(best), -(-len(best) * rate[0] // rate[1]))
        own_time = float(ramp.begin) + float(ramp.step) * np.arange(ramp.count)
        chosen = keep_tokens(best, store.tokens.blank, ramp)
        found.append(np.abs(chosen - own_time) / float(ramp.step))
    return float(np.concatenate(found).mean())


def nats(store: Store, rate: tuple[int, int], method: str) -> float:
    """Return the nats per token of the references in the served lattices."""
    total, tokens = 0.0, 0
    for utt_id in store:
        frames = -(-store[utt_id].T * rate[0] // rate[1])
        batch = store.batch([utt_id], frames=[frames], method=method, streams=["rnnt"])
        lattice = batch["rnnt"].dense()
        total += float(
            rnnt_loss(lattice, batch.labels, batch.lengths, batch.label_lengths, store.tokens.blank)
        )
        tokens += int(batch.label_lengths)
    return total / tokens


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="four utterances and two rates")
    short = parser.parse_args().short
    teacher = load_teacher(f"{ROOT}/recipes/demo/teacher.py:load")
    manifest = read_manifest(ROOT / "manifests" / "demo.jsonl", limit=4 if short else 0)
    with tempfile.TemporaryDirectory() as folder:
        dump_logits(teacher, manifest, folder, DumpOptions(streams={"ctc": "dense", "rnnt": "topk:16"}))
        store = open_store(folder)
        print(f"token errors in percent, {len(store)} utterances; drift in student frames")
        print("rate  " + "".join(f"{method:>14}" for method in METHODS) + f"{'drift':>8}")
        for rate in ((3, 4), (1, 2)) if short else RATES:
            cells = "".join(f"{errors(store, rate, method):14.2f}" for method in METHODS)
            print(f"{rate[0]}:{rate[1]:<4}{cells}{drift(store, rate):8.2f}")
        print(
            f"\nnats per token of the references in the lattices; {nats(store, (1, 1), 'compose'):.4f} at 1:1"
        )
        print("rate  " + "".join(f"{method:>14}" for method in OF_LATTICES))
        for rate in ((3, 4), (1, 2)) if short else RATES:
            cells = "".join(f"{nats(store, rate, method):14.4f}" for method in OF_LATTICES)
            print(f"{rate[0]}:{rate[1]:<4}{cells}")


if __name__ == "__main__":
    main()
