"""The whole dump against the bare teacher, and its peak memory against the size of the corpus.

`python benchmarks/dump.py [--utterances N] [--runs R]` prints both. The bare teacher runs the same batches
(encoder, CTC head, joiner over every node in slices), its features already in memory, and drops what it says;
the dump also loads audio, makes features, encodes, writes, seals and indexes. Every run is a process of its
own; the two alternate, and medians are compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEACHER = f"{ROOT}/recipes/demo/teacher.py:load"
STREAMS = {"ctc": "dense", "rnnt": "topk:16"}
BATCH_SECONDS = 60.0


def bare(manifest: str, _: str) -> float:
    """Seconds the teacher alone takes."""
    import torch

    from logitstore.audio import seconds_of
    from logitstore.batches import by_length, load
    from logitstore.drive import Driver
    from logitstore.dump import DumpOptions
    from logitstore.manifest import read_manifest
    from logitstore.teachers import load_teacher

    teacher = load_teacher(TEACHER)
    table = teacher.tokens()
    driver = Driver(teacher, table, list(STREAMS), "cpu")
    utterances = list(read_manifest(manifest))
    batches = list(by_length(utterances, BATCH_SECONDS, lambda utt, error: None))
    assert sum(map(len, batches)) == len(utterances)
    assert all(seconds_of(u) > 0 for u in utterances)
    work = partial(load, teacher=teacher, table=table, needs_labels=True)
    loaded = [[work(u) for u in batch] for batch in batches]
    torch.set_num_threads(DumpOptions().cpu_threads)
    begin = time.perf_counter()
    with torch.inference_mode():
        for batch in loaded:
            output = teacher.forward(*driver.pad([item.features for item in batch]))
            for b, item in enumerate(batch):
                enc, dec = teacher.transducer(output, b, item.labels)
                step = max(1, driver.slice_elements // (len(dec) * len(table)))
                for t in range(0, len(enc), step):
                    teacher.join(enc[t : t + step], dec)
    return time.perf_counter() - begin


def whole(manifest: str, out: str) -> float:
    """Seconds from the first recording to the finished store."""
    from logitstore.dump import DumpOptions, dump
    from logitstore.manifest import read_manifest
    from logitstore.teachers import load_teacher

    teacher = load_teacher(TEACHER)
    options = DumpOptions(streams=STREAMS, batch_seconds=BATCH_SECONDS, shard_size="200")
    begin = time.perf_counter()
    dump(teacher, read_manifest(manifest), out, options)
    return time.perf_counter() - begin


def child(mode: str, manifest: Path, out: Path) -> dict[str, float]:
    """Run one mode in a process of its own; gives its seconds and peak memory in MB."""
    shutil.rmtree(out, ignore_errors=True)
    args = [sys.executable, __file__, "--child", mode, str(manifest), str(out)]
    done = subprocess.run(args, check=True, capture_output=True, text=True, cwd=ROOT)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def write_manifest(path: Path, utterances: int) -> None:
    """The demo's recordings again and again, under ids of their own."""
    lines = [
        json.loads(line) for line in (ROOT / "manifests/demo.jsonl").read_text("utf-8").splitlines() if line
    ]
    with path.open("w", encoding="utf-8") as f:
        for i in range(utterances):
            line = dict(lines[i % len(lines)])
            line |= {"id": f"{line['id']}-{i:06d}", "audio": str(ROOT / "manifests" / line["audio"])}
            f.write(json.dumps(line, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=400)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", nargs=3)
    args = parser.parse_args()
    if args.child:
        mode, manifest, out = args.child
        seconds = {"bare": bare, "whole": whole}[mode](manifest, out)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mb": peak}))
        return
    with tempfile.TemporaryDirectory() as folder:
        manifest, out = Path(folder, "m.jsonl"), Path(folder, "store")
        write_manifest(manifest, args.utterances)
        seconds: dict[str, list[float]] = {"bare": [], "whole": []}
        for _ in range(args.runs):
            for mode, taken in seconds.items():
                taken.append(child(mode, manifest, out)["seconds"])
        medians = {mode: statistics.median(taken) for mode, taken in seconds.items()}
        ratios = [w / b for b, w in zip(seconds["bare"], seconds["whole"], strict=True)]
        print(f"{args.utterances} utterances, medians of {args.runs} alternating runs")
        print(f"  bare teacher   {medians['bare']:.2f} s")
        print(f"  whole dump     {medians['whole']:.2f} s")
        print(
            f"  ratio          {statistics.median(ratios):.2f} (of {', '.join(f'{r:.2f}' for r in ratios)})"
        )
        few = child("whole", manifest, out)["peak_mb"]
        write_manifest(manifest, 10 * args.utterances)
        many = child("whole", manifest, out)["peak_mb"]
        print(f"peak memory of the dump: {few:.0f} MB, of ten times the utterances: {many:.0f} MB", end="")
        print(f" ({many / few:.2f} ×)")


if __name__ == "__main__":
    main()
