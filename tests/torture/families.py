"""Every family, with how much of it makes the full form and the short one."""

from . import commit, damage
from .table import Family, timed

FULL = {
    "killed at every step": {},
    "killed at any moment": {"kills": 400},
    "two jobs killed": {"kills": 60},
    "merging killed at every step": {},
    "rot": {"cases": 3000, "seconds": 180},
    "rot repaired": {"cases": 200, "seconds": 60},
}
SHORT = {
    "killed at every step": {"times": 1},
    "killed at any moment": {"kills": 12},
    "two jobs killed": {"kills": 3},
    "merging killed at every step": {"times": 1},
    "rot": {"cases": 120},
    "rot repaired": {"cases": 12},
}
WORK = {
    "killed at every step": commit.at_every_step,
    "killed at any moment": commit.at_any_moment,
    "two jobs killed": commit.two_at_once,
    "merging killed at every step": commit.merging,
    "rot": damage.rot,
    "rot repaired": damage.mending,
}


def run(name, size, root):
    """The counted cases of one family."""
    return timed(Family(name), WORK[name], root, **size)
