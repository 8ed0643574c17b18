"""Progress of a run: a live line in a terminal, or a plain line from time to time in a log file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column

LOG_EVERY_SECONDS = 15.0
# The rate and the time left are averages over recent updates, not over the whole run.
SMOOTHING_SECONDS = 5.0
# A live line has room for a label and for the time elapsed only in a terminal of at least so many columns.
WIDE = 100


class LogClock:
    """Says when the next line of a log file is due, for all that share it: every 15 seconds."""

    def __init__(self) -> None:
        self._logged = time.monotonic()

    def due(self) -> bool:
        """Whether 15 seconds have passed since a line was due; asking counts as writing it."""
        now = time.monotonic()
        if now - self._logged < LOG_EVERY_SECONDS:
            return False
        self._logged = now
        return True


class ProgressLine:
    """Shows update, meta-loss, particle-steps per second and time left; a context manager.

    Args:
      console: where to print: a live line if it is a terminal, otherwise a line every 15 seconds.
      total: number of updates of the run.
      done: number of updates already done.
      label: what is running, if it is not meta-training.
    """

    def __init__(self, console: Console, total: int, done: int, label: str = "") -> None:
        # In a narrow terminal, the label has a line of its own.
        self._heading = label if console.is_terminal and console.width < WIDE else ""
        what = f"{label}: update" if label and not self._heading else "update"
        self._line = _Line(console, what, total, done, LogClock())
        self._console = console
        self._done = done
        self._total = total
        self._advances = 0
        self._rate = 0.0
        self._loss: float | None = None
        self._updates_per_second = 0.0

    def advance(self, update: int, loss: float, steps: float, seconds: float) -> None:
        """Show one or more new updates.

        Args:
          update: number of updates so far.
          loss: meta-loss of the last one.
          steps: particle-steps since the last call.
          seconds: time since the last call.
        """
        self._advances += 1
        keep = 0.0 if self._advances <= 2 else 1 - min(1.0, seconds / SMOOTHING_SECONDS)
        if self._advances > 1:  # the first update includes compilation, so its rate says nothing
            self._rate = keep * self._rate + (1 - keep) * steps / seconds
            rate = (update - self._done) / seconds
            self._updates_per_second = keep * self._updates_per_second + (1 - keep) * rate
        if self._loss is None or not math.isfinite(self._loss):
            self._loss = loss
        elif math.isfinite(loss):
            smoothing = max(keep, 0.9) ** (update - self._done)
            self._loss = smoothing * self._loss + (1 - smoothing) * loss
        self._done = update
        text = f"meta-loss {self._loss:.4g}"
        if self._rate:
            text += f"  {self._rate:,.0f} particle-steps/s"
        self._line.show(update, text, self._updates_per_second, last=update == self._total)

    def __enter__(self) -> ProgressLine:
        if self._heading:
            self._console.print(self._heading, highlight=False, markup=False)
        self._line.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._line.bar.stop()


class RunsLine:
    """Shows the training runs done with an optimizer, their rate and the time left; a context manager.

    It yields a callback ``(runs done, runs planned)``.

    Args:
      console: where to print, as for ``ProgressLine``.
      check: called at each advance; it may raise.
      name: name of the optimizer.
      clock: when to print a line if the console is not a terminal; the optimizers of a comparison share one.
    """

    def __init__(
        self, console: Console, check: Callable[[], None], name: str, clock: LogClock | None = None
    ) -> None:
        self._line = _Line(console, f"{name}: run", None, 0, clock or LogClock())
        self._check = check
        self._first: tuple[int, float] | None = None

    def _advance(self, done: int, planned: int) -> None:
        self._check()
        now = time.monotonic()
        # The time until the first runs are done includes compilation, so the rate counts only later runs.
        runs, began = self._first = self._first or (done, now)
        rate = (done - runs) / (now - began) if done > runs else 0.0
        text = f"{rate:.3g} runs/s" if rate else ""
        self._line.show(done, text, rate, planned)

    def __enter__(self) -> Callable[[int, int], None]:
        self._line.bar.start()
        return self._advance

    def __exit__(self, *exception: object) -> None:
        self._line.bar.stop()


class _Line:
    """A progress bar in a terminal; elsewhere a line when the clock says so."""

    def __init__(self, console: Console, what: str, total: int | None, done: int, clock: LogClock) -> None:
        self._console = console
        self._what = what
        self._total = total
        self._clock = clock
        elapsed = [TimeElapsedColumn(), TextColumn("elapsed")]
        self.bar = Progress(
            TextColumn(what, markup=False),
            MofNCompleteColumn(),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # as wide as the rest leaves room for
            TextColumn("{task.fields[text]}"),
            *(elapsed if console.width >= WIDE else []),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )
        self._task = self.bar.add_task("", total=total, completed=done, text="compiling", left="")

    def show(self, done: int, text: str, rate: float, total: int | None = None, last: bool = False) -> None:
        """Show the progress at `rate` units per second; a new total replaces the old one.

        In a log file the `last` line is always printed.
        """
        self._total = total or self._total
        assert self._total is not None  # if it is not known at first, every call gives it
        left = f"{timedelta(seconds=round((self._total - done) / rate))} left" if rate else ""
        self.bar.update(self._task, completed=done, total=self._total, text=text, left=left)
        if self._console.is_terminal or not (self._clock.due() or last):
            return
        parts = [f"{self._what} {done}/{self._total}", text, left]
        self._console.print("  ".join(filter(None, parts)), highlight=False, markup=False)
