"""Disks that are full, read-only, forbidden or failing; too few files; clocks that jump."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

from logitstore.errors import DiskError
from logitstore.store.reader import Store

from .commit import never_killed
from .store import IDS, STORAGES, Child, look, row, same, same_tree, work

HERE = Path(__file__).parent


def status_of(job):
    """Run a job in a child; it ends with 3 after a ``DiskError`` that says what to do, 1 after any other."""
    try:
        job()
    except DiskError as e:
        if not e.do or not e.where:
            print(f"no advice: {e}", file=sys.stderr, flush=True)
            os._exit(4)
        os._exit(3)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def resumed(folder, storage, whole):
    _, status = Child(lambda told: work(folder, storage, told)).wait()
    assert status == 0, f"the same command again ends with {status}"
    assert same_tree(folder, whole), "the finished store is not that of one that met no trouble"


def _limited(family, root, kind, limits):
    for storage, (whole, _, _) in never_killed(root).items():
        for limit in limits:
            with family.case(f"{storage}: {kind} {limit}"):
                folder = root / "limited"
                shutil.rmtree(folder, ignore_errors=True)

                def job(told, f=folder, s=storage, n=limit):
                    used = len(os.listdir("/proc/self/fd")) if kind == resource.RLIMIT_NOFILE else 0
                    resource.setrlimit(kind, (n + used, resource.getrlimit(kind)[1]))
                    status_of(lambda: work(f, s, told))

                done, status = Child(job).wait()
                code = os.waitstatus_to_exitcode(status)
                assert code in (0, 3), f"it ends with {code}"
                family.seen[code] += 1
                look(family, folder, done)
                resumed(folder, storage, whole)


def sizes(family, root, step=256):
    """No file may grow beyond a limit (ulimit -f), for every limit there is."""
    _limited(family, root, resource.RLIMIT_FSIZE, range(0, 32768, step))


def handles(family, root, most=24):
    """Only so many more files may be open."""
    _limited(family, root, resource.RLIMIT_NOFILE, range(most))


def _mount(folder, options):
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    ).returncode


def _tried(disk, storage, told):
    status_of(lambda: work(disk / "s", storage, told))


def full(family, root, step=8):
    """A disk of so many kilobytes; then it grows, and the same command goes on. And one mounted read-only."""
    disk = root / "disk"
    if not shutil.which("mount") or os.geteuid() or _mount(disk, "size=4k"):
        family.skipped = "may not mount a disk of its own"
        return
    subprocess.run(["umount", str(disk)], check=True)
    for storage, (whole, _, _) in never_killed(root).items():
        for kilobytes in range(4, 4 + 40 * step, step):
            assert _mount(disk, f"size={kilobytes}k") == 0
            try:
                with family.case(f"{storage}: a disk of {kilobytes} kB"):
                    done, status = Child(
                        lambda told, s=storage: status_of(lambda: work(disk / "s", s, told))
                    ).wait()
                    code = os.waitstatus_to_exitcode(status)
                    assert code in (0, 3), f"it ends with {code}"
                    family.seen[code] += 1
                    look(family, disk / "s", done)
                    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
                    resumed(disk / "s", storage, whole)
                if not code:
                    break
            finally:
                subprocess.run(["umount", str(disk)], check=True)
        assert _mount(disk, "size=8m") == 0
        try:
            with family.case(f"{storage}: read-only"):
                work(disk / "s", storage, blocks={"000000": IDS[:3]})
                subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
                _, status = Child(lambda told, s=storage: _tried(disk, s, told)).wait()
                assert os.waitstatus_to_exitcode(status) == 3
                look(family, disk / "s", ["000000"])
        finally:
            subprocess.run(["umount", str(disk)], check=True)


def forbidden(family, root):
    """Somebody else's store: may be read, may not be written."""
    if os.geteuid():
        family.skipped = "only root can become somebody else"
        return
    os.chmod(root, 0o755)
    for storage in STORAGES:
        folder = root / f"theirs-{storage}"
        work(folder, storage, blocks={"000000": IDS[:3]})
        with family.case(f"{storage}: somebody else writes"):

            def job(told, f=folder, s=storage):
                os.setuid(65534)
                assert all(same(Store(f).record(i), row(i)) for i in IDS[:3])
                status_of(lambda: work(f, s, told))

            _, status = Child(job).wait()
            assert os.waitstatus_to_exitcode(status) == 3
            look(family, folder, ["000000"])


def failing(family, root, step=1):
    """Each write, fsync and rename fails once: EIO, half written, disk full, over quota."""
    if not Path("/proc/self/fd").exists():
        family.skipped = "no /proc/self/fd, which the shim reads"
        return
    under_shim(family, root, [HERE / "shimmed.py", root, str(step)])


def under_shim(family, root, program, **environment):
    """Run a Python program with the preloaded shim, and take the counts that it prints as JSON into a family."""
    if not shutil.which("cc"):
        family.skipped = "no C compiler for the shim"
        return
    shim = root / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, HERE / "shim.c", "-ldl"], check=True)
    run = subprocess.run(
        [sys.executable, *program],
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(HERE.parents[1]), **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    said = json.loads(run.stdout.splitlines()[-1])
    for name in ("cases", "passed", "lost", "silent", "failures"):
        setattr(family, name, said[name])


def clocks(family, root, jumps=10):
    """A clock that jumps by years, back and forth: no byte depends on it."""
    for storage, (whole, _, _) in never_killed(root).items():
        for jump in range(jumps):
            with family.case(f"{storage}: clock jump {jump}"):
                folder = root / "clock"
                shutil.rmtree(folder, ignore_errors=True)

                def job(told, f=folder, s=storage, j=jump):
                    real, calls = time.time, []

                    def jumping():
                        calls.append(1)
                        return real() + (-1) ** len(calls) * 1e8 * (j + 1)

                    time.time = jumping
                    time.time_ns = lambda: int(jumping() * 1e9)
                    time.monotonic = jumping
                    time.perf_counter = jumping
                    work(f, s, told)

                done, status = Child(job).wait()
                assert status == 0
                look(family, folder, done)
                assert same_tree(folder, whole)
