"""A comparison as a table, as JSON, and as the rows of a model card."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meta_train.report.baselines import label
from meta_train.report.comparison import REFERENCE, Comparison
from meta_train.report.evaluation import Result


def summary(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values; non-finite numbers are null."""
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


# Left out of a card, which must be the same on any machine.
_COSTS = ("step_seconds", "update_seconds", "state_bytes")


def card(comparison: Comparison, name: str) -> dict[str, Any]:
    """The model card of an optimizer: its results in a comparison, and those of the tuned optimizers."""
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
    """The values of each run that tables show, ``[seeds]``."""
    return {"mean_loss": result.runs.mean_loss, "final_loss": result.runs.final_loss, **result.runs.metrics}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the comparison as a table, with notes on how it was made."""
    criterion, seeds = comparison.criterion, f"{comparison.seeds} unseen seeds"
    title = f"{escape(comparison.task)}: {comparison.steps} steps, {seeds}, best {criterion.label} first"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    # A terminal has no room for all columns; accuracies are only in the files.
    columns = _shown(comparison.results[REFERENCE])
    shown = [key for key in columns if not key.endswith("accuracy") or key == criterion.metric]
    table.add_column("\noptimizer", overflow="fold")
    table.add_column("learning\nrate", justify="right", no_wrap=True)
    for column in shown:
        table.add_column(column.replace("_", "\n", 1), justify="right", no_wrap=True)
    table.add_column("ms per\nstep", justify="right", no_wrap=True)
    for name in comparison.ranking:
        result = comparison.results[name]
        table.add_row(
            escape(label(name)),
            f"{result.learning_rate:.2e}" if result.learning_rate else "-",
            *(with_error(_shown(result)[key]).replace(" ±", "\n±") for key in shown),
            f"{1e3 * comparison.step_seconds(name):.3g}",
            style=None if result.learning_rate else "bold",
        )
    console.print(table)
    tried = comparison.results[REFERENCE].tried
    fewest = min(len(result.tried) for result in comparison.results.values() if result.tried)
    console.print(
        f"± is the standard error over seeds. Each learning rate is the best of {fewest} or more "
        f"({min(tried):.1e} to {max(tried):.1e} for Adam) by {criterion.label}, on {comparison.seeds} other "
        "seeds.",
        highlight=False,
    )
    coarse = [
        f"{escape(label(name))} ({found.coarse})"
        for name, found in comparison.results.items()
        if found.coarse
    ]
    if coarse:
        console.print(
            f"The learning rates tried are too few or too far apart for {', '.join(coarse)}.",
            style="yellow",
            highlight=False,
        )
    for name, result in comparison.results.items():
        if not result.tried:
            console.print(
                f"{escape(name)}: {comparison.ratio_to_best(name):.3f} times the {criterion.label} of the "
                f"best tuned optimizer ({escape(label(comparison.best))}), "
                f"{comparison.ratio_to_adam(name):.3f} times that of Adam; speed-up to Adam's final training "
                f"loss: {shown_speed_up(comparison, name)}",
                highlight=False,
            )


def with_error(values: np.ndarray) -> str:
    """Mean over seeds and its standard error, if there is one, as tables show them."""
    error = standard_error(values)
    return f"{values.mean():.4f}" + (f" ± {error:.4f}" if np.isfinite(error) else "")


def shown_speed_up(comparison: Comparison, name: str) -> str:
    """The speed-up as tables show it; "never" if Adam's final loss is not reached."""
    speed_up = comparison.speed_up(name)
    return "never" if speed_up is None else f"{speed_up:.2f}x"


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean over seeds, NaN for a single seed or if a value is not finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return np.nan
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
