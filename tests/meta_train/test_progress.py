"""Progress in a log file: one line every 15 seconds."""

from __future__ import annotations

import io
from unittest import mock

import pytest
from rich.console import Console
from rich.text import Text

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
    assert console.file.getvalue().startswith("adamw-cosine: run 5/5  1 runs/s  0:00:00 left\n")


def test_a_run_prints_a_line_every_15_seconds_and_its_last(time: mock.Mock) -> None:
    console = Console(file=io.StringIO(), width=200)
    with progress.ProgressLine(console, 40, 0) as line:
        for update in range(1, 41):
            time.return_value += 1
            line.advance(update, 0.5, 100.0, 1.0)
    printed = [text.split()[1] for text in console.file.getvalue().splitlines()]
    assert printed == ["15/40", "30/40", "40/40"]


def test_a_live_line_of_80_columns_shows_the_rate_and_the_time_left(time: mock.Mock) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    line = progress.ProgressLine(console, 1_000, 0)
    for update in range(1, 4):
        line.advance(update, 0.012345, 1.0e5, 1.0)
    with console.capture() as shown:
        console.print(line._line.bar)
    text = Text.from_ansi(shown.get()).plain
    assert text.startswith("update    3/1000 ━")
    assert text.rstrip().endswith("━ meta-loss 0.01235  100,000 particle-steps/s 0:16:37 left")


def test_the_first_update_of_a_log_has_no_rate(time: mock.Mock) -> None:
    """It was compiled, which took a minute."""
    console = Console(file=io.StringIO(), width=200)
    with progress.ProgressLine(console, 100, 0) as line:
        for update, seconds in ((1, 60.0), (2, 16.0)):
            time.return_value += seconds
            line.advance(update, 0.5, 800.0, seconds)
    first, second = console.file.getvalue().splitlines()
    assert first == "update 1/100  meta-loss 0.5"
    assert second == "update 2/100  meta-loss 0.5  50 particle-steps/s  0:26:08 left"
