"""Cost of a capture: the demo's decoding loop with and without it.

    python benchmarks/capture.py [--short] [--rounds 20] [--turns 3]

Prints the processor time of a batch, which other jobs of the machine disturb less than the clock: of the recipe's own
thread in its decoding call, and of all threads with the loading of audio. Then that of whole programs with all their
processes at two lengths, which gives the cost of each further batch, and the cost that does not depend on the number of
batches (imports, finding the model, the digest of its weights, opening the store, sealing). Exits with 1 where the
store does not hold every utterance.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from logitstore import open_store

ROOT = Path(__file__).resolve().parents[1]


def inner(rounds):
    """Run the decoding loop in the captured process, and print its times round by round."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "recipes" / "icefall_shaped")]
    import torch
    from asr_datamodule import Cut, SpeechRecognitionDataset, read_cuts
    from decode import decode_one_batch, load_model
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    params = argparse.Namespace(method="ctc-greedy-search")
    model = load_model(ROOT / "recipes" / "demo")
    cuts = read_cuts(ROOT / "manifests" / "demo.jsonl")
    took = []
    with torch.no_grad():
        for turn in range(rounds):
            if turn == 1:
                cpu = time.process_time()
            again = [Cut(f"{c.id}-{turn}", c.audio, c.text) for c in cuts]
            indices = [list(range(i, i + 10)) for i in range(0, len(again), 10)]
            loader = DataLoader(SpeechRecognitionDataset(again), sampler=indices, batch_size=None)
            for number, batch in enumerate(loader):
                begin = time.thread_time()
                decode_one_batch(params, model, batch)
                took.append((turn, number, time.thread_time() - begin))
    cpu = time.process_time() - cpu
    print(json.dumps({"took": took, "cpu": cpu / (len(took) - len(indices))}))


def run(command):
    """Return the processor time, in seconds, of a command with its children, and the JSON that it prints."""
    begin = spent()
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return spent() - begin, json.loads(out)


def spent():
    """Return the processor time of all children that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def commands(rounds, folder):
    """Return the plain command and the captured one."""
    plain = [sys.executable, __file__, "--inner", "--rounds", str(rounds)]
    capture = [sys.executable, "-m", "logitstore", "capture", "--ctc", "ctc_output.1", "--out", folder]
    return {"plain": plain, "captured": [*capture, "--", *plain]}


def main():
    """Read the command line, print the figures, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one turn of few rounds")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inner:
        inner(asked.rounds)
        return 0
    if asked.short:
        asked.rounds, asked.turns = 2, 1
    recordings = len((ROOT / "manifests" / "demo.jsonl").read_text("utf-8").splitlines())
    complete = True
    times = {"plain": [], "captured": []}
    whole = {(n, r): [] for n in times for r in (asked.rounds, 3 * asked.rounds)}
    cpu = {"plain": [], "captured": []}
    for _, (name, rounds) in itertools.product(range(asked.turns), whole):  # alternating
        with tempfile.TemporaryDirectory() as folder:
            seconds, said = run(commands(rounds, f"{folder}/store")[name])
            if name == "captured":
                complete &= len(open_store(f"{folder}/store")) == rounds * recordings
        whole[name, rounds].append(seconds)
        cpu[name].append(1000 * said["cpu"])
        times[name] += [1000 * s for turn, number, s in said["took"] if turn]
    a, b = (statistics.median(times[n]) for n in times)
    print(f"decoding a batch of 10: {a:.2f} ms plain, {b:.2f} ms captured: {100 * (b / a - 1):+.1f} %")
    a, b = (min(cpu[n]) for n in cpu)
    print(f"with audio, all threads: {a:.2f} ms plain, {b:.2f} ms captured: {100 * (b / a - 1):+.1f} %")
    print(f"whole program, processor time of all its processes, medians of {asked.turns}:")
    batch, once = {}, {}
    for name in times:
        short, long = (statistics.median(whole[name, r]) for r in (asked.rounds, 3 * asked.rounds))
        batch[name] = (long - short) / (4 * asked.rounds)  # of two batches a round
        once[name] = short - 2 * asked.rounds * batch[name]
        print(
            f"  {name:<8} {2 * asked.rounds} batches {short:.2f} s, {6 * asked.rounds} batches {long:.2f} s"
        )
    a, b = (1000 * batch[n] for n in times)
    print(f"  a batch of 10 more: {a:.1f} ms plain, {b:.1f} ms captured: {100 * (b / a - 1):+.1f} %")
    print(f"  once: {once['captured'] - once['plain']:+.2f} s")
    print("every utterance was stored" if complete else "utterances are missing in the store")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
