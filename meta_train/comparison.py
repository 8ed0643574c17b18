"""What the comparison found, and how it is shown: a table, a JSON summary, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from inner_tasks import Training
from learned_opt.base import Theta
from meta_train.evaluation import BASELINES, LEARNING_RATES, Runs, Tuned, run_learned, tune

NAMES = {"adam": "Adam", "adamw": "AdamW", "sgdm": "SGD, momentum", "rmsprop": "RMSProp"}


class Comparison(NamedTuple):
    """A learned optimizer and tuned baselines on the same seeds."""

    task: str
    steps: int
    learned: Runs
    baselines: dict[str, Tuned]

    @property
    def ratio_to_adam(self) -> float:
        """Mean training loss of the learned optimizer over that of tuned Adam."""
        adam = self.baselines["adam"].runs
        return float(self.learned.mean_loss.mean() / adam.mean_loss.mean())


def learning_rates(count: int) -> np.ndarray:
    """The grid of learning rates: `count` of them, from the lowest to the highest of the full one."""
    return np.logspace(np.log10(LEARNING_RATES[0]), np.log10(LEARNING_RATES[-1]), count)


def compare(
    task: str,
    training: Training,
    theta: Theta,
    *,
    seeds: int,
    rates: Sequence[float],
    devices: int,
    chunk: int,
    before_each: Callable[[str], None],
) -> Comparison:
    """Run the learned optimizer and every baseline.

    Args:
      task: name of the task, for the report.
      training: the task and the learned optimizer; its horizon is the number of steps.
      theta: weights of the learned optimizer.
      seeds: number of seeds, the same for all.
      rates: learning rates to try for each baseline.
      devices: devices to spread the runs over.
      chunk: runs that one device works on at once.
      before_each: called with the name of what is run next.
    """
    before_each("the learned optimizer")
    learned = run_learned(training, theta, seeds, devices=devices, chunk=chunk)
    baselines = {}
    for name in BASELINES:
        before_each(NAMES[name])
        baselines[name] = tune(training, name, seeds, rates, devices=devices, chunk=chunk)
    return Comparison(task, training.horizon, learned, baselines)


def summary(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values; a loss that is not finite is null."""

    def measured(runs: Runs) -> dict[str, Any]:
        values = {
            "mean_loss": _mean(runs.mean_loss),
            "mean_loss_std": _std(runs.mean_loss),
            "final_loss": _mean(runs.final_loss),
            "final_loss_std": _std(runs.final_loss),
        }
        for name, value in runs.metrics.items():
            values |= {name: _mean(value), f"{name}_std": _std(value)}
        return values

    baselines = {
        name: {
            "learning_rate": tuned.learning_rate,
            **measured(tuned.runs),
            "tried": [
                {"learning_rate": rate, "mean_loss": loss if np.isfinite(loss) else None}
                for rate, loss in tuned.tried.items()
            ],
        }
        for name, tuned in comparison.baselines.items()
    }
    return {
        "task": comparison.task,
        "steps": comparison.steps,
        "seeds": comparison.learned.losses.shape[0],
        "ratio_to_adam": _number(comparison.ratio_to_adam),
        "learned": measured(comparison.learned),
        "baselines": baselines,
    }


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The comparison as the rows of a table, best mean loss first."""

    def row(name: str, rate: float | None, runs: Runs) -> dict[str, Any]:
        return {
            "optimizer": name,
            "learning_rate": rate,
            "mean_loss": float(runs.mean_loss.mean()),
            "mean_loss_std": float(runs.mean_loss.std()),
            "final_loss": float(runs.final_loss.mean()),
            **{metric: float(value.mean()) for metric, value in runs.metrics.items()},
        }

    tuned = comparison.baselines.items()
    table = [row("learned", None, comparison.learned)]
    table += [row(NAMES[name], t.learning_rate, t.runs) for name, t in tuned]
    return sorted(table, key=lambda r: r["mean_loss"])


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The comparison as a table in the terminal, with what it rests on."""
    seeds = comparison.learned.losses.shape[0]
    title = f"{comparison.task}: training loss over {comparison.steps} steps, {seeds} unseen seeds"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    metrics = list(comparison.learned.metrics)
    table.add_column("\noptimizer", no_wrap=True)
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
    tried = comparison.baselines["adam"].tried
    console.print(
        f"Each baseline at the best of {len(tried)} learning rates or more ({min(tried):.1e} to "
        f"{max(tried):.1e} for Adam), chosen by mean training loss on these same seeds.\n"
        f"Learned / best Adam, mean training loss: {comparison.ratio_to_adam:.3f}",
        highlight=False,
    )


def write_comparison(comparison: Comparison, folder: Path, extra: dict[str, Any]) -> list[Path]:
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
    draw_training_curves(comparison, curves)
    draw_learning_rates(comparison, rates)
    text = json.dumps(summary(comparison) | extra, indent=2, allow_nan=False) + "\n"
    partial = folder / "summary.json.partial"
    partial.write_text(text)
    partial.replace(folder / "summary.json")
    return [curves, rates]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: np.ndarray) -> float | None:
    return _number(values.mean())


def _std(values: np.ndarray) -> float | None:
    return _number(values.std()) if np.isfinite(values).all() else None
