"""Manifests come from people: every line is used, or named with the reason why not."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from logitstore.corpus.manifest import read_manifest
from logitstore.errors import ManifestError
from logitstore.schema.ids import MAX_ID_BYTES, check_id


def line(**fields):
    return json.dumps({"id": "a", "audio": "a.wav", **fields}, ensure_ascii=False).encode()


def read(tmp_path, *lines, **options):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\n".join(lines))
    return read_manifest(path, **options)


def test_good_lines(tmp_path):
    m = read(
        tmp_path,
        line(id="a", duration=1.5, text="’ 名"),
        line(id="b", audio="/x/b.wav", offset=2, tokens=[1, 2, 0], more={"x": 1}),
        line(id="c", tokens=[], text="won"),
    )
    a, b, c = m
    assert (m.utterances, m.seconds, m.problems) == (3, 1.5, ())
    assert (a.audio, a.duration, a.offset, a.text, a.tokens, a.line) == (
        tmp_path / "a.wav",
        1.5,
        0.0,
        "’ 名",
        None,
        1,
    )
    assert (b.audio, b.offset, b.duration, b.tokens) == (Path("/x/b.wav"), 2.0, None, (1, 2, 0))
    assert c.tokens == ()


def test_an_empty_file(tmp_path):
    m = read(tmp_path)
    assert list(m) == []
    assert m.utterances == 0


def test_blank_lines_bom_and_windows_line_ends(tmp_path):
    m = read(tmp_path, b"\xef\xbb\xbf" + line(id="a"), b"  \r", line(id="b") + b"\r", b"", b"")
    assert [(u.id, u.line) for u in m] == [("a", 1), ("b", 3)]
    assert not m.problems


def test_its_digest_is_that_of_the_file(tmp_path):
    m = read(tmp_path, line(id="a"), b"", b" ", line(id="b"), b"")
    assert m.sha256 == "sha256:" + hashlib.sha256(m.path.read_bytes()).hexdigest()
    assert m.to_json() == {"sha256": m.sha256}


def test_audio_root(tmp_path):
    m = read(tmp_path, line(), audio_root="/corpus")
    assert next(iter(m)).audio == Path("/corpus/a.wav")


@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        line(id=""),
        line(id=3),
        line(id=None),
        b'{"audio": "a.wav"}',
        line(id="a\tb"),
        line(id="a\x7fb"),
        line(id="a\u0085b"),
        line(id="é" * (MAX_ID_BYTES // 2 + 1)),
        b'{"id": "\\ud800", "audio": "a.wav"}',
        b'{"id": "a", "audio": "a.wav", "text": "\\udfff"}',
        b'{"id": "a", "audio": "\\ud800.wav"}',
        b'{"id": "a"}',
        line(audio=""),
        line(audio="a\0b"),
        line(audio=["a"]),
        line(text=3),
        line(tokens="1 2"),
        line(tokens=[1, -1]),
        line(tokens=[True]),
        line(tokens=[1.0]),
        line(duration=0),
        line(duration=-1),
        line(duration="1"),
        line(duration=True),
        line(duration=float("nan")),
        line(duration=float("inf")),
        line(offset=float("nan")),
        line(offset=-0.5),
    ],
    ids=lambda b: repr(b[:30]),
)
def test_bad_lines_are_named_and_left_out(tmp_path, bad):
    m = read(tmp_path, line(id="first"), bad, line(id="last"))
    assert [u.id for u in m] == ["first", "last"]
    (problem,) = m.problems
    assert problem.reason == "ManifestError"
    assert ":2" in problem.what
    assert m.bad_lines == {2}
    assert m.utterances == 2
    assert set(problem.to_json()) == {"id", "reason", "what"}


def test_ids_that_stand_twice(tmp_path):
    m = read(tmp_path, line(id="x"), line(id="y"), line(id="x"), b"{", line(id="x", audio="other.wav"))
    assert [u.line for u in m] == [1, 2]
    assert [p.id for p in m.problems] == ["x", "line 4", "x"]
    assert "already at line 1" in m.problems[0].what
    assert "already at line 1" in m.problems[2].what
    assert m.utterances == 2


def test_limit_counts_good_lines(tmp_path):
    lines = [b"{", line(id="a"), line(id="a"), line(id="b"), line(id="c")]
    m = read(tmp_path, *lines, limit=2)
    assert [u.id for u in m] == ["a", "b"]
    assert m.utterances == 2
    assert read(tmp_path, *lines, limit=9).utterances == 3


def test_no_file(tmp_path):
    with pytest.raises(ManifestError, match="No such file"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="folder"):
        read_manifest(tmp_path)


def test_a_file_name_that_is_not_utf8_can_be_opened(tmp_path):
    name = os.fsdecode(b"\xe9.wav")
    m = read(tmp_path, json.dumps({"id": "a", "audio": name}).encode())
    assert os.fsencode(next(iter(m)).audio).endswith(b"/\xe9.wav")


@pytest.mark.parametrize("good", ["a", "../../x", "a b", "’", "a/b.c_sp1.1", "x" * MAX_ID_BYTES, "{}", "%00"])
def test_odd_ids_are_fine(good):
    assert check_id(good) == good
