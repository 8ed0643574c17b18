"""Comparisons on several tasks as one: the tables, the JSON, the pictures of `learned-opt evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from learned_opt._src.files import write_whole
from meta_train.comparison import NAMES, REFERENCE, Comparison, summary
from meta_train.costs import Cost


class Judged(NamedTuple):
    """Optimizers on one task: how well they train it, and what they cost there."""

    comparison: Comparison
    costs: dict[str, Cost]

    def relative_cost(self, name: str) -> tuple[float, float]:
        """Time and memory of an optimizer's step over those of Adam's."""
        own, adam = self.costs[name], self.costs[REFERENCE]
        return own.seconds / adam.seconds, own.state_bytes / adam.state_bytes


def as_json(suite: Sequence[Judged]) -> dict[str, Any]:
    """All of it as JSON values: each comparison with its costs, and each optimizer over all tasks."""
    comparisons = []
    for comparison, costs in suite:
        found = summary(comparison)
        for name, values in found["optimizers"].items():
            values["update_seconds"], values["state_bytes"] = costs[name]
        comparisons.append(found)
    return {"comparisons": comparisons, "overall": {name: overall(suite, name) for name in suite[0].costs}}


def overall(suite: Sequence[Judged], name: str) -> dict[str, Any]:
    """An optimizer over all tasks: how often it beats tuned Adam, by how much, and at what cost."""
    comparisons = [judged.comparison for judged in suite]
    ratios = np.array([comparison.ratio_to_adam(name) for comparison in comparisons])
    mean = float(np.exp(np.log(ratios).mean()))
    time, memory = np.median([judged.relative_cost(name) for judged in suite], axis=0)
    return {
        "tasks": len(suite),
        "better_than_adam": int((ratios < 1).sum()),
        "reached_adam": sum(comparison.steps_to_adam(name) is not None for comparison in comparisons),
        "failed": sum(comparison.failed(name) for comparison in comparisons),
        "ratio_to_adam": mean if np.isfinite(mean) else None,
        "time_to_adam": float(time),
        "memory_to_adam": float(memory),
    }


def print_overall(suite: Sequence[Judged], console: Console) -> None:
    """Two tables: the ratio to tuned Adam by task and optimizer, and each optimizer over all tasks."""
    names = [name for name in suite[0].costs if name != REFERENCE]
    ratios = Table(
        title="mean training loss over tuned Adam's, and times as fast to Adam's final loss",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    ratios.add_column("task")
    ratios.add_column("steps", justify="right")
    for name in names:
        ratios.add_column(NAMES.get(name, name), justify="right", overflow="fold")
    for comparison, _ in suite:
        cells = (f"{comparison.ratio_to_adam(name):.3f} {speed_up(comparison, name):>6}" for name in names)
        ratios.add_row(comparison.task, str(comparison.steps), *cells)
    console.print(ratios)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("over all tasks", overflow="fold")
    for column in (
        "better\nthan Adam",
        "failed",
        "geometric\nmean ratio",
        "time of an\nupdate",
        "state\nmemory",
    ):
        table.add_column(column, justify="right")
    for name in names:
        found = overall(suite, name)
        ratio = found["ratio_to_adam"]
        table.add_row(
            NAMES.get(name, name),
            f"{found['better_than_adam']} of {found['tasks']}",
            str(found["failed"]),
            "-" if ratio is None else f"{ratio:.3f}",
            f"{found['time_to_adam']:.1f} x Adam's",
            f"{found['memory_to_adam']:.1f} x Adam's",
        )
    console.print(table)


def speed_up(comparison: Comparison, name: str) -> str:
    """How many times as fast as tuned Adam an optimizer comes to Adam's final loss."""
    steps = comparison.steps_to_adam(name)
    return "never" if steps is None else f"{comparison.steps / steps:.2f}x"


def write_suite(suite: Sequence[Judged], folder: Path) -> None:
    """Write ``table.md``, ``training_curves.png``, ``learning_rates.png`` and ``ratios.png``."""
    from meta_train.figures import draw_learning_rates, draw_ratios, draw_training_curves

    comparisons = [judged.comparison for judged in suite]
    draw_training_curves(comparisons, folder / "training_curves.png")
    draw_learning_rates(comparisons, folder / "learning_rates.png")
    draw_ratios(comparisons, folder / "ratios.png")
    (folder / "table.md").write_text("".join(f"| {' | '.join(row)} |\n" for row in _table(suite)))


def write_so_far(suite: Sequence[Judged], folder: Path) -> None:
    """Write ``evaluation.json``."""
    text = json.dumps(as_json(suite), indent=2, allow_nan=False) + "\n"
    write_whole(folder / "evaluation.json", text)


def _table(suite: Sequence[Judged]) -> Iterable[list[str]]:
    """A row for every task and optimizer."""
    metrics = list(dict.fromkeys(m for c, _ in suite for r in c.results.values() for m in r.runs.metrics))
    columns = ["task", "steps", "optimizer", "learning rate", "mean loss", "ratio to Adam", "final loss"]
    columns += ["speed-up", *metrics, "time of an update, of Adam's", "state memory, of Adam's"]
    yield columns
    yield ["---"] * len(columns)
    for judged in suite:
        comparison = judged.comparison
        for name, (runs, rate, _) in comparison.results.items():
            time, memory = judged.relative_cost(name)
            yield [
                comparison.task,
                str(comparison.steps),
                NAMES.get(name, name),
                f"{rate:.2e}" if rate else "",
                f"{runs.mean_loss.mean():.4f}",
                f"{comparison.ratio_to_adam(name):.3f}",
                f"{runs.final_loss.mean():.4f}",
                speed_up(comparison, name),
                *(f"{runs.metrics[m].mean():.4f}" if m in runs.metrics else "" for m in metrics),
                f"{time:.1f}",
                f"{memory:.1f}",
            ]
