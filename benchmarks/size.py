"""Bytes a frame and what they lose, for every encoding and for other tools' layouts of the same rows.

    python benchmarks/size.py [--short] [--fsdd DIR --heads DIR]

Below each teacher's tables stands what was promised of such a one, and whether that is met; a missed promise makes
the program fail. --short takes the demo teacher and the encodings that have promises alone.

The demo teacher is measured on its twenty utterances; with --fsdd and --heads also the heads that
`recipes/digits/train.py` wrote, on digits that training never heard. Bytes are those of every file of the
store, index, metadata, checksums and entries included, over its frames; what a store keeps once (head, token
table) is counted apart. The divergence KL(teacher || stored) of a row, in nats, is measured against the
model's own logits, which go through no encoding. Other tools' layouts are those of `benchmarks/layouts.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.layouts import LAYOUTS
from logitstore import open_store
from logitstore.corpus.audio import load_audio
from logitstore.corpus.manifest import Manifest, read_manifest
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.dump.plan.trial import divergences
from logitstore.encodings.rows import logsumexp
from logitstore.store.inspect import footprint
from logitstore.store.layout import encoding_of
from logitstore.store.reader import Store
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
LATTICES = ("dense", "topk:8", "nucleus:1e-3", "factored", "factored:1e-3")
SHORT, SHORT_LATTICES = ("factored:1e-3", "factored:1e-4"), ("factored", "factored:1e-3")
BATCH, TURNS = 32, 5  # utterances that are decoded together, and how often
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
        bytes: on disk, a frame.
        share: of what dense float16 of all rows alone would be.
        lost: mean, 99th percentile and maximum of a row's nats, by temperature.
        changed: share of rows whose best class is not the teacher's.
        far: largest error of a log-probability at temperature 1; of a lattice.
        decoding: seconds of CPU for a batch of utterances.
    """

    bytes: float
    share: float
    lost: dict[float, tuple[float, float, float]]
    changed: float
    far: float = 0.0
    decoding: float = 0.0

    def line(self, name: str, once: float | None) -> str:
        """A line of the table."""
        kept = "" if once is None else f"{once / 1000:9.1f}"
        nats = "".join(f"{mean:11.1e} {p99:7.0e} {most:7.0e}" for mean, p99, most in self.lost.values())
        decoding = f"{1000 * self.decoding:7.0f}" if self.decoding else ""
        return (
            f"{name:30} {self.bytes:9.2f} {self.share:7.1%} {kept:>9}{nats} {self.changed:8.2%} {decoding:>7}"
        )


HEAD = (
    f"{'':30} {'B/frame':>9} {'of fp16':>7} {'once, kB':>9}"
    + "".join(f"{f'KL at {t:g}: mean':>13} {'p99':>6} {'max':>6} " for t in TEMPERATURES)
    + f"{'changed':>8} {'decode':>7}"
)


def of_rows(found: dict[float, list[np.ndarray]]) -> dict[float, tuple[float, float, float]]:
    """Mean, 99th percentile and maximum of all rows, by temperature."""
    every = {t: np.concatenate(values) for t, values in found.items()}
    return {
        t: (float(v.mean()), float(np.quantile(v, 0.99, method="higher")), float(v.max()))
        for t, v in every.items()
    }


def farthest(own: np.ndarray, served: np.ndarray) -> float:
    """The largest difference of two (N, V) arrays, each normalised to log-probabilities."""
    exact, given = (x.astype(np.float64) - logsumexp(x.astype(np.float64))[:, None] for x in (own, served))
    return float(np.abs(exact - given).max())


def decoding_time(store: Store, stream: str) -> float:
    """Seconds of CPU to decode a batch of utterances, the least of some turns."""
    spec = store.spec.stream(stream)
    encoding = encoding_of(spec, store.constants.get(stream))
    ids = (list(store) * BATCH)[:BATCH]
    names = [f"{stream}.{c.name}" for c in encoding.columns(spec.size)]
    records = [store.record(utt_id).arrays for utt_id in ids]
    given = [{n.partition(".")[2]: r[n] for n in names} for r in records]
    best = float("inf")
    for _ in range(TURNS):
        begin = time.process_time()
        encoding.decode_many(given, spec.size)
        best = min(best, time.process_time() - begin)
    return best


def measure(
    teacher: DemoTeacher, manifest: Manifest, own: Own, stream: str, encodings: tuple[str, ...]
) -> dict[str, Measurement]:
    """Dump with each encoding and print a line of it."""
    every: dict[str, Measurement] = {}
    print(f"\n{stream:30}{HEAD[30:]}")
    for text in encodings:
        encoding, _, storage = text.partition(" ")
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
            options = DumpOptions(streams={stream: encoding}, storage=storage or "zarr")
            dump_logits(teacher, manifest, Path(folder, "store"), options)
            store = open_store(Path(folder, "store"))
            found: dict[float, list[np.ndarray]] = {t: [] for t in TEMPERATURES}
            rows = frames = changed = 0
            far = 0.0
            for utt_id in store:
                target = store[utt_id]
                rows, frames = rows + len(target[stream]), frames + target.T
                for temperature, values in found.items():
                    served = target[stream].at(temperature).dense()
                    values.append(divergences(own[utt_id][stream], served, temperature))
                    if temperature == 1:
                        changed += int((own[utt_id][stream].argmax(1) != served.argmax(1)).sum())
                        far = max(far, farthest(own[utt_id][stream], served) if stream == "rnnt" else 0.0)
            weight = footprint(store.place, store.spec, map(store.entry, store.shards))
            decoding = decoding_time(store, stream) if encoding.startswith("factored:1e") else 0.0
        dense = 2 * next(iter(own.values()))[stream].shape[1]
        one = Measurement(
            weight.rows / frames,
            weight.rows / rows / dense,
            of_rows(found),
            changed / rows,
            far,
            decoding,
        )
        print(one.line(text, weight.once), flush=True)
        every[text] = one
    return every


