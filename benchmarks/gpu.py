"""The fused update on a GPU against its bounds and the unfused formulation, and meta-training with either.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --particles 256 --bandwidth 3.35 --flops 67

The bounds, per parameter and step, are 60 bytes and 2,688 floating-point operations in float32, at the rates
of the card: those of an H200 (SXM) unless others are given. On a machine without a GPU it says so and ends.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import tyro
from common import configured, interleaved, spread, updating
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import learned_opt
from inner_tasks import find_task
from learned_opt._src import per_tensor
from meta_train.costs import repeated_updates
from meta_train.run import prepare

BYTES, OPERATIONS = 60, 2_688
STEPS = 50
TRUNCATION = 20


@dataclass(frozen=True)
class Arguments:
    """The update of the mlp optimizer on a GPU."""

    task: str = "cifar10-mlp"
    """Inner task."""
    particles: int = 64
    """Particles that are updated at once."""
    bandwidth: float = 4.8
    """Of the card's memory, TB/s."""
    flops: float = 67.0
    """Of the card in plain float32, TFLOP/s."""
    rounds: int = 11
    """How often everything is timed."""
    out: Path | None = None
    """JSON file for the figures."""


def main() -> None:
    """Print both tables."""
    arguments = tyro.cli(Arguments)
    console = Console()
    if jax.default_backend() != "gpu":
        console.print(f"there is no GPU here: JAX runs on {jax.default_backend()}")
        return
    progress = Console(stderr=True)
    bytes_bound, flops_bound = BYTES / arguments.bandwidth, OPERATIONS / arguments.flops
    updates = {
        f"{kind}, {precision}": _updates(arguments, kind == "kernel", precision)
        for kind in ("kernel", "unfused")
        for precision in ("float32", "tensorfloat32")
    }
    seconds = interleaved(
        {name: turn for name, (turn, _) in updates.items()}, arguments.rounds, progress, "update"
    )
    found: dict[str, Any] = {"device": jax.devices()[0].device_kind, "update": {}, "rate": {}}
    table = Table(
        title=f"an update of {arguments.particles} particles of {arguments.task}, {found['device']}",
        box=SIMPLE_HEAD,
    )
    for column in ("", "ps per parameter", "share of its bound", "GB/s", "TFLOP/s"):
        table.add_column(column, justify="right" if column else "left")
    for name, (_, count) in updates.items():
        picoseconds = [s / STEPS / arguments.particles / count * 1e12 for s in seconds[name]]
        found["update"][name] = picoseconds
        # In tf32 the products take less than the bytes.
        bound = max(bytes_bound, flops_bound) if name.endswith(" float32") else bytes_bound
        middle = statistics.median(picoseconds)
        table.add_row(
            name,
            spread(picoseconds, ".1f"),
            f"{bound / middle:.0%} of {bound:.1f}",
            f"{1e3 * BYTES / middle:,.0f}",
            f"{OPERATIONS / middle:.1f}",
        )
    console.print(table)

    turns = {kind: _meta_training(arguments, kind == "kernel") for kind in ("kernel", "unfused")}
    seconds = interleaved(turns, arguments.rounds, progress, "meta-training")
    table = Table(title=f"meta-training, {arguments.particles} particles, K = {TRUNCATION}", box=SIMPLE_HEAD)
    for column in ("", "particle-steps/s"):
        table.add_column(column, justify="right" if column else "left")
    for kind, taken in seconds.items():
        found["rate"][kind] = [arguments.particles * TRUNCATION / s for s in taken]
        table.add_row(kind, spread(found["rate"][kind]))
    console.print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


def _choose(kernel: bool) -> None:
    """Let all that is traced from now on run the kernel, or not."""
    per_tensor._fits_kernel = lambda *_: kernel
    jax.clear_caches()


def _updates(arguments: Arguments, kernel: bool, precision: str) -> tuple[Callable[[], object], int]:
    """A function that makes some updates of all particles, and the number of parameters of one."""
    task = find_task(arguments.task)
    keys = jax.random.split(jax.random.key(0), arguments.particles)
    params = jax.vmap(task.build(task.settings).init)(keys)
    optimizer = learned_opt.get_optimizer("mlp")
    theta = jax.vmap(optimizer.init_theta, in_axes=(0, None))(keys, 1)

    def run(theta: Any, params: Any, state: Any) -> Any:
        return repeated_updates(optimizer, theta, params, state, STEPS)

    _choose(kernel)
    with jax.default_matmul_precision(precision):
        state = jax.vmap(optimizer.init)(params)
        compiled = jax.jit(jax.vmap(run)).lower(theta, params, state).compile()
    count = sum(x.size for x in jax.tree.leaves(params)) // arguments.particles
    return lambda: jax.block_until_ready(compiled(theta, params, state)), count


def _meta_training(arguments: Arguments, kernel: bool) -> Callable[[], None]:
    """A function that makes one update of meta-training."""
    _choose(kernel)
    turn = updating(prepare(configured(arguments.task, particles=arguments.particles, truncation=TRUNCATION)))
    turn()  # compiles, as chosen
    return turn


if __name__ == "__main__":
    main()
