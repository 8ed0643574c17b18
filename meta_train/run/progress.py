"""What a person sees while a run goes on: a live line, or now and then a plain one in a log file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_EVERY_SECONDS = 15.0
# The rate and the time left follow the last updates, not the whole run.
SMOOTHING_SECONDS = 5.0


class ProgressLine:
    """Update, meta-loss, particle-steps per second, time left; a context manager.

    Args:
      console: where to; a live line if it is a terminal, and else a line every 15 seconds.
      total: updates of the run.
      done: updates made before.
      label: what goes on, if it is not meta-training.
    """

    def __init__(self, console: Console, total: int, done: int, label: str = "") -> None:
        self._line = _Line(console, label or "meta-training", total, done)
        self._prefix = f"{label}: " if label else ""
        self._done = done
        self._advances = 0
        self._rate = 0.0
        self._loss: float | None = None
        self._updates_per_second = 0.0

    def advance(self, update: int, loss: float, steps: float, seconds: float) -> None:
        """Show one more update, or several.

        Args:
          update: updates made so far.
          loss: the meta-loss of the last.
          steps: particle-steps of those since the last call.
          seconds: what they took.
        """
        self._advances += 1
        # The first update compiles, so its rate says nothing about those to come.
        keep = 0.0 if self._advances <= 2 else 1 - min(1.0, seconds / SMOOTHING_SECONDS)
        self._rate = keep * self._rate + (1 - keep) * steps / seconds
        rate = (update - self._done) / seconds
        self._updates_per_second = keep * self._updates_per_second + (1 - keep) * rate
        if self._loss is None or not math.isfinite(self._loss):
            self._loss = loss
        elif math.isfinite(loss):
            smoothing = max(keep, 0.9) ** (update - self._done)
            self._loss = smoothing * self._loss + (1 - smoothing) * loss
        self._done = update
        text = f"meta-loss {self._loss:.4g}  {self._rate:,.0f} particle-steps/s"
        self._line.show(f"{self._prefix}update", update, text, self._updates_per_second)

    def __enter__(self) -> ProgressLine:
        self._line.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._line.bar.stop()


class RunsLine:
    """Training runs done with an optimizer, their rate, and the time left; a context manager.

    Entered, it gives a function of the number of runs done and of all that are planned.

    Args:
      console: where to, as for ``ProgressLine``.
      check: called at each advance; it may raise.
      name: of the optimizer.
    """

    def __init__(self, console: Console, check: Callable[[], None], name: str) -> None:
        self._line = _Line(console, name, None, 0)
        self._check = check
        self._name = name
        self._first: tuple[int, float] | None = None

    def _advance(self, done: int, planned: int) -> None:
        self._check()
        now = time.monotonic()
        # Before the first runs are done the program is compiled: the rate is that of those after them.
        runs, began = self._first = self._first or (done, now)
        rate = (done - runs) / (now - began) if done > runs else 0.0
        text = f"{rate:.3g} runs/s" if rate else ""
        self._line.show(f"{self._name}: run", done, text, rate, planned)

    def __enter__(self) -> Callable[[int, int], None]:
        self._line.bar.start()
        return self._advance

    def __exit__(self, *exception: object) -> None:
        self._line.bar.stop()


class _Line:
    """A bar in a terminal; elsewhere now and then a line, and one at the end."""

    def __init__(self, console: Console, label: str, total: int | None, done: int) -> None:
        self._console = console
        self._total = total
        self._logged = time.monotonic()
        self.bar = Progress(
            TextColumn(label),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self.bar.add_task("", total=total, completed=done, text="compiling")

    def show(self, what: str, done: int, text: str, rate: float, total: int | None = None) -> None:
        """Show how far it is, with `rate` units per second; a new total takes the place of the old."""
        self._total = total or self._total
        assert self._total is not None  # where it is not known at first, every call gives it
        self.bar.update(self._task, completed=done, total=self._total, text=text)
        now = time.monotonic()
        if self._console.is_terminal or (done < self._total and now - self._logged < LOG_EVERY_SECONDS):
            return
        self._logged = now
        minutes, rest = divmod(round((self._total - done) / rate), 60) if rate else (0, 0)
        left = f"{minutes}:{rest:02d} left"
        self._console.print(f"{what} {done}/{self._total}  {text}  {left}", highlight=False)
