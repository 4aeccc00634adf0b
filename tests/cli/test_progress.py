"""The progress of a dump, on a terminal and in a log file."""

import pytest

from logitstore.cli import _terminal
from logitstore.cli._terminal import ProgressMeter, clock, progress_line
from logitstore.dump.options import DumpProgress
from logitstore.pictures.amounts import size

HALF = DumpProgress(
    total=100, done=30, present=10, skipped=10, seconds=3600.0, frames=90000, bytes=1_500_000, elapsed=60.0
)


def test_a_line_holds_all_counts_and_fits_a_terminal():
    assert (
        progress_line(HALF, 100)
        == "40/100 utterances (10 skipped), 1.000 h, 60 × real time, 1.5 MB, ETA 0:01:15"
    )
    assert len(progress_line(HALF, 100)) < 80
    assert progress_line(DumpProgress(total=5), 5).endswith("ETA -:--:--")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1.5e9, "1.5 GB"), (2e15, "2000.00 TB")]
)
def test_sizes(count, text):
    assert size(count) == text


def test_clock():
    assert clock(3725.4) == "1:02:05"


def test_without_a_terminal_a_plain_line_is_printed_every_ten_seconds(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_terminal.time, "monotonic", lambda: now[0])
    with ProgressMeter(100) as meter:
        for second in range(0, 31, 5):
            now[0] = float(second)
            meter(HALF)
    err = capsys.readouterr().err
    assert err.splitlines() == [progress_line(HALF, 100)] * 3
    assert "\x1b" not in err


def test_findings_of_the_self_check_are_printed_once(capsys):
    with ProgressMeter(100) as meter:
        for _ in range(3):
            meter(DumpProgress(total=100, findings=("one", "two")))
    assert capsys.readouterr().err.splitlines() == ["self-check: one", "self-check: two"]
