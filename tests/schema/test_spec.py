"""What a store says of itself: there and back, forgiving what is new and optional, refusing what is not."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore import errors
from logitstore.dump.blocks import JobPart
from logitstore.errors import CorruptError, FormatError, LogitStoreError, UnknownName, UsageError, VocabError
from logitstore.schema.checksums import (
    compact_json,
    crc32c,
    id_hash,
    open_json,
    parse_json,
    seal_json,
    sha256,
)
from logitstore.schema.spec import Column, Head, StoreSpec, StreamSpec, TeacherSpec, differences
from logitstore.store.layout import columns_of, make_spec
from logitstore.tokens.table import TokenTable

TABLE = TokenTable(("<blk>", "a", "b"), 0)
TEACHER = TeacherSpec("t", 16000, 640, (Head("ctc", "ctc.1", 0, "BVT"),), {"dither": 0.0, "mel": [80, "x"]})


def spec(**changes):
    return replace(make_spec(TEACHER, TABLE, {"ctc": "dense", "rnnt": "topk:2"}), **changes)


STREAM = StreamSpec("a", "ctc", 5, 0, "dense").to_json()


def travel(value):
    return open_json(seal_json(value.to_json()), "x")


def test_there_and_back():
    s = spec(manifest={"sha256": "sha256:1"}, allowed=({"field": "teacher.name", "was": 1, "now": [2]},))
    assert StoreSpec.from_json(travel(s)) == s
    assert "blank" not in json.dumps(
        [s.teacher.to_json(), *(t.to_json() for t in s.streams)]
    )  # in tokens alone
    column = Column("a", "int8", (3, 4), "x")
    assert Column.from_json(json.loads(json.dumps(column.to_json()))) == column


def test_unknown_optional_keys_are_ignored_at_every_level():
    value = travel(spec())
    value["new"] = value["teacher"]["new"] = value["streams"][0]["new"] = {"x": 1}
    value["teacher"]["heads"][0]["new"] = 1
    value["version"] = "1.9"
    assert replace(StoreSpec.from_json(value), version="1.0") == spec()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"records": -1}, "records"),
        ({"records": 3.0}, "records"),
        ({"version": "2.0"}, "'2.0'"),
        ({"version": "10.0"}, "'10.0'"),
        ({"version": None}, "version"),
        ({"format": "other"}, "F4"),
        ({"format": None}, "F4"),
        ({"teacher": None}, "StoreSpec"),
        ({"teacher": {"name": "x"}}, "TeacherSpec"),
        ({"teacher": {"name": "x", "sample_rate": 0, "frame_shift": 1}}, "sample rate"),
        ({"streams": [{"name": "x"}]}, "StreamSpec"),
        ({"streams": 5}, "StoreSpec"),
        ({"streams": [{**STREAM, "kind": "odd"}]}, "odd"),
        ({"streams": [STREAM, STREAM]}, "one name"),
        ({"streams": [{**STREAM, "name": "Ctc"}]}, "name of a stream"),
        ({"tokens": {"sha256": "x", "size": 1 << 40, "blank": 0}}, "classes"),
        ({"tokens": {"sha256": "x", "size": 5, "blank": 5}}, "blank"),
        ({"tokens": {}}, "tokens"),
        ({"tokens": []}, "StoreSpec"),
        ({"storage": {}}, "storage"),
        ({"storage": {"name": 3}}, "storage"),
    ],
)
def test_what_cannot_be_read_is_refused(change, says):
    with pytest.raises(FormatError, match=says):
        StoreSpec.from_json({**travel(spec()), **change})


def test_missing_keys_are_refused():
    for key in ("format", "version", "teacher", "tokens", "streams", "storage"):
        value = travel(spec())
        del value[key]
        with pytest.raises(FormatError):
            StoreSpec.from_json(value)


def test_differences_name_the_field():
    was = spec()
    now = replace(was, teacher=replace(TEACHER, weights="w", features={"dither": 1.0, "mel": [80, "y"]}))
    found = {field: (a, b) for field, a, b in differences(was, now)}
    assert found == {
        "teacher.weights": ("", "w"),
        "teacher.features.dither": (0.0, 1.0),
        "teacher.features.mel[1]": ("x", "y"),
    }
    assert differences(was, replace(was, made_with={"torch": "9"}, allowed=({"field": "x"},))) == []


def test_features_compare_as_json_gives_them_back():
    teacher = replace(TEACHER, features={"window": (25, 10), 3: {"a": (1,)}})
    s = make_spec(teacher, TABLE, {"ctc": "dense"})
    assert differences(StoreSpec.from_json(travel(s)), s) == []
    for bad in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((TypeError, ValueError)):
            replace(TEACHER, features=bad)


def test_making_a_spec():
    s = spec()
    assert [c.name for c in columns_of(s)] == [
        "ctc.logp",
        "ctc.logz",
        "rnnt.ids",
        "rnnt.logp",
        "rnnt.tail",
        "rnnt.logz",
        "rnnt.labels",
    ]
    assert (s.stream("rnnt").form, s.stream("ctc").form) == ("full", "")
    with pytest.raises(FormatError, match="ctc, rnnt"):
        s.stream("x")
    with pytest.raises(UnknownName, match="rnnt"):
        make_spec(TEACHER, TABLE, {"rnn-t": "dense"})
    with pytest.raises(UsageError, match="3 classes"):
        make_spec(TEACHER, TABLE, {"ctc": "topk:4"})
    with pytest.raises(VocabError, match="blank"):
        make_spec(TEACHER, TokenTable(("a", "b", "<blk>"), 2), {"ctc": "dense"})


# ---- JSON and checksums


def test_crc32c_is_castagnoli():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0
    assert crc32c(b"6789", crc32c(b"12345")) == crc32c(b"123456789")
    array = np.frombuffer(b"123456789", np.uint8)
    assert crc32c(array) == 0xE3069283
    assert crc32c(np.zeros((0, 7), np.float16)) == 0
    assert sha256(b"").startswith("sha256:e3b0c44298fc")
    assert id_hash("’") != id_hash("'")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('abé’ \n"', max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "’"]), json_values))
def test_sealed_json_comes_back(value):
    assert open_json(seal_json(value), "x") == value


def test_compact_json():
    value = {"b": 1, "a": ["’\n\u0001\x7f", 0.12, 1e-07, 1e22, True, None], "é": {}}
    assert compact_json(value) == '{"a":["’\\n\\u0001\x7f",0.12,1e-07,1e+22,true,null],"b":1,"é":{}}'.encode()
    with pytest.raises(ValueError):
        compact_json({"a": float("inf")})


def test_every_changed_byte_of_sealed_json_is_noticed():
    value = {"name": "x", "numbers": [1, 2.5, -3], "text": "’"}
    data = seal_json(value)
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            with pytest.raises((FormatError, CorruptError)):
                open_json(bytes(changed), "x")


def test_the_checksum_of_json_is_that_of_the_bytes_before_its_last_line():
    data = seal_json({"a": 40.0, "b": {"crc32c": 1}})
    covered, last = data[: data.rindex(b'"crc32c"')], data[data.rindex(b'"crc32c"') :]
    assert last == f'"crc32c": {crc32c(covered)}}}\n'.encode()
    assert json.loads(data)["a"] == 40.0
    free = b'{"a":  4e1 ,\n'  # another writer's layout
    assert open_json(free + b'"crc32c": %d}\n' % crc32c(free), "x") == {"a": 40.0}


def resealed(covered):
    """Any bytes, with a last line that is right for them."""
    return covered + b'"crc32c": %d}\n' % crc32c(covered)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"\xff",
        b"[1]",
        b"3",
        b"{}",
        b'{"crc32c": "1"}',
        b'{"a": 1, "crc32c": 1}',
        resealed(b'{"a": 1, "a": 2,\n'),
        resealed(b'{"crc32c": 1,\n'),
        resealed(b'{"a": NaN,\n'),
        resealed(b'{"a": -Infinity,\n'),
        resealed(b'{"a": 1e999,\n'),
        resealed(b'{"a": "\\ud800",\n'),
        resealed(b'{"a": ' + b"9" * 5000 + b",\n"),
        resealed(b'{"a":' * 100_000 + b"\n"),
        resealed(b"{\n") + b"more",
    ],
    ids=lambda b: repr(b[:24]),
)
def test_json_from_strangers_is_refused(bad):
    with pytest.raises(FormatError):
        open_json(bad, "x")


def test_json_has_a_limit(monkeypatch):
    monkeypatch.setattr("logitstore.schema.checksums.MAX_JSON_BYTES", 10)
    with pytest.raises(FormatError, match="at most 10"):
        parse_json(b'"123456789"', "x")


# ---- errors, parts


def every_error(kind=LogitStoreError):
    yield kind
    for child in kind.__subclasses__():
        yield from every_error(child)


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda k: k.__name__)
def test_errors_survive_process_borders(kind):
    error = kind("what is wrong", where="here", why="it matters", do="this")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error) == "here: what is wrong\n  it matters\n  this"
    assert (again.what, again.where, again.why, again.do) == (error.what, error.where, error.why, error.do)
    assert again.exit_code == (2 if issubclass(kind, UsageError) else 1)
    assert kind.__name__ in errors.__doc__


def test_a_short_error():
    assert str(LogitStoreError("no")) == "no"


def test_parts():
    assert JobPart.parse("2/4") == JobPart(2, 4)
    assert [i for i in range(8) if JobPart(1, 3).takes(i)] == [1, 4, 7]
    taken = [
        [i for i in range(24) if JobPart(a, 2).split(JobPart(b, 3)).takes(i)]
        for a in range(2)
        for b in range(3)
    ]
    assert sorted(i for part in taken for i in part) == list(range(24))
    for bad in ("4/4", "1", "a/b", "-1/2", "0/0", "1/2/3", ""):
        with pytest.raises(UsageError):
            JobPart.parse(bad)
