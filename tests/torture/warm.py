"""The command line in processes forked from one that has imported everything: a dump begins at once.

A process of its own, with one thread: a fork of pytest's would inherit torch's threads, but not have them.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path


class Warm:
    """Use it as a context manager; ``run`` gives a wait status."""

    def __enter__(self):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        root = str(Path(__file__).parents[2])
        env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, args, log, *, fault="", number=signal.SIGKILL, during=None):
        """``logitstore ARGS``, its output in the file ``log``; ``during(pid)`` once it has begun.

        At the step ``fault`` (``logitstore.storage.faults``) the process sends itself the signal ``number``: tests
        that sent it from outside, after a while, would depend on how busy the machine is.
        """
        order = [list(map(str, args)), str(log), fault, int(number)]
        print(json.dumps(order), file=self._process.stdin, flush=True)
        pid = int(self._process.stdout.readline())
        if during:
            during(pid)
        return int(self._process.stdout.readline())


def sender(wanted, number):
    """Return a hook that sends this process a signal when it comes to ``STEP@N``."""
    name, _, count = wanted.partition("@")
    left = int(count or 1)

    def hook(step):
        nonlocal left
        left -= step == name
        if step == name and not left:
            os.kill(os.getpid(), number)

    return hook


def serve():
    import soundfile  # noqa: F401 - imported for the forks
    import soxr  # noqa: F401
    import zarr  # noqa: F401

    from logitstore.cli import main
    from logitstore.storage import faults
    from recipes.demo import teacher  # noqa: F401

    for line in sys.stdin:
        args, log, fault, number = json.loads(line)
        pid = os.fork()
        if not pid:
            status = 70
            try:
                fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                null = os.open(os.devnull, os.O_RDONLY)
                os.dup2(null, 0), os.dup2(fd, 1), os.dup2(fd, 2)
                if fault:
                    faults.install(sender(fault, number))
                main(args)
            except SystemExit as e:
                status = e.code if isinstance(e.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(status)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
