"""Test vectors of SPEC.md: a row of record ``b/2’`` in golden stores, stored and decoded."""

from pathlib import Path

import numpy as np

from logitstore import open_store

GOLDEN = Path(__file__).parent
UTTERANCE = "b/2’"
ROWS = {"path": 2}  # the first row that is not stored whole; of other stores the first row
CASES = (  # store, stream, and columns that hold one item a row or whose first items are shown
    ("zarr", "ctc", {"logp": 1, "logz": 1}),
    ("zarr", "rnnt", {"ids": 1, "logp": 1, "tail": 1, "logz": 1}),
    ("int8", "ctc", {"root": 1, "depth": 1, "logz": 1}),
    ("nucleus", "ctc", {"count": 1, "root": 1, "depth": 1}),
    ("path", "ctc", {"count": 1, "ids": 0, "below": 0, "tail": 1, "bend": 1}),
    ("factored", "ctc", {"h": 1}),
    ("factored-int8", "ctc", {"code": 1, "scale": 1}),
    ("factored-kl", "ctc", {"coded": None}),
    ("factored", "rnnt", {"enc": 1, "scale": 1, "dec": 1}),
    ("factored-kl", "rnnt", {"enc_coded": None, "dec_coded": None}),
    ("sample", "rnnt", {"logp": 1, "tail": 1}),
    ("kinds", "hidden_b", {"code": 1, "scale": 1}),
)


def lines():
    """Yield the lines of the block of test vectors."""
    for name, stream, columns in CASES:
        store = open_store(GOLDEN / f"v1.0-{name}")
        spec, record, number = store.spec.stream(stream), store.record(UTTERANCE), ROWS.get(name, 0)
        title = f"{spec.encoding}/{spec.form}" if spec.form else spec.encoding
        yield f"v1.0-{name} {stream} {title}, row {number}"
        for column, count in columns.items():
            array = record.arrays[f"{stream}.{column}"]
            if count == 0:  # any number of items a row
                kept = int(record.arrays[f"{stream}.count"][number])
                count = kept - (column == "below")
            first = number if column == "count" else 0
            shown = array if count is None else array[first : first + count]
            yield f"  {column} {_text(shown.ravel())}"
        target = store.decode(record)
        if not spec.stream_kind.classes:
            yield f"  is {_text(target.vectors(stream)[number])}"
            continue
        for temperature in (1.0, 3.0):
            row = target.log_probs(stream, temperature).reshape(-1, spec.classes)[number]
            yield f"  τ = {temperature:g} {_text(row)}"


def _text(values):
    """Return the items of an array: bytes as hexadecimal, integers as they are, other numbers to five digits."""
    if values.dtype == np.uint8:
        return values.tobytes().hex()
    if values.dtype.kind in "iu":
        return " ".join(map(str, values.tolist()))
    return " ".join(f"{v:.5g}" for v in values.tolist())


def text():
    """Return the block of test vectors."""
    return "".join(f"{line}\n" for line in lines())
