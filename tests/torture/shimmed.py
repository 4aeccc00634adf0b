"""Runs under the shim: every write, fsync and rename of a store fails once. Prints one JSON line a family.

Not imported by anything: ``LD_PRELOAD=shim.so python shimmed.py FOLDER STEP``.
"""

import ctypes
import errno
import json
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.torture.commit import never_killed
from tests.torture.disk import resumed, status_of
from tests.torture.store import STORAGES, Child, look, work
from tests.torture.table import Family

KINDS = {
    "EIO": (errno.EIO, 0),
    "torn, then EIO": (errno.EIO, 1),
    "disk full": (errno.ENOSPC, 1),
    "quota": (errno.EDQUOT, 0),
}


def main(root, step):
    shim = ctypes.CDLL(None)
    family = Family("writes that fail")
    made = never_killed(root)
    for storage in STORAGES:
        whole = made[storage][0]
        folder = root / "failing"
        shim.shim_arm(os.fsencode(root), 0, 0, 0)
        work(root / f"count-{storage}", storage)
        calls = shim.shim_seen()
        shim.shim_arm(b"", 0, 0, 0)
        for number, (kind, (code, torn)) in enumerate(KINDS.items()):
            for nth in range(1 + number, calls + 1, step):
                with family.case(f"{storage}: {kind} at call {nth} of {calls}"):
                    shutil.rmtree(folder, ignore_errors=True)

                    def failing(told, n=nth, c=code, t=torn, s=storage, f=folder):
                        shim.shim_arm(os.fsencode(f), n, c, t)
                        status_of(lambda: work(f, s, told))

                    done, status = Child(failing).wait()
                    assert os.waitstatus_to_exitcode(status) in (0, 3), f"it ends with {status}"
                    look(family, folder, done)
                    resumed(folder, storage, whole)
    print(json.dumps(vars(family)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
