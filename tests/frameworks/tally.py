"""One row of the table of ``run.sh``: what of a framework was tested, and in which version."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from importlib import metadata

PACKAGES = {
    "huggingface": "transformers",
    "speechbrain": "speechbrain",
    "nemo": "nemo_toolkit",
    "espnet": "espnet",
}
NO_CLONE = "its conventions, no clone"


def version(framework: str) -> str:
    """The installed package's, or the commit of the clone that was tested."""
    if framework in PACKAGES:
        return f"{PACKAGES[framework]} {metadata.version(PACKAGES[framework])}"
    clone = os.environ.get(framework.upper(), "")
    if not clone:
        return NO_CLONE
    asked = ["git", "-C", clone, "log", "-1", "--format=%h of %cs"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    return f"commit {said.stdout.strip()}" if said.returncode == 0 and said.stdout else "a clone"


def counts(path: str) -> tuple[int, int, int]:
    """Tests passed, skipped and failed in a JUnit report."""
    suites = [s.attrib for s in xml.parse(path).getroot().iter("testsuite")]
    total, skipped, failed = (
        sum(int(s.get(name, 0)) for s in suites for name in names)
        for names in (("tests",), ("skipped",), ("failures", "errors"))
    )
    return total - skipped - failed, skipped, failed


if __name__ == "__main__":
    name, report = sys.argv[1:]
    passed, skipped, failed = counts(report)
    print(f"{name:12} {version(name):34} {passed:7} {skipped:7} {failed:7}")
