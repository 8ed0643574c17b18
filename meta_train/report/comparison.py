"""What the comparison found, and how it is shown: a table, a JSON summary, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from inner_tasks import Training
from learned_opt._src.files import write_whole
from meta_train.report.baselines import label
from meta_train.report.costs import Cost, gradient_seconds, update_costs
from meta_train.report.evaluation import LEARNING_RATES, MEAN_LOSS, Contestant, Criterion, Result, run

# Adam with a constant learning rate, which ratios and speed-ups refer to.
REFERENCE = "adam"

# Told the name of an optimizer, it gives what is to be told of its training runs, done and planned, while it
# is entered.
Watch = Callable[[str], AbstractContextManager[Callable[[int, int], object]]]


class Comparison(NamedTuple):
    """Optimizers on one task, on the same seeds; tuned Adam is one of them.

    Attributes:
      task: name of the task.
      steps: training steps of each run.
      results: what each optimizer did.
      costs: what an update of each costs on this machine.
      gradient_seconds: what the gradient of a step takes on this machine.
      criterion: what they are ranked by.
    """

    task: str
    steps: int
    results: dict[str, Result]
    costs: dict[str, Cost]
    gradient_seconds: float
    criterion: Criterion = MEAN_LOSS

    @property
    def seeds(self) -> int:
        return self.results[REFERENCE].runs.losses.shape[0]

    @property
    def ranking(self) -> list[str]:
        """The optimizers, best first."""
        return sorted(self.results, key=self.score)

    @property
    def best(self) -> str:
        """The best of those whose learning rate was tuned."""
        return next(name for name in self.ranking if self.results[name].tried)

    def score(self, name: str) -> float:
        """What an optimizer is ranked by, mean over the seeds; lower is better."""
        return float(self.criterion.of(self.results[name].runs).mean())

    def ratio_to_best(self, name: str) -> float:
        """Score of an optimizer over that of the best tuned one; below 1 it wins."""
        return self._ratio(name, self.best)

    def ratio_to_adam(self, name: str) -> float:
        """Score of an optimizer over that of tuned Adam; below 1 it wins."""
        return self._ratio(name, REFERENCE)

    def _ratio(self, name: str, other: str) -> float:
        """NaN where the other has no finite score above zero."""
        own, other = self.score(name), self.score(other)
        return own / other if 0 < other < np.inf else np.nan

    def steps_to_adam(self, name: str) -> int | None:
        """Steps after which an optimizer's loss is first that of tuned Adam at its end; None if it never is.

        Both are means over a tenth of the run and over the seeds: Adam's over its last tenth, the optimizer's
        over the tenth that ends with the step. For Adam itself these are the steps to its own final loss.
        """
        reached = np.flatnonzero(self._running_loss(name) <= self._running_loss(REFERENCE)[-1])
        return int(reached[0]) + self._window if reached.size else None

    def speed_up(self, name: str) -> float | None:
        """Adam's steps to its final loss over the optimizer's, so 1 for Adam; None if it is never there."""
        own, adam = self.steps_to_adam(name), self.steps_to_adam(REFERENCE)
        return adam / own if own and adam else None

    @property
    def _window(self) -> int:
        return max(1, self.steps // 10)

    def _running_loss(self, name: str) -> np.ndarray:
        """Training loss, mean over seeds and over the window that ends with the step."""
        losses = self.results[name].runs.losses.mean(axis=0)
        return np.convolve(losses, np.full(self._window, 1 / self._window), mode="valid")

    def step_seconds(self, name: str) -> float:
        """Time of a training step with an optimizer, gradient and update, on one device of this machine."""
        return self.gradient_seconds + self.costs[name].seconds

    def relative_cost(self, name: str) -> tuple[float, float]:
        """Time and memory of an optimizer's update over those of Adam's."""
        own, adam = self.costs[name], self.costs[REFERENCE]
        return own.seconds / adam.seconds, own.state_bytes / adam.state_bytes

    def failed(self, name: str) -> bool:
        """Whether an optimizer ends non-finite or above the initial loss, on any seed."""
        runs = self.results[name].runs
        return not bool((runs.final_loss <= runs.losses[:, 0]).all())


def learning_rates(count: int) -> np.ndarray:
    """The grid of learning rates: `count` of them, from the lowest to the highest of the full one."""
    return np.logspace(np.log10(LEARNING_RATES[0]), np.log10(LEARNING_RATES[-1]), count)


def compare(
    task: str,
    training: Training,
    contestants: Mapping[str, Contestant],
    *,
    seeds: int,
    rates: Sequence[float],
    criterion: Criterion,
    devices: int,
    chunk: int,
    watch: Watch,
) -> Comparison:
    """Run every optimizer, and measure what its steps cost.

    Args:
      task: name of the task, for the report.
      training: the task; its horizon is the number of steps.
      contestants: the optimizers, Adam among them.
      seeds: number of seeds, the same for all.
      rates: learning rates to try for those that are tuned.
      criterion: what they are tuned and ranked by.
      devices: devices to spread the runs over.
      chunk: runs that one device works on at once.
      watch: shows how far each of them is.
    """
    results = {}
    for name, contestant in contestants.items():
        with watch(name) as advance:
            results[name] = run(
                training,
                contestant,
                seeds,
                rates,
                criterion=criterion,
                devices=devices,
                chunk=chunk,
                watch=advance,
            )
    return Comparison(
        task,
        training.horizon,
        results,
        update_costs(training.task.init(jax.random.key(0)), contestants),
        gradient_seconds(training),
        criterion,
    )


def summary(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values; a number that is not finite is null."""
    criterion = comparison.criterion

    def measured(name: str, result: Result) -> dict[str, Any]:
        runs = result.runs
        values: dict[str, Any] = {"learning_rate": result.learning_rate}
        for key, value in (_shown(result) | {criterion.key: criterion.of(runs)}).items():
            values |= {key: _number(value.mean()), f"{key}_se": _number(standard_error(value))}
        values |= {
            "ratio_to_best": _number(comparison.ratio_to_best(name)),
            "ratio_to_adam": _number(comparison.ratio_to_adam(name)),
            "steps_to_adam": comparison.steps_to_adam(name),
            "speed_up": comparison.speed_up(name),
            "step_seconds": comparison.step_seconds(name),
            "update_seconds": comparison.costs[name].seconds,
            "state_bytes": comparison.costs[name].state_bytes,
        }
        if result.tried:
            values["tried"] = [
                {"learning_rate": rate, criterion.key: _number(score)} for rate, score in result.tried.items()
            ]
            values["coarse"] = result.coarse
        return values

    return {
        "task": comparison.task,
        "steps": comparison.steps,
        "seeds": comparison.seeds,
        "ranked_by": criterion.key,
        "best": comparison.best,
        "optimizers": {name: measured(name, result) for name, result in comparison.results.items()},
    }


