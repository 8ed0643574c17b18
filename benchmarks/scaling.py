"""Time and memory of an update over T, K, particles, parameters and devices.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --out scaling

One setting of the default run is varied at a time. The timed updates take turns in one run; memory is the
compiler's plan for each device, which holds for any number of updates.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import tyro
from common import configured, interleaved, updating
from matplotlib.ticker import LogLocator, NullFormatter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from meta_train.report.figures import STYLE
from meta_train.run.setup import prepare

NAMES = {"horizon": "horizon T", "truncation": "truncation length K", "hidden": "parameters"}
BASE = {"horizon": 200, "truncation": 20, "particles": 16, "hidden": (32,)}


@dataclass(frozen=True)
class Arguments:
    """Time and memory of an update as the sizes of a run grow."""

    task: str = "digits-mlp"
    """Inner task."""
    rounds: int = 15
    """Number of times that everything is timed."""
    out: Path | None = None
    """Folder for scaling.png and scaling.json."""


def main() -> None:
    """Print the table, and draw it."""
    arguments = tyro.cli(Arguments)
    console = Console()
    devices = prepare(configured(arguments.task, **BASE)).devices
    axes: dict[str, Sequence[Any]] = {
        "horizon": (200, 2_000, 20_000),
        "truncation": (10, 20, 50, 100),
        "particles": (4, 8, 16, 32, 64),
        "hidden": ((8,), (32,), (128,), (512,)),
        "devices": tuple(n for n in range(1, devices + 1) if 8 % n == 0),
    }
    found = {axis: _along(arguments, axis, values) for axis, values in axes.items()}
    table = Table(title=f"an update of PES on {arguments.task}", box=SIMPLE_HEAD)
    for column in ("varied", "", "ms", "of the first", "memory of a device", "of the first"):
        table.add_column(column, justify="left" if column == "varied" else "right")
    for axis, points in found.items():
        first = points[0]
        for point in points:
            table.add_row(
                NAMES.get(axis, axis),
                f"{point['value']:,}",
                f"{point['seconds'] * 1e3:.1f}",
                f"{point['seconds'] / first['seconds']:.2f}",
                decimal(point["bytes"]),
                f"{point['bytes'] / first['bytes']:.3f}",
            )
    console.print(table)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "scaling.json").write_text(json.dumps(found, indent=2) + "\n")
        _draw(found, arguments.out / "scaling.png")


def _along(arguments: Arguments, axis: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    """Time and memory at each value of one setting."""
    setups = {value: prepare(configured(arguments.task, **BASE | {axis: value})) for value in values}
    turns = {str(value): updating(setup) for value, setup in setups.items()}
    seconds = interleaved(turns, arguments.rounds, Console(stderr=True), axis)
    points = []
    for value, setup in setups.items():
        theta = jax.eval_shape(setup.training.init_theta, jax.random.key(0))
        params = jax.tree.leaves(jax.eval_shape(setup.training.task.init, jax.random.key(0)))
        points.append(
            {
                "value": sum(x.size for x in params) if axis == "hidden" else value,
                "seconds": statistics.median(seconds[str(value)]),
                "bytes": sum(setup.population.memory(theta)),
            }
        )
    return points


def _draw(found: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw time above memory, a column for each setting."""
    with plt.rc_context(STYLE):
        figure, rows = plt.subplots(2, len(found), figsize=(3 * len(found), 5), sharey="row")
        for (axis, points), time, memory in zip(found.items(), *rows, strict=True):
            values = [point["value"] for point in points]
            time.plot(values, [1e3 * point["seconds"] for point in points], "o-")
            memory.plot(values, [point["bytes"] / 2**20 for point in points], "o-")
            memory.set_xlabel(NAMES.get(axis, axis))
            for each in (time, memory):
                each.set_xscale("log")
                each.set_yscale("log")
                each.set_xticks(values, [f"{value:,}" for value in values])
                each.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
                each.yaxis.set_major_formatter("{x:g}")
                each.yaxis.set_minor_formatter(NullFormatter())
                each.xaxis.minorticks_off()
        rows[0][0].set_ylabel("ms an update")
        rows[1][0].set_ylabel("MiB of a device")
        figure.tight_layout()
        figure.savefig(path)
        plt.close(figure)


if __name__ == "__main__":
    main()
