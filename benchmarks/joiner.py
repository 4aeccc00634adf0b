"""Peak memory of driving a joiner over a whole lattice, slice by slice.

`python benchmarks/joiner.py [-U 200] [-V 5000]` drives a joiner of icefall's shape (J = 512) for several T
and encodes every slice as the dump does (topk:16), each in a process of its own, and prints the peak above
the model beside the size that [T, U+1, V] would have in float32.
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


def drive(t: int, u: int, v: int) -> dict[str, float]:
    """Encode one lattice; gives seconds, and peak memory above that of the loaded model, in MB."""
    import numpy as np
    import torch
    from logitstore.store.row_encoder import RowEncoder

    from logitstore.corpus.manifest import Utterance
    from logitstore.runner.driver import TeacherDriver, TeacherOutput
    from logitstore.runner.loader import LoadedUtterance
    from logitstore.store.layout import make_spec
    from logitstore.teachers.protocol import Head, TeacherSpec
    from logitstore.tokens.table import TokenTable
    from recipes.demo.model import Joiner, Sizes

    class Teacher:
        """Nothing but a joiner between given projections."""

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
    teacher = Teacher()
    table = TokenTable(("<blk>", *(f"t{i}" for i in range(1, v))), 0)
    driver = TeacherDriver(teacher, table, ["rnnt"], "cpu")
    encoder = RowEncoder(make_spec(teacher.describe(), table, {"rnnt": "topk:16"}))
    labels = np.random.default_rng(0).integers(1, v, u).tolist()
    loaded = LoadedUtterance(Utterance("lattice", Path()), torch.zeros(1), t / 25, labels)
    output = TeacherOutput(loaded, t, None, (torch.randn(t, JOINER), torch.randn(u + 1, JOINER)), 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    for piece in driver.lattice(output):
        encoder.take("rnnt", piece, "lattice")
    row = encoder.finish("lattice", {"rnnt": labels}, {"T": t, "U": u})
    seconds = time.perf_counter() - begin
    assert len(row.arrays["rnnt.logz"]) == t * (u + 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "mb": (peak - before) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-U", type=int, default=200)
    parser.add_argument("-V", type=int, default=5000)
    parser.add_argument("-T", type=int, nargs="*", default=[250, 500, 1000])
    parser.add_argument("--child", type=int)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(drive(args.child, args.U, args.V)))
        return
    print(f"one lattice, U = {args.U}, V = {args.V}, J = {JOINER}, encoded as topk:16")
    for t in args.T:
        command = [sys.executable, __file__, "--child", str(t), "-U", str(args.U), "-V", str(args.V)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env)
        result = json.loads(done.stdout)
        full = 4 * t * (args.U + 1) * args.V / 1e6
        kept = t * (args.U + 1) * 76 / 1e6
        print(
            f"  T = {t:5d}: {result['mb']:6.0f} MB above the model ({kept:.0f} MB of them encoded rows), "
            f"{result['seconds']:.1f} s; [T, U+1, V] in float32: {full:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
