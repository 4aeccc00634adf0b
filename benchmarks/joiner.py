"""Peak memory of running a joiner over a whole lattice, slice by slice.

    python benchmarks/joiner.py [--short] [-U 200] [-V 5000] [-T 250 500 1000]

Runs a joiner of icefall's shape (J = 512) for several T and encodes every slice as the dump does (topk:16), each T in a
process of its own, and prints the peak memory above the model beside the size of [T, U+1, V] in float32. Exits with 1
where the peak, without the encoded rows, exceeds that of the shortest lattice by more than a tenth of what the float32
logits would add: memory must not grow with T·U·V.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
JOINER = 512
BYTES_PER_NODE = 80  # of topk:16 with V ≤ 65536, tail and logz included
ALLOWED_GROWTH = 0.1  # share of the float32 logits


def encode_lattice(t: int, u: int, v: int) -> dict[str, float]:
    """Encode one lattice; return seconds, and the peak memory above that of the loaded model in MB."""
    import numpy as np
    import torch

    from logitstore.corpus.manifest import Utterance
    from logitstore.runner.driver import TeacherDriver, TeacherOutput
    from logitstore.runner.loader import LoadedUtterance
    from logitstore.store.layout import make_spec
    from logitstore.store.record_encoder import RecordEncoder, StreamPiece
    from logitstore.teachers.protocol import Head, TeacherSpec
    from logitstore.tokens.table import TokenTable
    from recipes.demo.model import Joiner, Sizes

    class JoinerTeacher:
        """A teacher that consists of a joiner; ``output`` is the pair of its projected sides."""

        def __init__(self) -> None:
            torch.manual_seed(0)
            self.model = torch.nn.Module()
            self.model.joiner = Joiner(Sizes(encoder=512, decoder=512, joiner=JOINER, vocab=v))

        def describe(self) -> TeacherSpec:
            return TeacherSpec("joiner", 16000, 640, (Head("rnnt", "joiner.output_linear", 0),))

        def transducer(self, output, b, labels):
            return output

        def join(self, enc, dec):
            return self.model.joiner(enc[:, None], dec[None], project_input=False)

    torch.set_num_threads(1)
    teacher = JoinerTeacher()
    table = TokenTable(("<blk>", *(f"t{i}" for i in range(1, v))), 0)
    driver = TeacherDriver(teacher, table, ["rnnt"], "cpu")
    encoder = RecordEncoder(make_spec(teacher.describe(), table, {"rnnt": "topk:16"}))
    labels = np.random.default_rng(0).integers(1, v, u).tolist()
    loaded = LoadedUtterance(Utterance("lattice", Path()), torch.zeros(1), t / 25, labels)
    sides = (torch.randn(t, JOINER), torch.randn(u + 1, JOINER))
    output = TeacherOutput(loaded, t, {}, sides, 0, labels={"rnnt": labels})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    with torch.inference_mode():
        for logits in driver.lattice(output):
            encoder.take(StreamPiece("rnnt", logits, labels=labels), "lattice")
    record = encoder.finish("lattice", {"rnnt": labels}, {"T": t, "U": u})
    seconds = time.perf_counter() - begin
    assert len(record.arrays["rnnt.logz"]) == t * (u + 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "mb": (peak - before) / 1024}


def main() -> int:
    """Read the command line, print a line for every T, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-U", type=int, default=200)
    parser.add_argument("-V", type=int, default=5000)
    parser.add_argument("-T", type=int, nargs="*", default=[250, 500, 1000])
    parser.add_argument("--short", action="store_true", help="two lattices, in seconds")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.short:
        args.T, args.U, args.V = [125, 375], 50, 2000
    if args.child:
        print(json.dumps(encode_lattice(args.child, args.U, args.V)))
        return 0
    print(f"one lattice, U = {args.U}, V = {args.V}, J = {JOINER}, encoded as topk:16")
    working, full = [], []
    for t in args.T:
        command = [sys.executable, __file__, "--child", str(t), "-U", str(args.U), "-V", str(args.V)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env)
        result = json.loads(done.stdout)
        full.append(4 * t * (args.U + 1) * args.V / 1e6)
        kept = t * (args.U + 1) * BYTES_PER_NODE / 1e6
        working.append(result["mb"] - kept)
        print(
            f"  T = {t:5d}: {result['mb']:6.0f} MB above the model ({kept:.0f} MB of them encoded rows), "
            f"{result['seconds']:.1f} s; [T, U+1, V] in float32: {full[-1]:.0f} MB",
            flush=True,
        )
    growth = max((w - working[0]) / (f - full[0]) for w, f in zip(working[1:], full[1:], strict=True))
    print(f"memory grows by {100 * growth:.1f} % of the float32 logits, {100 * ALLOWED_GROWTH:.0f} % allowed")
    return 0 if growth <= ALLOWED_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
