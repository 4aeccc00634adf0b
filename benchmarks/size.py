"""Bytes a frame and what they lose, for every encoding: `python benchmarks/size.py [--fsdd DIR --heads DIR]`.

The demo teacher is measured on its twenty utterances; with --fsdd and --heads also the heads that
`recipes/digits/train.py` wrote, on digits that training never heard. Bytes are those of every file of the
store, index, row texts, checksums and entries included, over its frames; what a store keeps once (head, token
table) is counted apart. The divergence KL(teacher || stored) of a row, in nats, is measured against the
model's own logits, which go through no encoding.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from logitstore import open_store
from logitstore.audio import load_audio
from logitstore.divergence import divergences
from logitstore.dump import DumpOptions, dump
from logitstore.footprint import footprint
from logitstore.manifest import Manifest, read_manifest
from recipes.demo.pieces import Pieces
from recipes.demo.teacher import DemoTeacher
from recipes.demo.teacher import load as load_demo
from recipes.digits.corpus import write
from recipes.digits.teacher import load as load_digits

ROOT = Path(__file__).resolve().parents[1]
TEMPERATURES = (1.0, 2.0, 4.0)
ENCODINGS = (
    "dense",
    "dense:int8",
    "topk:8",
    "topk:32",
    "nucleus:1e-3",
    "nucleus:1e-3 zarr:zstd",
    "nucleus:1e-3@4",
    "factored",
    "factored:int8",
    "factored:int6",
    "factored:int4",
    "factored:1e-4",
    "factored:1e-3",
)
LATTICES = ("dense", "topk:8", "nucleus:1e-3", "factored")
Own = dict[str, dict[str, np.ndarray]]


def own_logits(teacher: DemoTeacher, manifest: Manifest, lattices: bool) -> Own:
    """(N, V) float64 logits of each utterance and stream, without hooks, encodings or stores."""
    said: Own = {}
    for utt in manifest:
        features = teacher.features(load_audio(utt, teacher.describe().sample_rate))
        with torch.inference_mode():
            output = teacher.forward(features[None], torch.tensor([len(features)]))
            head = teacher.model.ctc_output[1]
            said[utt.id] = {"ctc": head(output.encoder_out)[0].double().numpy()}
            if lattices:
                sides = teacher.transducer(output, 0, teacher.labels(utt.text or ""))
                joint = teacher.join(*sides)
                said[utt.id]["rnnt"] = joint.flatten(0, -2).double().numpy()
    return said


def measure(
    teacher: DemoTeacher, manifest: Manifest, own: Own, stream: str, encodings: tuple[str, ...]
) -> None:
    """Dump with each encoding and print a line of it."""
    head = "".join(f"{f'KL at {t:g}: mean':>18} {'p99':>8}" for t in TEMPERATURES)
    unit = "frame" if stream == "ctc" else "node"
    print(f"\n{stream:24} {f'bytes/{unit}':>12} {'of fp16':>8} {'once, kB':>9}{head}")
    for text in encodings:
        encoding, _, storage = text.partition(" ")
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
            options = DumpOptions(streams={stream: encoding}, storage=storage or "zarr")
            dump(teacher, manifest, Path(folder, "store"), options)
            store = open_store(Path(folder, "store"))
            found: dict[float, list[np.ndarray]] = {t: [] for t in TEMPERATURES}
            rows = 0
            for utt_id in store:
                target = store[utt_id]
                rows += len(target[stream])
                for temperature, values in found.items():
                    served = target[stream].at(temperature).dense()
                    values.append(divergences(own[utt_id][stream], served, temperature))
            weight = footprint(store.place, store.spec, map(store.entry, store.shards))
        dense = 2 * next(iter(own.values()))[stream].shape[1]
        line = f"{text:24} {weight.rows / rows:12.2f} {weight.rows / rows / dense:8.1%}"
        line += f" {weight.once / 1000:9.1f}"
        for values in found.values():
            lost = np.concatenate(values)
            line += f"{lost.mean():18.1e} {np.quantile(lost, 0.99):8.1e}"
        print(line, flush=True)


def cases(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, DemoTeacher, Manifest, bool]]:
    """Every teacher with its manifest, and whether it has a lattice."""
    yield "the demo teacher", load_demo(), read_manifest(ROOT / "manifests" / "demo.jsonl"), True
    if args.heads:
        for path in sorted(args.heads.glob("*.safetensors"), key=lambda p: int(p.stem)):
            head = str(path.with_suffix(""))
            teacher = load_digits(head)
            pieces = Pieces.read(Path(f"{head}.tokens.txt"))
            manifest = write(
                args.fsdd, pieces, folder / path.stem, utterances=args.utterances, seconds=args.seconds
            )
            yield f"a head of real digits, {path.stem}", teacher, read_manifest(manifest), False


def main() -> None:
    """Read the command line and print a table for every teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fsdd", type=Path, help="folder that holds recordings/ of spoken digits")
    parser.add_argument("--heads", type=Path, help="what recipes/digits/train.py wrote")
    parser.add_argument("--utterances", type=int, default=200, help="of digits, for each head")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of these, about")
    args = parser.parse_args()
    if bool(args.fsdd) != bool(args.heads):
        parser.error("--fsdd and --heads go together")
    with tempfile.TemporaryDirectory() as folder:
        for name, teacher, manifest, lattices in cases(args, Path(folder)):
            own = own_logits(teacher, manifest, lattices)
            frames = sum(len(x["ctc"]) for x in own.values())
            head = teacher.model.ctc_output[1]
            print(f"\n{name}: V = {head.out_features}, D = {head.in_features}, ", end="")
            print(f"{len(own)} utterances, {frames} frames")
            measure(teacher, manifest, own, "ctc", ENCODINGS)
            if lattices:
                measure(teacher, manifest, own, "rnnt", LATTICES)


if __name__ == "__main__":
    main()