# What a card leaves out: it is the same on any machine.
_COSTS = ("step_seconds", "update_seconds", "state_bytes")


def card(comparison: Comparison, name: str) -> dict[str, Any]:
    """What an optimizer's own file tells of a comparison: its figures, and those of the tuned ones."""
    found = summary(comparison)
    optimizers = found.pop("optimizers")
    own = {k: v for k, v in optimizers[name].items() if k not in ("learning_rate", *_COSTS)}
    kept = ("learning_rate", "mean_loss", "final_loss", "validation_loss", comparison.criterion.key)
    tuned = {
        other: {k: v for k, v in values.items() if k in kept}
        for other, values in optimizers.items()
        if "tried" in values
    }
    return {**found, "own": own, "tuned": tuned}


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The comparison as the rows of a table, best first."""

    def row(name: str) -> dict[str, Any]:
        result = comparison.results[name]
        values: dict[str, Any] = {"optimizer": label(name), "learning_rate": result.learning_rate}
        for key, value in _shown(result).items():
            values |= {key: float(value.mean()), f"{key}_se": _number(standard_error(value))}
        return {
            **values,
            "ratio_to_best": comparison.ratio_to_best(name),
            "ratio_to_adam": comparison.ratio_to_adam(name),
            "step_seconds": comparison.step_seconds(name),
        }

    return [row(name) for name in comparison.ranking]


def _shown(result: Result) -> dict[str, np.ndarray]:
    """What tables show of each run, ``[seeds]``."""
    return {"mean_loss": result.runs.mean_loss, "final_loss": result.runs.final_loss, **result.runs.metrics}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The comparison as a table in the terminal, with what it rests on."""
    criterion, seeds = comparison.criterion, f"{comparison.seeds} unseen seeds"
    title = f"{comparison.task}: {comparison.steps} steps, {seeds}, best {criterion.label} first"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    shown = list(_shown(comparison.results[REFERENCE]))
    table.add_column("\noptimizer", overflow="fold")
    table.add_column("learning\nrate", justify="right", no_wrap=True)
    for column in shown:
        table.add_column(column.replace("_", "\n", 1), justify="right", no_wrap=True)
    table.add_column("ms per\nstep", justify="right", no_wrap=True)
    for name in comparison.ranking:
        result = comparison.results[name]
        table.add_row(
            label(name),
            f"{result.learning_rate:.2e}" if result.learning_rate else "-",
            *(with_error(value).replace(" ±", "\n±") for value in _shown(result).values()),
            f"{1e3 * comparison.step_seconds(name):.3g}",
            style=None if result.learning_rate else "bold",
        )
    console.print(table)
    tried = comparison.results[REFERENCE].tried
    console.print(
        f"± is the standard error over seeds. Each learning rate is the best of {len(tried)} or more "
        f"({min(tried):.1e} to {max(tried):.1e} for Adam) by {criterion.label}, on {comparison.seeds} other "
        "seeds.",
        highlight=False,
    )
    coarse = [f"{label(name)} ({found.coarse})" for name, found in comparison.results.items() if found.coarse]
    if coarse:
        console.print(
            f"The learning rates tried are too few or too far apart for {', '.join(coarse)}.",
            style="yellow",
            highlight=False,
        )
    for name, result in comparison.results.items():
        if not result.tried:
            console.print(
                f"{name}: {comparison.ratio_to_best(name):.3f} times the {criterion.label} of the best tuned "
                f"optimizer ({label(comparison.best)}), {comparison.ratio_to_adam(name):.3f} times that of "
                f"Adam; speed-up to Adam's final training loss: {shown_speed_up(comparison, name)}",
                highlight=False,
            )


