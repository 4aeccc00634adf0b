"""Every family, with how much of it makes the full form and the short one."""

from . import commit, damage, disk, jobs, life
from .table import Family, timed

FULL = {
    "killed at every step": {},
    "killed at any moment": {"kills": 400},
    "two jobs killed": {"kills": 60},
    "merging killed at every step": {},
    "rot": {"cases": 3000, "seconds": 150},
    "rot repaired": {"cases": 200, "seconds": 60},
    "writes that fail": {"step": 8},
    "disks that fill up": {"step": 4},
    "limits on file size": {"step": 512},
    "too few file handles": {},
    "no permission": {},
    "clocks that jump": {},
    "broken manifests": {"utterances": 10_000},
    "a hundred epochs": {"count": 100},
}
SHORT = {
    "killed at every step": {"times": 1},
    "killed at any moment": {"kills": 12},
    "two jobs killed": {"kills": 3},
    "merging killed at every step": {"times": 1},
    "rot": {"cases": 80},
    "rot repaired": {"cases": 12},
    "writes that fail": {"step": 150},
    "disks that fill up": {"step": 60},
    "limits on file size": {"step": 8192},
    "too few file handles": {"most": 3},
    "no permission": {},
    "clocks that jump": {"jumps": 1},
    "broken manifests": {"utterances": 300},
    "a hundred epochs": {"count": 4, "storages": ("zarr",)},
}
WORK = {
    "killed at every step": commit.at_every_step,
    "killed at any moment": commit.at_any_moment,
    "two jobs killed": commit.two_at_once,
    "merging killed at every step": commit.merging,
    "rot": damage.rot,
    "rot repaired": damage.mending,
    "writes that fail": disk.failing,
    "disks that fill up": disk.full,
    "limits on file size": disk.sizes,
    "too few file handles": disk.handles,
    "no permission": disk.forbidden,
    "clocks that jump": disk.clocks,
    "broken manifests": jobs.many,
    "a hundred epochs": life.epochs,
}


def run(name, size, root):
    """The counted cases of one family."""
    return timed(Family(name), WORK[name], root, **size)
