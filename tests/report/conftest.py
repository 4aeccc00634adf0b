"""Stores and pages that the tests of reports share."""

from dataclasses import replace

import pytest

from logitstore import open_store
from logitstore.corpus.manifest import read_manifest
from logitstore.report.base import ReportOptions
from logitstore.report.run import report_store
from logitstore.tokens.table import TokenTable
from tests.support import browser as browsers
from tests.support import demo, dumping

SCRIPT = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
BIDI = "\u202e\u2066\u200f"
HOSTILE = f"\"'>{SCRIPT}{BIDI}&lt;</title></style></textarea>--><svg/onload=alert(1)>"


@pytest.fixture(scope="package")
def browser():
    with browsers.launched() as found:
        yield found


@pytest.fixture(scope="package")
def store(tmp_path_factory):
    """The demo's utterances, with a lattice of which five label positions a frame are kept."""
    place = tmp_path_factory.mktemp("stores") / "demo"
    streams = {"ctc": "nucleus:1e-3", "rnnt": "topk:16/banded:5+occupancy"}
    dumping.run(place, streams=streams, transcripts="all")
    return place


@pytest.fixture(scope="package")
def page(store, tmp_path_factory):
    """The report of that store, with spectrograms, targets at half the rate and one player."""
    options = ReportOptions(rate=(1, 2), manifest=demo.manifest(), audio=1, command=("logitstore", "report"))
    path = tmp_path_factory.mktemp("pages") / "demo.html"
    path.write_text(report_store(store, options), "utf-8")
    return path


@pytest.fixture(scope="package")
def hostile(tmp_path_factory):
    """An opened store with scripts and bidi controls for ids, tokens, texts, teacher and library versions."""
    folder = tmp_path_factory.mktemp("hostile")
    lines = [
        {**line, "id": f"{HOSTILE}{number}", "text": f"{HOSTILE} {line['text']}"}
        for number, line in enumerate(demo.lines(3))
    ]
    pieces = demo.teacher().tokens().tokens
    tokens = (pieces[0], *(f"{HOSTILE.replace(' ', '_')}{number}" for number, _ in enumerate(pieces[1:])))

    def described(own):
        return replace(own.describe(), name=HOSTILE)

    def labels(own, text):
        return own.labels(text.removeprefix(HOSTILE).strip())

    teacher = demo.Spoiled(describe=described, tokens=lambda own: TokenTable(tokens, blank=0), labels=labels)
    manifest = read_manifest(demo.write_manifest(folder / "hostile.jsonl", lines))
    dumping.run(
        folder / "store",
        manifest=manifest,
        teacher=teacher,
        streams={"ctc": "topk:8", "rnnt": "topk:8"},
        transcripts="all",
        skip_checks=HOSTILE,
    )
    opened = open_store(folder / "store")
    versions = {HOSTILE: HOSTILE}
    opened.spec = replace(
        opened.spec, made_with=versions, allowed=({"field": HOSTILE, "was": 1, "now": HOSTILE},)
    )
    return opened, manifest
