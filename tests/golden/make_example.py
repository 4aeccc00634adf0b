"""Golden stores of the worked example, as they were written once; they never change: today's reader must read them.

    python tests/golden/make_example.py EMPTY_FOLDER

writes the worked example of SPEC.md; only a new version of the format gets new folders beside the old ones.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from logitstore import StoreWriter, TokenTable
from logitstore.schema.spec import Head, TeacherSpec
from logitstore.storage.places import open_place
from logitstore.store.layout import make_spec

TOKENS = TokenTable(("<blk>", "a", "b", "▁c", "d"), 0)
TEACHER = TeacherSpec(
    "golden", 16000, 640, (Head("ctc", "ctc.1", 0), Head("rnnt", "joiner.out", 0)), {"window": [25, 10]}
)


def logits(rows, step):
    """(rows, 5) small integers: (step·i + 3·v) mod 7."""
    i, v = np.ogrid[:rows, :5]
    return ((step * i + 3 * v) % 7).astype(np.float32)


def main(folder):
    for storage in ("zarr", "webdataset"):
        spec = make_spec(TEACHER, TOKENS, {"ctc": "dense", "rnnt": "topk:2"}, storage=storage)
        place = open_place(Path(folder, f"v{spec.version}-{storage}"))
        if place.exists():
            sys.exit(f"{place} is there already, and golden stores are never written twice")
        spec = replace(spec, made_with={})  # nothing in it depends on when or with what it was made
        with StoreWriter(place, spec).begin(TOKENS) as w:
            w.add(
                "a.1",
                ctc=logits(2, 2),
                rnnt=logits(4, 1).reshape(2, 2, 5),
                labels=[2],
                text="b",
                seconds=0.08,
            )
            w.add("b/2’", ctc=logits(1, 2), rnnt=logits(1, 1).reshape(1, 1, 5), labels=[], seconds=0.04)


if __name__ == "__main__":
    main(sys.argv[1])
