"""A suite of comparisons on several tasks: tables and JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meta_train.report.baselines import label
from meta_train.report.comparison import REFERENCE, Comparison
from meta_train.report.tables import print_comparison, shown_speed_up, summary, with_error


def as_json(suite: Sequence[Comparison]) -> dict[str, Any]:
    """The suite as JSON values: each comparison, and each optimizer over all tasks."""
    return {
        "comparisons": [summary(comparison) for comparison in suite],
        "overall": {name: overall(suite, name) for name in suite[0].results},
    }


def overall(suite: Sequence[Comparison], name: str) -> dict[str, Any]:
    """One optimizer over all tasks: how often it beats the tuned ones, by how much, and at what cost."""
    to_best = np.array([comparison.ratio_to_best(name) for comparison in suite])
    to_adam = np.array([comparison.ratio_to_adam(name) for comparison in suite])
    time, memory = np.median([comparison.relative_cost(name) for comparison in suite], axis=0)
    return {
        "tasks": len(suite),
        "better_than_best": int((to_best < 1).sum()),
        "better_than_adam": int((to_adam < 1).sum()),
        "reached_adam": sum(comparison.steps_to_adam(name) is not None for comparison in suite),
        "failed": sum(comparison.failed(name) for comparison in suite),
        "ratio_to_best": _number(geometric_mean(to_best)),
        "ratio_to_adam": _number(geometric_mean(to_adam)),
        "time_to_adam": float(time),
        "memory_to_adam": float(memory),
    }


def geometric_mean(ratios: Iterable[float]) -> float:
    """The geometric mean; not finite if a ratio is not. The mean of one ratio is that ratio, to the bit."""
    values = np.array([*ratios])
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.exp(np.log(values).mean()) if len(values) > 1 else values[0])


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def print_suite(suite: Sequence[Comparison], console: Console) -> None:
    """Print the comparison on each task, and if there are several, the tables over all of them."""
    for comparison in suite:
        print_comparison(comparison, console)
    if len(suite) > 1:
        print_overall(suite, console)


def print_overall(suite: Sequence[Comparison], console: Console) -> None:
    """Print two tables: the ratios by task and optimizer, and each optimizer over all tasks."""
    names = [name for name in suite[0].results if name != REFERENCE]
    ratios = Table(
        title=f"{suite[0].criterion.label}: ratio to the best tuned one, ratio to tuned Adam, speed-up",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    ratios.add_column("task", overflow="fold")
    for name in names:
        # A line for each word keeps the columns of many optimizers narrow enough for a terminal.
        words = re.findall("[^ -]+-?", label(name))
        ratios.add_column(escape("\n".join(words)), justify="right", no_wrap=True)
    for comparison in suite:
        cells = (
            f"{comparison.ratio_to_best(name):.3f}\n{comparison.ratio_to_adam(name):.3f}\n"
            f"{shown_speed_up(comparison, name)}"
            for name in names
        )
        ratios.add_row(f"{escape(comparison.task)}\n{comparison.steps} steps", *cells)
    console.print(ratios)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("\n\nover all tasks", overflow="fold")
    for column in (
        "better\nthan\nbest",
        "better\nthan\nAdam",
        "\n\nfailed",
        "ratio\nto\nbest",
        "ratio\nto\nAdam",
        "time\nvs\nAdam",
        "memory\nvs\nAdam",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for name in names:
        found = overall(suite, name)
        table.add_row(
            escape(label(name)),
            f"{found['better_than_best']} of {found['tasks']}",
            f"{found['better_than_adam']} of {found['tasks']}",
            str(found["failed"]),
            *(
                "-" if found[key] is None else f"{found[key]:.3f}"
                for key in ("ratio_to_best", "ratio_to_adam")
            ),
            f"{found['time_to_adam']:.1f}",
            f"{found['memory_to_adam']:.1f}",
        )
    console.print(table)


def table(suite: Sequence[Comparison]) -> Iterable[list[str]]:
    """A row for every task and optimizer, best first."""
    metrics = list(dict.fromkeys(m for c in suite for r in c.results.values() for m in r.runs.metrics))
    columns = ["task", "steps", "optimizer", "learning rate", "ratio to the best", "ratio to Adam"]
    columns += ["mean loss", "final loss", *metrics, "speed-up", "seconds per step"]
    columns += ["update time relative to Adam's", "state memory relative to Adam's"]
    yield columns
    yield ["---"] * len(columns)
    for comparison in suite:
        for name in comparison.ranking:
            runs, rate, _ = comparison.results[name]
            time, memory = comparison.relative_cost(name)
            yield [
                comparison.task,
                str(comparison.steps),
                label(name),
                f"{rate:.2e}" if rate else "",
                f"{comparison.ratio_to_best(name):.3f}",
                f"{comparison.ratio_to_adam(name):.3f}",
                with_error(runs.mean_loss),
                with_error(runs.final_loss),
                *(with_error(runs.metrics[m]) if m in runs.metrics else "" for m in metrics),
                shown_speed_up(comparison, name),
                f"{comparison.step_seconds(name):.2e}",
                f"{time:.1f}",
                f"{memory:.1f}",
            ]
