"""What the comparison found, and how it is shown: a table, a JSON summary, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from inner_tasks import Training
from learned_opt._src.files import write_whole
from meta_train.evaluation import LEARNING_RATES, Contestant, Result, run

NAMES = {"adam": "Adam", "adamw": "AdamW", "sgdm": "SGD, momentum", "rmsprop": "RMSProp"}
# What all others are measured against.
REFERENCE = "adam"

# Told the name of an optimizer, it gives what is to be told of its training runs, done and planned, while it
# is entered.
Watch = Callable[[str], AbstractContextManager[Callable[[int, int], object]]]


class Comparison(NamedTuple):
    """Optimizers on one task, on the same seeds; tuned Adam is one of them."""

    task: str
    steps: int
    results: dict[str, Result]

    @property
    def seeds(self) -> int:
        return self.results[REFERENCE].runs.losses.shape[0]

    def ratio_to_adam(self, name: str) -> float:
        """Mean training loss of an optimizer over that of tuned Adam; below 1 it wins."""
        losses = (self.results[n].runs.mean_loss.mean() for n in (name, REFERENCE))
        return float(np.divide(*losses))

    def steps_to_adam(self, name: str) -> int | None:
        """Steps after which an optimizer's loss is that of tuned Adam at its end; None if it never is.

        Both are means over a tenth of the run and over the seeds: Adam's over its last tenth, the optimizer's
        over the tenth that ends with the step.
        """
        window = max(1, self.steps // 10)
        losses = self.results[name].runs.losses.mean(axis=0)
        running = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        reached = np.flatnonzero(running <= self.results[REFERENCE].runs.final_loss.mean())
        return int(reached[0]) + window if reached.size else None

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
    devices: int,
    chunk: int,
    watch: Watch,
) -> Comparison:
    """Run every optimizer.

    Args:
      task: name of the task, for the report.
      training: the task; its horizon is the number of steps.
      contestants: the optimizers, Adam among them.
      seeds: number of seeds, the same for all.
      rates: learning rates to try for those that are tuned.
      devices: devices to spread the runs over.
      chunk: runs that one device works on at once.
      watch: shows how far each of them is.
    """
    results = {}
    for name, contestant in contestants.items():
        with watch(name) as advance:
            results[name] = run(
                training, contestant, seeds, rates, devices=devices, chunk=chunk, watch=advance
            )
    return Comparison(task, training.horizon, results)


def summary(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values; a loss that is not finite is null."""

    def measured(name: str, result: Result) -> dict[str, Any]:
        runs = result.runs
        values = {
            "learning_rate": result.learning_rate,
            "mean_loss": _mean(runs.mean_loss),
            "mean_loss_std": _std(runs.mean_loss),
            "final_loss": _mean(runs.final_loss),
            "final_loss_std": _std(runs.final_loss),
            "ratio_to_adam": _number(comparison.ratio_to_adam(name)),
            "steps_to_adam": comparison.steps_to_adam(name),
        }
        for metric, value in runs.metrics.items():
            values |= {metric: _mean(value), f"{metric}_std": _std(value)}
        if result.tried:
            values["tried"] = [
                {"learning_rate": rate, "mean_loss": _number(loss)} for rate, loss in result.tried.items()
            ]
        return values

    return {
        "task": comparison.task,
        "steps": comparison.steps,
        "seeds": comparison.seeds,
        "optimizers": {name: measured(name, result) for name, result in comparison.results.items()},
    }


def card(comparison: Comparison, name: str) -> dict[str, Any]:
    """What an optimizer's own file tells of a comparison: its figures, and those of the tuned ones."""
    found = summary(comparison)
    optimizers = found.pop("optimizers")
    own = {k: v for k, v in optimizers[name].items() if k != "learning_rate"}
    tuned = {
        other: {k: v for k, v in values.items() if k in ("learning_rate", "mean_loss", "final_loss")}
        for other, values in optimizers.items()
        if "tried" in values
    }
    return {**found, "own": own, "tuned": tuned}


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The comparison as the rows of a table, best mean loss first."""

    def row(name: str, result: Result) -> dict[str, Any]:
        runs = result.runs
        return {
            "optimizer": NAMES.get(name, name),
            "learning_rate": result.learning_rate,
            "mean_loss": float(runs.mean_loss.mean()),
            "mean_loss_std": float(runs.mean_loss.std()),
            "final_loss": float(runs.final_loss.mean()),
            **{metric: float(value.mean()) for metric, value in runs.metrics.items()},
        }

    return sorted((row(*item) for item in comparison.results.items()), key=lambda r: r["mean_loss"])


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The comparison as a table in the terminal, with what it rests on."""
    title = f"{comparison.task}: training loss over {comparison.steps} steps, {comparison.seeds} unseen seeds"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    metrics = list(comparison.results[REFERENCE].runs.metrics)
    table.add_column("\noptimizer", overflow="fold")
    for column in ("learning\nrate", "mean\nloss", "final\nloss"):
        table.add_column(column, justify="right", no_wrap=True)
    for metric in metrics:
        table.add_column(metric.replace("_", "\n", 1), justify="right", no_wrap=True)
    for row in rows(comparison):
        rate = "-" if row["learning_rate"] is None else f"{row['learning_rate']:.2e}"
        table.add_row(
            row["optimizer"],
            rate,
            f"{row['mean_loss']:.4f} ± {row['mean_loss_std']:.4f}",
            f"{row['final_loss']:.4f}",
            *(f"{row[metric]:.4f}" for metric in metrics),
            style="bold" if row["learning_rate"] is None else None,
        )
    console.print(table)
    tried = comparison.results[REFERENCE].tried
    console.print(
        f"Those with a learning rate stand at the best of {len(tried)} or more ({min(tried):.1e} to "
        f"{max(tried):.1e} for Adam), chosen by mean training loss on these same seeds.",
        highlight=False,
    )
    for name, result in comparison.results.items():
        if result.learning_rate is None:
            steps = comparison.steps_to_adam(name)
            reached = "never reached" if steps is None else f"reached after {steps} steps"
            console.print(
                f"{name} / best Adam, mean training loss: {comparison.ratio_to_adam(name):.3f}; "
                f"Adam's final loss is {reached}",
                highlight=False,
            )


def write_comparison(comparison: Comparison, folder: Path, extra: Mapping[str, Any]) -> list[Path]:
    """Write the pictures, and then ``summary.json``: where that is, the report is whole.

    Args:
      comparison: what was found.
      folder: where to; made if it is missing.
      extra: more entries for the summary.

    Returns:
      The pictures.
    """
    from meta_train.figures import draw_learning_rates, draw_training_curves

    folder.mkdir(parents=True, exist_ok=True)
    curves, rates = folder / "training_curves.png", folder / "learning_rates.png"
    draw_training_curves([comparison], curves)
    draw_learning_rates([comparison], rates)
    values = {**summary(comparison), **extra}
    write_whole(folder / "summary.json", json.dumps(values, indent=2, allow_nan=False) + "\n")
    return [curves, rates]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: np.ndarray) -> float | None:
    return _number(values.mean())


def _std(values: np.ndarray) -> float | None:
    return _number(values.std()) if np.isfinite(values).all() else None