def measure_layouts(own: Own, stream: str) -> None:
    """Print a line for every layout of another tool, on the same rows; frames and rows are the same there."""
    for name, layout in LAYOUTS.items():
        size = rows = changed = 0
        found: dict[float, list[np.ndarray]] = {t: [] for t in TEMPERATURES}
        for said in own.values():
            logits = said[stream].astype(np.float64)
            each, served = layout(logits)
            size, rows = size + each, rows + len(logits)
            changed += int((logits.argmax(1) != served.argmax(1)).sum())
            with np.errstate(invalid="ignore"):
                for temperature, values in found.items():
                    values.append(divergences(logits, served / temperature, temperature))
        dense = 2 * next(iter(own.values()))[stream].shape[1]
        print(Measurement(size / rows, size / rows / dense, of_rows(found), changed / rows).line(name, None))


SIZES = {  # most bytes a frame, by the number of classes: factored:1e-3, factored:1e-4, the lattice's factored:1e-3
    (0, 100): (8.0, None, 12.0),
    (100, 400): (46.0, None, 82.0),  # the demo teacher: a store of twenty utterances is half overhead
    (400, 1000): (20.0, 40.0, 32.0),
    (1000, 1 << 31): (None, None, None),
}
TAIL, CHANGED, DECODING = 5.0, 0.002, 0.060  # budgets of a row in a hundred; share of rows; seconds


def promises(
    classes: int, width: int, ctc: dict[str, Measurement], rnnt: dict[str, Measurement]
) -> Iterator[tuple[str, bool]]:
    """What is promised of such a teacher, what was measured, and whether that is met."""

    def line(what: str, found: float, most: float, unit: str = "B") -> tuple[str, bool]:
        good = found <= most
        return f"{what:56} {found:9.3g} of {most:8.3g} {unit:5} {'met' if good else 'NOT MET'}", good

    sizes = next(found for (low, high), found in SIZES.items() if low <= classes < high)
    for (text, budget), most in zip((("factored:1e-3", 1e-3), ("factored:1e-4", 1e-4)), sizes, strict=False):
        one = ctc[text]
        if most is not None:
            yield line(f"{text}, a frame", one.bytes, most)
        yield line(f"{text}, mean KL at 1, 2, 4", max(x[0] for x in one.lost.values()), budget, "nats")
        yield line(f"{text}, 99th percentile", max(x[1] for x in one.lost.values()), TAIL * budget, "nats")
        yield line(f"{text}, best classes changed", 100 * one.changed, 100 * CHANGED, "%")
        if 400 <= classes < 1000:
            yield line(f"{text}, decoding a batch", 1000 * one.decoding, 1000 * DECODING, "ms")
    if "factored:int8" in ctc:
        yield line("factored:int8, a frame, D + 14", ctc["factored:int8"].bytes, width + 14)
        mean = max(x[0] for x in ctc["factored:int8"].lost.values())
        yield line("factored:int8, mean KL at 1, 2, 4", mean, 1e-4, "nats")
    if rnnt:
        yield line("factored lattice, largest error of a log-probability", rnnt["factored"].far, 1e-3, "nats")
        coded = rnnt["factored:1e-3"]
        if sizes[2] is not None:
            yield line("factored:1e-3 lattice, a frame", coded.bytes, sizes[2])
        yield line("factored:1e-3 lattice, mean KL", max(x[0] for x in coded.lost.values()), 1e-3, "nats")
        if classes >= 400:
            yield line("factored:1e-3 lattice, share of dense float16", 100 * coded.share, 0.15, "%")


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
    parser.add_argument("--short", action="store_true", help="the demo teacher, and what is promised of it")
    parser.add_argument("--utterances", type=int, default=utterances, help="of digits, for each head")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of these, about")
    args = parser.parse_args()
    if bool(args.fsdd) != bool(args.heads):
        parser.error("--fsdd and --heads go together")
    return args


def main() -> None:
    """Read the command line, print a table for every teacher, and exit with 1 where a promise is missed."""
    args, missed = asked(__doc__, utterances=200), 0
    with tempfile.TemporaryDirectory() as folder:
        for name, teacher, path in cases(args, Path(folder)):
            manifest, lattices = read_manifest(path), teacher.describe().head("rnnt") is not None
            own = own_logits(teacher, manifest, lattices)
            frames = sum(len(x["ctc"]) for x in own.values())
            head = teacher.model.ctc_output[1]
            print(f"\n{name}: V = {head.out_features}, D = {head.in_features}, ", end="")
            print(f"{len(own)} utterances, {frames} frames")
            ctc, rnnt = measure(teacher, manifest, own, "ctc", SHORT if args.short else ENCODINGS), {}
            measure_layouts(own, "ctc")
            if lattices:
                few = read_manifest(path, limit=LATTICE_UTTERANCES)
                rnnt = measure(teacher, few, own, "rnnt", SHORT_LATTICES if args.short else LATTICES)
            print()
            for line, good in promises(head.out_features, head.in_features, ctc, rnnt):
                print(line, flush=True)
                missed += not good
    if missed:
        sys.exit(f"{missed} promises are not met")


if __name__ == "__main__":
    main()
