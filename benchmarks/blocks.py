"""Time of an update against the block size of the per-parameter networks, on a CPU.

    python benchmarks/blocks.py

The block sizes take turns in one run, for every architecture with a network and tensors of each size, with
one tensor per core as in meta-training. The package uses one size for all (`BLOCK_SIZE` in
`learned_opt/_src/architectures/tensors.py`), which was chosen from this table.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import tyro
from common import interleaved
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import learned_opt
from learned_opt._src.architectures import tensors
from meta_train.devices.choice import start_devices
from meta_train.report.costs import repeated_updates

NETWORKS = ("mlp", "metz2019", "small-fc", "celo2-style", "relative-mlp")
WORK = 2**20  # parameters times steps in a turn


@dataclass(frozen=True)
class Arguments:
    """Nanoseconds per parameter of an update, for several block sizes."""

    optimizers: tuple[str, ...] = NETWORKS
    """Architectures."""
    parameters: tuple[int, ...] = (25_000, 400_000)
    """Sizes of the tensor."""
    sizes: tuple[int, ...] = (128, 256, 512, 1_024, 2_048, 4_096, 1_000_000)
    """Block sizes; one larger than the tensor means no blocks at all."""
    rounds: int = 7
    """Number of times that everything is timed."""


def main() -> None:
    """Print the table."""
    arguments = tyro.cli(Arguments)
    devices = start_devices()
    table = Table(title=f"ns per parameter of an update on each of {devices} devices", box=SIMPLE_HEAD)
    for column in ("optimizer", "parameters", *(f"{size:,}" for size in arguments.sizes)):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for name in arguments.optimizers:
        for count in arguments.parameters:
            turns = {str(size): _updates(name, count, size, devices) for size in arguments.sizes}
            title = f"{name}, {count:,} parameters"
            seconds = interleaved(turns, arguments.rounds, Console(stderr=True), title)
            medians = [statistics.median(x) / _steps(count) / count * 1e9 for x in seconds.values()]
            best = min(medians)
            cells = [f"[bold]{x:.1f}[/bold]" if x < 1.02 * best else f"{x:.1f}" for x in medians]
            table.add_row(name, f"{count:,}", *cells)
    Console(width=140).print(table)


def _steps(count: int) -> int:
    return max(1, WORK // count)


def _updates(name: str, count: int, size: int, devices: int) -> Callable[[], object]:
    """A function that runs some updates of a tensor on each device, in blocks of this size."""
    optimizer = learned_opt.get_architecture(name)
    theta = optimizer.init_theta(jax.random.key(0), 1)
    params = jax.random.normal(jax.random.key(1), (devices, count // 100, 100))

    def run(theta: Any, params: jax.Array) -> jax.Array:
        tensors.BLOCK_SIZE = size  # read once, when the program is traced
        return repeated_updates(optimizer, theta, params, optimizer.init(params), _steps(count))

    mapped = jax.pmap(run, in_axes=(None, 0))
    return lambda: jax.block_until_ready(mapped(theta, params))


if __name__ == "__main__":
    main()
