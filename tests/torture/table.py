"""The table: one line a family of cases."""

import time
import traceback
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Family:
    """Cases of one kind, counted.

    Attributes:
        lost: utterances acknowledged as sealed that were not there afterwards.
        silent: reads that gave wrong values without an error.
        failures: what went wrong, case by case.
    """

    name: str
    cases: int = 0
    passed: int = 0
    lost: int = 0
    silent: int = 0
    wall: float = 0.0
    failures: list = field(default_factory=list)
    skipped: str = ""
    seen: Counter = field(default_factory=Counter)

    @contextmanager
    def case(self, what):
        """One case; an exception inside is a failure that is noted, and the next case goes on."""
        self.cases += 1
        try:
            yield
        except Exception as e:
            self.failures.append(f"{what}: {type(e).__name__}: {e}\n{traceback.format_exc(limit=-3)}")
        else:
            self.passed += 1

    @property
    def good(self):
        return self.passed == self.cases and not (self.lost or self.silent) and (self.cases or self.skipped)


def timed(family, work, *args, **options):
    """Run the cases of a family and note how long they took."""
    begin = time.perf_counter()
    work(family, *args, **options)
    family.wall += time.perf_counter() - begin
    return family


HEAD = ("case family", "cases", "passed", "lost", "silent", "seconds")


def show(families):
    """The table as text."""
    rows = [
        (f.name, f.cases, f.passed, f.lost, f.silent, f"{f.wall:.1f}")
        if not f.skipped
        else (f.name, 0, 0, 0, 0, f"skipped: {f.skipped}")
        for f in families
    ]
    total = [sum(getattr(f, n) for f in families) for n in ("cases", "passed", "lost", "silent")]
    rows.append(("all", *total, f"{sum(f.wall for f in families):.1f}"))
    width = max(len(str(r[0])) for r in rows)
    lines = [f"{HEAD[0]:<{width}}" + "".join(f"{h:>9}" for h in HEAD[1:])]
    lines += [f"{r[0]:<{width}}" + "".join(f"{c:>9}" for c in r[1:]) for r in rows]
    return "\n".join(lines)
