"""Marks of tests by what they cost: ``python -m tests.marks`` checks the list, ``make marks`` measures it again.

Each line of ``tests/marks.txt`` is a test function and its marks. ``slow``: more than five seconds of CPU over all of
its parameters, its children and fixtures included. ``subprocess``: it or one of its fixtures starts a process. Time on
the CPU is what counts, because it hardly depends on what else the machine does.
"""

import ast
import os
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILE = TESTS / "marks.txt"
SLOW = 5.0  # seconds
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}


@cache
def listed():
    """Return {test function: its marks}."""
    lines = FILE.read_text("utf-8").splitlines() if FILE.exists() else []
    return {name: marks.split() for name, _, marks in (line.partition(" ") for line in lines)}


def function(item):
    """Return FILE::FUNCTION of a collected test, with the file relative to the tests."""
    file, _, rest = item.nodeid.partition("::")
    return f"{Path(file).resolve().relative_to(TESTS).as_posix()}::{rest.partition('[')[0]}"


def apply(items):
    """Add the marks to collected tests."""
    for item in items:
        name = function(item)
        for mark in listed().get(name, ()):
            item.add_marker(getattr(pytest.mark, mark))
        if name.startswith("frameworks/") and not name.startswith("frameworks/test_without"):
            item.add_marker(pytest.mark.framework)


def cost():
    """Return seconds of CPU of this process and of its children that have ended."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


class Measure:
    """A pytest plugin that writes the marks that each test function earns."""

    def __init__(self, file):
        self._file = Path(file)
        self._started = 0
        self._costs = defaultdict(float)  # by test, and by fixture definition
        self._starts = set()
        self._fixtures = defaultdict(set)  # fixture definitions by test
        sys.addaudithook(self._count_start)

    def _count_start(self, event, args):
        self._started += event in STARTS

    def _around(self, key, add):
        begin, started = cost(), self._started
        result = yield
        spent = cost() - begin
        self._costs[key] = self._costs[key] + spent if add else max(self._costs[key], spent)
        if self._started > started:
            self._starts.add(key)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        return (yield from self._around((fixturedef.baseid, fixturedef.argname), add=False))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            used = {(d.baseid, d.argname) for d in definitions}
            self._fixtures[function(item)] |= used
        return (yield from self._around(function(item), add=True))

    def pytest_sessionfinish(self):
        lines = []
        for name, fixtures in self._fixtures.items():
            keys = {name, *fixtures}
            marks = ["slow"] * (sum(self._costs[k] for k in keys) > SLOW)
            marks += ["subprocess"] * bool(keys & self._starts)
            if marks and not name.startswith("frameworks/"):
                lines.append(f"{name} {' '.join(marks)}\n")
        self._file.write_text("".join(sorted(lines)), "utf-8")


def missing():
    """Yield the listed functions that no test file has."""
    for name in listed():
        file, _, wanted = name.partition("::")
        path = TESTS / file
        found = set()
        if path.exists():
            tree = ast.parse(path.read_text("utf-8"))
            found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        if wanted.rpartition("::")[2] not in found:
            yield name


if __name__ == "__main__":
    gone = list(missing())
    print(
        "\n".join(f"marks.txt lists {name}, which is no test" for name in gone) or "marks.txt is up to date"
    )
    sys.exit(bool(gone))
