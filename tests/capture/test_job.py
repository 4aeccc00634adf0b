"""Job files: what the parent process writes is what an injected process reads, or a clear error."""

import json

import pytest

from logitstore.capture.inject import start
from logitstore.capture.job import CaptureJob, CaptureOptions, ProbeJob, job_from_json
from logitstore.errors import UsageError

CAPTURE = CaptureJob(
    out="/data/store",
    session="x",
    handover="handover-x",
    options=CaptureOptions(
        ctc="a.b", joiner="j", streams={"ctc": "topk:4"}, blank=3, allow_different=("teacher.name",)
    ),
)


@pytest.mark.parametrize("job", [CAPTURE, ProbeJob(batches=2), ProbeJob(batches=1, classes=150)])
def test_a_job_survives_its_json(job):
    assert job_from_json(json.loads(json.dumps(job.to_json()))) == job


OTHERS = {
    "missing": (lambda v: v.pop("session"), "lacks session"),
    "unknown": (lambda v: v.update(colour="red"), "has the unknown keys colour"),
    "missing option": (lambda v: v["options"].pop("layout"), "a CaptureOptions that lacks layout"),
    "renamed option": (
        lambda v: v["options"].update(drive=v["options"].pop("joiner_adapter")),
        "lacks joiner_adapter and has the unknown keys drive",
    ),
    "kind": (lambda v: v.update(kind="story"), "unknown kind 'story'"),
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_a_job_of_another_version_is_refused(name, tmp_path):
    change, message = OTHERS[name]
    value = CAPTURE.to_json()
    value["options"] = dict(value["options"])
    change(value)
    with pytest.raises(UsageError, match=f"(?s){message}.*another version of logitstore"):
        job_from_json(value)
    (tmp_path / "reports").mkdir()
    (tmp_path / "job.json").write_text(json.dumps(value))
    with pytest.raises(UsageError):
        start.begin(str(tmp_path / "job.json"))
    (report,) = (tmp_path / "reports").glob("*.json")
    assert message.split()[0] in json.loads(report.read_text())["error"]


def test_defaults_are_filled_in_by_properties_alone():
    options = CaptureOptions(ctc="a", joiner="b", streams={"ctc": "topk:4"})
    assert options.streams == {"ctc": "topk:4"}
    assert options.encodings == {"ctc": "topk:4", "rnnt": "topk:16"}
    assert options.paths == {"ctc": "a", "rnnt": "b"}
    assert options.runs_joiner
    assert not CaptureOptions(joiner="b", labels="y").runs_joiner


def test_components_are_looked_up_when_asked_for_not_when_options_are_built():
    options = CaptureOptions(ctc="a", storage="cupboard")
    with pytest.raises(UsageError, match="cupboard"):
        options.check_components()
