"""Messages and progress bars on stderr while data is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


def say(sentence: str) -> None:
    """Print one line to stderr."""
    print(sentence, file=sys.stderr, flush=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} {task.fields['unit']}/s")


@contextmanager
def progress_bar(description: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
    """Show a progress bar with the rate and the remaining time.

    Args:
        description: the text before the bar.
        total: total number of units; None if unknown.
        unit: name of the unit, in the plural.

    Yields:
        A function to call with the number of units just completed.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}")
        if total is not None
        else TextColumn("{task.completed:,.0f} {task.fields[unit]}"),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, unit=unit)
        yield lambda done: progress.advance(task, done)
