"""bin/dump_logits.sh: options for dump, a program that starts the jobs, signals, and more jobs than shards."""

import os
import signal
import subprocess
import sys
import time

from logitstore import open_store
from logitstore.store.verify import verify_store
from tests.support import demo

COMMON = [
    "--teacher",
    demo.FACTORY,
    "--manifest",
    demo.MANIFEST,
    "--streams",
    "ctc=topk:4",
    "--stop-stage",
    1,
]
STARTER = """#!/usr/bin/env bash
# As run.pl: JOB=1:N LOG COMMAND..., the word JOB replaced by the number of the job.
range=${1#JOB=1:} log=$2; shift 2
echo started >>"$0.used"
for ((i = 1; i <= range; i++)); do
  line=()
  for word in "$@"; do line+=("${word//JOB/$i}"); done
  eval "${line[*]}" >"${log/JOB/$i}" 2>&1 &
done
failed=0
for pid in $(jobs -p); do wait "$pid" || failed=1; done
exit $failed
"""
WAITING = """
import os
import signal
import time
from pathlib import Path
from recipes.demo.teacher import load as load_demo

def load():
    teacher = load_demo()
    forward, calls, caught = teacher.forward, [], []
    def waiting(*args):
        calls.append(1)
        if len(calls) == 6:  # a few utterances after the checks of the first ones
            handler = signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, lambda *given: (caught.append(1), handler(*given)))
            Path(__file__).with_name(f"waits.{os.getpid()}").touch()
            while not caught:
                time.sleep(0.01)
        return forward(*args)
    teacher.forward = waiting
    return teacher
"""


def script(*args, **options):
    return subprocess.Popen(
        [demo.ROOT / "bin/dump_logits.sh", "--python", sys.executable, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=demo.ROOT,
        **options,
    )


def test_options_are_passed_on_and_jobs_started_by_a_program(tmp_path):
    starter = tmp_path / "run.pl"
    starter.write_text(STARTER)
    starter.chmod(0o755)
    more = ["--", "--hidden", "encoder.blocks.1", "--allow-different", "teacher.name"]
    run = script(*COMMON, "--out", tmp_path / "s", "--nj", 3, "--cmd", starter, "--shard-size", 10, *more)
    _, said = run.communicate()
    assert run.returncode == 0, said
    assert (tmp_path / "run.pl.used").exists()
    assert len(open_store(tmp_path / "s")) == 20
    assert {s.name for s in open_store(tmp_path / "s").spec.streams} == {"ctc", "hidden"}
    assert sorted(p.name for p in (tmp_path / "s.log").glob("dump.*.log")) == [
        f"dump.{i}.log" for i in (1, 2, 3)
    ]
    assert "no shard for this job" in said
    assert "Choose a smaller shard size" in said


def test_a_signal_is_forwarded_and_the_jobs_are_waited_for(tmp_path):
    teacher = tmp_path / "waiting.py"
    teacher.write_text(WAITING)
    given = [*COMMON, "--out", tmp_path / "s", "--nj", 2, "--shard-size", 10, "--batch-seconds", 0]
    given[1] = f"{teacher}:load"
    run = script(*given)
    until = time.monotonic() + 120
    while time.monotonic() < until and run.poll() is None and len(list(tmp_path.glob("waits.*"))) < 2:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGTERM)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 143, said
    logs = "".join(p.read_text() for p in (tmp_path / "s.log").glob("dump.*.log"))
    assert "stopped;" in logs, logs
    assert not (tmp_path / "s" / "partial").exists()
    kept = len(open_store(tmp_path / "s"))
    assert 0 < kept < 20
    teacher.write_text(WAITING.replace("== 6", "< 0"))
    again = script(*given)
    _, said = again.communicate(timeout=200)
    assert again.returncode == 0, said
    assert len(open_store(tmp_path / "s")) == 20
    assert not verify_store(tmp_path / "s").findings
