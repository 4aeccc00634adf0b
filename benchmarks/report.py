"""A report of the demo and one of a store of many records: CPU seconds and bytes.

    python benchmarks/report.py [--short] [--at FOLDER]

The first store is the demo's, with spectrograms and targets at half the rate. The second holds 1 000 000 synthetic
records of four frames (``--short``: 10 000) as ``benchmarks/scale.py`` writes them. Times are CPU times of this
process. Exits with 1 where a page or its time is larger than promised.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import scale
from logitstore.report.base import ReportOptions
from logitstore.report.run import report_store
from tests.support import demo, dumping

PROMISES = {"demo": (1e6, 30.0), "many records": (3e6, 30.0)}  # bytes of the page, CPU seconds


def measure(store, options):
    """Return the bytes of a page and the CPU seconds that making it takes."""
    begin = time.process_time()
    size = len(report_store(store, options).encode())
    return size, time.process_time() - begin


def main():
    """Print a line for each store, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="10 000 records")
    parser.add_argument("--at", metavar="FOLDER", help="folder for the stores")
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(dir=args.at) as folder:
        streams = {"ctc": "nucleus:1e-3", "rnnt": "topk:16/banded:5+occupancy"}
        dumping.run(Path(folder, "demo"), streams=streams, transcripts="all")
        options = ReportOptions(rate=(1, 2), manifest=demo.manifest())
        found["demo"] = measure(Path(folder, "demo"), options)
        scale.write(str(Path(folder, "many")), 10_000 if args.short else 1_000_000)
        found["many records"] = measure(Path(folder, "many"), ReportOptions())
    missed = 0
    for name, (size, seconds) in found.items():
        most, longest = PROMISES[name]
        missed += size > most or seconds > longest
        print(f"{name:<14}{size / 1e6:8.2f} MB of {most / 1e6:g}{seconds:8.1f} s of {longest:g}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
