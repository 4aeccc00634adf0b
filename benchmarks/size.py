"""Bytes a frame and what they lose, for every encoding: `python benchmarks/size.py [--fsdd DIR --heads DIR]`.

Below each teacher's tables stands what was promised of such a one, and whether that is met.

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
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from logitstore import open_store
from logitstore.corpus.audio import load_audio
from logitstore.corpus.manifest import Manifest, read_manifest
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.dump.plan.trial import divergences
from logitstore.encodings.rows import logsumexp
from logitstore.store.inspect import footprint
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
    "nucleus:1e-3 zarr:blosc",
    "nucleus:1e-3@4",
    "factored",
    "factored:int8",
    "factored:1e-4",
    "factored:1e-3",
)
LATTICES = ("dense", "topk:8", "nucleus:1e-3", "factored")
LATTICE_UTTERANCES = 20  # of whole lattices, which are kept in memory
Own = dict[str, dict[str, np.ndarray]]


def own_logits(teacher: DemoTeacher, manifest: Manifest, lattices: bool) -> Own:
    """(N, V) logits of each utterance and stream, without hooks, encodings or stores."""
    said: Own = {}
    for number, utt in enumerate(manifest):
        features = teacher.features(load_audio(utt, teacher.describe().sample_rate))
        with torch.inference_mode():
            output = teacher.forward(features[None], torch.tensor([len(features)]))
            head = teacher.model.ctc_output[1]
            said[utt.id] = {"ctc": head(output.encoder_out)[0].numpy()}
            if lattices and number < LATTICE_UTTERANCES:
                sides = teacher.transducer(output, 0, teacher.labels(utt.text or ""))
                joint = teacher.join(*sides)
                said[utt.id]["rnnt"] = joint.flatten(0, -2).numpy()
    return said


@dataclass(frozen=True)
class Measurement:
    """One encoding of one stream.

    Attributes:
        bytes: on disk, a row.
        share: of what dense float16 alone would be.
        lost: nats a row on average, by temperature.
        far: largest error of a log-probability at temperature 1; of a lattice.
    """

    bytes: float
    share: float
    lost: dict[float, float]
    far: float


def farthest(own: np.ndarray, served: np.ndarray) -> float:
    """The largest difference of two (N, V) arrays, each normalised to log-probabilities."""
    exact, given = (x.astype(np.float64) - logsumexp(x.astype(np.float64))[:, None] for x in (own, served))
    return float(np.abs(exact - given).max())


def measure(
    teacher: DemoTeacher, manifest: Manifest, own: Own, stream: str, encodings: tuple[str, ...]
) -> dict[str, Measurement]:
    """Dump with each encoding and print a line of it."""
    every: dict[str, Measurement] = {}
    head = "".join(f"{f'KL at {t:g}: mean':>18} {'p99':>8}" for t in TEMPERATURES)
    unit = "frame" if stream == "ctc" else "node"
    print(f"\n{stream:24} {f'bytes/{unit}':>12} {'of fp16':>8} {'once, kB':>9}{head}")
    for text in encodings:
        encoding, _, storage = text.partition(" ")
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
            options = DumpOptions(streams={stream: encoding}, storage=storage or "zarr")
            dump_logits(teacher, manifest, Path(folder, "store"), options)
            store = open_store(Path(folder, "store"))
            found: dict[float, list[np.ndarray]] = {t: [] for t in TEMPERATURES}
            rows, far = 0, 0.0
            for utt_id in store:
                target = store[utt_id]
                rows += len(target[stream])
                for temperature, values in found.items():
                    served = target[stream].at(temperature).dense()
                    values.append(divergences(own[utt_id][stream], served, temperature))
                    if stream == "rnnt" and temperature == 1:
                        far = max(far, farthest(own[utt_id][stream], served))
            weight = footprint(store.place, store.spec, map(store.entry, store.shards))
        dense = 2 * next(iter(own.values()))[stream].shape[1]
        each = weight.rows / rows
        line = f"{text:24} {each:12.2f} {each / dense:8.1%} {weight.once / 1000:9.1f}"
        lost = {temperature: np.concatenate(values) for temperature, values in found.items()}
        line += "".join(f"{v.mean():18.1e} {np.quantile(v, 0.99):8.1e}" for v in lost.values())
        print(line, flush=True)
        every[text] = Measurement(each, each / dense, {t: float(v.mean()) for t, v in lost.items()}, far)
    return every


def promises(
    classes: int, width: int, ctc: dict[str, Measurement], rnnt: dict[str, Measurement]
) -> Iterator[str]:
    """What is promised of such a teacher, what was measured, and whether that is met."""

    def line(what: str, found: float, most: float, unit: str = "B") -> str:
        return f"{what:52} {found:9.3g} of {most:8.3g} {unit:5} {'met' if found <= most else 'NOT MET'}"

    if classes <= 50:
        for text in ("nucleus:1e-3", "nucleus:1e-3 zarr:blosc"):
            yield line(f"{text}, a frame", ctc[text].bytes, 10)
    if 500 <= classes < 2000:
        yield line("factored:1e-3, a frame", ctc["factored:1e-3"].bytes, 40)
        yield line("factored:1e-3, mean KL at 1, 2, 4", max(ctc["factored:1e-3"].lost.values()), 1e-3, "nats")
    if classes >= 2000:
        yield line("factored:int8, a frame, D + 8", ctc["factored:int8"].bytes, width + 8)
        yield line("factored:int8, mean KL at 1, 2, 4", max(ctc["factored:int8"].lost.values()), 1e-4, "nats")
        for t in TEMPERATURES:
            what = f"factored, mean KL at {t:g}, against dense's"
            yield line(what, ctc["factored"].lost[t], ctc["dense"].lost[t], "nats")
    if rnnt:
        yield line("factored lattice, largest error of a log-probability", rnnt["factored"].far, 1e-3, "nats")
    if rnnt and classes >= 500:
        yield line("factored lattice, share of dense float16", 100 * rnnt["factored"].share, 3, "%")


def cases(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, DemoTeacher, Path]]:
    """Every teacher with its manifest."""
    yield "the demo teacher", load_demo(), ROOT / "manifests" / "demo.jsonl"
    if args.heads:
        for path in sorted(args.heads.glob("*.safetensors"), key=lambda p: int(p.stem)):
            head = str(path.with_suffix(""))
            teacher = load_digits(head)
            pieces = Pieces.read(Path(f"{head}.tokens.txt"))
            manifest = write(
                args.fsdd, pieces, folder / path.stem, utterances=args.utterances, seconds=args.seconds
            )
            yield f"a head of real digits, {path.stem}", teacher, manifest


def asked(about: str | None, utterances: int) -> argparse.Namespace:
    """The command line: which heads to look at beside the demo teacher's."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fsdd", type=Path, help="folder that holds recordings/ of spoken digits")
    parser.add_argument("--heads", type=Path, help="what recipes/digits/train.py wrote")
    parser.add_argument("--utterances", type=int, default=utterances, help="of digits, for each head")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of these, about")
    args = parser.parse_args()
    if bool(args.fsdd) != bool(args.heads):
        parser.error("--fsdd and --heads go together")
    return args


def main() -> None:
    """Read the command line and print a table for every teacher."""
    args = asked(__doc__, utterances=200)
    with tempfile.TemporaryDirectory() as folder:
        for name, teacher, path in cases(args, Path(folder)):
            manifest, lattices = read_manifest(path), teacher.describe().head("rnnt") is not None
            own = own_logits(teacher, manifest, lattices)
            frames = sum(len(x["ctc"]) for x in own.values())
            head = teacher.model.ctc_output[1]
            print(f"\n{name}: V = {head.out_features}, D = {head.in_features}, ", end="")
            print(f"{len(own)} utterances, {frames} frames")
            ctc, rnnt = measure(teacher, manifest, own, "ctc", ENCODINGS), {}
            if lattices:
                rnnt = measure(teacher, read_manifest(path, limit=LATTICE_UTTERANCES), own, "rnnt", LATTICES)
            print("", *promises(head.out_features, head.in_features, ctc, rnnt), sep="\n", flush=True)


if __name__ == "__main__":
    main()
