"""``python -m tests.torture [FAMILY ...]``: all families, or some; one table; exit 1 where one failed."""

import sys
import tempfile
from pathlib import Path

from .families import FULL, run
from .store import memory
from .table import show


def main(names):
    unknown = set(names) - set(FULL)
    if unknown:
        sys.exit(f"no family {', '.join(sorted(unknown))}; there are {', '.join(FULL)}")
    families = []
    for name in names or FULL:
        with tempfile.TemporaryDirectory(prefix="logitstore-torture-", dir=memory()) as root:
            print(f"{name} ...", file=sys.stderr, flush=True)
            families.append(run(name, FULL[name], Path(root)))
    print(show(families))
    for family in families:
        for failure in family.failures[:5]:
            print(f"\n{family.name}: {failure}", file=sys.stderr)
    sys.exit(0 if all(f.good for f in families) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
