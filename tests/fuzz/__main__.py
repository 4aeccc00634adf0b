"""``make fuzz``: coverage-guided, with atheris; ``python -m tests.fuzz SECONDS [CORPUS]``.

A found case is written as ``crash-*`` where it runs: move it to tests/fuzz/found, where a test keeps it.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["logitstore"]):
    pass

from .target import read, seeds


def main(seconds, corpus):
    folder = Path(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (folder / f"seed-{number:03d}").write_bytes(seed)
    found = Path(__file__).parent / "found"
    options = [f"-max_total_time={seconds}", "-max_len=40000", "-rss_limit_mb=2048", "-timeout=10"]
    atheris.Setup([sys.argv[0], *options, str(folder), str(found)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="logitstore-fuzz-"))
