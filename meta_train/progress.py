"""What a person sees while a run goes on: a live line, or now and then a plain one in a log file."""

from __future__ import annotations

import math
import time

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
        self._console = console
        self._total = total
        self._done = done
        self._prefix = f"{label}: " if label else ""
        self._advances = 0
        self._rate = 0.0
        self._loss: float | None = None
        self._updates_per_second = 0.0
        self._logged = time.monotonic()
        self._bar = Progress(
            TextColumn(label or "meta-training"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done, text="compiling")

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
        text = f"meta-loss {self._loss:.4g}  {self._rate:,.0f} particle-steps/s"
        self._bar.update(self._task, completed=update, text=text)
        self._done = update
        if not self._console.is_terminal and self._due(update):
            left = (self._total - update) / self._updates_per_second
            minutes, rest = divmod(round(left), 60)
            self._console.print(
                f"{self._prefix}update {update}/{self._total}  {text}  {minutes}:{rest:02d} left",
                highlight=False,
            )

    def _due(self, update: int) -> bool:
        now = time.monotonic()
        if update < self._total and now - self._logged < LOG_EVERY_SECONDS:
            return False
        self._logged = now
        return True

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
