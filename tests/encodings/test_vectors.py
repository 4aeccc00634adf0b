"""The test vectors of SPEC.md: the arrays shown there decode to the numbers shown there."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import logitstore
from logitstore.encodings import parse_encoding
from logitstore.encodings._codes import CodeModel
from logitstore.schema.spec import StreamSpec

SPEC = (Path(logitstore.__file__).parent / "schema" / "SPEC.md").read_text("utf-8")
VECTORS = {
    f"{v['encoding']} of {v['kind']}": v
    for v in map(json.loads, re.findall(r"^```json vector\n(.*?)^```$", SPEC, re.M | re.S))
}


def arrays_of(listed):
    return {n: np.array(a["items"], a["dtype"]).reshape(a["shape"]) for n, a in listed.items()}


def test_every_encoding_outside_the_core_has_a_vector():
    wanted = {
        "nucleus:0.001",
        "dense:int8",
        "factored",
        "factored:int8",
        "factored:0.01",
        "collapsed",
        "vectors:int8",
    }
    assert {v["encoding"] for v in VECTORS.values()} == wanted
    assert "factored:0.01 of rnnt" in VECTORS


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_of_the_specification(name):
    vector = VECTORS[name]
    kind, width, classes = vector["kind"], vector.get("width", 0), vector["V"]
    form, activation = "full" if kind == "rnnt" else "", vector.get("activation", "")
    stream = StreamSpec(kind, kind, classes, 0, vector["encoding"], form, width, activation)
    constants, arrays = arrays_of(vector.get("constants", {})), arrays_of(vector["arrays"])
    ready = parse_encoding(vector["encoding"]).bound(stream, constants)
    columns = ready.columns(classes if kind != "hidden" else width)
    assert {c.name: c.dtype for c in columns} == {n: a.dtype.name for n, a in arrays.items()}
    rows = ready.decode(arrays, classes if kind != "hidden" else width)
    if kind == "hidden":
        np.testing.assert_allclose(rows.values(), vector["numbers"], rtol=1e-5)
        return
    if rows.needs_next_labels:
        labels = [*vector["labels"], 0]
        rows = rows.with_next_labels(0, np.array(labels * (len(rows) // len(labels))))
    for temperature, wanted in vector["log_probabilities"].items():
        np.testing.assert_allclose(rows.at(float(temperature)).dense(), wanted, atol=1e-4)


def read_codes(constants, data):
    """The integers of SPEC E16 in plain Python: one symbol after the other, no numpy arithmetic."""
    c = {n: a.tolist() for n, a in constants.items()}
    frames, lanes = data[0] | data[1] << 8, data[2] | data[3] << 8
    words = [data[i] | data[i + 1] << 8 for i in range(8, len(data), 2)]
    assert data[4] | data[5] << 8 | data[6] << 16 | data[7] << 24 == len(words)
    states, at, escapes = [words[2 * i] << 16 | words[2 * i + 1] for i in range(lanes)], 2 * lanes, 0

    def symbol(lane, frequencies):
        nonlocal at
        m, start, s = states[lane] % 4096, 0, 0
        while start + frequencies[s] <= m:
            start, s = start + frequencies[s], s + 1
        states[lane] = frequencies[s] * (states[lane] // 4096) + m - start
        if states[lane] < 65536:
            states[lane], at = 65536 * states[lane] + words[at], at + 1
        return s

    classes, q, g = [], len(c["steps"]), len(c["sizes"])
    for _ in range(frames):
        q = symbol(0, c["step_tables"][q])
        g = symbol(0, c["size_tables"][q * (len(c["sizes"]) + 1) + g])
        classes.append((q, g))
    out, number, before = [], 0, None
    for q, g in classes:
        residual = [0] * len(c["begin"])
        for place in range(c["sizes"][g]):
            row = c["tables"][c["contexts"][q][g][place]]
            z, number = symbol(number % lanes, row), number + 1
            residual[place] = z // 2 if z % 2 == 0 else -(z + 1) // 2
            if z == len(row) - 1:
                word, escapes = words[len(words) - 1 - escapes], escapes + 1
                residual[place] = word - 65536 * (word >= 32768)
        predicted = c["begin"]
        if before is not None:
            sums = [
                sum(b * p[i] for b, p in zip(before, c["predict"], strict=True)) for i in range(len(residual))
            ]
            predicted = [(x + 128) // 256 for x in sums]
        before = [p + c["steps"][q] * e for p, e in zip(predicted, residual, strict=True)]
        out.append(before)
    assert states == [65536] * lanes
    assert at + escapes == len(words)
    return out


def test_codes_are_read_as_the_specification_says():
    """A reader of the rule alone, in plain integers, reads the vector's codes, two lanes and an escape among them."""
    vector = VECTORS["factored:0.01 of ctc"]
    constants, arrays = arrays_of(vector["constants"]), arrays_of(vector["arrays"])
    data = arrays["coded"].tolist()
    assert data[2] == 2
    assert read_codes(constants, data) == vector["codes"]
    assert CodeModel.of(constants).unpack([arrays["coded"]])[0].tolist() == vector["codes"]
