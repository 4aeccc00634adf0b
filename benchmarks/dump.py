"""The whole dump against the bare teacher, and its peak memory against the size of the corpus.

`python benchmarks/dump.py [--short] [--runs R]` prints both, for two teachers: the demo's (trained, 0.4 M parameters;
on a CPU, loading a recording and making its features takes as long as recognising it) and the same model at
the size of a real one (15 M parameters, V = 500, random weights: only speed is measured).

The bare teacher runs encoder, CTC head and joiner over every node, in the batches and slices of the dump, and
drops what it says; its features are in memory before the clock starts, and the seconds it took to load and
make them are measured beside it. The dump loads audio, makes features, checks itself, encodes, writes, seals
and indexes. Every run is a process of its own with one thread in torch's operators; runs alternate, medians
are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TEACHERS = {
    "demo": (f"{ROOT}/recipes/demo/teacher.py:load", 1200),
    "real size": (f"{ROOT}/benchmarks/dump.py:wide", 400),
}
STREAMS = {"ctc": "dense", "rnnt": "topk:16"}
BATCH_SECONDS = 60.0
ALLOWED_GROWTH = 1.5  # of the peak memory, for many times as many utterances


def wide():  # a factory, as any teacher's
    """The demo's model at the size of a real one; its weights are random."""
    import torch

    from logitstore.tokens.table import TokenTable
    from recipes.demo.model import AsrModel, Sizes
    from recipes.demo.teacher import TOKENS, DemoTeacher

    class Wide(DemoTeacher):
        def tokens(self) -> TokenTable:
            few = TokenTable.read(TOKENS, blank=0).tokens
            return TokenTable((*few, *(f"piece{i}" for i in range(len(few), 500))), 0)

    torch.manual_seed(0)
    sizes = Sizes(front=256, encoder=512, blocks=12, decoder=512, joiner=512, vocab=500)
    return Wide(AsrModel(sizes).requires_grad_(False), TOKENS)


def bare(teacher_name: str, manifest: str, _: str) -> dict[str, float]:
    """Seconds the teacher alone takes, and those of loading and featurising its input."""
    import torch

    from logitstore.corpus.manifest import read_manifest
    from logitstore.dump.options import DumpOptions
    from logitstore.runner.driver import TeacherDriver
    from logitstore.runner.loader import by_length, load
    from logitstore.teachers import load_teacher

    torch.set_num_threads(DumpOptions().cpu_threads)
    teacher: Any = load_teacher(teacher_name)
    table = teacher.tokens()
    driver = TeacherDriver(teacher, table, list(STREAMS), "cpu")
    utterances = list(read_manifest(manifest))
    begin = time.perf_counter()
    batches = list(by_length(utterances, BATCH_SECONDS, lambda utt, error: None))
    work = partial(load, teacher=teacher, table=table, needs_labels=True)
    loaded = [[work(u) for u in batch] for batch in batches]
    loading = time.perf_counter() - begin
    assert sum(map(len, loaded)) == len(utterances)
    begin = time.perf_counter()
    with torch.inference_mode():
        for batch in loaded:
            output = teacher.forward(*driver.pad([item.features for item in batch]))
            for b, item in enumerate(batch):
                enc, dec = teacher.transducer(output, b, item.labels)
                step = max(1, driver.slice_elements // (len(dec) * len(table)))
                for t in range(0, len(enc), step):
                    teacher.join(enc[t : t + step], dec)
    return {"seconds": time.perf_counter() - begin, "loading": loading}


def whole(teacher_name: str, manifest: str, out: str) -> dict[str, float]:
    """Seconds from the first recording to the finished store."""
    from logitstore.corpus.manifest import read_manifest
    from logitstore.dump.job import dump_logits
    from logitstore.dump.options import DumpOptions
    from logitstore.teachers import load_teacher

    teacher = load_teacher(teacher_name)
    options = DumpOptions(
        streams=STREAMS,
        batch_seconds=BATCH_SECONDS,
        shard_size="200",
        skip_checks="random weights: only speed is measured" if teacher_name.endswith(":wide") else "",
    )
    begin = time.perf_counter()
    dump_logits(teacher, read_manifest(manifest), out, options)
    return {"seconds": time.perf_counter() - begin}


def child(mode: str, teacher: str, manifest: Path, out: Path) -> dict[str, float]:
    """Run one mode in a process of its own; gives its seconds and peak memory in MB."""
    shutil.rmtree(out, ignore_errors=True)
    args = [sys.executable, __file__, "--child", mode, teacher, str(manifest), str(out)]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(args, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env)
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


def compare(name: str, runs: int, folder: Path, utterances: int) -> None:
    """Print one teacher's lines."""
    teacher = TEACHERS[name][0]
    manifest, out = folder / "m.jsonl", folder / "store"
    write_manifest(manifest, utterances)
    loading, seconds = [], {"bare": list[float](), "whole": list[float]()}
    for _ in range(runs):
        for mode, taken in seconds.items():
            result = child(mode, teacher, manifest, out)
            taken.append(result["seconds"])
            loading += [result["loading"]] if "loading" in result else []
    medians = {mode: statistics.median(taken) for mode, taken in seconds.items()}
    load = statistics.median(loading)
    ratio = statistics.median(w / b for b, w in zip(seconds["bare"], seconds["whole"], strict=True))
    both = statistics.median(
        w / (b + at) for b, w, at in zip(seconds["bare"], seconds["whole"], loading, strict=True)
    )
    print(f"{name}: {utterances} utterances, medians of {runs} alternating runs")
    print(
        f"  bare teacher              {medians['bare']:6.2f} s  (its audio and features: {load:.2f} s before)"
    )
    print(f"  whole dump                {medians['whole']:6.2f} s")
    print(f"  dump / bare               {ratio:6.2f}")
    print(f"  dump / (bare + features)  {both:6.2f}", flush=True)


def memory(name: str, folder: Path, utterances: int = 400, more: int = 10) -> bool:
    """Print the dump's peak memory for some utterances and for many more; return whether it hardly grows."""
    teacher = TEACHERS[name][0]
    peaks = []
    for times in (1, more):
        write_manifest(folder / "m.jsonl", utterances * times)
        peaks.append(child("whole", teacher, folder / "m.jsonl", folder / "store")["peak_mb"])
    print(f"peak memory of the dump ({name}): {peaks[0]:.0f} MB for {utterances} utterances,")
    print(
        f"  {peaks[1]:.0f} MB for {more} times as many ({peaks[1] / peaks[0]:.2f} ×, {ALLOWED_GROWTH} × allowed)"
    )
    return peaks[1] <= ALLOWED_GROWTH * peaks[0]


def main() -> int:
    """Read the command line, print the figures, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--short", action="store_true", help="one run of the demo's teacher on few utterances"
    )
    parser.add_argument("--child", nargs=4)
    args = parser.parse_args()
    if args.child:
        mode, teacher, manifest, out = args.child
        result = {"bare": bare, "whole": whole}[mode](teacher, manifest, out)
        result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(result))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if args.short:
            compare("demo", 1, Path(folder), utterances=40)
            bounded = memory("demo", Path(folder), utterances=20, more=4)
        else:
            for name, (_, utterances) in TEACHERS.items():
                compare(name, args.runs, Path(folder), utterances)
            bounded = memory("demo", Path(folder))
    return 0 if bounded else 1


if __name__ == "__main__":
    sys.exit(main())
