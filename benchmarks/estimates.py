"""The estimates of ``meta-train --estimate``, compared with measurements of the same runs.

    python benchmarks/estimates.py

Each estimate and each run has its own process. The measured memory of a run is the growth of its process when
the data is loaded, plus its peak growth during learning after everything is compiled, because the estimate
does not include the compiler. This needs Linux with glibc, which records the peak memory of a process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro
from common import configured
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.progress import track
from rich.table import Table

from meta_train.devices.choice import start_devices
from meta_train.outer.loop import initial_state, outer_loop
from meta_train.outer.optimizers import outer_optimizer
from meta_train.run.config import Config
from meta_train.run.estimate import estimate
from meta_train.run.setup import Setup, prepare

RUNS = {
    "digits-mlp, 2,048 hidden units, 64 particles": dict(task="digits-mlp", hidden=(2_048,), particles=64),
    "mnist-mlp, 512 particles": dict(task="mnist-mlp", particles=512, truncation=10),
    "cifar10-mlp, 64 particles": dict(task="cifar10-mlp", particles=64, truncation=5),
}
FIRST = 1  # updates that are not timed


@dataclass(frozen=True)
class Arguments:
    """Estimated and measured memory and time of three runs."""

    seconds: float = 60
    """Approximate time for which each run is measured."""
    run: str | None = None
    """(internal) name of the run of this process."""
    measured: bool = False
    """(internal) measure the run instead of estimating it."""


def main() -> None:
    """Print the table."""
    arguments = tyro.cli(Arguments)
    if arguments.run:
        config = configured(**RUNS[arguments.run])
        found = _measure(config, arguments.seconds) if arguments.measured else _estimate(config)
        print(json.dumps(found))
        return
    table = Table(title="estimated and measured", box=SIMPLE_HEAD)
    for column in ("run", "memory", "measured", "ratio", "s an update", "measured", "ratio"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for name in track(RUNS, console=Console(stderr=True)):
        estimated, measured = (_child(name, arguments.seconds, flags) for flags in ([], ["--measured"]))
        table.add_row(
            name,
            decimal(estimated["bytes"]),
            decimal(measured["bytes"]),
            f"{estimated['bytes'] / measured['bytes']:.2f}",
            f"{estimated['seconds']:.3g}",
            f"{measured['seconds']:.3g}",
            f"{estimated['seconds'] / measured['seconds']:.2f}",
        )
    Console().print(table)


def _child(name: str, seconds: float, flags: list[str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--run", name, "--seconds", str(seconds), *flags]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _estimate(config: Config) -> dict[str, float]:
    setup = prepare(config)
    found = estimate(config, setup)
    return {"bytes": setup.devices * sum(found.memory), "seconds": found.seconds}


def _measure(config: Config, seconds: float) -> dict[str, float]:
    start_devices()
    jax.block_until_ready(jax.jit(lambda: jax.random.normal(jax.random.key(0)))())  # JAX has started
    before = _memory("VmRSS")
    setup = prepare(config)
    data = _memory("VmRSS") - before
    _learn(config, setup, 0)  # everything is compiled
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the record of peak memory
    taken = _learn(config, setup, seconds)[FIRST:]
    return {"bytes": data + _memory("VmHWM") - before, "seconds": statistics.mean(taken)}


def _learn(config: Config, setup: Setup, seconds: float) -> list[float]:
    """Run updates for this long, but at least a few, and return their times. All their memory is freed."""
    key, tx = jax.random.key(0), outer_optimizer(config.outer, config.updates)
    state = initial_state(setup.population, tx, setup.training.init_theta(key), key)
    taken, began = [], time.monotonic()
    for update in outer_loop(setup.population, tx, state, 0, config.updates):
        taken.append(update.seconds)
        if time.monotonic() - began > seconds and len(taken) > FIRST:
            break
    del state, update
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return taken


def _memory(name: str) -> int:
    """Memory of this process in bytes: VmRSS, the current, or VmHWM, the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
