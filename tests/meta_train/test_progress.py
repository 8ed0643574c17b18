"""Progress in a log file: one line every 15 seconds."""

from __future__ import annotations

import io
from unittest import mock

import pytest
from rich.console import Console

from meta_train.run import progress


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """A clock that stands still; a test sets its ``return_value``."""
    time = mock.Mock(return_value=0.0)
    monkeypatch.setattr(progress.time, "monotonic", time)
    return time


def test_a_comparison_prints_a_line_every_15_seconds(time: mock.Mock) -> None:
    """Not for every round of tuning, nor for every optimizer."""
    console, clock = Console(file=io.StringIO(), width=200), progress.LogClock()
    lines = []
    for name in ("adam", "adamw-cosine", "muon-linear", "sgdm-linear"):
        with progress.RunsLine(console, lambda: None, name, clock) as advance:
            for number in range(1, 11):  # rounds of one run, 1 s each
                time.return_value += 1
                advance(number, number)
        lines.append(console.file.getvalue().count("\n"))
    assert lines == [0, 1, 2, 2]
    assert console.file.getvalue().startswith("adamw-cosine: run 5/5  1 runs/s  0:00 left\n")


def test_a_run_prints_a_line_every_15_seconds_and_its_last(time: mock.Mock) -> None:
    console = Console(file=io.StringIO(), width=200)
    with progress.ProgressLine(console, 40, 0) as line:
        for update in range(1, 41):
            time.return_value += 1
            line.advance(update, 0.5, 100.0, 1.0)
    printed = [text.split()[1] for text in console.file.getvalue().splitlines()]
    assert printed == ["15/40", "30/40", "40/40"]