def with_error(values: np.ndarray) -> str:
    """Mean over seeds and its standard error, if there is one, as tables show them."""
    error = standard_error(values)
    return f"{values.mean():.4f}" + (f" ± {error:.4f}" if np.isfinite(error) else "")


def shown_speed_up(comparison: Comparison, name: str) -> str:
    """The speed-up as tables show it; "never" where Adam's final loss is not reached."""
    speed_up = comparison.speed_up(name)
    return "never" if speed_up is None else f"{speed_up:.2f}x"


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean over seeds, NaN for a single seed or where a value is not finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return np.nan
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def write_comparison(comparison: Comparison, folder: Path, extra: Mapping[str, Any]) -> list[Path]:
    """Write the pictures, and then ``summary.json``: where that is, the report is whole.

    Args:
      comparison: what was found.
      folder: where to; made if it is missing.
      extra: more entries for the summary.

    Returns:
      The pictures.
    """
    from meta_train.report.figures import draw_learning_rates, draw_training_curves

    folder.mkdir(parents=True, exist_ok=True)
    curves, rates = folder / "training_curves.png", folder / "learning_rates.png"
    draw_training_curves([comparison], curves)
    draw_learning_rates([comparison], rates)
    values = {**summary(comparison), **extra}
    write_whole(folder / "summary.json", json.dumps(values, indent=2, allow_nan=False) + "\n")
    return [curves, rates]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
