"""What every run does, with or without a run folder: updates, the summary of them, and the comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from inner_tasks import Training
from learned_opt import LearnedOptError
from meta_train.estimators.base import Theta
from meta_train.outer.loop import RunState, Update, outer_loop
from meta_train.report.baselines import DEFAULT_BASELINES, baseline
from meta_train.report.comparison import Comparison, compare, learning_rates
from meta_train.report.evaluation import Contestant, find_criterion, metrics_of
from meta_train.run.config import Config, EvaluationConfig, to_dict
from meta_train.run.progress import LogClock, ProgressLine, RunsLine
from meta_train.run.setup import Setup

# A run stops after this many consecutive updates without a finite meta-gradient.
MAX_SKIPPED = 20

Record = dict[str, Any]  # the metrics of an update, as JSON values


def updates(
    setup: Setup, state: RunState, done: int, last: int, console: Console
) -> Generator[tuple[Update, Record]]:
    """Yield the updates of a run with their metrics, and show the progress until it is closed.

    Args:
      setup: the objects that the run is made of.
      state: the state after `done` updates.
      done: number of updates already done.
      last: number of the last update.
      console: where progress is shown.

    Raises:
      LearnedOptError: the meta-gradient stayed non-finite.
    """
    with ProgressLine(console, last, done) as progress:
        for update in outer_loop(setup.population, setup.outer_optimizer, state, done, last):
            progress.advance(
                update.number, float(update.metrics["loss"]), float(update.metrics["steps"]), update.seconds
            )
            yield update, _record(update)
            if update.state.skipped >= MAX_SKIPPED:
                raise LearnedOptError(
                    f"the meta-gradient was not finite {MAX_SKIPPED} updates in a row, up to update "
                    f"{update.number}; try a smaller --estimator.sigma or --outer.learning-rate, or a task "
                    "with a max_loss"
                )


def _record(update: Update) -> Record:
    """The metrics of an update; non-finite values are None."""
    values = {name: float(value) for name, value in update.metrics.items()}
    return {
        "update": update.number,
        **{name: value if math.isfinite(value) else None for name, value in values.items()},
        "skipped": int(update.state.skipped > 0),
        "seconds": update.seconds,
    }


def summary(config: Config, records: Sequence[Mapping[str, Any]], start_from: str | None) -> dict[str, Any]:
    """What an optimizer file says about its meta-training; the same for equal runs.

    Args:
      config: the settings of the run.
      records: the metrics of its updates.
      start_from: digest of the weights that the run started from, if they were not fresh.
    """
    settings = to_dict(config)
    last = [record["loss"] for record in records[-max(1, len(records) // 10) :] if record["loss"] is not None]
    said = {name: settings[name] for name in ("task", "estimator", "outer", "updates", "seed")}
    if start_from:
        said["start_from"] = start_from
    if config.learn:
        said["learn"] = settings["learn"]
    said["inner_steps"] = int(sum(record["steps"] for record in records))
    said["final_meta_loss"] = float(np.mean(last)) if last else None
    return said


def compared(
    setup: Setup,
    theta: Theta,
    objective: str,
    evaluation: EvaluationConfig,
    console: Console,
    check: Callable[[], None],
) -> list[Comparison]:
    """Compare an optimizer, called "learned", with tuned hand-designed ones, on each of its tasks.

    Args:
      setup: the objects that its run is made of.
      theta: its weights.
      objective: what it was learned for; the comparison is ranked by the same.
      evaluation: steps, seeds and learning rates.
      console: where progress is shown.
      check: called often; it may raise.
    """
    learned, steps = Contestant(setup.training.optimizer, theta), evaluation.steps
    # Runs show the training loss, whatever the objective was; the criterion follows the objective.
    trainings = {
        name: Training(each.data, each.task, learned.optimizer, steps)
        for name, each in setup.trainings.items()
    }
    criterion = find_criterion([objective], map(metrics_of, trainings.values()))
    watch = partial(RunsLine, console, check, clock=LogClock())
    suite = []
    for number, (name, training) in enumerate(trainings.items(), 1):
        if len(trainings) > 1:
            console.print(f"[bold]{number} of {len(trainings)}: {escape(name)}[/]", highlight=False)
        comparison = compare(
            name,
            training,
            {"learned": learned} | {name: baseline(name, steps) for name in DEFAULT_BASELINES},
            seeds=evaluation.seeds,
            rates=learning_rates(evaluation.learning_rates),
            criterion=criterion,
            devices=setup.devices,
            chunk=setup.chunk,
            watch=watch,
        )
        suite.append(comparison)
    return suite
