"""What a capture costs a recipe: the demo's decoding loop, with and without taps, in one process.

    python benchmarks/capture.py [--rounds 20]

Prints milliseconds a batch for both (median of rounds, taken in turns) and the difference in per cent.
Start-up (finding the model, opening the store, sealing) happens once: the times of whole programs show it.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def inner(rounds):
    """Runs in the captured process: the decoding loop, timed round by round."""
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
            again = [Cut(f"{c.id}-{turn}", c.audio, c.text) for c in cuts]
            indices = [list(range(i, i + 10)) for i in range(0, len(again), 10)]
            loader = DataLoader(SpeechRecognitionDataset(again), sampler=indices, batch_size=None)
            for number, batch in enumerate(loader):
                begin = time.perf_counter()
                decode_one_batch(params, model, batch)
                took.append((turn, number, time.perf_counter() - begin))
    print(json.dumps(took))


def run(command):
    begin = time.perf_counter()
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return time.perf_counter() - begin, json.loads(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inner:
        return inner(asked.rounds)
    plain = [sys.executable, __file__, "--inner", "--rounds", str(asked.rounds)]
    times = {"plain": [], "captured": []}
    whole = {"plain": [], "captured": []}
    for turn, name in itertools.product(range(3), times):
        with tempfile.TemporaryDirectory() as folder:
            capture = [sys.executable, "-m", "logitstore", "capture", "--ctc", "ctc_output.1"]
            command = plain if name == "plain" else [*capture, "--out", f"{folder}/s{turn}", "--", *plain]
            seconds, took = run(command)
        whole[name].append(seconds)
        times[name] += [s for turn, number, s in took if turn]
    a, b = (1000 * statistics.median(times[n]) for n in times)
    print(f"a batch of 10: {a:.2f} ms plain, {b:.2f} ms captured: {100 * (b / a - 1):+.1f} %")
    p, c = (statistics.median(whole[n]) for n in whole)
    print(f"whole program, {2 * asked.rounds} batches: {p:.2f} s plain, {c:.2f} s captured")


if __name__ == "__main__":
    main()
