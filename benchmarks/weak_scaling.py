"""Time of an update as devices are added, each with its own particles; and on two processes instead of one.

    python benchmarks/weak_scaling.py

The devices are simulated: they share the cores of this machine. With more devices than cores the time of an
update should be proportional to the devices for each core. What is missing from that is the price of an
update that spans devices.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from common import configured, interleaved, spread, updating
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from meta_train.run.folder import read_metrics
from meta_train.run.setup import prepare

FIRST = 5  # updates of a process that are not timed


@dataclass(frozen=True)
class Arguments:
    """Weak scaling over simulated devices and over processes."""

    task: str = "digits-mlp"
    """Inner task."""
    particles: int = 16
    """Particles of each device."""
    devices: tuple[int, ...] = (8, 4, 2, 1)
    """Numbers of devices, the largest first."""
    rounds: int = 15
    """Number of times that everything is timed."""
    updates: int = 60
    """Updates of the runs with one and two processes."""


def main() -> None:
    """Print the tables."""
    arguments = tyro.cli(Arguments)
    console, progress = Console(), Console(stderr=True)
    cores = len(os.sched_getaffinity(0))
    own = dict(task=arguments.task, chunk=1)
    setups = {
        n: prepare(configured(**own, devices=n, particles=n * arguments.particles)) for n in arguments.devices
    }
    turns = {f"{n}": updating(setup) for n, setup in setups.items()}
    taken = interleaved(turns, arguments.rounds, progress, "devices")
    table = Table(title=f"{arguments.particles} particles a device, {cores} cores", box=SIMPLE_HEAD)
    for column in ("devices", "particles", "ms an update", "ms for each device of a core"):
        table.add_column(column, justify="right")
    for n in sorted(arguments.devices):
        seconds = taken[f"{n}"]
        shares = [1e3 * s / max(1, n / cores) for s in seconds]
        row = (f"{n}", f"{n * arguments.particles}", spread([1e3 * s for s in seconds], ".1f"))
        table.add_row(*row, spread(shares, ".1f"))
    console.print(table)

    table = Table(title=f"{2 * arguments.particles} particles on two devices", box=SIMPLE_HEAD)
    for column in ("processes", "ms an update"):
        table.add_column(column, justify="right")
    for processes in (1, 2):
        table.add_row(f"{processes}", spread([1e3 * s for s in _run(arguments, processes)], ".1f"))
    console.print(table)


def _run(arguments: Arguments, processes: int) -> list[float]:
    """Seconds of an update in a run with two devices and this many processes: the three quartiles."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        flags = (
            f"--task {arguments.task} --estimator.particles {2 * arguments.particles} --devices 2 --chunk 1 "
            f"--updates {arguments.updates} --wandb disabled --evaluation.seeds 1 --evaluation.steps 10 "
            f"--evaluation.learning-rates 2 --run-dir {folder}"
        ).split()
        started = []
        for number in range(processes):
            where = f"--coordinator localhost:{port} --processes {processes} --process-id {number}".split()
            command = [sys.executable, "-m", "meta_train", *flags, *(where if processes > 1 else [])]
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        if any(process.wait() for process in started):
            raise SystemExit(f"the run with {processes} processes failed")
        seconds = [record["seconds"] for record in read_metrics(folder / "metrics.jsonl")]
    return statistics.quantiles(seconds[FIRST:], n=4)


if __name__ == "__main__":
    main()
