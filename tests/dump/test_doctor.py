"""The doctor names what would bite later: every check with good facts and with bad ones."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from logitstore.cli.doctor import command
from logitstore.corpus.manifest import read_manifest
from logitstore.dump.doctor import facts as machine
from logitstore.dump.doctor import judge as doctor
from logitstore.dump.doctor.facts import DiskFacts, Facts, PlannedWork, gather, planned_work, try_disk
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.errors import UsageError
from logitstore.runner import gpu
from logitstore.runner.gpu import Cuda, Gpu, runs_on, trouble
from tests.support import demo
from tests.support.command import logitstore
from tests.support.dumping import run

H200 = Gpu("NVIDIA H200", (9, 0), 140_000_000_000)
BUILT = ("sm_75", "sm_80", "sm_86", "sm_90")
WELL = Facts(
    device="cuda",
    cuda=Cuda("2.13.0", "13.0", BUILT, (H200,), ("NVIDIA H200",)),
    versions={"python": "3.11.7", "numpy": "2.4.6", "transformers": "5.0.0"},
    libsndfile="1.2.2",
    codecs=("FLAC", "MP3", "OGG", "WAV", "W64"),
    encoding="UTF-8",
    locale={"LANG": "C.UTF-8"},
    open_files=(20000, 20000),
    shared_memory=(8 << 30, 8 << 30),
    cpus=(16, 16),
    threads={"OMP_NUM_THREADS": "4"},
    disk=DiskFacts("/exp", 10**12),
    work=PlannedWork(1000, 0, 3.6e6, 10**11, {".flac": (1000, "")}),
)


def test_all_is_well_in_ten_lines():
    found = doctor.examine(WELL)
    assert len(found) == 10
    assert {f.level for f in found} == {"good"}
    assert len({f.name for f in found}) == 10
    for nothing in (replace(WELL, disk=None, work=None, device="cpu", cuda=Cuda("2.13.0")),):
        assert {f.level for f in doctor.examine(nothing)} == {"good"}


def cuda(**changes):
    return {"cuda": replace(WELL.cuda, **changes)}


def disk(**changes):
    return {"disk": replace(WELL.disk, **changes)}


def work(**changes):
    return {"work": replace(WELL.work, **changes)}


BITES = [
    (cuda(built_for="", gpus=()), "device", "bad", "build without CUDA; this machine has NVIDIA H200"),
    (cuda(gpus=()), "device", "bad", "torch sees no GPU, the driver has NVIDIA H200"),
    ({"device": "cuda:3"}, "device", "bad", "torch sees 1 GPUs"),
    (
        cuda(gpus=(Gpu("NVIDIA GeForce RTX 5090", (12, 0)),)),
        "device",
        "bad",
        "cannot run on the NVIDIA GeForce RTX 5090: its compute capability is 12.0",
    ),
    (cuda(gpus=(replace(H200, error="out of memory"),)), "device", "bad", "does not run: out of memory"),
    ({"device": "cpu"}, "device", "note", "while there is NVIDIA H200"),
    (
        {"device": "cpu", **cuda(gpus=(Gpu("Tesla K80", (3, 7)),))},
        "device",
        "note",
        "Tesla K80 (compute capability 3.7) is not one",
    ),
    (work(problems=3), "manifest", "bad", "3 lines cannot be used"),
    (work(utterances=0), "manifest", "bad", "0 utterances"),
    (work(recordings={".m4a": (7, "x.m4a cannot be read")}), "audio", "bad", "7 recordings with .m4a"),
    ({"work": None, "codecs": ("WAV",)}, "audio", "note", "reads no FLAC, OGG, MP3"),
    (work(bytes=2 * 10**12), "disk", "bad", "1000.0 GB free at /exp, about 2000.0 GB wanted"),
    (disk(writes="Read-only file system"), "disk", "bad", "Read-only"),
    (disk(locks="No locks available"), "filesystem", "bad", "has no flock: No locks available"),
    (disk(renames="denied"), "filesystem", "bad", "does not rename"),
    ({"open_files": (128, 4096)}, "files", "note", "128 files"),
    ({"shared_memory": (64 << 20, 64 << 20)}, "memory", "note", "67.1 MB of 67.1 MB"),
    ({"shared_memory": None}, "memory", "note", "no /dev/shm"),
    (
        {"encoding": "ANSI_X3.4-1968", "locale": {"LC_ALL": "C"}},
        "locale",
        "note",
        "text is ascii here (LC_ALL=C)",
    ),
    ({"threads": {"OMP_NUM_THREADS": "64"}}, "cpus", "note", "OMP_NUM_THREADS=64"),
]


@pytest.mark.parametrize(("changes", "name", "level", "what"), BITES)
def test_what_bites_is_named_and_nothing_else_is(changes, name, level, what):
    found = {f.name: f for f in doctor.examine(replace(WELL, **changes))}
    assert found[name].level == level
    assert what in found[name].what
    others = {f.level for f in found.values() if f.name != name}
    assert others == {"good"}
    if level == "bad" and name != "manifest":
        assert found[name].do


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("sm_80",), (8, 0), True),
        (("sm_80",), (8, 9), True),  # binary code runs on later minors
        (("sm_86",), (8, 0), False),
        (("sm_80",), (9, 0), False),
        (("compute_80",), (12, 0), True),  # compiled when it loads
        (("compute_90",), (8, 9), False),
        (("sm_90a",), (9, 0), True),
        (("sm_90a",), (9, 1), False),
        (("sm_120",), (12, 0), True),
        (("sm_100f",), (10, 3), True),
        ((), (9, 0), False),
    ],
)
def test_what_code_runs_where(architectures, capability, runs):
    assert runs_on(architectures, capability) is runs


def test_the_cpu_is_never_any_trouble():
    assert trouble(Cuda("2.13.0"), "cpu") is None


def test_a_dump_refuses_a_device_it_cannot_use_before_anything_else(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "look", lambda device: cuda(gpus=(Gpu("RTX 5090", (12, 0)),))["cuda"])
    with pytest.raises(UsageError, match=r"cannot run on the RTX 5090.*sm_90") as e:
        dump_logits(None, demo.manifest(2), tmp_path / "store", DumpOptions(device="cuda"))
    assert "no kernel image" in str(e.value)
    assert not (tmp_path / "store").exists()


def test_facts_of_this_machine(tmp_path):
    facts = gather("cpu", tmp_path / "not" / "there")
    assert facts.disk == replace(facts.disk, path=str(tmp_path), locks="", renames="", writes="")
    assert facts.disk.free > 0
    assert not list(tmp_path.iterdir())
    assert facts.cpus[0] <= facts.cpus[1]
    assert facts.versions["numpy"]
    assert json.dumps(facts.to_json())


def test_a_disk_that_cannot_be_written_to(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "TemporaryDirectory", refuse)
    assert "Permission denied" in try_disk(tmp_path).writes


def test_a_disk_without_locks(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(machine.fcntl, "flock", refuse)
    assert "No locks available" in try_disk(tmp_path).locks
    monkeypatch.setattr(machine.fcntl, "flock", lambda *args: None)
    assert try_disk(tmp_path).locks == "two writers both got the lock"


def test_the_estimate_is_near_what_a_dump_takes(tmp_path):
    done = run(tmp_path / "s")
    bytes_ = planned_work(demo.manifest(), demo.STREAMS, demo.teacher().tokens(), 0.04).bytes
    assert 0.7 < bytes_ / done.bytes < 1.3


def test_the_plan_opens_one_recording_of_every_kind(tmp_path):
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0 ftypM4A ")
    line = demo.lines(1)[0]
    rows = [line, {**line, "id": "m", "audio": str(tmp_path / "a.m4a")}]
    found = planned_work(read_manifest(demo.write_manifest(tmp_path / "m.jsonl", rows)), {}, None, 0.04)
    assert found.recordings[".flac"] == (1, "")
    assert "cannot be read" in found.recordings[".m4a"][1]


def test_the_command_ends_with_1_where_something_surely_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "gather", lambda device, out, work: replace(WELL, device=device))
    good = CliRunner().invoke(command, ["--device", "cuda"])
    assert (good.exit_code, len(good.output.splitlines())) == (0, 10)
    bad = CliRunner().invoke(command, ["--device", "cuda:1", "--json"])
    assert bad.exit_code == 1
    said = json.loads(bad.output)
    assert [f["name"] for f in said["findings"] if f["level"] == "bad"] == ["device"]
    assert said["facts"]["cuda"]["gpus"][0]["name"] == "NVIDIA H200"


def test_the_command_on_this_machine(tmp_path):
    args = ["--manifest", demo.MANIFEST, "--out", tmp_path, "--tokens", demo.TOKENS, "--stream", "ctc=dense"]
    done = logitstore("doctor", *args, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stdout
    assert "text is ascii here" in done.stdout
    assert "20 .flac: one of each opened" in done.stdout
    assert "MB wanted" in done.stdout
